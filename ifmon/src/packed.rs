//! Maps of thousands of watches, kept small.

use std::collections::BTreeMap;

/// Adds entries to a map: many at once to a new one, whose nodes are full. One by one and in order,
/// as names mostly come, they would stay half empty.
pub(crate) fn extend<K: Ord, V>(map: &mut BTreeMap<K, V>, entries: Vec<(K, V)>) {
    if entries.len() < map.len() {
        map.extend(entries);
    } else {
        map.append(&mut entries.into_iter().collect());
    }
}

/// Builds a map again that was filled one by one.
pub(crate) fn repack<K: Ord, V>(map: &mut BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}
