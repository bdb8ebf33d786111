//! What is left of a watch of all namespaces that was refused, and what is known where no look can be
//! taken; what many changes do is for the simulator.

use std::{collections::BTreeSet, io, time::Instant};

use ifmon_ebpf::{Counters as KernelCounters, Link, Match, Name, PatternState, Place};

use super::*;
use crate::{
    InterfaceName,
    bpf::{Matching, core::Hook},
    machine::{Answer, Command, LinkTable, Named, Now, Question, Source, Step as MachineStep},
};

/// One that can be entered, or not, and one of which the programs hear.
const ENTERED: NetnsId = NetnsId(1);
const FOUND: NetnsId = NetnsId(2);

/// The kernel's side.
#[derive(Default)]
struct Side {
    fails: bool,
    has_failed: bool,
    /// Somebody makes a change that does not end.
    is_busy: bool,
    /// Nothing was asked for since whoever made a change was waited for.
    has_waited: bool,
    states: BTreeMap<NetnsId, PatternState>,
    matching: BTreeSet<(NetnsId, u32)>,
    records: VecDeque<Record>,
    counters: KernelCounters,
    /// Sent while it is read how much has happened.
    late: VecDeque<Record>,
    /// Of changes that have begun, and were not sent.
    begun: VecDeque<Record>,
    /// What the maps have of a namespace.
    kept: Vec<(u32, Match)>,
    /// The devices in it.
    links: Vec<(u32, Named)>,
    /// There is no room for so many that are to be entered in the maps.
    refuses: u32,
    /// Whoever is to be entered next goes, which is lost.
    goes: bool,
    /// No namespace can be entered.
    is_closed: bool,
    /// Each can be.
    is_open: bool,
    /// Sent while the patterns begin.
    found: Option<Record>,
    /// Which namespaces there are cannot be found out.
    is_blind: bool,
    /// The namespaces that there are, if that is not the first alone.
    all: Vec<NetnsId>,
    /// So many of them can be counted in.
    states_room: Option<usize>,
    /// Which of them have patterns of their own, and how many can.
    sets: BTreeSet<NetnsId>,
    sets_room: Option<usize>,
    /// Why it comes to nothing the next times.
    refusals: VecDeque<io::Error>,
}

impl Side {
    /// Watches all that is called so, in all namespaces.
    fn watch(&mut self, core: &mut Bpf, pattern: &str) -> Outcome {
        let pattern = Pattern::new(pattern).expect("a valid pattern");
        let command = Command::WatchPatterns {
            netns: NetnsId::ALL,
            patterns: vec![pattern],
        };
        self.command(core, command)
    }

    fn command(&mut self, core: &mut Bpf, command: Command) -> Outcome {
        let now = Now::at(Instant::now());
        core.command(command);
        loop {
            let request = match core.poll(&now) {
                MachineStep::Request(request) | MachineStep::Background(request) => request,
                MachineStep::Signal(_) => continue,
                MachineStep::Done(outcome) => return outcome,
                step => panic!("{step:?}"),
            };
            let reply = self.answer(request);
            core.answer(&now, reply);
        }
    }

    /// These are sent; what is told of them.
    fn send(
        &mut self,
        core: &mut Bpf,
        records: impl IntoIterator<Item = Record>,
    ) -> Vec<EventKind> {
        let mut now = Now::at(Instant::now());
        self.records.extend(records);
        core.ready(Source::Ring);
        let mut told = Vec::new();
        loop {
            let request = match core.poll(&now) {
                MachineStep::Request(request) | MachineStep::Background(request) => request,
                MachineStep::Signal(Signal::Pattern { told: verdict, .. }) => {
                    told.push(verdict.kind);
                    continue;
                }
                MachineStep::Wait(None) => return told,
                MachineStep::Wait(Some(at)) => {
                    now = Now::at(at);
                    continue;
                }
                step => panic!("{step:?}"),
            };
            let reply = self.answer(request);
            core.answer(&now, reply);
        }
    }

    /// The first change in a namespace: a device that matches.
    fn find(&mut self) {
        let state = PatternState {
            changes: 1,
            epoch: KERNEL_EPOCH | 1,
            ..PatternState::default()
        };
        self.states.insert(FOUND, state);
        self.matching.insert((FOUND, 3));
    }

