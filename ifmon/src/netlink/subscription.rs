//! Follows the links of one namespace through a subscription to link messages: a state machine
//! without I/O.
//!
//! What the messages say is put in order by [`DeviceTable`]. The state is looked up, one name at a
//! time or many in one go, where a watch begins, where messages were lost, and after a name was
//! taken by a device whose index the filter in the kernel did not know yet. What is looked up
//! counts only when it is known how it stands to the messages: the queue was read empty after it,
//! and none of them concerned the name.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    num::NonZeroU64,
    time::{Instant, SystemTime},
};

use super::{
    Received, Reply, Request,
    devices::{DeviceTable, Heard, Lookup, Taken, Transition},
    filter,
    message::{LinkMessage, Moved},
};
use crate::{
    Error, EventKind, InterfaceName, NetnsId, Pattern,
    error::again,
    machine::{Answer, Census, Counted, Holder, Named, Now, Question, Wanted},
    pattern::table::PatternTable,
    retry,
    signal::Signal,
    tracker::{Change, Destination, Observed, Watch},
};

/// Names of new watches that are looked up one by one at a stretch: so few that the messages that come
/// meanwhile fit into the queue, and that another change is not likely to come between.
const STRETCH: usize = if cfg!(test) { 1 } else { 128 };
/// How often a new watch's name is looked up again while it changes under our eyes.
const ROUNDS: u32 = 1000;
/// More names than these are looked up in one go, and devices are found by an index of their inodes.
const FEW: usize = if cfg!(test) { 1 } else { 64 };

/// A subscription, with what it has taught so far.
#[derive(Debug)]
pub(crate) struct Subscription {
    netns: NetnsId,
    filtered: bool,
    table: DeviceTable,
    patterns: PatternTable,
    /// Names that may not be as they seem; true where messages are known to be lost.
    suspects: BTreeMap<InterfaceName, bool>,
    /// The names of a watch that begins.
    joining: Option<Joining>,
    /// Patterns begin.
    joins_patterns: bool,
    /// They have begun, and whoever asked is still to be told.
    has_joined_patterns: bool,
    socket: SocketState,
    /// The filter in the kernel is on the socket.
    has_filter: bool,
    /// There may be something in the queue.
    unread: bool,
    /// Somebody waits for all that was queued, and what follows from it.
    owes: bool,
    /// Names are being looked up.
    pass: Option<Pass>,
    /// What the request is for whose answer is awaited.
    awaiting: AwaitedReply,
    /// A message that cannot be understood before something was asked.
    half_heard: Option<HalfHeard>,
    /// A device that matches a pattern went elsewhere; where to is still to be asked.
    half_gone: Option<(u32, Moved)>,
    said: VecDeque<Signal>,
    /// When the last answer came.
    time: SystemTime,
    /// Why the watches that were to begin do not.
    refused: Option<Error>,
    /// Why it has failed for good.
    dead: Option<Error>,
    /// How often in a row the subscription was opened and failed.
    attempts: u32,
    pub(super) tally: MessageTally,
}

/// What was read and lost.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MessageTally {
    /// Messages.
    pub(super) seen: u64,
    /// Those that concerned a watch.
    pub(super) matched: u64,
    /// Some were lost: on the way, or dropped by a filter that did not know a device yet.
    pub(super) has_lost: bool,
}

/// The socket that hears of links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketState {
    /// It is to be opened now.
    New,
    Open,
    /// It has failed, and is there still: each message would wake whoever waits for the next attempt.
    Failing(Instant),
    /// It has failed, and is opened again at this moment.
    Failed(Instant),
    /// It has failed for good.
    Dead,
}

/// Watches that begin.
#[derive(Debug)]
struct Joining {
    wanted: Vec<Wanted>,
    /// Those whose state is still to be read.
    unread: BTreeSet<InterfaceName>,
    rounds: u32,
}

/// One look at some names.
#[derive(Debug)]
struct Pass {
    /// Still to be looked up.
    names: std::vec::IntoIter<(InterfaceName, bool)>,
    /// Looked up.
    looks: Vec<Look>,
    stage: PassStage,
    /// Messages were lost before it.
    after_loss: bool,
}

#[derive(Debug)]
enum PassStage {
    /// What was told of these names is over soon: a device that has just come may not stay.
    Settle {
        /// Then they are looked up so.
        in_one_go: bool,
    },
    /// All names in one go.
    Census,
    /// The next name.
    Next,
    /// This name.
    Looking(Look, LookStep),
    /// What was looked up may be ahead of what was told.
    Barrier,
    /// Has the device that this look found the name still? What cannot be set up goes again, and no
    /// message says that it came.
    Confirm(usize),
    /// What is queued by now may be what the look-ups saw.
    Drain,
    /// The devices without a watched name, which may be others by now.
    Untracked(Vec<u32>),
    /// The name of the first of these was read.
    UntrackedInode(Vec<u32>, InterfaceName),
}

