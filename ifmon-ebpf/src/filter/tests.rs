//! A kernel of hash maps, and the events of a host between which nothing else happens.

extern crate std;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    vec::Vec,
};

use super::{DeviceChange, DeviceEvent, Kernel, Notice, observe};
use crate::{
    Counters, DeviceState, EVERYWHERE, KERNEL_EPOCH, LOOPBACK_IFINDEX, Leaving, Link, MASKS, Match,
    NETREG_REGISTERED, NETREG_UNREGISTERING, Name, NameKey, NameMask, NameState, PatternSet,
    PatternState, Place, Record, USERSPACE_ID, flag,
};

const NETNS: u32 = 4_026_531_840;
const OTHER: u32 = 4_026_532_000;
const EPOCH: u32 = 77;
const NETNS_EPOCH: u32 = 88;
const CPU: u32 = 3;
/// In how many namespaces, and in all, there may be patterns.
const NAMESPACES: usize = 4;
/// An address for a device that moves.
const ADDRESS: u64 = 0xffff_8880_0000_1000;

#[derive(Default)]
struct Maps {
    names: HashMap<NameKey, NameState>,
    devices: BTreeMap<u64, DeviceState>,
    links: HashMap<Link, u64>,
    remembered: VecDeque<u64>,
    namespaces: HashMap<u32, u32>,
    patterns: HashMap<u32, PatternSet>,
    pattern_states: HashMap<u32, PatternState>,
    matching: HashMap<Link, Match>,
    /// Of all devices.
    kind: Name,
    /// The program hears of one namespace at a time.
    hears_one: bool,
    /// There is no room in `devices`.
    is_crowded_with_devices: bool,
    /// There is no room in `matching`.
    is_crowded_with_matches: bool,
    leaving: HashMap<u64, Leaving>,
    counters: Counters,
    /// As `Control::devices`.
    count: u32,
    crowd: u32,
    is_traced: bool,
    /// The ring buffer takes no more.
    is_full: bool,
    sent: Vec<Record>,
    /// `matched` at the last attempt to send.
    matched_before: u64,
}

impl Kernel for Maps {
    fn name(&mut self, key: &NameKey) -> Option<&mut NameState> {
        self.names.get_mut(key)
    }

    fn device(&mut self, id: u64) -> Option<&mut DeviceState> {
        self.devices.get_mut(&id)
    }

    fn insert_device(&mut self, id: u64, state: &DeviceState) -> bool {
        let is_new = !self.devices.contains_key(&id) && !self.is_crowded_with_devices;
        if is_new {
            self.devices.insert(id, *state);
            self.count += 1;
        }
        is_new
    }

    fn remove_device(&mut self, id: u64) {
        if self.devices.remove(&id).is_some() {
            self.count -= 1;
        }
    }

    fn next_remembered(&mut self) -> Option<u64> {
        self.remembered.pop_front()
    }

    fn add_remembered(&mut self, id: u64) {
        self.remembered.push_back(id);
    }

    fn is_crowded(&mut self) -> bool {
        self.count > self.crowd
    }

    fn link(&mut self, link: &Link) -> Option<u64> {
        self.links.get(link).copied()
    }

    fn set_link(&mut self, link: &Link, id: u64) {
        self.links.insert(*link, id);
    }

    fn remove_link(&mut self, link: &Link) {
        self.links.remove(link);
    }

    fn has_namespace(&mut self, netns: u32) -> bool {
        self.namespaces.contains_key(&netns)
    }

    fn end_namespace(&mut self, netns: u32) -> Option<u32> {
        self.namespaces.remove(&netns)
    }

    fn has_patterns(&mut self) -> bool {
        !self.patterns.is_empty()
    }

    fn hears_everywhere(&self) -> bool {
        !self.hears_one
    }

    fn patterns(&mut self, netns: u32) -> Option<&PatternSet> {
        let own = self.patterns.get(&netns);
        own.or_else(|| self.patterns.get(&EVERYWHERE))
    }

    fn pattern_state(&mut self, netns: u32) -> Option<&mut PatternState> {
        self.pattern_states.get_mut(&netns)
    }

    fn insert_pattern_state(&mut self, netns: u32, epoch: u32) -> bool {
        let has_room = self.pattern_states.len() < NAMESPACES;
        let is_new = has_room && !self.pattern_states.contains_key(&netns);
        if is_new {
            let state = PatternState {
                epoch,
                ..PatternState::default()
            };
            self.pattern_states.insert(netns, state);
        }
        is_new
    }

    fn remove_pattern_state(&mut self, netns: u32) {
        self.pattern_states.remove(&netns);
    }

    fn matching(&mut self, link: &Link) -> Name {
        let found = self.matching.get(link);
        found.map_or_else(Name::default, |found| found.name)
    }

    fn set_matching(&mut self, link: &Link, name: &Name, kind: &Name) -> bool {
        if !self.is_crowded_with_matches {
            let (name, kind) = (*name, *kind);
            self.matching.insert(*link, Match { name, kind });
        }
        !self.is_crowded_with_matches
    }

    fn remove_matching(&mut self, link: &Link) {
        self.matching.remove(link);
    }

    fn set_leaving(&mut self, address: u64, leaving: &Leaving) {
        self.leaving.insert(address, *leaving);
    }

    fn take_leaving(&mut self, address: u64) -> Option<Leaving> {
        self.leaving.remove(&address)
    }

    fn counters(&mut self) -> Option<&mut Counters> {
        Some(&mut self.counters)
    }

    fn cpu(&mut self) -> u32 {
        CPU
    }

    fn is_traced(&mut self) -> bool {
        self.is_traced
    }