    /// Something happens in a namespace that the programs know, which is lost.
    fn lose(&mut self, netns: NetnsId) {
        let state = self.states.get_mut(&netns);
        state.expect("it is known").changes += 1;
        self.counters.matched += 1;
        self.counters.dropped += 1;
    }

    fn answer(&mut self, request: Request) -> Reply {
        let failure = || io::Error::from_raw_os_error(libc::EIO);
        let no_room = || io::Error::from_raw_os_error(libc::E2BIG);
        let is_full = |known: &BTreeSet<_>, room: Option<usize>, netns| {
            room.is_some_and(|room| known.len() >= room) && !known.contains(&netns)
        };
        self.has_waited &= matches!(request, Request::RemoveLeaving);
        match request {
            Request::Record => Reply::Record(self.records.pop_front()),
            Request::Counters => Reply::Counters(Ok(self.counters)),
            Request::Namespaces if self.is_blind => Reply::Namespaces(Err(failure())),
            Request::Namespaces if self.all.is_empty() => Reply::Namespaces(Ok(vec![ENTERED])),
            Request::Namespaces => Reply::Namespaces(Ok(self.all.clone())),
            Request::InsertPatterns(netns, _) if is_full(&self.sets, self.sets_room, netns) => {
                Reply::Done(Err(no_room()))
            }
            Request::AddPatternState(netns, _)
                if is_full(
                    &self.states.keys().copied().collect(),
                    self.states_room,
                    netns,
                ) =>
            {
                Reply::Inserted(Err(no_room()))
            }
            Request::InsertPatterns(NetnsId::ALL, _) if self.fails => {
                self.find();
                Reply::Done(Ok(()))
            }
            Request::InsertPatterns(NetnsId::ALL, _) if self.found.is_some() => {
                self.find();
                self.records.extend(self.found.take());
                Reply::Done(Ok(()))
            }
            Request::Enter(_) if self.fails => {
                self.has_failed = true;
                Reply::Done(Err(failure()))
            }
            Request::Enter(_) if !self.refusals.is_empty() => {
                Reply::Done(self.refusals.pop_front().map_or(Ok(()), Err))
            }
            Request::Enter(netns) if !self.is_open && (netns == FOUND || self.is_closed) => {
                Reply::Done(Err(io::ErrorKind::NotFound.into()))
            }
            Request::Matching(netns) => Reply::Matching(Ok(Matching {
                devices: self.kept.clone(),
                state: self.states.get(&netns).copied(),
            })),
            Request::InsertMatching(Link { netns, ifindex }) => {
                if std::mem::take(&mut self.goes) {
                    self.links.retain(|(other, _)| *other != ifindex);
                    self.lose(NetnsId(netns));
                }
                if self.refuses > 0 {
                    self.refuses -= 1;
                    return Reply::Done(Err(io::ErrorKind::StorageFull.into()));
                }
                self.matching.insert((NetnsId(netns), ifindex));
                Reply::Done(Ok(()))
            }
            Request::Ask(_, Question::Table) => Reply::Answer(Answer::Table(Ok(LinkTable {
                links: self.links.clone(),
                is_interrupted: false,
            }))),
            Request::Ask(_, Question::NameOf(ifindex)) => {
                let links = self.links.iter();
                let named = links.copied().find(|(other, _)| *other == ifindex);
                Reply::Answer(Answer::Name(Ok(named.map(|(_, named)| named))))
            }
            Request::Ask(_, Question::Barrier) => {
                self.counters.matched += self.begun.len() as u64;
                self.records.append(&mut self.begun);
                self.has_waited = !self.is_busy;
                Reply::Answer(Answer::Waited(self.has_waited))
            }
            Request::PatternStates if self.has_failed => Reply::PatternStates(Err(failure())),
            Request::PatternStates => {
                self.records.append(&mut self.late);
                let states = self.states.iter().map(|(&netns, &state)| (netns, state));
                Reply::PatternStates(Ok(states.collect()))
            }
            Request::PatternState(netns) => {
                Reply::PatternState(Ok(self.states.get(&netns).copied()))
            }
            Request::AddPatternState(netns, epoch) => {
                let is_new = !self.states.contains_key(&netns);
                self.states.entry(netns).or_insert(PatternState {
                    epoch,
                    ..PatternState::default()
                });
                Reply::Inserted(Ok(is_new))
            }
            Request::InsertPatterns(netns, _) => {
                self.sets.insert(netns);
                Reply::Done(Ok(()))
            }
            Request::RemovePatterns(netns) => {
                self.sets.remove(&netns);
                Reply::Done(Ok(()))
            }
            Request::RemovePatternState(netns) => {
                self.states.remove(&netns);
                Reply::Done(Ok(()))
            }
            Request::RemoveMatching(netns) => {
                let is_kept = |other| netns != NetnsId::ALL && other != netns;
                self.matching.retain(|&(other, _)| is_kept(other));
                Reply::Done(Ok(()))
            }
            _ => Reply::Done(Ok(())),
        }
    }
}

