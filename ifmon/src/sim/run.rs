//! Drives the monitor through a life that is decided one decision at a time.

use std::{
    collections::{HashMap, HashSet},
    fmt, io,
    time::{Duration, Instant},
};

use super::{
    host::{self, Conduct, Host, Notice, SPACES, Spot},
    is_told,
    oracle::{Follower, Means},
    patterns,
    shrink::Decisions,
    tell,
};
use crate::{
    BackendKind, Counters, Error, Event, EventKind, Identity, InterfaceName, NetnsId, Pattern,
    engine::{Ask, Asking, Engine, Output, Reply},
    machine::{Machine, Now, Source},
    outbox::{Item, Outbox},
    tracker::Watch,
};

/// So much is asked of the kernel, with nothing happening and no time passing, by a monitor that
/// runs in circles.
const TOO_MANY: u32 = 2000;
/// A monitor that waits so often for something that fails does not give up.
const TOO_OFTEN: u32 = 200;
/// A failure that lasts for ever.
const FOR_EVER: u32 = u32::MAX;
/// What fails so often in a row is tried again without a wait. All names and patterns of a namespace
/// that are looked up after a loss ask for a barrier, or two or three, each.
const TOO_SOON: u32 = 60;
pub(crate) const KINDS_OF_REQUESTS: usize = 40;

/// A backend's side of the kernel.
pub(crate) trait Side: fmt::Debug {
    type Machine: Asking + fmt::Debug;

    /// Which backends it can be the kernel's side of.
    const KINDS: &'static [BackendKind];
    /// Which backends the agent can have, where it is asked.
    const BEHIND: &'static [BackendKind] = &[];

    fn new(setting: Setting) -> Self;
    fn machine(&self) -> Self::Machine;
    /// Kinds of requests: each can fail for a while.
    fn kind_of(request: &Request<Self>) -> usize;
    /// Does it wait for changes that are being made?
    fn waits(host: &Host, request: &Request<Self>) -> bool;
    /// The answer when it fails; `None` when it cannot.
    fn fail(&mut self, request: &Request<Self>) -> Option<Answer<Self>>;
    fn serve(
        &mut self,
        decisions: &mut Decisions,
        host: &Host,
        request: Request<Self>,
    ) -> Answer<Self>;
    /// Hears of a change.
    ///
    /// `misses`: or perhaps not.
    fn notice(&mut self, decisions: &mut Decisions, host: &Host, misses: bool, notice: Notice);
    /// What was begun in the kernel is done.
    fn finish(&mut self) {}
    /// Can no namespace be entered?
    fn confine(&mut self, _: bool) {}
    /// Others on the host do something.
    fn turn(&mut self, _: &mut Decisions, _: &Host) {}
    /// How much they were told.
    fn served(&self) -> u64 {
        0
    }
    /// They do all that there is to do by now; says when there is more.
    fn rest(&mut self, _: &Host) -> Option<Instant> {
        None
    }
    /// Says where something came since it was asked last.
    fn take_ready(&mut self, ready: impl FnMut(Source));
    /// Where something can come.
    fn sources(&self, source: impl FnMut(Source));
    /// Does the process hold that namespace?
    fn is_holding(&self, space: usize) -> bool;
    /// Can patterns be watched in that namespace?
    fn takes_patterns(_space: usize) -> bool {
        true
    }
    /// Which watch of the name the kernel's side counts for, and how many changes it has counted.
    fn changes(&self, _: &Spot) -> Option<(u32, u64)> {
        None
    }
    /// At rest: is what the kernel has what these watches need, and no more?
    fn check_rest(
        &mut self,
        host: &Host,
        machine: &Self::Machine,
        watched: &[Spot],
        patterns: &[patterns::Place],
    );
    /// `told`: a loss of which nobody can say how much it was.
    fn check_counters(&self, counters: &Counters, told: bool, is_faulty: bool);
}

pub(crate) type Request<S> = <<S as Side>::Machine as Machine>::Request;
pub(crate) type Answer<S> = <<S as Side>::Machine as Machine>::Answer;

/// Why a request failed, for want of a better reason.
pub(crate) fn failure() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

/// Does a request of a kind fail, which fails so often still?
pub(crate) fn strikes(fault: &mut u32, can_fail: bool, decisions: &mut Decisions) -> bool {
    if *fault == 0 && can_fail && decisions.chance(60) {
        *fault = [1, 1, 3, 20, FOR_EVER][decisions.index(5)];
    }
    *fault > 0
}