    fn send(&mut self, change: &DeviceChange) -> bool {
        self.matched_before = self.counters.matched;
        if !self.is_full {
            self.sent.push(change.record(change.kind));
        }
        !self.is_full
    }
}

fn place(netns: u32, name: &str, ifindex: u32) -> Place {
    Place {
        name: Name::new(name.as_bytes()).expect("it is short"),
        netns,
        ifindex,
    }
}

fn wg0() -> Place {
    place(NETNS, "wg0", 7)
}

fn wg1() -> Place {
    place(NETNS, "wg1", 7)
}

fn id(number: u64) -> u64 {
    number << 16 | u64::from(CPU)
}

/// The record of a change by which one watched name is lost.
fn left(id: u64, from: Place, to: Place, from_count: u64) -> Record {
    Record {
        id,
        from,
        to,
        from_count,
        from_epoch: EPOCH,
        flags: flag::LEFT_NAME,
        ..Record::default()
    }
}

/// The record of a change by which one watched name is taken.
fn took(id: u64, from: Place, to: Place, to_count: u64) -> Record {
    Record {
        id,
        from,
        to,
        to_count,
        to_epoch: EPOCH,
        flags: flag::TOOK_NAME,
        ..Record::default()
    }
}

const NOWHERE: Place = Place {
    name: Name([0; 2]),
    netns: 0,
    ifindex: 0,
};

impl Maps {
    /// With room, and watches of these names.
    fn watching<const N: usize>(watches: [Place; N]) -> Self {
        let mut maps = Self {
            crowd: 100,
            ..Self::default()
        };
        watches.iter().for_each(|place| maps.watch(place));
        maps
    }

    fn watch(&mut self, place: &Place) {
        let state = NameState {
            epoch: EPOCH,
            ..NameState::default()
        };
        self.names.insert(NameKey::of(place), state);
        self.namespaces.insert(place.netns, NETNS_EPOCH);
    }

    /// Userspace found this device when a watch began.
    fn found(&mut self, place: Place) -> u64 {
        let id = USERSPACE_ID | u64::from(place.ifindex);
        let state = DeviceState {
            place,
            ..DeviceState::default()
        };
        self.devices.insert(id, state);
        self.count += 1;
        self.links.insert(Link::of(&place), id);
        self.remembered.push_back(id);
        self.told(place, id);
        id
    }

    /// Userspace tells who holds the name at the start of its watch, if it is watched.
    fn told(&mut self, place: Place, id: u64) {
        if let Some(name) = self.names.get_mut(&NameKey::of(&place)) {
            name.id = id;
            name.ifindex = place.ifindex;
        }
    }

    /// An event of the device, and the record of it.
    fn event(&mut self, event: DeviceEvent, here: Place) -> Option<Record> {
        self.notice(Notice {
            address: ADDRESS,
            ..Notice::new(event, here)
        })
    }

    fn notice(&mut self, notice: Notice) -> Option<Record> {
        let reg_state = match notice.event {
            DeviceEvent::Exists | DeviceEvent::Deleted | DeviceEvent::Moved => 0,
            DeviceEvent::Registered | DeviceEvent::Renamed | DeviceEvent::Leaving => {
                NETREG_REGISTERED
            }
            DeviceEvent::Unregistered => NETREG_UNREGISTERING,
            DeviceEvent::Repeated => NETREG_UNREGISTERING + 1,
        };
        let Counters {
            seen,
            matched,
            ignored,
            ..
        } = self.counters;
        let flags = observe(
            self,
            &Notice {
                kind: self.kind,
                reg_state,
                ..notice
            },
        );
        assert_eq!(self.counters.seen, seen + 1);
        assert_eq!(
            self.counters.matched + self.counters.ignored,
            matched + ignored + 1,
            "each event is counted as one or the other"
        );
        for state in self.names.values() {
            assert_eq!(state.opened, state.closed);
        }
        for state in self.devices.values() {
            assert_eq!(state.opened, state.closed);
        }
        let record = self.sent.pop();
        assert!(self.sent.is_empty(), "one event, one record at most");
        if let Some(record) = record {
            assert_eq!(record.reg_state, reg_state);
            assert_eq!(flags, Some(record.flags));
        }
        record.map(|record| Record {
            reg_state: 0,
            ..record
        })
    }

    fn name_of(&self, place: Place) -> NameState {
        self.names[&NameKey::of(&place)]
    }

    /// Nothing is kept about any device.
    fn assert_empty(&self) {
        assert_eq!(self.devices, BTreeMap::new());
        assert_eq!(self.links, HashMap::new());
        assert_eq!(self.count, 0);
    }
}

/// The same change, as the two kinds of program are told of it.
const CREATED: [DeviceEvent; 2] = [DeviceEvent::Registered, DeviceEvent::Exists];
const RENAMED: [DeviceEvent; 2] = [DeviceEvent::Renamed, DeviceEvent::Exists];
const DELETED: [DeviceEvent; 2] = [DeviceEvent::Unregistered, DeviceEvent::Deleted];

#[test]
fn a_device_takes_a_watched_name_and_goes() {
    for (created, deleted) in CREATED.into_iter().zip(DELETED) {
        let mut maps = Maps::watching([wg0()]);
        let record = maps.event(created, wg0());
        assert_eq!(record, Some(took(id(1), NOWHERE, wg0(), 1)));
        assert_eq!(
            maps.name_of(wg0()),
            NameState {
                opened: 1,
                id: id(1),
                ifindex: 7,
                epoch: EPOCH,
                closed: 1
            }
        );
        assert_eq!(maps.links[&Link::of(&wg0())], id(1));
        assert_eq!(maps.devices[&id(1)].taken, NameKey::of(&wg0()));

        let record = maps.event(deleted, wg0());
        assert_eq!(record, Some(left(id(1), wg0(), NOWHERE, 2)));
        assert_eq!(
            maps.name_of(wg0()),
            NameState {
                opened: 2,
                id: id(1),
                ifindex: 0,
                epoch: EPOCH,
                closed: 2
            }
        );
        maps.assert_empty();

        let record = maps.event(created, wg0());
        assert_eq!(record, Some(took(id(2), NOWHERE, wg0(), 3)));
    }
}