impl PassStage {
    const fn first(in_one_go: bool) -> Self {
        if in_one_go { Self::Census } else { Self::Next }
    }
}

#[derive(Clone, Copy, Debug)]
enum LookStep {
    Index,
    /// Nobody has the name: what is the device called that had it?
    Name(u32),
    AwayInode(InterfaceName),
    Inode,
}

/// What was read of a name; `lost` where messages are known to be lost.
#[derive(Clone, Copy, Debug)]
struct Look {
    name: InterfaceName,
    lost: bool,
    holder: Option<u32>,
    lookup: Lookup,
    /// It was read along with all others, under RTNL: what it has found is there to stay.
    is_sure: bool,
}

/// What an answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AwaitedReply {
    Nothing,
    Open,
    Unsubscribe,
    Read,
    /// Its filter is on the socket; or none any more.
    Filter(bool),
    Pass,
    Patterns,
    HalfHeard,
    HalfGone,
}

/// A message that cannot be understood before something was asked.
#[derive(Debug)]
enum HalfHeard {
    /// A device that was not known: its inode says whether it is one that comes back.
    Newcomer(u32, InterfaceName),
    /// A device went to the namespace that has this id.
    Netns(Change, i32),
}

/// What to do next.
#[derive(Debug)]
pub(super) enum Next {
    Request(Request),
    Background(Request),
    Signal(Signal),
    Joined(Result<Vec<Option<Holder>>, Error>),
    /// Nothing, until this moment at the latest.
    Rest(Option<Instant>),
    Failed(Error),
}

impl Subscription {
    /// A subscription that is still to be opened.
    pub(super) fn new(netns: NetnsId, filtered: bool) -> Self {
        Self {
            netns,
            filtered,
            table: DeviceTable::new(netns),
            patterns: PatternTable::new(filtered),
            suspects: BTreeMap::new(),
            joining: None,
            joins_patterns: false,
            has_joined_patterns: false,
            socket: SocketState::New,
            has_filter: false,
            unread: true,
            owes: false,
            pass: None,
            awaiting: AwaitedReply::Nothing,
            half_heard: None,
            half_gone: None,
            said: VecDeque::new(),
            time: SystemTime::UNIX_EPOCH,
            refused: None,
            dead: None,
            attempts: 0,
            tally: MessageTally::default(),
        }
    }

    /// Is nothing watched?
    pub(super) fn is_idle(&self) -> bool {
        self.table.is_empty() && self.patterns.is_empty()
    }