/// It did.
pub(crate) fn endure(fault: &mut u32) {
    if *fault != FOR_EVER {
        *fault -= 1;
    }
}

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) kind: BackendKind,
    /// What the agent has as its backend.
    pub(crate) behind: Option<BackendKind>,
    pub(crate) conduct: Conduct,
    /// There is room for the notes about few devices.
    pub(crate) is_crowded: bool,
    /// What is asked of the kernel fails now and then.
    pub(crate) is_faulty: bool,
    /// All patterns are narrowed to some kinds.
    pub(crate) is_narrowed: bool,
    /// They are watched in all namespaces.
    pub(crate) is_everywhere: bool,
    /// When these have begun, no namespace can be entered any more.
    pub(crate) is_confined: bool,
    /// Something happens at one in so many occasions.
    pub(crate) pace: u32,
    /// The reader takes something at one in so many.
    pub(crate) reader: u32,
    /// Somebody asks for something at one in so many.
    pub(crate) asker: u32,
}

impl Setting {
    pub(crate) fn decide<S: Side>(kind: BackendKind, decisions: &mut Decisions) -> Self {
        let pick = |decisions: &mut Decisions, of: &[u32]| of[decisions.index(of.len())];
        let behind = decisions.index(S::BEHIND.len().max(1));
        let behind = S::BEHIND.get(behind).copied();
        let is_everywhere = kind == BackendKind::Fentry && decisions.chance(2);
        let mut setting = Self {
            kind,
            behind,
            conduct: Conduct {
                room: pick(decisions, &[1 << 30, 1 << 30, 1, 2, 3, 5]) as usize,
                calm: decisions.chance(4),
                // Who is back after the agent was away is known by its index; so is, after a loss,
                // whoever matches in a namespace that nobody enters.
                reuses: decisions.chance(2) && kind != BackendKind::Agent && !is_everywhere,
                overwrites: decisions.chance(2),
                lockless: decisions.chance(2),
                hides_inodes: false,
                is_silent: !matches!(
                    behind.unwrap_or(kind),
                    BackendKind::Fentry | BackendKind::Kprobe
                ),
                is_half_silent: false,
            },
            is_crowded: decisions.chance(2),
            is_faulty: decisions.chance(3),
            is_narrowed: decisions.chance(2),
            is_everywhere,
            is_confined: is_everywhere && decisions.chance(2),
            pace: pick(decisions, &[16, 4, 2, 40]),
            reader: pick(decisions, &[1, 4, 30]),
            asker: pick(decisions, &[30, 6, 200]),
        };
        setting.conduct.hides_inodes = decisions.chance(8);
        setting.conduct.is_half_silent = setting.conduct.is_silent && setting.is_faulty;
        setting
    }

    /// Of whoever is served by the agent.
    #[cfg(feature = "cli")]
    pub(crate) fn means_of_client(self) -> Means {
        let mut behind = self;
        behind.kind = self.behind.expect("an agent has a backend");
        // What is calm for the library's own client is not so for the agent.
        behind.conduct.calm = false;
        Means {
            is_lossless: false,
            can_lose: true,
            can_forget: true,
            is_served: true,
            is_counted: false,
            ..behind.means()
        }
    }