#[test]
fn a_device_that_nobody_asked_about_leaves_no_trace() {
    for ((created, renamed), deleted) in CREATED.into_iter().zip(RENAMED).zip(DELETED) {
        let mut maps = Maps::watching([wg0()]);
        let names = maps.names.clone();
        for (event, here) in [
            (created, place(NETNS, "wg00", 8)),
            (renamed, place(NETNS, "wg", 8)),
            (deleted, place(NETNS, "wg", 8)),
            // The same name and index, elsewhere.
            (created, place(OTHER, "wg0", 7)),
            (deleted, place(OTHER, "wg0", 7)),
        ] {
            assert_eq!(maps.event(event, here), None);
        }
        assert_eq!(maps.names, names);
        maps.assert_empty();
        assert_eq!(maps.counters.ignored, 5);
    }
}

#[test]
fn a_known_device_is_followed_from_name_to_name() {
    for (created, renamed) in CREATED.into_iter().zip(RENAMED) {
        let mut maps = Maps::watching([wg0()]);
        maps.event(created, wg0());
        let record = maps.event(renamed, wg1());
        assert_eq!(record, Some(left(id(1), wg0(), wg1(), 2)));
        assert_eq!(maps.devices[&id(1)].place, wg1());
        assert_eq!(maps.devices[&id(1)].opened, 1);

        // Back again: it is the same one.
        let record = maps.event(renamed, wg0());
        assert_eq!(record, Some(took(id(1), wg1(), wg0(), 3)));
        assert_eq!(maps.devices[&id(1)].taken, NameKey::of(&wg0()));
    }
}

#[test]
fn a_rename_between_two_watched_names_is_one_record() {
    for (created, renamed) in CREATED.into_iter().zip(RENAMED) {
        let mut maps = Maps::watching([wg0(), wg1()]);
        maps.event(created, wg0());
        let record = maps.event(renamed, wg1());
        let expected = Record {
            from_count: 2,
            from_epoch: EPOCH,
            flags: flag::LEFT_NAME | flag::TOOK_NAME,
            ..took(id(1), wg0(), wg1(), 1)
        };
        assert_eq!(record, Some(expected));
        assert_eq!(maps.devices[&id(1)].taken, NameKey::of(&wg1()));
    }
}

#[test]
fn another_device_is_renamed_into_a_watched_name() {
    for renamed in RENAMED {
        let mut maps = Maps::watching([wg0()]);
        let record = maps.event(renamed, wg0());
        assert_eq!(record, Some(took(id(1), NOWHERE, wg0(), 1)));
    }
}

#[test]
fn a_message_about_the_same_device_and_name_says_nothing() {
    for event in RENAMED {
        let mut maps = Maps::watching([wg0()]);
        let found = maps.found(wg0());
        assert_eq!(maps.event(event, wg0()), None);
        assert_eq!(maps.name_of(wg0()).opened, 0);
        assert_eq!(maps.devices[&found].opened, 0);
        assert_eq!(maps.counters.ignored, 1);
    }
}

#[test]
fn a_device_that_userspace_found_holds_the_name_before_its_first_change() {
    for (renamed, deleted) in RENAMED.into_iter().zip(DELETED) {
        let mut maps = Maps::watching([wg0()]);
        let found = maps.found(wg0());
        let record = maps.event(renamed, wg1());
        assert_eq!(record, Some(left(found, wg0(), wg1(), 1)));
        assert_eq!(maps.devices[&found].taken, NameKey::of(&wg0()));

        let record = maps.event(renamed, wg0());
        assert_eq!(record, Some(took(found, wg1(), wg0(), 2)));

        let record = maps.event(deleted, wg0());
        assert_eq!(record, Some(left(found, wg0(), NOWHERE, 3)));
        maps.assert_empty();
    }
}

#[test]
fn before_the_first_change_a_device_that_is_not_known_holds_nothing() {
    for deleted in DELETED {
        let mut maps = Maps::watching([wg0()]);
        assert_eq!(maps.event(deleted, wg0()), None);
        assert_eq!(maps.name_of(wg0()).opened, 0);
    }
}

#[test]
fn a_device_that_is_known_from_another_watch_holds_the_name_of_a_new_one() {
    for (created, deleted) in CREATED.into_iter().zip(DELETED) {
        let mut maps = Maps::watching([wg0()]);
        maps.event(created, wg0());
        maps.event(DeviceEvent::Renamed, wg1());
        maps.watch(&wg1());
        maps.told(wg1(), id(1));
        let record = maps.event(deleted, wg1());
        assert_eq!(record, Some(left(id(1), wg1(), NOWHERE, 1)));
    }
}

#[test]
fn who_holds_a_name_by_the_word_of_userspace_is_not_forgotten_for_want_of_room() {
    let mut maps = Maps::watching([wg0()]);
    maps.crowd = 0;
    maps.event(DeviceEvent::Registered, wg0());
    maps.event(DeviceEvent::Renamed, wg1());
    maps.watch(&wg1());
    maps.told(wg1(), id(1));
    // The name that it took goes to another device.
    maps.event(DeviceEvent::Registered, place(NETNS, "wg0", 8));
    assert!(maps.devices.contains_key(&id(1)));
    let record = maps.event(DeviceEvent::Unregistered, wg1());
    assert_eq!(record, Some(left(id(1), wg1(), NOWHERE, 1)));
}

