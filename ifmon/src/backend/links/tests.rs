//! Link messages against a model of a host and of a netlink socket: whatever the host does, and whenever between two
//! system calls it does it, the verdicts are those of a state that was, in order, and in the end those of the state
//! that is.
//!
//! [`Watcher`] is `backend/netlink.rs` line by line, with the model's socket in place of the kernel's; change both.

use std::collections::{BTreeMap, HashSet, VecDeque};

use proptest::prelude::*;

use super::*;
use crate::{
    EventKind,
    netlink::message::{HEADER, attribute, messages, uapi::*},
    tracker::{
        Tracker, Verdict,
        tests::host::{self as model, Attempt, Done, Random, Told, run_length},
    },
};

/// The namespace that is watched; the other one is where devices come from and go to.
const SPACE: u8 = 0;
const BATCH: usize = 4;
const ROUNDS: u32 = 1000;
const AF_BRIDGE: u8 = 7;

/// How a run goes.
#[derive(Clone, Copy, Debug)]
struct Setting {
    filtered: bool,
    /// How many messages the socket's buffer takes.
    room: usize,
    /// Nothing happens but when everything before was read and looked up.
    calm: bool,
    /// Indexes are used again at once.
    reuses: bool,
    /// Linux 5.10 overwrites the name before it tells that a device went elsewhere and is called otherwise there.
    overwrites: bool,
}

impl Setting {
    /// Is every change heard, so that each has to be told as what it was?
    fn is_lossless(self) -> bool {
        self.room == usize::MAX && (self.calm || !self.filtered)
    }

    /// Can a device be known by its index? Where messages are not heard and indexes used again, what follows may be about
    /// another device, and only the look at the end says so.
    fn is_certain(self) -> bool {
        self.is_lossless() || !self.reuses
    }
}

/// The host, with a socket that hears of its changes.
struct World {
    setting: Setting,
    host: model::Host,
    /// What will happen, each after so many system calls.
    script: VecDeque<(u8, Attempt)>,
    /// Done, and not yet told: RTNL is still held.
    untold: Option<Done>,
    queue: VecDeque<Vec<u8>>,
    filter: Option<Interest>,
    /// `NETLINK_S_CONGESTED`: nothing is queued any more until the queue was read empty.
    congested: bool,
    /// `sk_err`
    error: bool,
    /// Every state of the host since the last check, the present one last.
    states: Vec<model::Host>,
    /// Devices that were in another namespace: they cannot always be known again.
    travellers: Vec<u64>,
    /// Where in `states` the queue was found empty last.
    empty_at: usize,
}

enum Received {
    Message(Vec<u8>),
    Overflow,
    Nothing,
}

impl World {
    fn new(setting: Setting) -> Self {
        let host = model::Host {
            fresh_indexes: !setting.reuses,
            ..model::Host::default()
        };
        Self {
            setting,
            script: VecDeque::new(),
            untold: None,
            queue: VecDeque::new(),
            filter: None,
            congested: false,
            error: false,
            states: vec![host.clone()],
            host,
            travellers: Vec::new(),
            empty_at: 0,
        }
    }

    /// A system call begins. What takes RTNL waits for whoever has it.
    fn call(&mut self, takes_rtnl: bool) {
        if takes_rtnl {
            self.release();
        }
        if self.setting.calm {
            return;
        }
        while let Some((wait, _)) = self.script.front_mut() {
            if *wait > 0 {
                *wait -= 1;
                return;
            }
            self.act();
            if takes_rtnl {
                self.release();
            }
        }
    }

    /// Lets the next thing happen.
    fn act(&mut self) {
        self.release();
        if let Some((_, attempt)) = self.script.pop_front() {
            self.untold = self.host.attempt(attempt);
        }
    }