    /// How many devices are remembered.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.table.remembered()
    }

    /// How much is remembered for patterns.
    #[cfg(test)]
    pub(super) fn remembered_of_patterns(&self) -> usize {
        self.patterns.remembered()
    }

    /// There may be something in the queue.
    pub(super) fn ready(&mut self) {
        self.unread = true;
    }

    /// Was everything read that had been queued, and handed on? A subscription that has failed has
    /// nothing queued.
    pub(super) fn is_drained(&self) -> bool {
        self.said.is_empty()
            && self.pass.is_none()
            && self.awaiting == AwaitedReply::Nothing
            && self.half_heard.is_none()
            && self.half_gone.is_none()
            && !self.patterns.is_reading()
            && (!self.unread || !self.is_open())
    }

    /// Somebody waits until it is [certain](Self::is_certain).
    pub(super) fn owe(&mut self) {
        self.owes = true;
    }

    /// Is it known, too, that nothing was missed?
    pub(super) fn is_certain(&self) -> bool {
        self.is_drained()
            && self.suspects.is_empty()
            && !self.owes
            && self.patterns.is_certain()
            && self.is_open()
    }

    fn is_open(&self) -> bool {
        self.socket == SocketState::Open
    }

    /// Begins to watch names. It must be drained.
    pub(super) fn join(&mut self, wanted: Vec<Wanted>) {
        self.table.add(wanted.iter().map(|wanted| wanted.name));
        self.joining = Some(Joining {
            unread: wanted.iter().map(|wanted| wanted.name).collect(),
            wanted,
            rounds: 0,
        });
    }

    /// Begins to watch patterns. It must be drained.
    pub(super) fn join_patterns(&mut self, patterns: Vec<Pattern>) {
        self.patterns.add(patterns);
        self.joins_patterns = true;
        self.table.stale = true;
    }

    /// Ends the watch of a pattern. It must be drained.
    pub(super) fn unwatch_pattern(&mut self, pattern: &Pattern) {
        self.patterns.remove(pattern);
        self.table.stale = true;
    }

    /// Ends a watch. It must be drained.
    pub(super) fn unwatch(&mut self, name: InterfaceName) {
        self.table.remove(name);
        self.suspects.remove(&name);
    }

    /// Messages were lost: any name may be another device's by now.
    fn suspect_all(&mut self) {
        self.tally.has_lost = true;
        self.patterns.lost(None);
        self.suspects = self.table.names().map(|name| (name, true)).collect();
    }

    /// Were messages lost, and not every name looked up since?
    fn is_after_loss(&self) -> bool {
        self.pass.as_ref().is_some_and(|pass| pass.after_loss)
            || self.suspects.values().any(|&lost| lost)
    }

    /// Something was read to its end. If nothing else is left to be read, all works again.
    fn may_be_well(&mut self) {
        if !self.is_after_loss() && self.patterns.is_read() && self.patterns.is_identified() {
            self.attempts = 0;
        }
    }

    pub(super) fn next(&mut self, now: &Now) -> Next {
        debug_assert_eq!(self.awaiting, AwaitedReply::Nothing);
        loop {
            if let Some(next) = self.step(now) {
                return next;
            }
        }
    }

    /// What to do next; `None` when something was decided that changes it.
    fn step(&mut self, now: &Now) -> Option<Next> {
        if let Some(half) = &self.half_heard {
            let question = match *half {
                HalfHeard::Newcomer(_, name) => Question::IdentityOf(name),
                HalfHeard::Netns(_, nsid) => Question::NetnsOf(nsid),
            };
            return Some(Next::Request(self.ask(AwaitedReply::HalfHeard, question)));
        }
        if let Some((_, Moved { nsid, .. })) = self.half_gone {
            let question = Question::NetnsOf(nsid);
            return Some(Next::Request(self.ask(AwaitedReply::HalfGone, question)));
        }
        // A device that has just taken a watched name can be renamed in the next moment. Until the
        // filter knows its index, nothing is dropped.
        let has_grown = self.table.has_grown || self.patterns.has_unfiltered();
        if self.is_open() && self.has_filter && has_grown {
            return Some(Next::Request(self.set_filter(false)));
        }
        if let Some(signal) = self.said.pop_front() {
            return Some(Next::Signal(signal));
        }
        if std::mem::take(&mut self.has_joined_patterns) {
            return Some(Next::Joined(Ok(Vec::new())));
        }
        if let Some(error) = self.refused.take() {
            return Some(Next::Joined(Err(error)));
        }
        match self.socket {
            SocketState::Open => {}
            SocketState::Failing(_) => {
                self.awaiting = AwaitedReply::Unsubscribe;
                return Some(Next::Background(Request::Unsubscribe(self.netns)));
            }
            SocketState::Failed(at) if now.instant < at => {
                let error = self.fail_join(&io::ErrorKind::NotConnected.into());
                return Some(match error {
                    Some(error) => Next::Joined(Err(error)),
                    None => Next::Rest(Some(at)),
                });
            }
            SocketState::New | SocketState::Failed(_) => {
                self.awaiting = AwaitedReply::Open;
                return Some(Next::Request(Request::Open(self.netns)));
            }
            SocketState::Dead => {
                return Some(match self.dead.take() {
                    Some(error) => Next::Failed(error),
                    None => Next::Rest(None),
                });
            }
        }
        let reads = match &self.pass {
            None => true,
            Some(pass) => matches!(pass.stage, PassStage::Drain),
        };
        if self.unread && reads {
            self.awaiting = AwaitedReply::Read;
            return Some(Next::Request(Request::Read(self.netns)));
        }
        if reads && std::mem::take(&mut self.owes) {
            self.patterns.owe();
        }
        if self.pass.is_some() {
            return self.look();
        }
        // First the filter, as below, but for patterns that begin.
        let may_read = self.patterns.has_new() || !self.wants_filter();
        if self.patterns.is_reading() || self.patterns.needs_table() && may_read {
            return self.read_patterns();
        }
        if let Some(joining) = &self.joining {
            let is_read = joining.unread.is_empty() || joining.rounds >= ROUNDS;
            if is_read && !self.is_after_loss() {
                return Some(if self.wants_filter() {
                    Next::Request(self.set_filter(true))
                } else {
                    Next::Joined(Ok(self.joined()))
                });
            }
            // Nothing is dropped while the state is read, so nothing can happen unheard before the
            // new filter knows the indexes.
            if self.has_filter {
                return Some(Next::Request(self.set_filter(false)));
            }
        } else if self.wants_filter() {
            // First the filter, then the look: what happens in between is heard.
            return Some(if self.joins_patterns {
                Next::Request(self.set_filter(true))
            } else {
                Next::Background(self.set_filter(true))
            });
        }
        if self.joins_patterns {
            self.joins_patterns = false;
            self.patterns.begin();
            self.say_patterns();
            self.has_joined_patterns = true;
            return None;
        }
        if self.joining.is_none() && self.suspects.is_empty() {
            let is_more = self.patterns.read_unheard() || self.patterns.identify();
            return (!is_more).then_some(Next::Rest(None));
        }
        self.begin_pass();
        None
    }

    /// Is another filter wanted than the one that the kernel has?
    fn wants_filter(&self) -> bool {
        let is_stale = self.table.wants_filter() || self.patterns.has_unfiltered();
        self.filtered && (is_stale || !self.has_filter)
    }

    /// Goes on reading what matches patterns; `None` when that has come to an end.
    fn read_patterns(&mut self) -> Option<Next> {
        if !self.patterns.is_reading() {
            // Nothing is dropped while the state is read, so nothing can happen unheard before the
            // new filter knows the indexes.
            if self.patterns.has_new() && self.has_filter {
                return Some(Next::Request(self.set_filter(false)));
            }
            self.patterns.read_table();
        }
        let Some(question) = self.patterns.question() else {
            self.patterns.finish();
            self.may_be_well();
            self.say_patterns();
            return None;
        };
        let request = self.ask(AwaitedReply::Patterns, question);
        Some(if self.joins_patterns {
            Next::Request(request)
        } else {
            Next::Background(request)
        })
    }

    /// Hands on what there is to say of patterns; false when that is nothing.
    fn say_patterns(&mut self) -> bool {
        let has_said = self.patterns.has_said();
        while let Some(told) = self.patterns.take() {
            self.tally.has_lost |= matches!(told.kind, EventKind::Resynced { .. });
            self.said.push_back(Signal::Pattern {
                netns: self.netns,
                told,
                time: self.time,
                by: None,
            });
        }
        has_said
    }

    fn set_filter(&mut self, on: bool) -> Request {
        self.awaiting = AwaitedReply::Filter(on);
        let interest = on.then(|| {
            let mut interest = self.table.interest();
            if self.patterns.is_dropping() {
                interest.indexes.extend(self.patterns.indexes());
            }
            interest.masks = self.patterns.masks(filter::MAX_MASKS);
            interest.kinds = self.patterns.kinds();
            interest
        });
        Request::Filter(self.netns, interest)
    }

    fn ask(&mut self, awaiting: AwaitedReply, question: Question) -> Request {
        self.awaiting = awaiting;
        Request::Ask(self.netns, question)
    }

    /// The watches have begun: who holds each.
    fn joined(&mut self) -> Vec<Option<Holder>> {
        let Some(Joining { wanted, unread, .. }) = self.joining.take() else {
            return Vec::new();
        };
        for name in unread {
            self.suspects.entry(name).or_default();
        }
        if wanted.len() > FEW {
            self.table.pack();
        }
        wanted
            .iter()
            .map(|&Wanted { name, inode: _ }| {
                Some(Holder {
                    device: self.table.holder(name)?,
                    inode: self.table.inode(name),
                })
            })
            .collect()
    }

    /// The watches that were to begin do not: nothing is left of them.
    fn fail_join(&mut self, error: &io::Error) -> Option<Error> {
        if std::mem::take(&mut self.joins_patterns) {
            self.patterns.remove_new();
        } else {
            let Joining { wanted, .. } = self.joining.take()?;
            for Wanted { name, .. } in wanted {
                self.unwatch(name);
            }
        }
        Some(if self.is_open() {
            Error::Recheck(again(error))
        } else {
            Error::Subscribe(again(error))
        })
    }

    /// Something that has to work does not: the subscription is opened again, after a wait that
    /// grows, and has every name looked up.
    fn fail(&mut self, now: &Now, error: io::Error) {
        self.abandon_pass();
        self.patterns.abandon();
        self.refused = self.fail_join(&error);
        if self.socket == SocketState::New {
            return;
        }
        self.suspect_all();
        self.attempts += 1;
        let Some(wait) = retry::wait_after(self.attempts) else {
            self.socket = SocketState::Dead;
            self.dead = Some(Error::Ended(error));
            return;
        };
        log::warn!(
            "the subscription to link messages failed ({error}); opening it again in {} ms",
            wait.as_millis()
        );
        self.socket = SocketState::Failing(now.instant + wait);
    }

    /// Gives up a look half way: what it was about is as suspect as before.
    fn abandon_pass(&mut self) {
        self.table.drop_inodes();
        let Some(Pass {
            names,
            looks,
            stage,
            after_loss: _,
        }) = self.pass.take()
        else {
            return;
        };
        let current = match stage {
            PassStage::Looking(look, _) => Some(look),
            PassStage::Settle { .. }
            | PassStage::Census
            | PassStage::Next
            | PassStage::Barrier
            | PassStage::Confirm(_)
            | PassStage::Drain
            | PassStage::Untracked(_)
            | PassStage::UntrackedInode(..) => None,
        };
        let looks = looks.into_iter().chain(current);
        let names = looks.map(|look| (look.name, look.lost)).chain(names);
        for (name, lost) in names {
            self.table.forget_lookup(name);
            self.suspect_again(name, lost);
        }
    }

    /// The name is still to be looked up.
    fn suspect_again(&mut self, name: InterfaceName, lost: bool) {
        let joins = |joining: &Joining| joining.unread.contains(&name);
        if lost || !self.joining.as_ref().is_some_and(joins) {
            *self.suspects.entry(name).or_default() |= lost;
        }
    }

    /// Is the name still to be looked up?
    fn is_suspect(&self, name: InterfaceName) -> bool {
        let joins = |joining: &Joining| joining.unread.contains(&name);
        self.suspects.contains_key(&name) || self.joining.as_ref().is_some_and(joins)
    }

    /// Begins to look names up: those of a new watch, or where messages were lost all that are
    /// suspect.
    fn begin_pass(&mut self) {
        let after_loss = self.is_after_loss();
        // After a loss each is asked for once more at the end.
        let has_come = !self.suspects.is_empty() && !after_loss;
        // All new names are tried in one go, once.
        let mut in_one_go = true;
        let names: Vec<_> = match &mut self.joining {
            Some(joining) if !after_loss => {
                in_one_go = joining.rounds == 0;
                let stretch = if in_one_go { usize::MAX } else { STRETCH };
                joining.rounds += 1;
                // What is doubtful is looked up along with them: it may be their device that holds
                // another name, as far as was heard.
                let mut names = std::mem::take(&mut self.suspects);
                names.extend(
                    joining
                        .unread
                        .iter()
                        .take(stretch)
                        .map(|&name| (name, false)),
                );
                names.into_iter().collect()
            }
            _ => std::mem::take(&mut self.suspects).into_iter().collect(),
        };
        let is_many = names.len() > FEW;
        if is_many {
            self.table.index_inodes();
        }
        let in_one_go = in_one_go && is_many;
        self.pass = Some(Pass {
            looks: Vec::with_capacity(names.len()),
            names: names.into_iter(),
            stage: if has_come {
                PassStage::Settle { in_one_go }
            } else {
                PassStage::first(in_one_go)
            },
            after_loss,
        });
    }

    /// What was read in one go answers for all names but those whose last holder is elsewhere now.
    fn counted(&mut self, pass: &mut Pass, census: &Census) {
        let mut rest = Vec::new();
        for (name, lost) in std::mem::take(&mut pass.names) {
            let mut look = self.begin_look(name, lost);
            match census.by_name(name) {
                Some(Counted { ifindex, inode, .. }) => {
                    look.is(ifindex, &mut self.table);
                    look.lookup.inode = inode.and_then(NonZeroU64::new);
                    look.is_sure = true;
                }
                None if look.holder.is_some() => {
                    rest.push((name, lost));
                    continue;
                }
                None => {}
            }
            pass.looks.push(look);
        }
        pass.names = rest.into_iter();
    }

    fn begin_look(&mut self, name: InterfaceName, lost: bool) -> Look {
        Look {
            name,
            lost,
            holder: self.table.begin_lookup(name),
            lookup: Lookup::default(),
            is_sure: false,
        }
    }

    /// Goes on looking names up; `None` when that has come to an end, or has to read first.
    fn look(&mut self) -> Option<Next> {
        let mut pass = self.pass.take()?;
        let question = loop {
            match &pass.stage {
                PassStage::Settle { .. } => break Question::Barrier,
                PassStage::Census => break Question::Census(Census::worth(pass.names.len())),
                PassStage::Next => match pass.names.next() {
                    Some((name, lost)) => {
                        let look = self.begin_look(name, lost);
                        pass.stage = PassStage::Looking(look, LookStep::Index);
                    }
                    None if self.wants_barrier(&pass) => pass.stage = PassStage::Barrier,
                    None => {
                        self.drain(pass);
                        return None;
                    }
                },
                PassStage::Looking(look, LookStep::Index) => break Question::IndexOf(look.name),
                PassStage::Looking(_, LookStep::Name(ifindex)) => break Question::NameOf(*ifindex),
                PassStage::Looking(_, LookStep::AwayInode(name)) => break Question::InodeOf(*name),
                PassStage::Looking(look, LookStep::Inode) => break Question::InodeOf(look.name),
                PassStage::Barrier => break Question::Barrier,
                PassStage::Confirm(at) => {
                    let at = *at;
                    let is_news = |look: &Look| {
                        look.lookup.is_present()
                            && !look.is_sure
                            && (pass.after_loss || !self.table.confirms(look.name, &look.lookup))
                    };
                    let mut rest = pass.looks.iter().enumerate().skip(at);
                    let Some((at, look)) = rest.find(|(_, look)| is_news(look)) else {
                        self.drain(pass);
                        return None;
                    };
                    let question = Question::IndexOf(look.name);
                    pass.stage = PassStage::Confirm(at);
                    break question;
                }
                PassStage::Drain => {
                    self.enter(std::mem::take(&mut pass.looks));
                    let untracked = if pass.after_loss {
                        self.table.without_watch()
                    } else {
                        Vec::new()
                    };
                    pass.stage = PassStage::Untracked(untracked);
                }
                PassStage::Untracked(ifindexes) => match ifindexes.last() {
                    Some(&ifindex) => break Question::NameOf(ifindex),
                    None => {
                        self.table.drop_inodes();
                        self.may_be_well();
                        return None;
                    }
                },
                PassStage::UntrackedInode(_, name) => break Question::InodeOf(*name),
            }
        };
        self.pass = Some(pass);
        Some(Next::Background(self.ask(AwaitedReply::Pass, question)))
    }

    /// What is queued by now is heard before what was looked up is entered.
    fn drain(&mut self, mut pass: Pass) {
        pass.stage = PassStage::Drain;
        self.unread = true;
        self.pass = Some(pass);
    }

    /// Can what was looked up be ahead of what was told? Newer kernels answer before a change is
    /// over, and tell of it at its end.
    fn wants_barrier(&self, pass: &Pass) -> bool {
        let is_news = |look: &Look| !self.table.confirms(look.name, &look.lookup);
        pass.after_loss || self.joining.is_some() || pass.looks.iter().any(is_news)
    }

    /// Enters what was looked up and still holds now that the queue was read empty.
    fn enter(&mut self, looks: Vec<Look>) {
        let mut certain = self.take_certain(looks);
        // Who left a name goes first, so that it is known under its new one to whatever watches
        // that.
        certain.sort_by_key(|look| look.lookup.is_present());
        for Look {
            name, lost, lookup, ..
        } in certain
        {
            let (observed, changed) = self.table.enter(name, &lookup);
            let joins = |joining: &mut Joining| joining.unread.remove(&name);
            if self.joining.as_mut().is_some_and(joins) || !self.table.is_watched(name) {
                continue;
            }
            if changed {
                // The filter does not know who was found yet: what that device did since then may
                // have been dropped.
                self.suspects.entry(name).or_default();
            }
            if changed || lost {
                self.say_read_again(self.table.watch(name), observed);
            }
        }
    }

    /// The looks that still hold; the other names are left to be looked up again.
    fn take_certain(&mut self, looks: Vec<Look>) -> Vec<Look> {
        let (mut certain, mut again): (Vec<Look>, Vec<Look>) =
            looks.into_iter().partition(|look| {
                self.table.is_clean(look.name) && !self.suspects.contains_key(&look.name)
            });
        // And those that depend on one that is still to be looked up, and so on.
        loop {
            for Look { name, lost, .. } in again {
                self.suspect_again(name, lost);
            }
            let looked_up: BTreeSet<_> = certain.iter().map(|look| look.name).collect();
            (again, certain) = certain.into_iter().partition(|look| {
                let other = self.table.depends_on(look.name, &look.lookup);
                other.is_some_and(|other| self.is_suspect(other) && !looked_up.contains(&other))
            });
            if again.is_empty() {
                break;
            }
        }
        certain
    }

    /// The answer to the request that was made last.
    pub(super) fn answer(&mut self, now: &Now, reply: Reply) {
        self.time = now.wall;
        let awaiting = std::mem::replace(&mut self.awaiting, AwaitedReply::Nothing);
        match (awaiting, reply) {
            (AwaitedReply::Open, Reply::Done(Ok(()))) => {
                if self.socket != SocketState::New {
                    self.suspect_all();
                }
                self.socket = SocketState::Open;
                self.has_filter = false;
                self.patterns.set_filtered(false);
                self.unread = true;
            }
            (AwaitedReply::Unsubscribe, _) => {
                if let SocketState::Failing(at) = self.socket {
                    self.socket = SocketState::Failed(at);
                }
            }
            (AwaitedReply::Read, Reply::Read(Ok(received))) => self.received(received),
            (AwaitedReply::Filter(on), Reply::Done(Ok(()))) => {
                self.has_filter = on;
                // What was queued under the old filter is not all that happened, and comes before
                // anything is read.
                self.unread |= !on;
                self.patterns.set_filtered(on);
            }
            (AwaitedReply::Patterns, Reply::Answer(answer)) => match self.patterns.answer(answer) {
                Ok(()) if self.patterns.question().is_none() => self.unread = true,
                Ok(()) => {}
                Err(error) => self.look_failed(now, error),
            },
            (AwaitedReply::HalfGone, Reply::Answer(answer)) => {
                if let (Some((ifindex, moved)), Answer::Netns(netns)) =
                    (self.half_gone.take(), answer)
                {
                    self.patterns
                        .gone(ifindex, None, Some(elsewhere(moved, netns)));
                    self.say_patterns();
                }
            }
            (AwaitedReply::Pass, Reply::Answer(answer)) => self.looked(now, answer),
            (AwaitedReply::HalfHeard, Reply::Answer(answer)) => self.heard(answer),
            (AwaitedReply::Open | AwaitedReply::Filter(_), Reply::Done(Err(error)))
            | (AwaitedReply::Read, Reply::Read(Err(error))) => self.fail(now, error),
            (awaiting, reply) => debug_assert!(false, "{reply:?} to {awaiting:?}"),
        }
    }

    fn received(&mut self, received: Received) {
        let message = match received {
            Received::Message(message) => message,
            Received::Stray => return,
            Received::Overflow => return self.suspect_all(),
            Received::Nothing => {
                self.unread = false;
                return;
            }
        };
        self.tally.seen += 1;
        let Some(message) = message else {
            return;
        };
        let concerns_patterns = self.hear_patterns(&message);
        let concerns_names = self.hear(&message);
        self.tally.matched += u64::from(concerns_patterns || concerns_names);
    }

    /// What a message means to patterns. Says whether it means anything.
    fn hear_patterns(&mut self, message: &LinkMessage) -> bool {
        if self.patterns.is_empty() {
            return false;
        }
        match *message {
            LinkMessage::New {
                ifindex,
                name,
                kind,
            } => self.patterns.exists(ifindex, Named { name, kind }, false),
            LinkMessage::Deleted {
                ifindex,
                kind,
                moved: Some(moved),
                ..
            } if self.patterns.knows_as(ifindex, kind) => {
                self.half_gone = Some((ifindex, moved));
                return true;
            }
            LinkMessage::Deleted {
                ifindex,
                name,
                kind,
                moved,
            } => {
                let to = moved.map(|moved| elsewhere(moved, None));
                let last = Named { name, kind };
                self.patterns.gone(ifindex, Some(last), to);
            }
        }
        self.say_patterns()
    }

    /// What a message means to names. Says whether it means anything.
    fn hear(&mut self, message: &LinkMessage) -> bool {
        if self.is_after_loss()
            && let Some(names) = self.table.doubt(message)
        {
            let suspects = names.into_iter().flatten();
            self.suspects.extend(suspects.map(|name| (name, true)));
            return false;
        }
        match self.table.message(message) {
            Heard::Transition(transition) => self.take(transition),
            Heard::Newcomer { ifindex, name } => {
                self.half_heard = Some(HalfHeard::Newcomer(ifindex, name));
                true
            }
        }
    }

    /// The rest of a message.
    fn heard(&mut self, answer: Answer) {
        match (self.half_heard.take(), answer) {
            (Some(HalfHeard::Newcomer(ifindex, name)), answer) => {
                let inode = match answer {
                    Answer::Identity(Ok(Some(found))) => found.inode_of(ifindex),
                    _ => None,
                };
                let transition = self.table.newcomer(ifindex, name, inode);
                self.take(transition);
            }
            (Some(HalfHeard::Netns(mut change, _)), answer) => {
                if let (Answer::Netns(netns), Change::Left { to: Some(to), .. }) =
                    (answer, &mut change)
                {
                    to.netns = netns;
                }
                self.say(change);
            }
            (None, answer) => debug_assert!(false, "{answer:?} to nothing"),
        }
    }

    /// Hands on what a message means; false when that is nothing.
    fn take(&mut self, transition: Transition) -> bool {
        let is_any = transition != Transition::default();
        let Transition { left, nsid, took } = transition;
        match (left, nsid) {
            (Some(change), Some(nsid)) => self.half_heard = Some(HalfHeard::Netns(change, nsid)),
            (Some(change), None) => self.say(change),
            (None, _) => {}
        }
        let Some(Taken {
            watch,
            device,
            missed,
        }) = took
        else {
            return is_any;
        };
        // The filter does not know this index yet: what the device did next may have been dropped.
        self.suspects.entry(watch.name).or_default();
        if missed {
            let holder = Some(device);
            self.say_read_again(watch, Observed { holder, away: None });
        } else {
            self.say(Change::Took { watch, device });
        }
        is_any
    }

    /// Something about this watch was lost, if only to the filter, and its state was read.
    fn say_read_again(&mut self, watch: Watch, observed: Observed) {
        self.tally.has_lost = true;
        self.said.push_back(Signal::Resync {
            watch,
            observed,
            lost: None,
            time: self.time,
        });
    }

    fn say(&mut self, change: Change) {
        self.said.push_back(Signal::Change {
            change,
            time: self.time,
            by: None,
        });
    }

    /// The answer to a question of a look.
    fn looked(&mut self, now: &Now, answer: Answer) {
        let Some(mut pass) = self.pass.take() else {
            return;
        };
        let stage = std::mem::replace(&mut pass.stage, PassStage::Next);
        let (stage, error) = match (stage, answer) {
            (PassStage::Census, Answer::Census(Ok(Some(census)))) => {
                self.counted(&mut pass, &census);
                (PassStage::Next, None)
            }
            // There are too many others, or too much happens; or there is no descriptor for it, which one
            // by one needs none. New names are looked up at a stretch each.
            (PassStage::Census, Answer::Census(Ok(None) | Err(_))) => {
                if self.joining.is_some() && !pass.after_loss {
                    self.pass = Some(pass);
                    return self.abandon_pass();
                }
                (PassStage::Next, None)
            }
            (PassStage::Looking(look, step), answer) => {
                match look.answered(step, answer, &mut self.table) {
                    Ok((look, Some(step))) => (PassStage::Looking(look, step), None),
                    Ok((look, None)) => {
                        pass.looks.push(look);
                        (PassStage::Next, None)
                    }
                    Err((look, step, error)) => (PassStage::Looking(look, step), Some(error)),
                }
            }
            (PassStage::Settle { in_one_go }, _) => (PassStage::first(in_one_go), None),
            (PassStage::Barrier, _) => (PassStage::Confirm(0), None),
            (PassStage::Confirm(at), Answer::Index(index)) => match index {
                Ok(index) => {
                    if let Some(look) = pass.looks.get(at)
                        && look.lookup.found != index
                    {
                        let Look { name, lost, .. } = pass.looks.swap_remove(at);
                        self.table.forget_lookup(name);
                        self.suspect_again(name, lost);
                        (PassStage::Confirm(at), None)
                    } else {
                        (PassStage::Confirm(at + 1), None)
                    }
                }
                Err(error) => (PassStage::Confirm(at), Some(error)),
            },
            (PassStage::Untracked(mut ifindexes), Answer::Name(name)) => match name {
                Ok(Some(Named { name, .. })) => (PassStage::UntrackedInode(ifindexes, name), None),
                Ok(None) => {
                    self.forget_untracked(&mut ifindexes, None);
                    (PassStage::Untracked(ifindexes), None)
                }
                Err(error) => (PassStage::Untracked(ifindexes), Some(error)),
            },
            (PassStage::UntrackedInode(mut ifindexes, _), Answer::Inode(inode)) => {
                let error = match inode {
                    Ok(inode) => {
                        self.forget_untracked(&mut ifindexes, inode);
                        None
                    }
                    Err(error) => Some(error),
                };
                (PassStage::Untracked(ifindexes), error)
            }
            (stage, answer) => {
                debug_assert!(false, "{answer:?} to {stage:?}");
                (stage, None)
            }
        };
        pass.stage = stage;
        self.pass = Some(pass);
        if let Some(error) = error {
            self.look_failed(now, error);
        }
    }

    fn forget_untracked(&mut self, ifindexes: &mut Vec<u32>, inode: Option<u64>) {
        if let Some(ifindex) = ifindexes.pop() {
            self.table.keep_only(ifindex, inode);
        }
    }

    /// A question was not answered. Where a new watch asked it, that watch is refused, and the
    /// others go on.
    fn look_failed(&mut self, now: &Now, error: io::Error) {
        if self.joining.is_none() && !self.joins_patterns {
            return self.fail(now, error);
        }
        self.abandon_pass();
        self.patterns.abandon();
        self.refused = self.fail_join(&error);
    }
}