/// Else it would count as one that is there when the maps are read after a loss.
#[test]
fn what_a_refused_watch_has_left_is_gone_with_the_next() {
    let mut core = Bpf::new(Hook::Function, 4);
    let mut side = Side {
        fails: true,
        ..Side::default()
    };
    let outcome = side.watch(&mut core, "b");
    assert!(matches!(outcome, Outcome::Watched(Err(_))), "{outcome:?}");
    // The device is deleted meanwhile, which the programs are not shown.
    side.fails = false;
    side.has_failed = false;
    let outcome = side.watch(&mut core, "b");
    assert!(matches!(outcome, Outcome::Watched(Ok(_))), "{outcome:?}");
    assert!(side.matching.is_empty(), "{:?}", side.matching);
}

/// A device that left a namespace for another before this would be told of with the next watch.
#[test]
fn a_refused_watch_is_over_when_no_device_is_between_two_namespaces() {
    let mut core = Bpf::new(Hook::Function, 4);
    let mut side = Side {
        fails: true,
        ..Side::default()
    };
    side.watch(&mut core, "b");
    assert!(side.has_waited);
    side.is_busy = true;
    side.has_failed = false;
    side.watch(&mut core, "b");
    side.fails = false;
    side.has_failed = false;
    let outcome = side.watch(&mut core, "b");
    let Outcome::Watched(Err(Error::Recheck(_))) = outcome else {
        panic!("{outcome:?}");
    };
    side.is_busy = false;
    let outcome = side.watch(&mut core, "b");
    assert!(matches!(outcome, Outcome::Watched(Ok(_))), "{outcome:?}");
}

/// There are these.
fn links(links: &[(u32, &str)]) -> Vec<(u32, Named)> {
    let named = |&(ifindex, name)| {
        let name = InterfaceName::new(name).expect("a valid name");
        (ifindex, Named { name, kind: None })
    };
    links.iter().map(named).collect()
}

/// What a watch of all that begins with b finds where there are such devices.
fn entered(side: Side, devices: &[(u32, &str)]) -> (Bpf, Side) {
    let mut core = Bpf::new(Hook::Function, 4);
    let mut side = Side {
        links: links(devices),
        ..side
    };
    let outcome = side.watch(&mut core, "b*");
    assert!(matches!(outcome, Outcome::Watched(Ok(_))), "{outcome:?}");
    (core, side)
}

const EPOCH: u32 = KERNEL_EPOCH | 1;

fn begun() -> (Bpf, Side) {
    let mut core = Bpf::new(Hook::Function, 4);
    let mut side = Side::default();
    let outcome = side.watch(&mut core, "b");
    assert!(matches!(outcome, Outcome::Watched(Ok(_))), "{outcome:?}");
    (core, side)
}

fn at(netns: NetnsId, ifindex: u32, name: &[u8]) -> Place {
    Place {
        name: Name::new(name).expect("a short name"),
        netns: netns.0,
        ifindex,
    }
}

fn took(ifindex: u32, name: &[u8], took_count: u64, flags: u32) -> Record {
    Record {
        to: at(FOUND, ifindex, name),
        took_count,
        took_epoch: EPOCH,
        flags: flag::NEW | flags,
        ..Record::default()
    }
}

/// The first that is heard of a new namespace.
fn found() -> Record {
    took(LOOPBACK_IFINDEX, b"lo", 0, flag::FOUND_NETNS)
}