    /// Tells what was done.
    fn release(&mut self) {
        let Some(done) = self.untold.take() else {
            return;
        };
        self.states.push(self.host.clone());
        match done {
            Done::Created(new) | Done::Renamed { new, .. } | Done::Altered(new) => {
                self.tell(new.space, RTM_NEWLINK, AF_UNSPEC, &new, None);
            }
            Done::Deleted(old) => self.tell(old.space, RTM_DELLINK, AF_UNSPEC, &old, None),
            Done::Released(same) => self.tell(same.space, RTM_DELLINK, AF_BRIDGE, &same, None),
            Done::Moved { old, new } => {
                self.travellers.push(new.id);
                let called = if self.setting.overwrites {
                    model::Device {
                        name: new.name,
                        ..old
                    }
                } else {
                    old
                };
                self.tell(
                    old.space,
                    RTM_DELLINK,
                    AF_UNSPEC,
                    &called,
                    Some(new.ifindex),
                );
                self.tell(new.space, RTM_NEWLINK, AF_UNSPEC, &new, None);
            }
        }
    }

    fn tell(
        &mut self,
        space: u8,
        kind: u16,
        family: u8,
        device: &model::Device,
        moved: Option<u32>,
    ) {
        if space != SPACE {
            return;
        }
        let message = encode(kind, family, device, moved);
        if let Some(filter) = &self.filter
            && !link(&message).is_some_and(|message| filter.concerns(&message))
        {
            return;
        }
        if self.congested || self.queue.len() >= self.setting.room {
            self.error |= !self.congested;
            self.congested = true;
            return;
        }
        self.queue.push_back(message);
    }

    fn receive(&mut self) -> Received {
        self.call(false);
        if std::mem::take(&mut self.error) {
            return Received::Overflow;
        }
        let message = self.queue.pop_front();
        if self.queue.is_empty() {
            self.congested = false;
        }
        match message {
            Some(message) => Received::Message(message),
            None => {
                self.empty_at = self.states.len() - 1;
                Received::Nothing
            }
        }
    }

    fn attach(&mut self, filter: Option<Interest>) {
        self.call(false);
        self.filter = filter;
    }
}