    fn means(self) -> Means {
        let Conduct {
            room,
            calm,
            reuses,
            overwrites,
            hides_inodes,
            ..
        } = self.conduct;
        let is_agent = self.kind == BackendKind::Agent;
        // Where devices are forgotten, a change can come in between.
        let has_no_room = self.kind == BackendKind::NetlinkEbpf && self.is_crowded;
        let can_lose = room != 1 << 30 || self.is_faulty || is_agent || has_no_room;
        let (is_filtered, is_counted, is_local) = match self.kind {
            BackendKind::Netlink => (true, false, true),
            BackendKind::NetlinkUnfiltered => (false, false, true),
            // What the program was not shown, it could not count.
            BackendKind::NetlinkEbpf => (false, !self.is_faulty && !has_no_room, true),
            BackendKind::Fentry | BackendKind::Kprobe => (false, true, false),
            BackendKind::Agent => (true, false, true),
        };
        let is_lossless = !can_lose && (calm || !is_filtered);
        Means {
            is_lossless,
            is_exact: is_lossless || is_counted,
            // By the agent: what was said to it is known.
            is_counted: is_lossless || is_counted || is_agent,
            is_served: false,
            can_lose,
            forgets: [Some(self.kind), self.behind].contains(&Some(BackendKind::NetlinkEbpf))
                && self.is_faulty,
            // A client of the agent knows but the last holder.
            forgets_earlier: self.is_crowded
                && [Some(self.kind), self.behind]
                    .into_iter()
                    .flatten()
                    .any(BackendKind::is_ebpf),
            can_forget: (self.is_crowded || is_agent) && can_lose,
            is_certain: is_lossless || is_counted || !reuses,
            calm,
            reuses,
            overwrites,
            hides_inodes,
            is_local,
        }
    }
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum {
    pub(crate) polls: u64,
    pub(crate) requests: u64,
    pub(crate) changes: u64,
    pub(crate) verdicts: u64,
    pub(crate) resyncs: u64,
    pub(crate) failures: u64,
    pub(crate) asked: u64,
    pub(crate) refused: u64,
    pub(crate) ends: u64,
    pub(crate) rests: u64,
    pub(crate) served: u64,
}

impl Sum {
    pub(crate) fn add(&mut self, other: &Self) {
        let Self {
            polls,
            requests,
            changes,
            verdicts,
            resyncs,
            failures,
            asked,
            refused,
            ends,
            rests,
            served,
        } = other;
        self.polls += polls;
        self.requests += requests;
        self.changes += changes;
        self.verdicts += verdicts;
        self.resyncs += resyncs;
        self.failures += failures;
        self.asked += asked;
        self.refused += refused;
        self.ends += ends;
        self.rests += rests;
        self.served += served;
    }
}

/// A host with a monitor on it, somebody who reads what that says, and somebody who knows better.
#[derive(Debug)]
pub(crate) struct Run<S: Side> {
    setting: Setting,
    host: Host,
    side: S,
    engine: Engine<S::Machine>,
    outbox: Outbox,
    /// What was asked and not replied to.
    asked: Option<Asked>,
    /// Watches that have begun, and of which nothing was read yet: in which state at the earliest
    /// and at the latest, with which device expected.
    begun: Vec<(Spot, (usize, usize), Option<Identity>)>,
    followers: Vec<Follower>,
    /// The same for patterns.
    begun_patterns: Vec<(patterns::Place, (usize, usize))>,
    patterns: Vec<patterns::Follower>,
    /// By the kind of request: how often it still fails.
    faults: [u32; KINDS_OF_REQUESTS],
    /// Requests that failed, and how often, while nothing happened, no time passed and nobody
    /// asked.
    failures: HashMap<String, u32>,
    /// Nothing fails any more.
    is_healed: bool,
    /// By mark: how many states there were when it was asked for.
    marks: Vec<(u64, usize)>,
    mark: u64,
    /// Requests since something happened.
    in_vain: u32,
    has_ended: bool,
    /// It told of a loss, and did not say how much it was.
    told_loss: bool,
    /// A watch was ended.
    has_unwatched: bool,
    /// It waits, and all that was to be read was read.
    is_idle: bool,
    pub(crate) sum: Sum,
}

/// What was asked, and where in the states.
#[derive(Debug)]
enum Asked {
    Watch {
        space: usize,
        at: usize,
        targets: Vec<(InterfaceName, Option<Identity>)>,
    },
    WatchPatterns {
        space: usize,
        at: usize,
        patterns: Vec<Pattern>,
    },
    Unwatch(Spot),
    UnwatchPattern(patterns::Place),
    Sync(u64, usize),
    Count,
}

impl<S: Side> Run<S> {
    pub(crate) fn new(setting: Setting) -> Self {
        let side = S::new(setting);
        Self {
            setting,
            host: Host::new(setting.conduct),
            engine: Engine::new(setting.kind, side.machine()),
            side,
            outbox: Outbox::default(),
            asked: None,
            begun: Vec::new(),
            followers: Vec::new(),
            begun_patterns: Vec::new(),
            patterns: Vec::new(),
            faults: [0; KINDS_OF_REQUESTS],
            failures: HashMap::new(),
            is_healed: false,
            marks: Vec::new(),
            mark: 0,
            in_vain: 0,
            has_ended: false,
            told_loss: false,
            has_unwatched: false,
            is_idle: false,
            sum: Sum::default(),
        }
    }

    fn now(&self) -> Now {
        self.host.clock()
    }

    /// Lives until the decisions are used up, then comes to rest.
    pub(crate) fn live(&mut self, decisions: &mut Decisions) {
        // The host has a life before anybody watches.
        for _ in 0..decisions.below(12) {
            decisions.turn();
            self.act(decisions);
            self.settle(decisions);
        }
        while decisions.turn() {
            self.side.turn(decisions, &self.host);
            self.go_on(decisions);
        }
        // Some failures stay.
        let lasts = self.setting.is_faulty && self.mark % 2 == 1;
        self.rest(lasts);
        self.sum.changes = self.host.changes;
        self.sum.served = self.side.served();
    }

