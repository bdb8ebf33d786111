use super::*;
use crate::machine::LinkTable;

fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a good name")
}

fn named(text: &str) -> Named {
    let (text, kind) = match text.split_once(' ') {
        Some((text, kind)) => (text, Some(LinkKind::new(kind).expect("a good kind"))),
        None => (text, None),
    };
    let name = name(text);
    Named { name, kind }
}

/// A pattern, and after a space the kinds to which it is narrowed.
fn pattern(text: &str) -> Pattern {
    let (text, kinds) = text.split_once(' ').unwrap_or((text, ""));
    let kinds = kinds.split_terminator(',');
    let kinds = kinds.map(|kind| LinkKind::new(kind).expect("a good kind"));
    Pattern::new(text).expect("a good pattern").of_kinds(kinds)
}

/// A table with these patterns, which have begun with these devices.
fn table(patterns: &[&str], links: &[(u32, &str)]) -> PatternTable {
    let mut table = PatternTable::default();
    let patterns = patterns.iter().map(|text| pattern(text));
    table.add(patterns);
    table.read_table();
    read(&mut table, links, &[]);
    table.begin();
    while table.take().is_some() {}
    table
}

/// Answers every question of a reading.
fn read(table: &mut PatternTable, links: &[(u32, &str)], inodes: &[(&str, u64)]) {
    while let Some(question) = table.question() {
        let by_index = |ifindex| links.iter().find(|(index, _)| *index == ifindex);
        let by_name = |name: InterfaceName| {
            let is_it = |(one, _): &&(&str, u64)| one.as_bytes() == name.as_bytes();
            inodes.iter().find(is_it).map(|(_, inode)| *inode)
        };
        let answer = match question {
            Question::Table => Answer::Table(Ok(LinkTable {
                links: links
                    .iter()
                    .map(|(index, one)| (*index, named(one)))
                    .collect(),
                is_interrupted: false,
            })),
            Question::NameOf(ifindex) => {
                Answer::Name(Ok(by_index(ifindex).map(|(_, one)| named(one))))
            }
            Question::InodeOf(name) => Answer::Inode(Ok(by_name(name))),
            Question::Barrier => Answer::Waited(true),
            question => panic!("{question:?}"),
        };
        table.answer(answer).expect("it was answered");
    }
    table.finish();
}

/// What was said, in short.
fn said(table: &mut PatternTable) -> Vec<String> {
    std::iter::from_fn(|| table.take())
        .map(|told| {
            let PatternVerdict {
                pattern,
                name,
                link_kind,
                kind,
                recovered,
                matches,
            } = told;
            let mut line = format!("{pattern} {}", kind.as_str());
            if let Some(name) = name {
                line += &format!(" {name}");
            }
            if let Some(ifindex) = kind.ifindex() {
                line += &format!(" {ifindex}");
            }
            if let Some(link_kind) = link_kind {
                line += &format!(" of {link_kind}");
            }
            match kind {
                EventKind::Renamed { to, .. } => line += &format!(" to {to}"),
                EventKind::Moved { to_ifindex, .. } => line += &format!(" to {to_ifindex:?}"),
                EventKind::Resynced { lost, changed, .. } => {
                    line += &format!(" lost {lost:?} changed {changed}");
                }
                _ => {}
            }
            if let Some(matches) = matches {
                line += &format!(" of {matches}");
            }
            if recovered {
                line += ", recovered";
            }
            line
        })
        .collect()
}

const NO_LINKS: &[(u32, &str)] = &[];
const NO_INODES: &[(&str, u64)] = &[];

#[test]
fn each_change_is_told_to_whom_it_concerns() {
    let mut table = table(&["veth*", "*0"], NO_LINKS);
    table.exists(2, named("veth0"), true);
    assert_eq!(
        said(&mut table),
        ["veth* appeared veth0 2", "*0 appeared veth0 2"]
    );
    // Something else about it has changed.
    table.exists(2, named("veth0"), false);
    table.exists(3, named("eth1"), true);
    assert!(said(&mut table).is_empty());
    table.exists(2, named("veth1"), false);
    assert_eq!(
        said(&mut table),
        [
            "veth* renamed veth0 2 to veth1",
            "*0 renamed veth0 2 to veth1"
        ]
    );
    table.exists(3, named("eth0"), false);
    assert_eq!(said(&mut table), ["*0 appeared eth0 3"]);
    table.exists(3, named("veth9"), false);
    assert_eq!(
        said(&mut table),
        ["*0 renamed eth0 3 to veth9", "veth* appeared veth9 3"]
    );
    let place = Destination {
        netns: None,
        ifindex: Some(7),
        name: None,
    };
    table.gone(3, Some(named("veth9")), Some(place));
    table.gone(2, Some(named("veth1")), None);
    table.gone(2, Some(named("veth1")), None);
    assert_eq!(
        said(&mut table),
        ["veth* moved veth9 3 to Some(7)", "veth* deleted veth1 2"]
    );
    assert_eq!(table.remembered(), 0);
}