#[test]
fn who_had_the_name_once_does_not_lose_it_again() {
    for ((created, renamed), deleted) in CREATED.into_iter().zip(RENAMED).zip(DELETED) {
        let mut maps = Maps::watching([wg0()]);
        maps.event(created, wg0());
        maps.event(renamed, wg1());
        let other = place(NETNS, "wg0", 8);
        let record = maps.event(created, other);
        assert_eq!(record, Some(took(id(2), NOWHERE, other, 3)));
        assert_eq!(maps.event(deleted, wg1()), None);
        assert_eq!(maps.name_of(wg0()).ifindex, 8);
    }
}

#[test]
fn a_device_whose_rename_was_missed_does_not_lose_what_another_has() {
    let mut maps = Maps::watching([wg0()]);
    maps.found(wg0());
    let other = place(NETNS, "wg0", 8);
    assert_eq!(
        maps.event(DeviceEvent::Exists, other),
        Some(took(id(1), NOWHERE, other, 1))
    );
    assert_eq!(maps.event(DeviceEvent::Deleted, wg1()), None);
    assert_eq!(maps.name_of(wg0()).ifindex, 8);
}

#[test]
fn the_holder_before_is_forgotten_when_there_are_many() {
    for (created, renamed) in CREATED.into_iter().zip(RENAMED) {
        for (crowd, is_kept) in [(2, true), (1, false)] {
            let mut maps = Maps::watching([wg0()]);
            maps.crowd = crowd;
            maps.event(created, wg0());
            maps.event(renamed, wg1());
            maps.event(created, place(NETNS, "wg0", 8));
            assert_eq!(maps.devices.contains_key(&id(1)), is_kept);
            assert_eq!(maps.links.contains_key(&Link::of(&wg1())), is_kept);
            assert_eq!(maps.count, 1 + u32::from(is_kept));
            assert_eq!(maps.links[&Link::of(&place(NETNS, "wg0", 8))], id(2));
        }
    }
}

#[test]
fn the_last_holder_of_another_watched_name_is_kept() {
    let mut maps = Maps::watching([wg0(), wg1()]);
    maps.crowd = 0;
    maps.event(DeviceEvent::Exists, wg0());
    maps.event(DeviceEvent::Exists, wg1());
    maps.event(DeviceEvent::Exists, place(NETNS, "wg0", 8));
    assert!(maps.devices.contains_key(&id(1)));
}

/// Nothing in the kernel says that a name is not watched any more.
#[test]
fn whose_name_is_not_watched_any_more_is_forgotten_when_there_are_many() {
    for (crowd, is_kept) in [(2, true), (1, false)] {
        let mut maps = Maps::watching([wg0(), wg1()]);
        maps.crowd = crowd;
        maps.event(DeviceEvent::Registered, wg0());
        maps.names.remove(&NameKey::of(&wg0()));
        maps.event(DeviceEvent::Registered, place(NETNS, "wg1", 8));
        assert_eq!(maps.devices.contains_key(&id(1)), is_kept);
        assert_eq!(maps.count, 1 + u32::from(is_kept));
    }
}

#[test]
fn what_userspace_found_is_forgotten_when_there_are_many() {
    let mut maps = Maps::watching([wg0()]);
    maps.found(wg0());
    let found = maps.found(place(NETNS, "eth1", 8));
    maps.crowd = 1;
    maps.event(DeviceEvent::Renamed, place(NETNS, "eth0", 7));
    assert!(!maps.devices.contains_key(&found));
    assert_eq!(maps.count, 1, "one was the last to have the name");
}

/// What is told of it could be told at the same time, on another processor.
#[test]
fn by_messages_a_device_is_forgotten_with_what_is_told_of_its_own_namespace() {
    let mut maps = Maps::watching([wg0(), place(OTHER, "wg0", 3)]);
    maps.hears_one = true;
    maps.crowd = 1;
    maps.event(DeviceEvent::Exists, wg0());
    maps.names.remove(&NameKey::of(&wg0()));
    maps.event(DeviceEvent::Exists, place(OTHER, "wg0", 3));
    assert!(maps.devices.contains_key(&id(1)));
    maps.watch(&wg1());
    maps.event(DeviceEvent::Exists, place(NETNS, "wg1", 4));
    assert!(!maps.devices.contains_key(&id(1)));
}

/// What was deleted is not looked at for ever.
#[test]
fn devices_that_are_gone_are_not_looked_at_again() {
    let mut maps = Maps::watching([wg0(), wg1()]);
    maps.event(DeviceEvent::Registered, place(NETNS, "wg1", 8));
    for _ in 0..100 {
        maps.event(DeviceEvent::Registered, wg0());
        maps.event(DeviceEvent::Unregistered, wg0());
        // One that userspace found, and whose name is not watched any more.
        let found = place(NETNS, "eth0", 9);
        maps.found(found);
        maps.event(DeviceEvent::Unregistered, found);
    }
    maps.crowd = 0;
    for _ in 0..101 {
        maps.event(DeviceEvent::Renamed, place(OTHER, "eth0", 4));
    }
    assert_eq!(maps.remembered.len(), 1);
}