fn left(ifindex: u32, name: &[u8], left_count: u64) -> Record {
    Record {
        from: at(FOUND, ifindex, name),
        left_count,
        left_epoch: EPOCH,
        flags: flag::LEFT_PATTERN,
        ..Record::default()
    }
}

fn state(changes: u64, full: u32) -> PatternState {
    PatternState {
        changes,
        full,
        epoch: EPOCH,
    }
}

fn kept(ifindex: u32, name: &[u8]) -> (u32, Match) {
    let name = Name::new(name).expect("a short name").marked();
    let kind = Name::default();
    (ifindex, Match { name, kind })
}

#[track_caller]
fn assert_told(told: &[EventKind], event: &EventKind) {
    assert!(told.contains(event), "{told:?}");
}

/// One device had room in the maps, and another one had none; that the first one moved away is lost.
#[test]
fn of_a_namespace_that_cannot_be_entered_it_is_known_who_had_room_in_the_maps() {
    let (mut core, mut side) = begun();
    let kept = took(3, b"b", 1, flag::TOOK_PATTERN);
    let unkept = took(4, b"b", 3, flag::TOOK_PATTERN | flag::UNKEPT);
    side.states.insert(FOUND, state(3, 1));
    let told = side.send(&mut core, [found(), kept, unkept]);
    let [
        EventKind::Appeared { ifindex: 3 },
        EventKind::Resynced { lost: Some(2), .. },
        EventKind::Deleted { ifindex: 3 },
        EventKind::Appeared { ifindex: 4 },
    ] = told[..]
    else {
        panic!("{told:?}");
    };
}

/// The first record of the namespace is lost, and the next is of a device that had no room in the maps.
#[test]
fn who_is_the_first_that_is_heard_of_a_namespace_is_told() {
    let (mut core, mut side) = begun();
    side.states.insert(FOUND, state(1, 1));
    side.counters.matched = 2;
    side.counters.dropped = 1;
    let unkept = took(5, b"b", 1, flag::TOOK_PATTERN | flag::UNKEPT);
    let told = side.send(&mut core, [unkept]);
    assert_told(&told, &EventKind::Appeared { ifindex: 5 });
}

/// Something else was lost, and the record is on its way while it is read what happened where.
#[test]
fn who_is_the_first_that_is_counted_in_a_namespace_is_told() {
    let (mut core, mut side) = begun();
    side.counters.dropped = 1;
    side.counters.matched = 1;
    side.states.insert(FOUND, state(1, 1));
    let unkept = took(5, b"b", 1, flag::TOOK_PATTERN | flag::UNKEPT);
    side.late.push_back(unkept);
    let told = side.send(&mut core, []);
    assert_told(&told, &EventKind::Appeared { ifindex: 5 });
}

/// That 3 went is lost. 4 has no room in the maps, and its record is sent while it is read how much has
/// happened.
#[test]
fn who_had_no_room_is_told_when_its_record_is_on_its_way() {
    let (mut core, mut side) = begun();
    side.states.insert(FOUND, state(1, 0));
    side.counters.matched = 2;
    side.kept = vec![kept(3, b"b")];
    let told = side.send(&mut core, [found(), took(3, b"b", 1, flag::TOOK_PATTERN)]);
    assert_eq!(told, [EventKind::Appeared { ifindex: 3 }]);
    side.counters.matched = 4;
    side.counters.dropped = 1;
    side.kept.clear();
    side.states.insert(FOUND, state(3, 1));
    let unkept = took(4, b"b", 3, flag::TOOK_PATTERN | flag::UNKEPT);
    side.late.push_back(unkept);
    let told = side.send(&mut core, []);
    assert_told(&told, &EventKind::Deleted { ifindex: 3 });
    assert_told(&told, &EventKind::Appeared { ifindex: 4 });
}