#[test]
fn what_is_heard_while_it_is_read_counts() {
    let mut table = PatternTable::default();
    table.add([Pattern::new("a*").expect("a good pattern")]);
    table.read_table();
    // All of this happened before what is read, or after it.
    table.exists(2, named("b"), false);
    table.gone(3, Some(named("a3")), None);
    table.exists(4, named("a4"), true);
    read(
        &mut table,
        &[(2, "a2"), (3, "a3"), (5, "a5"), (6, "c")],
        &[],
    );
    table.begin();
    assert_eq!(said(&mut table), ["a* watching of 2"]);
    table.gone(5, Some(named("a5")), None);
    table.gone(4, Some(named("a4")), None);
    assert_eq!(said(&mut table), ["a* deleted a5 5", "a* deleted a4 4"]);
}

#[test]
fn a_pattern_that_begins_leaves_the_others_alone() {
    let mut table = table(&["a*"], &[(2, "a2")]);
    table.add([Pattern::new("*2").expect("a good pattern")]);
    table.read_table();
    table.exists(4, named("a4"), true);
    assert_eq!(said(&mut table), ["a* appeared a4 4"]);
    read(&mut table, &[(2, "a2"), (3, "b2"), (4, "a4")], &[]);
    table.gone(2, Some(named("a2")), None);
    assert_eq!(said(&mut table), ["a* deleted a2 2"]);
    table.begin();
    assert_eq!(said(&mut table), ["*2 watching of 1"]);
    table.remove(&Pattern::new("a*").expect("a good pattern"));
    table.gone(4, Some(named("a4")), None);
    table.gone(3, Some(named("b2")), None);
    assert_eq!(said(&mut table), ["*2 deleted b2 3"]);
}

#[test]
fn what_a_loss_hid_is_made_good() {
    let mut table = table(&["a*"], &[(2, "a2"), (3, "a3"), (4, "a4"), (5, "a5")]);
    assert!(table.identify());
    read(
        &mut table,
        NO_LINKS,
        &[("a2", 102), ("a3", 103), ("a4", 104), ("a5", 105)],
    );
    assert!(said(&mut table).is_empty());
    table.lost(Some(3));
    assert!(table.needs_table());
    // Heard, and certain: it was told to be there.
    table.gone(5, Some(named("a5")), None);
    assert_eq!(said(&mut table), ["a* deleted a5 5"]);
    table.read_table();
    read(
        &mut table,
        &[(2, "a2"), (3, "b3"), (4, "a4"), (6, "a6")],
        &[("a2", 102), ("b3", 103), ("a4", 999)],
    );
    assert_eq!(
        said(&mut table),
        [
            "a* resynced lost Some(3) changed true of 3",
            "a* deleted a4 4, recovered",
            "a* renamed a3 3 to b3, recovered",
            "a* appeared a4 4, recovered",
            "a* appeared a6 6, recovered",
        ]
    );
    table.lost(None);
    table.read_table();
    read(
        &mut table,
        &[(2, "a2"), (4, "a4"), (6, "a6")],
        &[("a2", 102), ("a4", 999)],
    );
    assert_eq!(
        said(&mut table),
        ["a* resynced lost None changed false of 3"]
    );
}

/// What a reader knows who goes by names alone is true in the end.
#[test]
fn what_a_loss_hid_is_told_in_an_order_in_which_it_can_have_happened() {
    let names = [
        (2, "e"),
        (3, "a"),
        (4, "b"),
        (5, "c"),
        (6, "x"),
        (7, "y"),
        (101, "w"),
    ];
    let mut table = table(&["?"], &names);
    table.lost(None);
    table.read_table();
    let now = [
        // One that is new has the name of one that is gone, and a smaller index;
        (1, "w"),
        // each has the name of the next one,
        (2, "a"),
        (3, "b"),
        (4, "c"),
        (5, "d"),
        // and two have exchanged theirs.
        (6, "y"),
        (7, "x"),
    ];
    read(&mut table, &now, NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "? resynced lost None changed true of 7",
            "? deleted w 101, recovered",
            "? renamed c 5 to d, recovered",
            "? renamed b 4 to c, recovered",
            "? renamed a 3 to b, recovered",
            "? renamed e 2 to a, recovered",
            "? renamed y 7 to x, recovered",
            "? renamed x 6 to y, recovered",
            "? appeared w 1, recovered",
        ]
    );
}