    /// One step of the monitor, and what happens around it.
    fn go_on(&mut self, decisions: &mut Decisions) {
        if decisions.chance(self.setting.reader) {
            for _ in 0..=decisions.below(4) {
                self.read();
            }
        }
        // Whoever drives it may ask again what to do, and see things that are not there.
        match decisions.below(64) {
            61 => self.everything_is_ready(),
            62 => {
                // The process is stopped.
                for _ in 0..decisions.below(60) {
                    self.happen(decisions);
                }
                self.pass(Duration::from_millis(decisions.below(400).into()));
            }
            63 => self.pass(Duration::from_millis(decisions.below(20).into())),
            _ => {}
        }
        self.ask_perhaps(decisions);
        match self.poll() {
            Output::Request(request) => self.request(decisions, request),
            Output::Background(request) => {
                for _ in 0..decisions.below(4) {
                    self.happen(decisions);
                    self.read();
                }
                if decisions.chance(8) {
                    self.ask_perhaps(decisions);
                }
                self.request(decisions, request);
            }
            Output::Reply(reply) => self.replied(reply),
            Output::Wait(until) => self.wait(decisions, until),
            Output::Full => {
                self.in_vain = 0;
                assert!(!self.outbox.is_empty(), "it is not full");
                if decisions.chance(4) {
                    self.read();
                } else {
                    self.happen(decisions);
                }
            }
            Output::End(counters) => self.ended(&counters),
        }
    }

    fn poll(&mut self) -> Output<Request<S>> {
        self.sum.polls += 1;
        self.in_vain += 1;
        assert!(
            self.in_vain < TOO_MANY,
            "it runs in circles: {:?}",
            self.engine
        );
        let now = self.now();
        self.engine.poll(&now, &mut self.outbox)
    }

    /// Something happens on the host, perhaps.
    fn happen(&mut self, decisions: &mut Decisions) {
        if self.setting.conduct.calm && !self.is_idle {
            return;
        }
        if self.host.is_busy() {
            self.step(decisions);
        } else {
            self.act(decisions);
        }
    }

    /// A system call begins: something happens before, perhaps. What takes RTNL waits for whoever
    /// has it.
    fn call(&mut self, decisions: &mut Decisions, waits: bool) {
        if waits {
            self.settle(decisions);
        }
        while decisions.chance(self.setting.pace) {
            self.happen(decisions);
            if waits {
                self.settle(decisions);
            }
        }
    }

    fn act(&mut self, decisions: &mut Decisions) {
        let asked = match &self.asked {
            Some(Asked::Watch { space, .. } | Asked::WatchPatterns { space, .. }) => Some(*space),
            _ => None,
        };
        let side = &self.side;
        let is_held = |space| side.is_holding(space) || asked == Some(space);
        self.host.act(decisions, is_held);
        if self.host.is_busy() {
            self.in_vain = 0;
        }
        if self.setting.conduct.calm {
            self.settle(decisions);
        }
    }

    fn step(&mut self, decisions: &mut Decisions) {
        self.in_vain = 0;
        self.failures.clear();
        if let Some(notice) = self.host.step() {
            tell(|| format!("    host: {notice:?}"));
            let misses = self.setting.is_faulty && !self.is_healed;
            self.side.notice(decisions, &self.host, misses, notice);
        }
    }

    /// The change that is being made comes to its end.
    fn settle(&mut self, decisions: &mut Decisions) {
        while self.host.is_busy() {
            self.step(decisions);
        }
        self.side.finish();
    }

    fn pass(&mut self, time: Duration) {
        self.side.finish();
        self.host.pass(time);
        self.failures.clear();
    }

    fn request(&mut self, decisions: &mut Decisions, request: Request<S>) {
        self.sum.requests += 1;
        self.host.asked_at.set(self.host.at());
        self.call(decisions, S::waits(&self.host, &request));
        let answer = self.answer(decisions, request);
        let now = self.now();
        self.engine.answer(&now, answer);
    }

    fn answer(&mut self, decisions: &mut Decisions, request: Request<S>) -> Answer<S> {
        let line = is_told().then(|| format!("{request:?}"));
        let fault = &mut self.faults[S::kind_of(&request)];
        let can_fail = self.setting.is_faulty && !self.is_healed;
        if strikes(fault, can_fail, decisions)
            && let Some(answer) = self.side.fail(&request)
        {
            endure(fault);
            self.sum.failures += 1;
            tell(|| format!("{request:?} fails"));
            let failures = self.failures.entry(format!("{request:?}")).or_default();
            *failures += 1;
            assert!(*failures < TOO_SOON, "it tries again without a wait");
            return answer;
        }
        let answer = self.side.serve(decisions, &self.host, request);
        tell(|| format!("{} -> {answer:?}", line.unwrap_or_default()));
        answer
    }

    fn everything_is_ready(&mut self) {
        let machine = &mut self.engine.machine;
        self.side.sources(|source| machine.ready(source));
    }