/// Where a device went.
fn elsewhere(moved: Moved, netns: Option<NetnsId>) -> Destination {
    Destination {
        netns,
        ifindex: moved.ifindex,
        name: None,
    }
}

impl Look {
    /// What follows from an answer: the next step, or none when the name was looked up.
    fn answered(
        mut self,
        step: LookStep,
        answer: Answer,
        table: &mut DeviceTable,
    ) -> Result<(Self, Option<LookStep>), (Self, LookStep, io::Error)> {
        let next = match (step, answer) {
            (LookStep::Index, Answer::Index(Ok(Some(ifindex)))) => Some(self.is(ifindex, table)),
            (LookStep::Index, Answer::Index(Ok(None))) => self.holder.map(|ifindex| {
                table.looks_at(self.name, ifindex);
                LookStep::Name(ifindex)
            }),
            // It came back in between.
            (LookStep::Name(ifindex), Answer::Name(Ok(Some(named)))) if named.name == self.name => {
                Some(self.is(ifindex, table))
            }
            (LookStep::Name(_), Answer::Name(Ok(named))) => {
                named.map(|Named { name, .. }| LookStep::AwayInode(name))
            }
            (LookStep::AwayInode(name), Answer::Inode(Ok(inode))) => {
                self.lookup.away = Some((name, inode.and_then(NonZeroU64::new)));
                None
            }
            (LookStep::Inode, Answer::Inode(Ok(inode))) => {
                self.lookup.inode = inode.and_then(NonZeroU64::new);
                None
            }
            (
                step,
                Answer::Index(Err(error)) | Answer::Name(Err(error)) | Answer::Inode(Err(error)),
            ) => return Err((self, step, error)),
            (step, answer) => {
                debug_assert!(false, "{answer:?} to {step:?}");
                None
            }
        };
        Ok((self, next))
    }

    /// The device with this index has the name.
    fn is(&mut self, ifindex: u32, table: &mut DeviceTable) -> LookStep {
        self.lookup.found = Some(ifindex);
        table.looks_at(self.name, ifindex);
        LookStep::Inode
    }
}

#[cfg(test)]
mod tests;