/// What is still queued is read after the kernel has said that it dropped what came later.
#[test]
fn who_takes_a_name_after_a_loss_is_told_after_who_had_it() {
    let mut table = table(&["v*"], NO_LINKS);
    table.lost(None);
    table.exists(50, named("v1"), true);
    table.exists(50, named("w1"), false);
    table.exists(60, named("v1"), true);
    table.gone(50, Some(named("w1")), None);
    assert_eq!(said(&mut table), ["v* appeared v1 50"]);
    table.read_table();
    read(&mut table, &[(60, "v1")], NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "v* resynced lost None changed true of 1",
            "v* deleted v1 50, recovered",
            "v* appeared v1 60, recovered",
        ]
    );
    // It is gone by the time that the table is read.
    table.lost(None);
    table.exists(60, named("w1"), false);
    table.exists(70, named("v1"), true);
    table.gone(70, Some(named("v1")), None);
    table.read_table();
    read(&mut table, &[(60, "w1")], NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "v* resynced lost None changed true of 0",
            "v* renamed v1 60 to w1, recovered",
        ]
    );
}

/// A filter does not know the index of a new device yet, and drops what it does next.
#[test]
fn a_name_that_another_one_never_left_shows_a_loss() {
    let mut table = table(&["v*"], NO_LINKS);
    table.filters = true;
    table.exists(92, named("v7"), false);
    table.exists(50, named("v7"), false);
    table.exists(92, named("v7"), false);
    assert_eq!(said(&mut table), ["v* appeared v7 92"]);
    assert!(table.needs_table());
    table.read_table();
    read(&mut table, &[(92, "v7"), (50, "w0")], NO_INODES);
    assert_eq!(
        said(&mut table),
        ["v* resynced lost None changed false of 1"]
    );
}

/// Its rename, too, was dropped by a filter that did not know its index yet.
#[test]
fn a_name_has_one_device_after_a_loss() {
    let mut table = table(&["v*"], &[(7, "v7")]);
    table.filters = true;
    table.lost(None);
    table.read_table();
    table.exists(92, named("v7"), false);
    table.exists(50, named("v7"), false);
    let now = [(50, "v7"), (92, "w0")];
    read(&mut table, &now, NO_INODES);
    assert!(table.is_reading(), "both have it");
    read(&mut table, &now, NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "v* resynced lost None changed true of 1",
            "v* deleted v7 7, recovered",
            "v* appeared v7 50, recovered",
        ]
    );
}

/// Of a device that was known under another name before the loss.
#[test]
fn what_is_heard_after_a_loss_and_not_told_counts_as_lost() {
    let mut table = table(&["v*"], &[(40, "v0")]);
    table.lost(Some(10));
    for number in 1..=5 {
        table.exists(40, named(&format!("v{number}")), false);
    }
    table.gone(40, Some(named("v5")), None);
    assert!(said(&mut table).is_empty());
    table.read_table();
    read(&mut table, NO_LINKS, NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "v* resynced lost Some(16) changed true of 0",
            "v* deleted v0 40, recovered",
        ]
    );
}

#[test]
fn after_a_loss_nothing_is_told_by_a_name_that_a_device_has_no_more() {
    let mut table = table(&["v*"], &[(40, "v0")]);
    table.lost(Some(1));
    // A BPF program does not say what it was called at the end.
    table.gone(40, None, None);
    assert!(said(&mut table).is_empty());
    table.read_table();
    read(&mut table, NO_LINKS, NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "v* resynced lost Some(2) changed true of 0",
            "v* deleted v0 40, recovered",
        ]
    );
}

