//! What one message means; what many do is for the simulator.

use super::*;

fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a valid name")
}

fn new(ifindex: u32, name: InterfaceName) -> LinkMessage {
    LinkMessage::New {
        ifindex,
        name,
        kind: None,
    }
}

fn watching(name: InterfaceName) -> DeviceTable {
    let mut table = DeviceTable::new(NetnsId(1));
    table.add([name].into_iter());
    table
}

fn hear(table: &mut DeviceTable, message: &LinkMessage) -> Transition {
    match table.message(message) {
        Heard::Transition(transition) => transition,
        heard @ Heard::Newcomer { .. } => panic!("{heard:?}"),
    }
}

/// After a loss it can be another device's name: the device was deleted, and one with its index
/// made. That is no rename.
#[test]
fn another_name_after_a_loss_is_left_to_the_look_up() {
    let watched = name("wg0");
    let mut table = watching(watched);
    assert!(hear(&mut table, &new(7, watched)).took.is_some());

    assert_eq!(table.begin_lookup(watched), Some(7));
    table.looks_at(watched, 7);
    assert!(table.is_clean(watched));
    let other = new(7, name("wg1"));
    assert_eq!(table.doubt(&new(7, watched)), None);
    assert_eq!(table.doubt(&other), Some([Some(watched), None]));
    assert!(!table.is_clean(watched), "what was looked up is older");
    assert_eq!(table.holder(watched).map(|device| device.ifindex), Some(7));

    // Without a loss it is a rename.
    assert!(hear(&mut table, &other).left.is_some());
}

/// It may have been deleted before its inode was read, and another device have its index. That is told
/// as a rename; but who takes the name then does not return.
#[test]
fn a_device_that_was_never_looked_at_does_not_return() {
    let watched = name("wg0");
    let mut table = watching(watched);
    let took = |table: &mut DeviceTable| {
        hear(table, &new(7, watched))
            .took
            .map(|took| took.device.id)
    };
    let first = took(&mut table);
    assert_eq!(table.begin_lookup(watched), Some(7));
    table.looks_at(watched, 7);
    let lookup = Lookup {
        away: Some((name("wg1"), NonZeroU64::new(5))),
        ..Lookup::default()
    };
    let (observed, changed) = table.enter(watched, &lookup);
    let (_, place) = observed.away.expect("it is elsewhere");
    assert_eq!((place.name, changed), (Some(name("wg1")), true));
    let second = took(&mut table);
    assert!(second.is_some() && second != first, "{second:?}");
}

/// Two devices never have one name: how the first lost it was not heard.
#[test]
fn a_name_that_its_holder_never_left_shows_a_missed_message() {
    let watched = name("wg0");
    let mut table = watching(watched);
    let missed = |table: &mut DeviceTable, ifindex| {
        let Transition { left, took, .. } = hear(table, &new(ifindex, watched));
        assert_eq!(left, None);
        took.map(|taken| taken.missed)
    };
    assert_eq!(missed(&mut table, 7), Some(false));
    assert_eq!(missed(&mut table, 8), Some(true));
    assert_eq!(missed(&mut table, 8), None);
}