    /// It waits: what came since is shown to it, or else something happens.
    fn wait(&mut self, decisions: &mut Decisions, until: Option<Instant>) {
        let now = self.now().instant;
        assert!(
            until.is_none_or(|until| until > now),
            "it waits for the past"
        );
        if self.wake() {
            return;
        }
        self.in_vain = 0;
        self.is_idle = until.is_none();
        let is_dull = decisions.chance(3);
        if let Some(until) = until
            && is_dull
        {
            self.is_idle = false;
            self.pass(until - now + Duration::from_millis(decisions.below(3).into()));
            return;
        }
        match decisions.below(64) {
            62 if self.setting.is_faulty && !self.is_healed && decisions.chance(40) => {
                tell(|| String::from("the wait fails"));
                self.engine.cannot_wait(io::ErrorKind::InvalidInput.into());
            }
            63 => {
                let lasts = self.setting.is_faulty && decisions.chance(3);
                self.rest(lasts);
            }
            _ if decisions.chance(2) => self.happen(decisions),
            _ => {
                self.read();
            }
        }
        self.is_idle = false;
    }

    /// Shows it what came since; false when there was nothing.
    fn wake(&mut self) -> bool {
        let mut any = false;
        let machine = &mut self.engine.machine;
        self.side.take_ready(|source| {
            machine.ready(source);
            any = true;
        });
        any
    }

    /// Somebody asks for something, perhaps.
    fn ask_perhaps(&mut self, decisions: &mut Decisions) {
        if !self.engine.is_free() || self.asked.is_some() || !decisions.chance(self.setting.asker) {
            return;
        }
        let what = decisions.below(20);
        let space = decisions.index(SPACES);
        let ask = match what {
            0..8 => {
                if !self.host.is_open(space) {
                    return;
                }
                let targets: Vec<_> = (0..=decisions.below(3))
                    .map(|_| {
                        let name = host::name(decisions.below(host::WATCHED));
                        (name, self.expect(decisions))
                    })
                    .collect();
                // Who joins a watch of the agent's is told what the agent was told.
                let at = match self.setting.kind {
                    BackendKind::Agent => self.host.settled(),
                    _ => self.host.at(),
                };
                self.asked = Some(Asked::Watch {
                    space,
                    at,
                    targets: targets.clone(),
                });
                Ask::Watch {
                    netns: host::netns(space),
                    targets,
                }
            }
            8..12 => {
                let name = host::name(decisions.below(host::WATCHED));
                let spot = self.spot(space, name);
                self.asked = Some(Asked::Unwatch(spot));
                Ask::Unwatch(Watch {
                    netns: host::netns(space),
                    name,
                })
            }
            12..14 => {
                self.mark += 1;
                self.asked = Some(Asked::Sync(self.mark, self.host.settled()));
                Ask::Sync(self.mark)
            }
            14..16 => {
                self.asked = Some(Asked::Count);
                Ask::Count
            }
            16..18 => {
                if !self.host.is_open(space) || !S::takes_patterns(space) {
                    return;
                }
                let space = self.pattern_space(space);
                let patterns: Vec<_> = (0..=decisions.below(2))
                    .map(|_| host::pattern(decisions, self.setting.is_narrowed))
                    .collect();
                // Loopback devices are none of the host's.
                let is_loopback = |pattern: &Pattern| pattern.accepts(&host::loopback(), None);
                if space == host::EVERYWHERE && patterns.iter().any(is_loopback) {
                    return;
                }
                let at = self.host.at();
                if self.patterns.is_empty() && self.begun_patterns.is_empty() {
                    self.side.confine(false);
                }
                self.asked = Some(Asked::WatchPatterns {
                    space,
                    at,
                    patterns: patterns.clone(),
                });
                Ask::WatchPatterns {
                    netns: host::netns(space),
                    patterns,
                }
            }
            18.. => {
                let space = self.pattern_space(space);
                let pattern = host::pattern(decisions, self.setting.is_narrowed);
                let place = self.place(space, pattern.clone());
                self.asked = Some(Asked::UnwatchPattern(place));
                Ask::UnwatchPattern(host::netns(space), pattern)
            }
        };
        self.sum.asked += 1;
        self.in_vain = 0;
        tell(|| format!("ask: {ask:?}"));
        self.failures.clear();
        self.engine.ask(ask);
    }

    /// A device that may be there, or was.
    fn expect(&self, decisions: &mut Decisions) -> Option<Identity> {
        if !decisions.chance(4) {
            return None;
        }
        let any = self.host.now.devices().nth(decisions.index(4));
        let (id, ifindex) = any.map_or((1, 2), |device| (device.id, device.ifindex));
        let identity = Identity::of_ifindex(ifindex);
        Some(if decisions.chance(2) {
            identity.with_inode(id.into())
        } else {
            identity
        })
    }

    fn spot(&self, space: usize, name: InterfaceName) -> Spot {
        Spot {
            space,
            era: self.host.now.eras[space],
            name,
        }
    }

    fn place(&self, space: usize, pattern: Pattern) -> patterns::Place {
        let is_everywhere = space == host::EVERYWHERE;
        // The first stands for all.
        let space = if is_everywhere { 0 } else { space };
        patterns::Place {
            spot: self.spot(space, InterfaceName::NONE),
            pattern,
            is_everywhere,
        }
    }