#[test]
fn after_a_loss_a_known_index_may_be_another_devices() {
    let mut table = table(&["*"], &[(2, "a2"), (3, "a3"), (4, "a4")]);
    table.lost(None);
    table.exists(2, named("b2"), true);
    table.exists(3, named("b3"), false);
    table.exists(4, named("b4"), false);
    table.gone(4, Some(named("b4")), None);
    assert!(said(&mut table).is_empty());
    table.read_table();
    read(&mut table, &[(2, "b2"), (3, "b3")], &[]);
    assert_eq!(
        said(&mut table),
        [
            "* resynced lost None changed true of 2",
            "* deleted a2 2, recovered",
            "* deleted a4 4, recovered",
            "* renamed a3 3 to b3, recovered",
            "* appeared b2 2, recovered",
        ]
    );
    assert!(!table.needs_table());
}

/// Of four devices the inodes are known, and something was lost. Then each is heard of under the
/// name by which it is known, or one that is new.
#[test]
fn another_device_with_the_same_index_is_told_by_its_inode() {
    let mut table = table(&["*"], &[(2, "a2"), (3, "a3"), (4, "a4"), (5, "a5")]);
    assert!(table.identify());
    let old = [("a2", 102), ("a3", 103), ("a4", 104), ("a5", 105)];
    read(&mut table, NO_LINKS, &old);
    table.lost(None);
    // Before it is read.
    table.exists(2, named("b2"), false);
    table.gone(3, Some(named("b3")), None);
    table.exists(3, named("a3"), false);
    table.read_table();
    let now = [(2, "b2"), (3, "a3"), (4, "b4"), (5, "a5")];
    let new = [("b2", 202), ("a3", 203), ("b4", 204), ("a5", 205)];
    // While it is read: once more is read what may be about another one.
    table.exists(4, named("b4"), false);
    table.exists(5, named("a5"), false);
    read(&mut table, &now, &new);
    assert!(said(&mut table).is_empty());
    assert_eq!(table.question(), Some(Question::NameOf(5)));
    read(&mut table, &now, &new);
    assert_eq!(
        said(&mut table),
        [
            "* resynced lost None changed true of 4",
            "* deleted a5 5, recovered",
            "* deleted a2 2, recovered",
            "* deleted a3 3, recovered",
            "* deleted a4 4, recovered",
            "* appeared a5 5, recovered",
            "* appeared b2 2, recovered",
            "* appeared a3 3, recovered",
            "* appeared b4 4, recovered",
        ]
    );
    assert!(!table.is_reading() && !table.needs_table());
}

/// By then the name may be another one's.
#[test]
fn an_inode_that_is_read_while_something_is_heard_is_read_again() {
    let mut table = table(&["*"], &[(2, "a2")]);
    assert!(table.identify());
    table.exists(2, named("b2"), false);
    read(&mut table, NO_LINKS, &[]);
    assert_eq!(said(&mut table), ["* renamed a2 2 to b2"]);
    assert!(table.identify());
    read(&mut table, NO_LINKS, &[("b2", 102)]);
    assert!(!table.identify());

    table.lost(None);
    table.read_table();
    read(&mut table, &[(2, "b2")], &[("b2", 202)]);
    assert_eq!(
        said(&mut table),
        [
            "* resynced lost None changed true of 1",
            "* deleted b2 2, recovered",
            "* appeared b2 2, recovered",
        ]
    );
}

/// The kernel changes the name first, and says so after that.
#[test]
fn an_inode_that_is_not_found_under_the_old_name_is_read_under_the_new_one() {
    let mut table = table(&["*"], &[(2, "a2")]);
    assert!(table.identify());
    read(&mut table, NO_LINKS, NO_INODES);
    assert!(!table.identify());
    table.exists(2, named("b2"), false);
    assert!(table.identify());
    read(&mut table, NO_LINKS, &[("b2", 102)]);
    table.exists(2, named("c2"), false);
    assert!(!table.identify());
}

/// Of which something is heard all the time.
#[test]
fn a_restless_device_is_read_so_often_and_no_more() {
    let mut table = table(&["*"], &[(2, "a2")]);
    assert!(table.identify());
    read(&mut table, NO_LINKS, &[("a2", 102)]);
    table.lost(None);
    table.read_table();
    for _ in 0..=ROUNDS {
        assert!(table.is_reading());
        table.exists(2, named("a2"), false);
        read(&mut table, &[(2, "a2")], &[("a2", 102)]);
    }
    assert_eq!(
        said(&mut table),
        ["* resynced lost None changed false of 1"]
    );
}