#[test]
fn a_move_is_one_record_when_the_device_arrives() {
    let there = place(OTHER, "eth0", 2);
    let mut maps = Maps::watching([wg0()]);
    let found = maps.found(wg0());
    let leaving = DeviceEvent::Leaving;
    let registered = DeviceEvent::Registered;
    // 5.10 has given it the name that it will have there, when its own is taken.
    assert_eq!(maps.event(leaving, place(NETNS, "eth0", 7)), None);
    let between = Link::between(ADDRESS);
    assert!(i32::try_from(between.ifindex).is_err(), "no index");
    assert_eq!(maps.links, HashMap::from([(between, found)]));

    let record = maps.event(registered, there);
    assert_eq!(record, Some(left(found, wg0(), there, 1)));
    assert_eq!(maps.links, HashMap::from([(Link::of(&there), found)]));

    // And back: the same device, by another index.
    let back = place(NETNS, "wg0", 9);
    assert_eq!(maps.event(leaving, there), None);
    assert_eq!(
        maps.event(registered, back),
        Some(took(found, there, back, 2))
    );
}

#[test]
fn a_move_of_a_device_that_nobody_knows_is_none_of_ours() {
    let mut maps = Maps::watching([wg0()]);
    let leaving = DeviceEvent::Leaving;
    assert_eq!(maps.event(leaving, place(NETNS, "eth0", 3)), None);
    maps.assert_empty();
    // But for the name that it has where it arrives.
    let record = maps.event(DeviceEvent::Registered, wg0());
    assert_eq!(record, Some(took(id(1), NOWHERE, wg0(), 1)));
}

#[test]
fn a_forgotten_device_arrives_as_a_new_one() {
    let mut maps = Maps::watching([wg0()]);
    maps.crowd = 1;
    maps.event(DeviceEvent::Registered, wg0());
    maps.event(DeviceEvent::Renamed, wg1());
    maps.event(DeviceEvent::Leaving, wg1());
    // Another device gets its index while it is between the two, and then the name.
    let other = place(NETNS, "wg0", 7);
    maps.notice(Notice {
        address: ADDRESS + 0x1000,
        ..Notice::new(DeviceEvent::Registered, other)
    });
    assert_eq!(maps.links[&Link::of(&other)], id(2));
    assert_eq!(maps.count, 1);

    let there = place(OTHER, "eth0", 2);
    assert_eq!(maps.event(DeviceEvent::Registered, there), None);
    assert_eq!(maps.links, HashMap::from([(Link::of(&other), id(2))]));
}

#[test]
fn a_new_device_is_not_the_one_that_had_its_index() {
    let mut maps = Maps::watching([wg0()]);
    let found = maps.found(wg1());
    let record = maps.event(DeviceEvent::Registered, wg0());
    assert_eq!(record, Some(took(id(1), NOWHERE, wg0(), 1)));
    assert!(!maps.devices.contains_key(&found));

    // And where its name is not watched, nothing is kept of it.
    maps.event(DeviceEvent::Registered, wg1());
    maps.assert_empty();
}

#[test]
fn an_entry_without_a_device_is_as_none() {
    let mut maps = Maps::watching([wg0()]);
    maps.links.insert(Link::of(&wg0()), USERSPACE_ID | 1);
    assert_eq!(maps.event(DeviceEvent::Deleted, wg0()), None);
    let record = maps.event(DeviceEvent::Exists, wg0());
    assert_eq!(record, Some(took(id(1), NOWHERE, wg0(), 1)));
    assert_eq!(maps.links[&Link::of(&wg0())], id(1));
}

#[test]
fn an_id_that_another_run_has_taken_meanwhile_is_not_given_again() {
    let mut maps = Maps::watching([wg0(), wg1()]);
    maps.event(DeviceEvent::Exists, place(NETNS, "wg1", 6));
    // As if it had counted from the same number.
    maps.counters.ids = 0;
    let record = maps.event(DeviceEvent::Exists, wg0());
    assert_eq!(record, Some(took(id(2), NOWHERE, wg0(), 1)));
}

#[test]
fn a_deletion_that_is_told_again_concerns_nobody() {
    let mut maps = Maps::watching([wg0()]);
    maps.found(wg0());
    assert_eq!(maps.event(DeviceEvent::Repeated, wg0()), None);
    assert_eq!(maps.links.len(), 1);
    assert_eq!(maps.counters.ignored, 1);
}

#[test]
fn a_message_of_a_move_says_where_the_device_went() {
    let mut maps = Maps::watching([wg0()]);
    let found = maps.found(wg0());
    let moved = |here| Notice {
        nsid: -1,
        to_ifindex: 4,
        ..Notice::new(DeviceEvent::Moved, here)
    };
    // 5.10 may say the name that it will have there.
    let record = maps.notice(moved(place(NETNS, "eth0", 7)));
    let there = Place {
        ifindex: 4,
        ..NOWHERE
    };
    let expected = Record {
        flags: flag::LEFT_NAME | flag::MOVED,
        nsid: -1,
        ..left(found, wg0(), there, 1)
    };
    assert_eq!(record, Some(expected));
    maps.assert_empty();
    // Of another device it says nothing.
    assert_eq!(maps.notice(moved(wg1())), None);
}

#[test]
fn the_end_of_a_namespace_is_told_once() {
    let lo = place(NETNS, "lo", LOOPBACK_IFINDEX);
    let mut maps = Maps::watching([wg0()]);
    let gone = Record {
        from: lo,
        from_epoch: NETNS_EPOCH,
        flags: flag::NETNS_GONE,
        ..Record::default()
    };
    // Netlink messages say nothing of the sort.
    assert_eq!(maps.event(DeviceEvent::Deleted, lo), None);
    assert_eq!(
        maps.event(DeviceEvent::Unregistered, place(OTHER, "lo", 1)),
        None
    );
    assert_eq!(
        maps.event(DeviceEvent::Unregistered, place(NETNS, "lo", 2)),
        None
    );
    assert_eq!(maps.event(DeviceEvent::Unregistered, lo), Some(gone));
    assert_eq!(maps.event(DeviceEvent::Unregistered, lo), None);

    // Where the loopback device itself is watched, the epoch is the namespace's.
    let mut maps = Maps::watching([lo]);
    let found = maps.found(lo);
    let expected = Record {
        id: found,
        from_count: 1,
        flags: flag::NETNS_GONE | flag::LEFT_NAME,
        ..gone
    };
    assert_eq!(maps.event(DeviceEvent::Unregistered, lo), Some(expected));
}