    /// Where patterns are watched.
    const fn pattern_space(&self, space: usize) -> usize {
        if self.setting.is_everywhere {
            host::EVERYWHERE
        } else {
            space
        }
    }

    fn replied(&mut self, reply: Reply) {
        tell(|| format!("reply: {reply:?}"));
        self.in_vain = 0;
        let asked = self.asked.take().expect("somebody asked");
        match (asked, reply) {
            (Asked::Watch { space, at, targets }, Reply::Watched(Ok(()))) => {
                let before = self.begun.len();
                for (name, expected) in targets {
                    let spot = self.spot(space, name);
                    let again = self.begun[before..].iter_mut();
                    if let Some((.., known)) = again.into_iter().find(|(begun, ..)| *begun == spot)
                    {
                        // The device that was named counts, wherever that was.
                        *known = known.or(expected);
                    } else if !self.is_watched(spot) {
                        let window = (at, self.host.at());
                        self.begun.push((spot, window, expected));
                    }
                }
            }
            (
                Asked::WatchPatterns {
                    space,
                    at,
                    patterns,
                },
                Reply::Watched(Ok(())),
            ) => {
                for pattern in patterns {
                    let place = self.place(space, pattern);
                    if !self.is_pattern_watched(&place) {
                        self.begun_patterns.push((place, (at, self.host.at())));
                    }
                }
                self.side.confine(self.setting.is_confined);
            }
            (Asked::UnwatchPattern(place), Reply::Unwatched(was_watched)) => {
                self.has_unwatched = true;
                let is_known = self.is_pattern_watched(&place);
                let is_it = |other: &patterns::Place| {
                    let is_here = other.spot.space == place.spot.space || place.is_everywhere;
                    is_here && other.pattern == place.pattern
                };
                let is_known_still = self.patterns.iter().any(|other| is_it(&other.place))
                    || self.begun_patterns.iter().any(|(other, _)| is_it(other));
                assert!(is_known_still || !was_watched, "{place:?} was not watched");
                assert!(
                    was_watched || !is_known || self.host.is_over(place.spot),
                    "{place:?} was watched"
                );
                self.begun_patterns.retain(|(other, _)| !is_it(other));
                self.patterns.retain(|other| !is_it(&other.place));
            }
            (Asked::Watch { .. } | Asked::WatchPatterns { .. }, Reply::Watched(Err(error))) => {
                let is_for_room = self.setting.is_crowded && matches!(error, Error::Filter(_));
                // They are for the start.
                let is_late = self.setting.is_everywhere && matches!(error, Error::AllNamespaces);
                let is_expected = self.setting.is_faulty || is_for_room || is_late;
                assert!(is_expected, "refused: {error}");
                self.sum.refused += 1;
            }
            (Asked::Unwatch(spot), Reply::Unwatched(was_watched)) => {
                let is_known = self.is_watched(spot);
                let is_it = |other: &Spot| (other.space, other.name) == (spot.space, spot.name);
                // That the namespace before this one has ended may not be known yet.
                let is_known_still = self.followers.iter().any(|other| is_it(&other.spot))
                    || self.begun.iter().any(|(other, ..)| is_it(other));
                assert!(is_known_still || !was_watched, "{spot:?} was not watched");
                assert!(
                    was_watched || !is_known || self.host.is_over(spot),
                    "{spot:?} was watched"
                );
                // From now on nothing is said of it.
                self.begun.retain(|(other, ..)| !is_it(other));
                self.followers.retain(|other| !is_it(&other.spot));
                self.has_unwatched = true;
            }
            (Asked::Sync(mark, at), Reply::Synced) => self.marks.push((mark, at)),
            (Asked::Count, Reply::Counted(counters)) => {
                if self.engine.is_free() {
                    self.check_counters(&counters);
                }
            }
            (asked, reply) => panic!("{reply:?} to {asked:?}"),
        }
    }

    fn is_pattern_watched(&self, place: &patterns::Place) -> bool {
        self.begun_patterns.iter().any(|(other, _)| other == place)
            || self.patterns.iter().any(|other| other.place == *place)
    }

    fn is_watched(&self, spot: Spot) -> bool {
        self.begun.iter().any(|(other, ..)| *other == spot)
            || self.followers.iter().any(|other| other.spot == spot)
    }