#[test]
fn a_loss_while_it_is_read_begins_it_anew() {
    let mut table = table(&["a*"], &[(2, "a2")]);
    table.lost(Some(1));
    table.read_table();
    assert!(!table.needs_table());
    table.lost(Some(2));
    assert!(table.needs_table() && !table.is_reading());
    table.read_table();
    read(&mut table, NO_LINKS, &[]);
    assert_eq!(
        said(&mut table),
        [
            "a* resynced lost Some(3) changed true of 0",
            "a* deleted a2 2, recovered"
        ]
    );
}

#[test]
fn an_interrupted_table_is_read_again_and_leaves_nobody_out() {
    let mut table = table(&["a*"], &[(2, "a2"), (3, "a3")]);
    table.lost(None);
    table.read_table();
    let piece = |links: &[(u32, &str)]| {
        let links = links.iter().map(|&(index, one)| (index, named(one)));
        Answer::Table(Ok(LinkTable {
            links: links.collect(),
            is_interrupted: true,
        }))
    };
    let first = piece(&[(4, "a4"), (5, "a5")]);
    table.answer(first).expect("answered");
    for _ in 0..ROUNDS {
        assert_eq!(table.question(), Some(Question::Table));
        table.answer(piece(&[])).expect("answered");
    }
    // Whoever is not in the last one is asked for: that is no sign that it is gone, nor was it one that it
    // is there.
    let [a3, a4] = ["a3", "a4"].map(named);
    for (ifindex, found) in [(5, None), (4, Some(a4)), (3, Some(a3)), (2, None)] {
        assert_eq!(table.question(), Some(Question::NameOf(ifindex)));
        table.answer(Answer::Name(Ok(found))).expect("answered");
    }
    assert_eq!(table.question(), Some(Question::Barrier));
    table.answer(Answer::Waited(true)).expect("answered");
    // It may have been there for a moment only.
    for (ifindex, found) in [(3, a3), (4, a4)] {
        assert_eq!(table.question(), Some(Question::NameOf(ifindex)));
        table
            .answer(Answer::Name(Ok(Some(found))))
            .expect("answered");
    }
    assert_eq!(table.question(), None);
    table.finish();
    assert_eq!(
        said(&mut table),
        [
            "a* resynced lost None changed true of 2",
            "a* deleted a2 2, recovered",
            "a* appeared a4 4, recovered"
        ]
    );
}

/// Nothing is heard of it, as no filter knows its index.
#[test]
fn what_matched_when_the_table_was_read_first_may_match_no_more() {
    let mut table = table(&["a*"], NO_LINKS);
    table.lost(None);
    table.read_table();
    for (one, is_interrupted) in [("a2", true), ("b2", false)] {
        let links = vec![(2, named(one))];
        let table_answer = LinkTable {
            links,
            is_interrupted,
        };
        table
            .answer(Answer::Table(Ok(table_answer)))
            .expect("answered");
    }
    read(&mut table, NO_LINKS, NO_INODES);
    assert_eq!(
        said(&mut table),
        ["a* resynced lost None changed false of 0"]
    );
}

#[test]
fn what_was_read_under_a_filter_is_looked_up_once_the_filter_knows_it() {
    let mut table = table(&["a*"], NO_LINKS);
    table.filters = true;
    table.set_filtered(true);
    table.lost(None);
    table.read_table();
    // Whatever it is called next is dropped. Then the filter is taken away for another reason.
    table.set_filtered(false);
    read(&mut table, &[(2, "a2")], NO_INODES);
    assert!(table.has_unfiltered());
    table.set_filtered(true);
    said(&mut table);
    assert!(table.read_unheard());
    read(&mut table, &[(2, "b2")], NO_INODES);
    assert_eq!(said(&mut table)[1], "a* renamed a2 2 to b2, recovered");
}

#[test]
fn a_filter_that_drops_nothing_knows_no_index() {
    let mut table = table(&["a*", "*0"], NO_LINKS);
    table.filters = true;
    table.set_filtered(true);
    table.exists(2, named("a2"), false);
    assert!(!table.is_dropping() && !table.has_unfiltered());
    table.remove(&Pattern::new("*0").expect("a good pattern"));
    table.exists(3, named("a3"), false);
    assert!(table.is_dropping() && table.has_unfiltered());
    assert_eq!(table.indexes().collect::<Vec<_>>(), [2, 3]);
}