#[test]
fn what_the_ring_buffer_does_not_take_is_counted_and_true_all_the_same() {
    let mut maps = Maps::watching([wg0()]);
    maps.is_full = true;
    assert_eq!(maps.event(DeviceEvent::Exists, wg0()), None);
    assert_eq!(maps.matched_before, 1, "counted before it is tried");
    assert_eq!(maps.counters.dropped, 1);
    assert_eq!(maps.name_of(wg0()).ifindex, 7);
}

#[test]
fn a_device_for_which_there_is_no_room_is_counted_and_wakes_whoever_listens() {
    let mut maps = Maps::watching([wg0()]);
    maps.is_crowded_with_devices = true;
    let record = maps.event(DeviceEvent::Exists, wg0());
    assert_eq!(record.map(|record| record.flags), Some(flag::REFUSED));
    assert_eq!(maps.counters.refused, 1);
    assert!(maps.links.is_empty(), "nobody finds what is not there");
}

#[test]
fn who_is_traced_has_every_change_sent() {
    let mut maps = Maps::watching([]);
    maps.is_traced = true;
    let traced = Record {
        flags: flag::TRACED,
        ..Record::default()
    };
    let registered = DeviceEvent::Registered;
    let expected = Record {
        to: wg0(),
        ..traced
    };
    assert_eq!(maps.event(registered, wg0()), Some(expected));
    assert_eq!(maps.event(DeviceEvent::Exists, wg0()), Some(expected));
    let expected = Record {
        from: wg0(),
        ..traced
    };
    assert_eq!(maps.event(DeviceEvent::Unregistered, wg0()), Some(expected));
    assert_eq!(maps.event(DeviceEvent::Deleted, wg0()), Some(expected));
    // Told again, it may be about another device by now: that one is not named.
    maps.found(wg0());
    let repeated = maps.event(DeviceEvent::Repeated, wg0());
    assert_eq!(repeated, Some(traced));
    maps.event(DeviceEvent::Deleted, wg0());
    // It counts as one that concerns nobody, also when there is no room for it.
    maps.is_full = true;
    maps.event(DeviceEvent::Exists, wg0());
    let Counters {
        matched, dropped, ..
    } = maps.counters;
    assert_eq!((matched, dropped), (0, 0));
    maps.assert_empty();
}

const PATTERN_EPOCH: u32 = 99;

/// The namespace has a pattern that begins with `wg`.
fn matching_wg() -> Maps {
    let mut maps = Maps::watching([]);
    maps.match_wg(NETNS);
    maps
}

impl Maps {
    fn match_wg(&mut self, netns: u32) {
        let mut masks = [NameMask::NOTHING; MASKS];
        masks[1] = NameMask {
            bytes: Name::new(b"wg").expect("short"),
            mask: Name([0xffff, 0]),
        };
        let mut kinds = [NameMask::NOTHING; MASKS];
        // Any kind.
        kinds[MASKS - 1] = NameMask {
            bytes: Name([0, 0]),
            mask: Name([0, 0]),
        };
        let set = PatternSet {
            masks,
            kinds,
            open: 0,
            zero: 0,
        };
        self.patterns.insert(netns, set);
        let state = PatternState {
            epoch: PATTERN_EPOCH,
            ..PatternState::default()
        };
        self.pattern_states.insert(netns, state);
    }

    fn changes(&self, netns: u32) -> u64 {
        self.pattern_states[&netns].changes
    }
}

/// The record of a device that may match.
fn matched(to: Place, took_count: u64, flags: u32) -> Record {
    Record {
        to,
        took_count,
        took_epoch: PATTERN_EPOCH,
        flags: flag::TOOK_PATTERN | flags,
        ..Record::default()
    }
}

/// The record of a device that may have matched.
fn unmatched(from: Place, to: Place, left_count: u64) -> Record {
    Record {
        from,
        to,
        left_count,
        left_epoch: PATTERN_EPOCH,
        flags: flag::LEFT_PATTERN,
        ..Record::default()
    }
}

#[test]
fn a_device_that_matches_is_followed_and_no_other() {
    let renamed = place(NETNS, "eth0", 7);
    for at in 0..2 {
        let mut maps = matching_wg();
        let is_new = [flag::NEW, 0][at];
        assert_eq!(maps.event(CREATED[at], place(NETNS, "w", 3)), None);
        assert_eq!(maps.event(CREATED[at], place(OTHER, "wg0", 3)), None);
        let record = maps.event(CREATED[at], wg0());
        assert_eq!(record, Some(matched(wg0(), 1, is_new)));
        // Something else about it has changed.
        assert_eq!(maps.event(DeviceEvent::Exists, wg0()), None);
        let record = maps.event(RENAMED[at], wg1());
        assert_eq!(record, Some(matched(wg1(), 2, 0)));
        let record = maps.event(RENAMED[at], renamed);
        assert_eq!(record, Some(matched(renamed, 3, 0)));
        // It is a stranger by now.
        assert_eq!(maps.event(RENAMED[at], place(NETNS, "eth1", 7)), None);
        assert_eq!(maps.event(RENAMED[at], wg0()), Some(matched(wg0(), 4, 0)));
        let record = maps.event(DELETED[at], wg0());
        assert_eq!(record, Some(unmatched(wg0(), NOWHERE, 5)));
        assert_eq!(maps.event(DELETED[at], renamed), None);
        assert!(maps.matching.is_empty());
    }
}