/// Of 4, which has no room in the maps, nothing is lost: that it went is sent while it is read how much
/// has happened.
#[test]
fn that_one_without_room_went_is_told_when_its_record_is_on_its_way() {
    let (mut core, mut side) = begun();
    side.states.insert(FOUND, state(2, 1));
    side.counters.matched = 3;
    side.kept = vec![kept(3, b"b")];
    let unkept = took(4, b"b", 2, flag::TOOK_PATTERN | flag::UNKEPT);
    let told = side.send(
        &mut core,
        [found(), took(3, b"b", 1, flag::TOOK_PATTERN), unkept],
    );
    assert_eq!(told.len(), 2, "{told:?}");
    side.counters.matched = 5;
    side.counters.dropped = 1;
    side.states.insert(FOUND, state(4, 1));
    side.late.push_back(left(4, b"b", 4));
    let told = side.send(&mut core, []);
    assert_told(&told, &EventKind::Deleted { ifindex: 4 });
}

/// The programs count that it leaves before they say where it went.
#[test]
fn that_one_without_room_moves_is_told_when_it_has_not_arrived() {
    let (mut core, mut side) = begun();
    side.states.insert(FOUND, state(1, 1));
    side.counters.matched = 2;
    let unkept = took(4, b"b", 1, flag::TOOK_PATTERN | flag::UNKEPT);
    side.send(&mut core, [found(), unkept]);
    side.lose(FOUND);
    side.states.insert(FOUND, state(3, 1));
    side.begun.push_back(left(4, b"b", 3));
    let told = side.send(&mut core, []);
    assert_told(&told, &EventKind::Deleted { ifindex: 4 });
}

/// There was no room for 3 when the patterns began, and there is by now. That it went is lost.
#[test]
fn who_has_room_by_now_is_gone_when_the_map_has_it_not() {
    let side = Side {
        refuses: 1,
        ..Side::default()
    };
    let (mut core, mut side) = entered(side, &[(3, "b")]);
    // The devices are read anew.
    side.lose(ENTERED);
    let told = side.send(&mut core, []);
    assert!(matches!(told[..], [EventKind::Resynced { .. }]), "{told:?}");
    assert!(side.matching.contains(&(ENTERED, 3)));
    side.is_closed = true;
    side.lose(ENTERED);
    let told = side.send(&mut core, []);
    assert_told(&told, &EventKind::Deleted { ifindex: 3 });
}

/// That both went is lost, of which the one had room in the maps.
#[test]
fn who_has_room_beside_one_that_has_none_is_gone_when_the_map_has_it_not() {
    let side = Side {
        refuses: 1,
        ..Side::default()
    };
    let (mut core, mut side) = entered(side, &[(3, "b"), (4, "bb")]);
    side.is_closed = true;
    side.lose(ENTERED);
    let told = side.send(&mut core, []);
    assert_told(&told, &EventKind::Deleted { ifindex: 3 });
}

/// As long as the namespace is entered it can be read.
#[test]
fn a_namespace_without_room_is_left_when_all_was_heard() {
    let side = Side {
        refuses: u32::MAX,
        goes: true,
        ..Side::default()
    };
    let (mut core, mut side) = entered(side, &[(3, "b")]);
    side.is_closed = true;
    side.send(&mut core, []);
    assert_eq!(core.remembered_of_patterns(), 0);
}

/// By then there is a process in it. That 5 came is lost, and that there was no room for it is not known.
#[test]
fn a_namespace_that_could_not_be_entered_once_is_entered_again() {
    let side = Side {
        found: Some(took(3, b"b", 1, flag::FOUND_NETNS | flag::TOOK_PATTERN)),
        kept: vec![kept(3, b"b")],
        ..Side::default()
    };
    let (mut core, mut side) = entered(side, &[]);
    side.is_open = true;
    side.links = links(&[(3, "b"), (4, "b"), (5, "b")]);
    side.counters.matched = 3;
    side.counters.dropped = 1;
    side.states.insert(FOUND, state(3, 1));
    let unkept = took(4, b"b", 3, flag::TOOK_PATTERN | flag::UNKEPT);
    let told = side.send(&mut core, [unkept]);
    assert_told(&told, &EventKind::Appeared { ifindex: 5 });
}

/// For the first of them there is room.
#[test]
fn of_more_namespaces_than_can_be_counted_in_the_others_are_watched() {
    let side = Side {
        all: (1..=3).map(NetnsId).collect(),
        states_room: Some(1),
        ..Side::default()
    };
    let (core, side) = entered(side, &[(3, "b")]);
    assert_eq!(core.remembered_of_patterns(), 1);
    assert!(!side.sets.contains(&NetnsId(2)));
}