    /// The reader takes what is first; false when there is nothing.
    fn read(&mut self) -> bool {
        let Some(item) = self.outbox.pop() else {
            return false;
        };
        tell(|| format!("read: {item:?}"));
        match item {
            Item::Event(event) => {
                assert_eq!(event.backend, self.setting.kind);
                match event.pattern.clone() {
                    Some(pattern) => self.heard_pattern(pattern, &event),
                    None => {
                        self.heard(event.netns, event.interface, &event.kind, event.recovered);
                    }
                }
            }
            Item::Mark(mark) => {
                let at = self.marks.iter().position(|(other, _)| *other == mark);
                let (_, at) = self.marks.remove(at.expect("it was asked for"));
                for follower in &mut self.followers {
                    follower.check_up_to(&self.host, at);
                }
                for follower in &mut self.patterns {
                    follower.check_up_to(&self.host, at);
                }
            }
            Item::Error(error) => self.failed(&error),
        }
        true
    }

    fn heard_pattern(&mut self, pattern: Pattern, event: &Event) {
        if event.netns == NetnsId::ALL {
            return self.begun_everywhere(pattern, event);
        }
        let space = host::space_of(event.netns);
        let is_it = |place: &patterns::Place| place.spot.space == space && place.pattern == pattern;
        let follower = self.patterns.iter().position(|other| is_it(&other.place));
        if let EventKind::Watching { .. } = event.kind {
            if let Some(follower) = follower {
                // Its namespace has ended, and this is another one.
                let mut follower = self.patterns.remove(follower);
                assert!(self.host.is_over(follower.place.spot), "it begins once");
                follower.rest(&self.host);
            }
            // That it is watched is told before whoever asked for it is.
            let begun = self
                .begun_patterns
                .iter()
                .position(|(place, _)| is_it(place));
            let (place, window) = match (begun, &self.asked) {
                (Some(at), _) => self.begun_patterns.remove(at),
                (None, Some(Asked::WatchPatterns { space, at, .. })) => {
                    let place = self.place(*space, pattern);
                    (place, (*at, self.host.at()))
                }
                (None, asked) => panic!("{pattern} begins, and {asked:?} was asked"),
            };
            let means = self.setting.means();
            let matches = event.matches;
            let follower = patterns::Follower::begin(place, means, &self.host, window, matches);
            let follower =
                follower.unwrap_or_else(|| panic!("{event:?} was never true in {window:?}"));
            self.patterns.push(follower);
            return;
        }
        let follower = follower.unwrap_or_else(|| panic!("{event:?}, not watched"));
        self.patterns[follower].take(event, &self.host);
        self.count(&event.kind);
    }

    fn begun_everywhere(&mut self, pattern: Pattern, event: &Event) {
        assert!(matches!(event.kind, EventKind::Watching { .. }));
        let place = self.place(host::EVERYWHERE, pattern);
        let is_it = |(other, _): &(patterns::Place, _)| *other == place;
        let begun = self.begun_patterns.iter().position(is_it);
        let window = match (begun, &self.asked) {
            (Some(at), _) => self.begun_patterns.remove(at).1,
            (None, Some(Asked::WatchPatterns { at, .. })) => (*at, self.host.at()),
            (None, asked) => panic!("{event:?}, and {asked:?} was asked"),
        };
        let means = self.setting.means();
        let (host, matches) = (&self.host, event.matches);
        let followers = patterns::Follower::begin_everywhere(&place, means, host, window, matches);
        let followers =
            followers.unwrap_or_else(|| panic!("{event:?} was never true in {window:?}"));
        self.patterns.extend(followers);
    }

    fn heard(&mut self, netns: NetnsId, name: InterfaceName, kind: &EventKind, recovered: bool) {
        let space = host::space_of(netns);
        let is_it = |spot: &Spot| spot.space == space && spot.name == name;
        let follower = self.followers.iter().position(|other| is_it(&other.spot));
        if let EventKind::Watching { ifindex } = *kind {
            if let Some(follower) = follower {
                // Its namespace has ended, and this is another one.
                let mut follower = self.followers.remove(follower);
                assert!(self.host.is_over(follower.spot), "it begins once");
                follower.rest(&self.host, None);
            }
            let at = self.begun.iter().position(|(other, ..)| is_it(other));
            let (spot, window, expected) = self.begun.remove(at.expect("it begins once"));
            let means = self.setting.means();
            let follower = Follower::begin(spot, means, &self.host, window, ifindex, expected);
            let follower = follower
                .unwrap_or_else(|| panic!("{kind:?} of {spot:?} was never true in {window:?}"));
            self.followers.push(follower);
            return;
        }
        let follower = follower.unwrap_or_else(|| panic!("{kind:?} of {name}, not watched"));
        self.followers[follower].take(kind, recovered, &self.host);
        self.count(kind);
    }

    fn count(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Resynced { lost, .. } => {
                self.sum.resyncs += 1;
                // In all namespaces it is not known of which one so many were lost.
                self.told_loss |= lost.is_none() && !self.setting.is_everywhere;
            }
            _ => self.sum.verdicts += 1,
        }
    }