#[test]
fn a_device_of_another_kind_does_not_match() {
    let [veth, vet, vlan] =
        ["veth", "vet", "vlan"].map(|kind| Name::new(kind.as_bytes()).expect("short"));
    for at in 0..2 {
        let mut maps = matching_wg();
        let set = maps.patterns.get_mut(&NETNS).expect("it is there");
        set.kinds = [NameMask::NOTHING; MASKS];
        for (to, kind) in set.kinds.iter_mut().zip([veth, vlan]) {
            *to = NameMask {
                bytes: kind,
                mask: Name([u64::MAX; 2]),
            };
        }
        // Longer than what is compared.
        let long = Name([veth.0[0], 1 << 63]);
        for kind in [Name([0, 0]), vet, long] {
            maps.kind = kind;
            assert_eq!(maps.event(CREATED[at], wg0()), None, "{kind:?}");
            assert_eq!(maps.event(RENAMED[at], wg1()), None, "{kind:?}");
            assert_eq!(maps.event(DELETED[at], wg1()), None, "{kind:?}");
        }
        let mut count = 0;
        for kind in [veth, vlan] {
            maps.kind = kind;
            let of_kind = |record: Record| Some(Record { kind, ..record });
            let is_new = [flag::NEW, 0][at];
            let record = maps.event(CREATED[at], wg0());
            assert_eq!(record, of_kind(matched(wg0(), count + 1, is_new)));
            let renamed = place(NETNS, "eth0", 7);
            let record = maps.event(RENAMED[at], renamed);
            assert_eq!(record, of_kind(matched(renamed, count + 2, 0)));
            assert_eq!(maps.event(RENAMED[at], place(NETNS, "eth1", 7)), None);
            count += 2;
        }
        assert!(maps.matching.is_empty());
    }
}

#[test]
fn a_record_without_a_kind_is_one_of_a_device_without_a_kind() {
    let record = Record {
        flags: flag::TOOK_PATTERN,
        kind: Name([1, 2]),
        ..Record::default()
    };
    // SAFETY: integers without padding.
    let bytes: [u8; size_of::<Record>()] = unsafe { std::mem::transmute(record) };
    assert_eq!(Record::read(&bytes), Some(record));
    let short = &bytes[..size_of::<Record<()>>()];
    let kind = Name([0, 0]);
    assert_eq!(Record::read(short), Some(Record { kind, ..record }));
    assert_eq!(Record::read(&short[1..]), None);
}

#[test]
fn a_device_that_matches_moves() {
    let mut maps = matching_wg();
    let there = place(OTHER, "eth0", 9);
    maps.event(DeviceEvent::Registered, wg0());
    // The old name is overwritten already.
    let overwritten = place(NETNS, "eth0", 7);
    assert_eq!(maps.event(DeviceEvent::Leaving, overwritten), None);
    let record = maps.event(DeviceEvent::Registered, there);
    assert_eq!(record, Some(unmatched(overwritten, there, 2)));
    assert!(maps.matching.is_empty() && maps.leaving.is_empty());
    // And back.
    assert_eq!(maps.event(DeviceEvent::Leaving, there), None);
    let record = maps.event(DeviceEvent::Registered, wg0());
    assert_eq!(record, Some(matched(wg0(), 3, flag::NEW)));
    // Between two namespaces with patterns.
    maps.match_wg(OTHER);
    let there = place(OTHER, "wg0", 9);
    maps.event(DeviceEvent::Leaving, wg0());
    let record = maps.event(DeviceEvent::Registered, there);
    let wanted = Record {
        took_count: 1,
        took_epoch: PATTERN_EPOCH,
        flags: flag::LEFT_PATTERN | flag::TOOK_PATTERN | flag::NEW,
        ..unmatched(wg0(), there, 4)
    };
    assert_eq!(record, Some(wanted));
}

#[test]
fn a_name_that_userspace_did_not_know_is_told_once() {
    let mut maps = matching_wg();
    let nothing = Name::default().marked();
    let found = Match {
        name: nothing,
        ..Match::default()
    };
    maps.matching.insert(Link::of(&wg0()), found);
    assert_eq!(
        maps.event(DeviceEvent::Exists, wg0()),
        Some(matched(wg0(), 1, 0))
    );
    assert_eq!(maps.event(DeviceEvent::Exists, wg0()), None);
    // A new device is told, whatever is known of another one with its index.
    let record = maps.event(DeviceEvent::Registered, wg0());
    assert_eq!(record, Some(matched(wg0(), 2, flag::NEW)));
}

#[test]
fn what_cannot_be_remembered_lets_everything_through() {
    let stranger = place(NETNS, "eth0", 3);
    let mut maps = matching_wg();
    maps.is_crowded_with_matches = true;
    assert_eq!(maps.event(DeviceEvent::Exists, stranger), None);
    let record = maps.event(DeviceEvent::Exists, wg0());
    assert_eq!(record, Some(matched(wg0(), 1, flag::UNKEPT)));
    let record = maps.event(DeviceEvent::Exists, stranger);
    assert_eq!(record, Some(matched(stranger, 2, 0)));
    assert_eq!(
        maps.event(DeviceEvent::Exists, place(OTHER, "eth0", 3)),
        None
    );
    let record = maps.event(DeviceEvent::Deleted, stranger);
    assert_eq!(record, Some(unmatched(stranger, NOWHERE, 3)));
    // So it is while userspace finds out which devices there are.
    let mut maps = matching_wg();
    maps.patterns.get_mut(&NETNS).expect("a pattern").open = 1;
    let record = maps.event(DeviceEvent::Renamed, stranger);
    assert_eq!(record, Some(matched(stranger, 1, 0)));
}