/// None of them has room for its devices in the map, and not all can have patterns of their own.
#[test]
fn where_no_more_can_have_patterns_of_their_own_a_namespace_goes_on_by_the_maps() {
    let side = Side {
        all: (1..=3).map(NetnsId).collect(),
        refuses: u32::MAX,
        is_open: true,
        sets_room: Some(2),
        ..Side::default()
    };
    let (core, side) = entered(side, &[(3, "b")]);
    assert_eq!(side.sets.len(), 2);
    assert_eq!(core.remembered_of_patterns(), 1);
}

#[test]
fn a_namespace_without_room_that_may_not_be_entered_ends_nothing() {
    let (mut core, mut side) = begun();
    side.states.insert(FOUND, state(2, 1));
    side.counters.matched = 3;
    side.kept = vec![kept(3, b"b")];
    let unkept = took(4, b"b", 2, flag::TOOK_PATTERN | flag::UNKEPT);
    side.send(
        &mut core,
        [found(), took(3, b"b", 1, flag::TOOK_PATTERN), unkept],
    );
    side.lose(FOUND);
    let may_not = || io::ErrorKind::PermissionDenied.into();
    side.refusals.extend((0..20).map(|_| may_not()));
    let told = side.send(&mut core, []);
    assert!(matches!(told[..], [EventKind::Resynced { .. }]), "{told:?}");
}

#[test]
fn a_namespace_that_can_never_be_entered_ends_nothing() {
    let (mut core, mut side) = begun();
    side.states.insert(FOUND, state(1, 0));
    side.counters.matched = 1;
    side.kept = vec![kept(3, b"b")];
    let full = || io::Error::from_raw_os_error(libc::ENFILE);
    side.refusals.extend((0..20).map(|_| full()));
    let first = took(3, b"b", 1, flag::FOUND_NETNS | flag::TOOK_PATTERN);
    let told = side.send(&mut core, [first]);
    assert_eq!(told[0], EventKind::Appeared { ifindex: 3 });
}

/// There was a device before ifmon heard of the namespace, and it cannot be entered at once for want of
/// descriptors.
#[test]
fn a_namespace_that_cannot_be_entered_at_once_is_entered_later() {
    let (mut core, mut side) = begun();
    side.is_open = true;
    side.states.insert(FOUND, state(1, 0));
    side.counters.matched = 1;
    side.links = links(&[(3, "b"), (7, "b")]);
    let busy = io::Error::from_raw_os_error(libc::EMFILE);
    side.refusals.push_back(busy);
    let first = took(3, b"b", 1, flag::FOUND_NETNS | flag::TOOK_PATTERN);
    let told = side.send(&mut core, [first]);
    assert_told(&told, &EventKind::Appeared { ifindex: 7 });
}

/// A device went before the programs were told that it may match, and its namespace ended.
#[test]
fn of_namespaces_that_have_ended_nothing_is_left_without_a_watch() {
    let (mut core, mut side) = entered(Side::default(), &[(3, "b")]);
    let epoch = side.states.remove(&ENTERED).expect("it is counted").epoch;
    side.counters.matched = 1;
    let ended = Record {
        from: at(ENTERED, LOOPBACK_IFINDEX, b"lo"),
        left_epoch: epoch,
        flags: flag::NETNS_GONE,
        ..Record::default()
    };
    let told = side.send(&mut core, [ended]);
    assert_eq!(told, [EventKind::Deleted { ifindex: 3 }]);
    let pattern = Pattern::new("b*").expect("a valid pattern");
    let outcome = side.command(&mut core, Command::UnwatchPattern(NetnsId::ALL, pattern));
    assert!(matches!(outcome, Outcome::Unwatched), "{outcome:?}");
    assert!(side.matching.is_empty(), "{:?}", side.matching);
}

#[test]
fn where_namespaces_cannot_be_looked_for_the_watch_is_refused() {
    let mut core = Bpf::new(Hook::Function, 4);
    let mut side = Side {
        is_blind: true,
        ..Side::default()
    };
    let outcome = side.watch(&mut core, "b");
    let Outcome::Watched(Err(Error::Recheck(_))) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(side.sets.is_empty());
}