#[test]
fn a_name_that_the_filter_did_not_know_is_looked_up() {
    let mut table = table(&["a*"], NO_LINKS);
    table.filters = true;
    table.set_filtered(true);
    table.exists(2, named("a2"), false);
    assert!(table.has_unfiltered());
    assert!(!table.read_unheard());
    table.set_filtered(true);
    assert!(!table.has_unfiltered() && table.read_unheard());
    assert_eq!(said(&mut table), ["a* appeared a2 2"]);
    read(&mut table, &[(2, "b2")], &[]);
    assert_eq!(
        said(&mut table),
        [
            "a* resynced lost None changed true of 0",
            "a* renamed a2 2 to b2, recovered"
        ]
    );
    assert!(!table.read_unheard());
}

#[test]
fn a_namespace_takes_its_devices_with_it() {
    let mut table = table(&["a*", "b*"], &[(2, "a2"), (3, "b3")]);
    table.netns_gone();
    assert_eq!(said(&mut table), ["a* deleted a2 2", "b* deleted b3 3"]);
    assert!(table.is_empty());
    assert_eq!(table.remembered(), 0);
}

#[test]
fn a_pattern_is_told_of_its_kinds_alone() {
    let mut table = table(
        &["a* veth", "* veth,bridge", "*"],
        &[(1, "lo"), (2, "a2 veth"), (3, "a3 vlan"), (4, "b4 bridge")],
    );
    assert_eq!(table.kinds(), BTreeSet::new(), "one takes all");
    table.exists(5, named("a5 veth"), true);
    table.exists(6, named("a6"), true);
    table.exists(4, named("a4 bridge"), false);
    table.gone(3, None, None);
    assert_eq!(
        said(&mut table),
        [
            "a* appeared a5 5 of veth",
            "* appeared a5 5 of veth",
            "* appeared a5 5 of veth",
            "* appeared a6 6",
            "* renamed b4 4 to a4",
            "* renamed b4 4 to a4",
            "* deleted a3 3 of vlan",
        ]
    );
    table.remove(&pattern("*"));
    assert_eq!(table.remembered(), 2 * 3, "2, 4 and 5, and their inodes");
    let kinds: Vec<String> = table.kinds().iter().map(ToString::to_string).collect();
    assert_eq!(kinds, ["bridge", "veth"]);
    table.exists(5, named("b5 veth"), false);
    assert_eq!(
        said(&mut table),
        ["a* renamed a5 5 to b5", "* renamed a5 5 to b5"]
    );
}

/// What is heard of it after a loss waits until all was read, for those that go on.
#[test]
fn a_device_that_is_another_ones_by_now_outlives_the_pattern_that_had_it() {
    let mut table = table(&["a*", "b*"], &[(2, "a2"), (3, "a3")]);
    table.lost(Some(2));
    table.read_table();
    let links = [(2, "a2"), (3, "a3")].map(|(ifindex, one)| (ifindex, named(one)));
    let links = LinkTable {
        links: links.into(),
        is_interrupted: false,
    };
    table
        .answer(Answer::Table(Ok(links)))
        .expect("it was answered");
    table.exists(2, named("b2"), false);
    table.exists(3, named("c3"), false);
    table.remove(&pattern("a*"));
    if !table.is_reading() {
        table.read_table();
    }
    read(&mut table, &[(2, "b2"), (3, "c3")], NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "b* resynced lost Some(4) changed true of 1",
            "b* appeared b2 2, recovered",
        ]
    );
    assert_eq!(table.remembered(), 2, "the device and its inode");
}

/// Without any inode its kind tells it from the one before.
#[test]
fn a_device_of_another_kind_is_another_one() {
    let mut table = table(
        &["* veth", "a*"],
        &[(2, "a2 veth"), (3, "a3 veth"), (4, "a4")],
    );
    table.lost(Some(2));
    // Of one something is heard, the others are read.
    table.exists(3, named("a3 bridge"), false);
    table.read_table();
    let links = [(2, "a2 bridge"), (3, "a3 bridge"), (4, "a4 veth")];
    read(&mut table, &links, NO_INODES);
    assert_eq!(
        said(&mut table),
        [
            "* resynced lost Some(3) changed true of 1",
            "* deleted a2 2 of veth, recovered",
            "* deleted a3 3 of veth, recovered",
            "* appeared a4 4 of veth, recovered",
            "a* resynced lost Some(3) changed true of 3",
            "a* deleted a2 2 of veth, recovered",
            "a* deleted a4 4, recovered",
            "a* deleted a3 3 of veth, recovered",
            "a* appeared a2 2 of bridge, recovered",
            "a* appeared a4 4 of veth, recovered",
            "a* appeared a3 3 of bridge, recovered",
        ]
    );
}