#[test]
fn a_record_tells_of_a_name_and_of_a_pattern() {
    let mut maps = Maps::watching([wg0()]);
    maps.match_wg(NETNS);
    let record = maps.event(DeviceEvent::Registered, wg0());
    let wanted = Record {
        took_count: 1,
        took_epoch: PATTERN_EPOCH,
        flags: flag::TOOK_NAME | flag::TOOK_PATTERN | flag::NEW,
        ..took(id(1), NOWHERE, wg0(), 1)
    };
    assert_eq!(record, Some(wanted));
    let record = maps.event(DeviceEvent::Unregistered, wg0());
    let wanted = Record {
        left_count: 2,
        left_epoch: PATTERN_EPOCH,
        flags: flag::LEFT_NAME | flag::LEFT_PATTERN,
        ..left(id(1), wg0(), NOWHERE, 2)
    };
    assert_eq!(record, Some(wanted));
    // What finds no room counts all the same.
    maps.is_full = true;
    maps.event(DeviceEvent::Registered, wg1());
    assert_eq!(maps.changes(NETNS), 3);
}

/// The pattern is that of all namespaces.
fn matching_wg_everywhere() -> Maps {
    let mut maps = Maps::watching([]);
    maps.match_wg(EVERYWHERE);
    maps
}

fn lo() -> Place {
    place(NETNS, "lo", LOOPBACK_IFINDEX)
}

/// The first change in a namespace.
fn found(to: Place, took_epoch: u32, flags: u32) -> Record {
    Record {
        to,
        took_epoch,
        flags: flag::FOUND_NETNS | flags,
        ..Record::default()
    }
}

#[test]
fn a_namespace_is_watched_from_its_first_device_to_its_last() {
    let mut maps = matching_wg_everywhere();
    for epoch in [KERNEL_EPOCH | 1, KERNEL_EPOCH | 2] {
        let record = maps.event(DeviceEvent::Registered, lo());
        assert_eq!(record, Some(found(lo(), epoch, flag::NEW)));
        let took = |to, count, flags| Record {
            took_epoch: epoch,
            ..matched(to, count, flags)
        };
        let record = maps.event(DeviceEvent::Registered, wg0());
        assert_eq!(record, Some(took(wg0(), 1, flag::NEW)));
        assert_eq!(
            maps.event(DeviceEvent::Registered, place(NETNS, "a", 8)),
            None
        );
        let record = maps.event(DeviceEvent::Renamed, wg1());
        assert_eq!(record, Some(took(wg1(), 2, 0)));
        let left = Record {
            left_epoch: epoch,
            ..unmatched(wg1(), NOWHERE, 3)
        };
        assert_eq!(maps.event(DeviceEvent::Unregistered, wg1()), Some(left));
        let gone = Record {
            from: lo(),
            left_epoch: epoch,
            flags: flag::NETNS_GONE,
            ..Record::default()
        };
        assert_eq!(maps.event(DeviceEvent::Unregistered, lo()), Some(gone));
        assert_eq!(maps.event(DeviceEvent::Unregistered, wg1()), None);
        assert!(maps.matching.is_empty() && maps.pattern_states.len() == 1);
    }
}

#[test]
fn a_namespace_that_was_there_is_found_by_its_first_change() {
    let mut maps = matching_wg_everywhere();
    let (epoch, stranger) = (KERNEL_EPOCH | 1, place(NETNS, "eth0", 3));
    assert_eq!(maps.event(DeviceEvent::Unregistered, stranger), None);
    let record = maps.event(DeviceEvent::Renamed, stranger);
    assert_eq!(record, Some(found(stranger, epoch, 0)));
    assert_eq!(maps.event(DeviceEvent::Renamed, stranger), None);
    let took = Record {
        took_epoch: epoch,
        ..matched(wg0(), 1, flag::NEW)
    };
    assert_eq!(maps.event(DeviceEvent::Registered, wg0()), Some(took));
    // Both at once.
    let there = place(OTHER, "wg0", 4);
    let found = Record {
        took_count: 1,
        ..found(there, epoch + 1, flag::NEW | flag::TOOK_PATTERN)
    };
    assert_eq!(maps.event(DeviceEvent::Registered, there), Some(found));
}

#[test]
fn of_a_namespace_for_which_there_is_no_room_it_is_told_once() {
    let mut maps = matching_wg_everywhere();
    for netns in 1..u32::try_from(NAMESPACES).expect("few") {
        maps.event(
            DeviceEvent::Registered,
            place(netns, "lo", LOOPBACK_IFINDEX),
        );
    }
    let record = maps.event(DeviceEvent::Registered, lo());
    assert_eq!(record, Some(found(lo(), 0, flag::NEW)));
    assert_eq!(maps.event(DeviceEvent::Registered, wg0()), None);
    assert_eq!(maps.event(DeviceEvent::Unregistered, wg0()), None);
    // There is again.
    maps.event(DeviceEvent::Unregistered, place(1, "lo", LOOPBACK_IFINDEX));
    let record = maps.event(DeviceEvent::Registered, wg0());
    assert!(record.is_some_and(|record| record.took_epoch != 0));
}

#[test]
fn a_namespace_with_patterns_of_its_own_goes_by_these() {
    let mut maps = matching_wg_everywhere();
    maps.match_wg(OTHER);
    let set = maps.patterns.get_mut(&OTHER).expect("it is there");
    set.open = 1;
    let stranger = place(OTHER, "eth0", 3);
    let record = maps.event(DeviceEvent::Registered, stranger);
    assert_eq!(record, Some(matched(stranger, 1, flag::NEW)));
}