/// The filter may not know the index yet when a device is renamed, and drops that; the deletion
/// says its last name.
#[test]
fn a_rename_that_was_not_heard_shows_in_the_deletion() {
    let watched = name("wg0");
    let left_to = |last| {
        let mut table = watching(watched);
        hear(&mut table, &new(7, watched));
        let deleted = LinkMessage::Deleted {
            ifindex: 7,
            name: last,
            kind: None,
            moved: None,
        };
        match hear(&mut table, &deleted).left {
            Some(Change::Left { to, .. }) => to.map(|place| place.name),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(left_to(watched), None);
    assert_eq!(left_to(name("old0")), Some(Some(name("old0"))));
}

/// It is looked up under two watched names while it is renamed from one to the other and back, by
/// way of a third.
#[test]
fn a_device_is_called_what_it_was_found_under_last() {
    let (first, second, third) = (name("wg0"), name("wg1"), name("wg2"));
    let mut table = watching(first);
    table.add([second].into_iter());
    let inode = NonZeroU64::new(1);
    let here = Lookup {
        found: Some(7),
        inode,
        away: None,
    };
    let gone = Lookup {
        away: Some((third, inode)),
        ..Lookup::default()
    };
    hear(&mut table, &new(7, first));
    table.enter(first, &here);
    table.enter(second, &here);
    table.enter(first, &gone);
    table.enter(second, &here);
    let deleted = LinkMessage::Deleted {
        ifindex: 7,
        name: second,
        kind: None,
        moved: None,
    };
    let Transition { left, took, .. } = hear(&mut table, &deleted);
    assert!(
        matches!(left, Some(Change::Left { watch, to: None, .. }) if watch.name == second),
        "{left:?}"
    );
    assert_eq!(took, None);
}

/// However many names a device is the last holder of, and wherever it goes meanwhile.
#[test]
fn a_device_is_forgotten_with_the_last_name_that_it_was_the_last_to_hold() {
    let (first, second) = (name("wg0"), name("wg1"));
    let mut table = watching(first);
    table.add([second].into_iter());
    hear(&mut table, &new(7, first));
    hear(&mut table, &new(7, second));
    let moved = LinkMessage::Deleted {
        ifindex: 7,
        name: second,
        kind: None,
        moved: Some(Moved {
            nsid: 0,
            ifindex: None,
        }),
    };
    hear(&mut table, &moved);
    assert_eq!(table.remembered(), 1);
    let newcomer = table.message(&new(8, first));
    assert_eq!(
        newcomer,
        Heard::Newcomer {
            ifindex: 8,
            name: first
        }
    );
    table.newcomer(8, first, None);
    assert_eq!(table.remembered(), 2, "the first is still the last of wg1");
    table.newcomer(9, second, None);
    assert_eq!(table.remembered(), 2);
    table.remove(first);
    table.remove(second);
    assert_eq!(table.remembered(), 0);
}

/// Exchanging a filter holds up who moves or deletes a device next.
#[test]
fn a_filter_is_exchanged_for_what_it_lacks_and_for_much_that_it_has_for_nothing() {
    let watched = name("wg0");
    let mut table = watching(watched);
    hear(&mut table, &new(7, watched));
    assert!(table.has_grown, "7 is not in the filter");
    table.interest();

    let gone = |ifindex| LinkMessage::Deleted {
        ifindex,
        name: watched,
        kind: None,
        moved: Some(Moved {
            nsid: 1,
            ifindex: Some(ifindex),
        }),
    };
    hear(&mut table, &gone(7));
    assert!(!table.wants_filter(), "that 7 is in it does no harm");
    table.newcomer(7, watched, None);
    assert!(!table.wants_filter(), "it still is");

    // Names that are watched for a while.
    for number in 0..=SPARE {
        let other = name(&format!("eth{number}"));
        table.add([other].into_iter());
        assert!(table.wants_filter());
        table.interest();
        table.remove(other);
        assert!(!table.wants_filter());
    }
    let others = || (0..=SPARE).map(|number| name(&format!("eth{number}")));
    table.add(others());
    table.interest();
    others().take(SPARE).for_each(|other| table.remove(other));
    assert!(!table.wants_filter());
    others().for_each(|other| table.remove(other));
    assert!(table.wants_filter(), "most of it is for nothing");
    assert_eq!(table.interest().names.len(), 1);
}

#[test]
fn without_a_filter_nothing_is_kept_of_indexes_that_are_gone() {
    let watched = name("wg0");
    let mut table = watching(watched);
    for ifindex in 1..1000 {
        hear(&mut table, &new(ifindex, watched));
        let deleted = LinkMessage::Deleted {
            ifindex,
            name: watched,
            kind: None,
            moved: None,
        };
        hear(&mut table, &deleted);
    }
    assert!(table.spare.is_empty(), "{:?}", table.spare);
}