    fn check_counters(&self, counters: &Counters) {
        let Self {
            told_loss, setting, ..
        } = self;
        self.side
            .check_counters(counters, *told_loss, setting.is_faulty);
    }

    /// It says that it cannot go on.
    fn failed(&mut self, error: &Error) {
        let gone = matches!(error, Error::NetnsGone(_));
        assert!(gone || self.setting.is_faulty, "ended: {error}");
        assert!(self.outbox.is_empty(), "nothing comes after an error");
        if gone {
            for follower in &mut self.followers {
                assert!(self.host.is_over(follower.spot), "{follower:?} goes on");
                follower.rest(&self.host, None);
            }
            for follower in &mut self.patterns {
                assert!(
                    self.host.is_over(follower.place.spot),
                    "{follower:?} goes on"
                );
                follower.rest(&self.host);
            }
        }
        self.has_ended = true;
    }

    /// It is over: somebody starts it again.
    fn ended(&mut self, counters: &Counters) {
        tell(|| format!("end: {counters:?}"));
        self.sum.ends += 1;
        while self.read() {}
        assert!(self.has_ended, "it ended without a word");
        assert!(self.asked.is_none(), "{:?} was not replied to", self.asked);
        // In the middle of something nothing is counted.
        if *counters != Counters::default() {
            self.check_counters(counters);
        }
        self.has_ended = false;
        self.told_loss = false;
        self.has_unwatched = false;
        self.in_vain = 0;
        self.followers.clear();
        self.begun.clear();
        self.patterns.clear();
        self.begun_patterns.clear();
        self.marks.clear();
        self.faults = [0; KINDS_OF_REQUESTS];
        self.failures.clear();
        self.side = S::new(self.setting);
        self.engine = Engine::new(self.setting.kind, self.side.machine());
        self.outbox = Outbox::default();
    }

    /// Lets everything that was begun be ended and be told, then compares.
    ///
    /// `fails`: what fails goes on failing.
    fn rest(&mut self, fails: bool) {
        let faults = self.faults;
        tell(|| format!("rest; fails: {fails}, {faults:?}"));
        self.sum.rests += 1;
        let mut none = Decisions::none();
        self.settle(&mut none);
        for fault in &mut self.faults {
            if !fails || *fault != FOR_EVER {
                *fault = 0;
            }
        }
        self.is_healed = true;
        let mut waits = 0;
        loop {
            while self.read() {}
            match self.poll() {
                Output::Request(request) | Output::Background(request) => {
                    self.request(&mut none, request);
                }
                Output::Reply(reply) => self.replied(reply),
                Output::Wait(until) => {
                    let now = self.now().instant;
                    assert!(
                        until.is_none_or(|until| until > now),
                        "it waits for the past"
                    );
                    let others = self.side.rest(&self.host);
                    if self.wake() {
                        continue;
                    }
                    let Some(until) = until.into_iter().chain(others).min() else {
                        self.compare();
                        break;
                    };
                    waits += 1;
                    assert!(waits < TOO_OFTEN, "it never gives up");
                    self.in_vain = 0;
                    self.pass(until - now);
                }
                Output::Full => assert!(!self.outbox.is_empty(), "it is not full"),
                Output::End(counters) => {
                    self.ended(&counters);
                    break;
                }
            }
        }
        self.is_healed = false;
    }

    /// All is at rest.
    fn compare(&mut self) {
        while self.read() {}
        self.in_vain = 0;
        assert!(self.asked.is_none(), "{:?} was not replied to", self.asked);
        assert!(self.begun.is_empty(), "{:?} never began", self.begun);
        for follower in &mut self.followers {
            let changes = self.side.changes(&follower.spot);
            follower.rest(&self.host, changes);
        }
        let begun = &self.begun_patterns;
        assert!(begun.is_empty(), "{begun:?} never began");
        for follower in &mut self.patterns {
            follower.rest(&self.host);
        }
        let host = &self.host;
        let followed = self.followers.len() + self.patterns.len();
        self.patterns.retain(|patterns::Follower { place, .. }| {
            place.is_everywhere || host.now.is_there(place.spot)
        });
        let patterns: Vec<_> = self
            .patterns
            .iter()
            .map(|follower| follower.place.clone())
            .collect();
        self.followers
            .retain(|follower| host.now.is_there(follower.spot));
        let follows = self.followers.len() + self.patterns.len();
        assert!(
            follows > 0 || followed == 0 || self.has_unwatched,
            "nothing is watched any more, and it does not end"
        );
        let watched: Vec<Spot> = self
            .followers
            .iter()
            .map(|follower| follower.spot)
            .collect();
        let once: HashSet<_> = watched.iter().map(|spot| (spot.space, spot.name)).collect();
        assert_eq!(once.len(), watched.len());
        self.side
            .check_rest(&self.host, &self.engine.machine, &watched, &patterns);
    }
}