fn encode(kind: u16, family: u8, device: &model::Device, moved: Option<u32>) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message.extend([family, 0, 1, 0]);
    message.extend(device.ifindex.to_ne_bytes());
    message.extend([0; 8]);
    let mut name = device.name.as_bytes().to_vec();
    name.push(0);
    attribute(&mut message, IFLA_IFNAME, &name);
    if let Some(ifindex) = moved {
        attribute(&mut message, IFLA_NEW_NETNSID, &0_i32.to_ne_bytes());
        attribute(&mut message, IFLA_NEW_IFINDEX, &ifindex.to_ne_bytes());
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

fn link(message: &[u8]) -> Option<LinkMessage> {
    messages(message).next()?.link()
}

impl Host for World {
    fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>> {
        self.call(true);
        let found = self.host.by_name(watch(*name));
        Ok(found.map(|device| device.ifindex))
    }

    fn by_index(&mut self, ifindex: u32) -> io::Result<Option<InterfaceName>> {
        self.call(true);
        let found = self.host.by_index(SPACE, ifindex);
        Ok(found.map(|device| device.name))
    }

    fn inode(&mut self, name: &InterfaceName) -> Option<u64> {
        self.call(false);
        self.host.by_name(watch(*name)).map(|device| device.id)
    }

    fn namespace(&mut self, _: i32) -> Option<NetnsId> {
        None
    }
}

fn watch(name: InterfaceName) -> Watch {
    Watch {
        netns: model::netns(SPACE),
        name,
    }
}

/// `Subscription`, and of `Netlink` what concerns one.
struct Watcher {
    links: Links,
    unverified: BTreeMap<InterfaceName, bool>,
    tracker: Tracker,
    /// Before the tracker has seen them.
    signals: Vec<Signal>,
    verdicts: Vec<Verdict>,
}

enum Signal {
    Change(Change),
    Resync(Watch, Observed),
}

impl Watcher {
    fn new() -> Self {
        Self {
            links: Links::new(model::netns(SPACE)),
            unverified: BTreeMap::new(),
            tracker: Tracker::default(),
            signals: Vec::new(),
            verdicts: Vec::new(),
        }
    }

    fn watch(&mut self, names: &[InterfaceName], world: &mut World) {
        self.links.join_all(names);
        let mut unsettled = names.to_vec();
        for _ in 0..ROUNDS {
            if world.setting.filtered {
                world.attach(None);
            }
            let mut overflow = false;
            for stretch in unsettled.chunks(1) {
                let mut looks = Vec::new();
                for &name in stretch {
                    let look = self.links.look(name, world);
                    looks.push((name, look.expect("the model answers")));
                }
                world.call(true);
                while !self.drain(world, &mut overflow, self.is_after_loss()) {}
                if overflow {
                    break;
                }
                for (name, look) in looks {
                    if self.links.is_settled(name) {
                        self.links.enter(name, &look);
                    }
                }
            }
            if overflow {
                unsettled = names.to_vec();
                continue;
            }
            let changed = |name: &InterfaceName| !self.links.is_settled(*name);
            unsettled = names.iter().copied().filter(changed).collect();
            if unsettled.is_empty() {
                break;
            }
        }
        self.links.joined();
        self.refilter(world);
        assert!(unsettled.is_empty(), "the model comes to rest");
        for name in names {
            self.unverified.remove(name);
        }
        self.apply();
        for &name in names {
            self.tracker.begin(watch(name), self.links.holder(name));
        }
    }

    fn unwatch(&mut self, name: InterfaceName) {
        self.tracker.end(watch(name));
        self.links.remove(name);
        self.unverified.remove(&name);
    }

    fn is_after_loss(&self) -> bool {
        self.unverified.values().any(|&lost| lost)
    }

    fn round(&mut self, world: &mut World) {
        let empty = self.drain(world, &mut false, self.is_after_loss());
        if self.links.has_grown || self.signals.is_empty() {
            self.refilter(world);
        }
        if !empty || !self.signals.is_empty() || self.unverified.is_empty() {
            return;
        }
        let lost = self.is_after_loss();
        let mut looks = Vec::new();
        for (name, lost) in std::mem::take(&mut self.unverified) {
            looks.push((
                name,
                lost,
                self.links.look(name, world).expect("the model answers"),
            ));
        }
        let mut empty = self.drain(world, &mut false, lost);
        let ahead = |(name, lost, look): &(InterfaceName, bool, Look)| {
            !lost && self.links.is_settled(*name) && !self.links.agrees(*name, look)
        };
        if empty && looks.iter().any(ahead) {
            world.call(true);
            let after_loss = lost || self.is_after_loss();
            empty = self.drain(world, &mut false, after_loss);
        }
        for (name, lost, look) in looks {
            if !empty || !self.links.is_settled(name) || self.unverified.contains_key(&name) {
                *self.unverified.entry(name).or_default() |= lost;
                continue;
            }
            let (observed, changed) = self.links.enter(name, &look);
            if changed {
                self.unverified.entry(name).or_default();
            }
            if changed || lost {
                self.signals.push(Signal::Resync(watch(name), observed));
            }
        }
        if lost {
            self.links
                .forget_strangers(world)
                .expect("the model answers");
        }
        self.refilter(world);
    }

    fn drain(&mut self, world: &mut World, overflowed: &mut bool, after_loss: bool) -> bool {
        let mut overflow = false;
        let mut empty = false;
        for _ in 0..BATCH {
            let datagram = match world.receive() {
                Received::Message(datagram) => datagram,
                Received::Nothing => {
                    empty = true;
                    break;
                }
                Received::Overflow => {
                    overflow = true;
                    continue;
                }
            };
            let Some(message) = link(&datagram) else {
                continue;
            };
            if (overflow || after_loss)
                && let Some(names) = self.links.doubt(&message)
            {
                self.unverified
                    .extend(names.into_iter().map(|name| (name, true)));
                continue;
            }
            let Meaning { left, took } = self.links.message(&message, world);
            self.signals.extend(left.map(Signal::Change));
            if let Some(Taken { watch, device, gap }) = took {
                self.unverified.entry(watch.name).or_default();
                self.signals.push(if gap {
                    let observed = Observed {
                        holder: Some(device),
                        away: None,
                    };
                    Signal::Resync(watch, observed)
                } else {
                    Signal::Change(Change::Took { watch, device })
                });
            }
        }
        if overflow {
            *overflowed = true;
            for name in self.links.names() {
                *self.unverified.entry(name).or_default() |= true;
            }
        }
        empty
    }

    fn refilter(&mut self, world: &mut World) {
        if world.setting.filtered && self.links.stale {
            let interest = self.links.interest();
            world.attach(Some(interest));
        }
    }

    fn apply(&mut self) {
        for signal in self.signals.drain(..) {
            match signal {
                Signal::Change(change) => self.tracker.change(&change, &mut self.verdicts),
                Signal::Resync(watch, observed) => {
                    self.tracker
                        .resync(watch, &observed, None, &mut self.verdicts);
                }
            }
        }
    }
}

/// The world, who watches it, and who knows better.
struct Run {
    world: World,
    watcher: Watcher,
    /// With how many of the world's states were compared.
    told: Vec<(Told, usize)>,
    /// The watches whose verdicts called for a restart since the last comparison.
    restarts: HashSet<Watch>,
    verdicts: u64,
    resyncs: u64,
}

fn names() -> [InterfaceName; 2] {
    [model::name(0), model::name(1)]
}

impl Run {
    /// Begins to watch while things happen.
    fn new(setting: Setting, script: impl IntoIterator<Item = (u8, Attempt)>) -> Self {
        let mut run = Self {
            world: World::new(setting),
            watcher: Watcher::new(),
            told: Vec::new(),
            restarts: HashSet::new(),
            verdicts: 0,
            resyncs: 0,
        };
        run.world.script.extend(script);
        run.watch(&names());
        run.rest();
        run
    }

    fn watch(&mut self, names: &[InterfaceName]) {
        self.watcher.watch(names, &mut self.world);
        let at = self.world.empty_at;
        for &name in names {
            let told = Told::new(watch(name), &self.world.states[at]);
            let holder = self.watcher.links.holder(name);
            assert_eq!(
                holder.map(|device| device.ifindex),
                told.holder.map(|device| device.ifindex),
                "watching {name}"
            );
            self.told.push((told, at));
        }
        self.check();
    }

    /// Lets everything happen and everything be heard, then compares.
    fn rest(&mut self) {
        loop {
            self.watcher.round(&mut self.world);
            self.watcher.apply();
            let idle = self.world.queue.is_empty()
                && !self.world.error
                && self.watcher.unverified.is_empty();
            if !idle {
                continue;
            }
            if self.world.script.is_empty() && self.world.untold.is_none() {
                break;
            }
            self.world.act();
            if self.world.setting.calm {
                self.world.release();
            }
        }
        self.check();
        let now = self.world.host.clone();
        for (told, at) in &mut self.told {
            if self.world.setting.is_lossless() {
                for state in &self.world.states[*at..] {
                    assert_eq!(told.tell(state), None, "{} was not told", told.watch.name);
                }
            }
            if self.world.setting.is_certain() {
                assert_eq!(told.tell(&now), None, "{} at rest", told.watch.name);
            } else {
                // Whatever was said on the way: who has the name is known, and that it is another device was said.
                let before = told.holder.map(|device| device.id);
                told.tell(&now);
                let after = told.holder;
                let known = self.watcher.links.holder(told.watch.name);
                assert_eq!(
                    known.map(|device| device.ifindex),
                    after.map(|device| device.ifindex)
                );
                assert!(
                    self.restarts.contains(&told.watch)
                        || before.is_none()
                        || before == after.map(|device| device.id),
                    "{} is another device, and no restart was called for",
                    told.watch.name
                );
            }
            *at = 0;
        }
        self.world.travellers.retain(|&id| now.by_id(id).is_some());
        self.world.states = vec![now];
        self.world.empty_at = 0;
        self.restarts.clear();
    }

    /// Every verdict must be what there was to say at some moment, in the order of the moments; and where nothing was
    /// lost, at every moment there was.
    fn check(&mut self) {
        let verdicts = std::mem::take(&mut self.watcher.verdicts);
        let setting = self.world.setting;
        for (told, at) in &mut self.told {
            let mine: Vec<&Verdict> = verdicts
                .iter()
                .filter(|verdict| verdict.watch == told.watch)
                .collect();
            for (number, verdict) in mine.iter().enumerate() {
                if let EventKind::Resynced { changed, .. } = verdict.kind {
                    assert!(!setting.is_lossless(), "resynced, and nothing was lost");
                    let next = mine.get(number + 1);
                    assert_eq!(changed, next.is_some_and(|next| next.recovered));
                    self.resyncs += 1;
                    continue;
                }
                self.verdicts += 1;
                if verdict.kind.should_restart() {
                    self.restarts.insert(told.watch);
                }
                if !setting.is_certain() {
                    continue;
                }
                let mut expected = Vec::new();
                loop {
                    let state = self.world.states.get(*at);
                    let state = state.unwrap_or_else(|| {
                        panic!("{verdict:?} was never true; there was to say {expected:?}")
                    });
                    let mut then = *told;
                    let kind = then.tell(state);
                    *at += 1;
                    let Some(kind) = kind else {
                        *told = then;
                        continue;
                    };
                    let id = told.last.or(then.last).map(|device| device.id);
                    let traveller = id.is_some_and(|id| self.world.travellers.contains(&id));
                    if says(verdict, &kind, setting, traveller) {
                        *told = then;
                        break;
                    }
                    assert!(!setting.is_lossless(), "{verdict:?} instead of {kind:?}");
                    expected.push(kind);
                }
            }
        }
    }
}

/// Is this verdict what there was to say, as far as netlink can know?
fn says(verdict: &Verdict, truth: &EventKind, setting: Setting, traveller: bool) -> bool {
    match (&verdict.kind, truth) {
        (
            EventKind::Moved {
                ifindex,
                to_ifindex,
                to_netns: None,
            },
            EventKind::Moved {
                ifindex: old,
                to_ifindex: new,
                ..
            },
        ) => (ifindex, to_ifindex) == (old, new),
        // Where a device is that is not here any more cannot be seen afterwards, and when its renaming was lost its deletion
        // is what was heard; nor can a device under another name be
        // known again whose inode nobody had time to read before. It could be another one with its index.
        (
            EventKind::Deleted { ifindex },
            EventKind::Moved { ifindex: old, .. } | EventKind::Renamed { ifindex: old, .. },
        ) => (verdict.recovered || setting.room != usize::MAX) && ifindex == old,
        // Its renaming was lost, and the name that it got with the move overwrote the other one: it is the old one again.
        (EventKind::Moved { ifindex, .. }, EventKind::Renamed { ifindex: old, .. }) => {
            setting.overwrites && setting.room != usize::MAX && ifindex == old
        }
        // For the same reasons, or because it was too late to read the inode of a device that came back from elsewhere.
        (EventKind::Recreated { ifindex, .. }, EventKind::Returned { ifindex: back }) => {
            (!setting.is_lossless() || traveller && !setting.calm) && ifindex == back
        }
        // Another device with the name *and* the index of the one that is expected back, gone before its inode could be
        // read, while that one does come back: the answer is right a moment too early, and its `deleted` follows.
        (EventKind::Returned { ifindex: back }, EventKind::Recreated { ifindex, .. }) => {
            setting.reuses && !setting.calm && traveller && ifindex == back
        }
        (kind, truth) => kind == truth,
    }
}

fn setting() -> impl Strategy<Value = Setting> {
    let room = prop_oneof![Just(usize::MAX), 1_usize..6];
    (
        any::<bool>(),
        room,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(filtered, room, calm, reuses, overwrites)| Setting {
            filtered,
            room,
            calm,
            reuses,
            overwrites,
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        // PROPTEST_CASES asks for more.
        cases: ProptestConfig::default().cases.max(2000),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_sequence_is_told_as_it_was(
        setting in setting(),
        before in prop::collection::vec((0_u8..12, any::<Attempt>()), 0..20),
        after in prop::collection::vec((0_u8..12, any::<Attempt>()), 0..60),
    ) {
        let mut run = Run::new(setting, before);
        run.world.script.extend(after);
        run.rest();
    }
}

/// After a loss it can be another device's name: the device was deleted, and one with its index made. That is no rename.
#[test]
fn another_name_after_a_loss_is_left_to_the_look_up() -> io::Result<()> {
    let mut world = World::new(Setting {
        filtered: false,
        room: usize::MAX,
        calm: true,
        reuses: true,
        overwrites: false,
    });
    let [watched, _] = names();
    let message = |name| LinkMessage::New { ifindex: 7, name };
    let mut links = Links::new(model::netns(SPACE));
    links.join_all(&[watched]);
    let Meaning { took, .. } = links.message(&message(watched), &mut world);
    assert!(took.is_some());

    links.look(watched, &mut world)?;
    assert!(links.is_settled(watched));
    let other = message(model::name(2));
    assert_eq!(links.doubt(&message(watched)), None);
    assert_eq!(links.doubt(&other), Some(vec![watched]));
    assert!(!links.is_settled(watched), "what was looked up is older");
    assert_eq!(links.holder(watched).map(|device| device.ifindex), Some(7));

    // Without a loss it is a rename.
    assert!(links.message(&other, &mut world).left.is_some());
    Ok(())
}

#[test]
fn a_long_life_is_told_as_it_was() {
    let (steps, seed) = run_length(100_000);
    let mut random = Random(seed);
    for number in 0..8 {
        let setting = Setting {
            filtered: number & 1 != 0,
            room: if number & 2 != 0 { 3 } else { usize::MAX },
            reuses: number & 4 != 0,
            calm: false,
            overwrites: seed % 2 == 0,
        };
        let mut run = Run::new(setting, []);
        let mut done = 0;
        while done < steps / 8 {
            let burst = 1 + random.next() % 40;
            // From a storm between any two system calls to now and then.
            let pace = 1 + random.next() % 24;
            run.world
                .script
                .extend((0..burst).map(|_| ((random.next() % pace) as u8, random.bytes())));
            done += burst;
            if random.next().is_multiple_of(8) {
                // A watch ends and begins anew in the midst of it.
                let name = names()[(random.next() % 2) as usize];
                run.rest();
                run.watcher.unwatch(name);
                run.told.retain(|(told, _)| told.watch.name != name);
                run.world
                    .script
                    .extend((0..burst).map(|_| ((random.next() % pace) as u8, random.bytes())));
                run.watch(&[name]);
            }
            run.rest();
            let Links {
                devices, elsewhere, ..
            } = &run.watcher.links;
            assert!(
                devices.len() + elsewhere.len() <= names().len(),
                "devices are forgotten: {:?}",
                run.watcher.links
            );
        }
        println!(
            "seed {seed}, {setting:?}: {done} attempts, {} verdicts, {} resyncs",
            run.verdicts, run.resyncs
        );
        assert!(run.verdicts > done / 20, "the model is idle");
    }
}
