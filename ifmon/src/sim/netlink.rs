//! The kernel, as the netlink backend meets it: sockets with queues that fill, and answers.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
};

use super::{
    host::{self, Device, Host, Notice, SPACES, State, netns},
    patterns,
    run::{Setting, Side, failure},
    shrink::Decisions,
};
use crate::{
    BackendKind, Counters, Identity, NetnsId,
    machine::{Answer, Census, Counted, LinkTable, Named, Question, Source},
    netlink::{
        Received, Reply, Request,
        core::Netlink,
        devices::SPARE,
        filter::Interest,
        message::{LinkMessage, Moved},
    },
    tracker::Destination,
};

/// Sockets in the namespaces that were opened.
#[derive(Debug)]
pub(crate) struct Sockets {
    filtered: bool,
    room: usize,
    sockets: [Option<Socket>; SPACES],
    /// Messages that were read.
    read: u64,
    /// Messages were lost, or a subscription was opened anew.
    has_lost: bool,
}

/// A socket that is subscribed to link messages.
#[derive(Debug, Default)]
struct Socket {
    queue: VecDeque<Option<LinkMessage>>,
    filter: Option<Interest>,
    /// `NETLINK_S_CONGESTED`: nothing is queued any more until the queue was read empty.
    is_congested: bool,
    /// `sk_err`
    has_error: bool,
    /// It is no more, and the namespace is kept until it is opened again.
    is_closed: bool,
}

impl Socket {
    /// `None` for a message that says nothing about a link's name or existence.
    fn hear(&mut self, room: usize, message: Option<LinkMessage>) {
        if self.is_closed {
            return;
        }
        if let Some(filter) = &self.filter
            && !message.is_some_and(|message| filter.concerns(&message))
        {
            return;
        }
        if self.is_congested || self.queue.len() >= room {
            self.has_error |= !self.is_congested;
            self.is_congested = true;
            return;
        }
        self.queue.push_back(message);
    }

    /// Says so for as long as there is something, as `epoll` does.
    fn is_readable(&self) -> bool {
        self.has_error || !self.queue.is_empty()
    }

    fn read(&mut self) -> Received {
        if std::mem::take(&mut self.has_error) {
            return Received::Overflow;
        }
        let message = self.queue.pop_front();
        if self.queue.is_empty() {
            self.is_congested = false;
        }
        message.map_or(Received::Nothing, Received::Message)
    }
}

impl Sockets {
    fn open(&mut self, netns: NetnsId) -> Option<&mut Socket> {
        let socket = self.sockets[host::space_of(netns)].as_mut();
        socket.filter(|socket| !socket.is_closed)
    }

    fn tell(&mut self, space: usize, message: Option<LinkMessage>) {
        let Self { sockets, room, .. } = self;
        if let Some(socket) = &mut sockets[space] {
            socket.hear(*room, message);
        }
    }

    fn tell_new(&mut self, device: Device) {
        let Device {
            ifindex,
            name,
            kind,
            ..
        } = device;
        let message = LinkMessage::New {
            ifindex,
            name,
            kind,
        };
        self.tell(device.space, Some(message));
    }

    fn tell_deleted(&mut self, device: Device, moved: Option<Moved>) {
        let Device {
            ifindex,
            name,
            kind,
            ..
        } = device;
        let message = LinkMessage::Deleted {
            ifindex,
            name,
            kind,
            moved,
        };
        self.tell(device.space, Some(message));
    }
}

/// What the host answers to a question.
pub(crate) fn answer(host: &Host, asked: NetnsId, question: Question) -> Answer {
    // Changes can be waited for from anywhere.
    let space = match question {
        Question::Barrier => 0,
        _ => host::space_of(asked),
    };
    match question {
        Question::InodeOf(_) if host.conduct.hides_inodes => Answer::Inode(Ok(None)),
        Question::IdentityOf(_) if host.conduct.hides_inodes => Answer::Identity(Ok(None)),
        Question::WhereIs(_) if host.conduct.hides_inodes => Answer::Place(None),
        Question::IndexOf(name) => {
            let found = host.now.by_name(space, name);
            Answer::Index(Ok(found.map(|device| device.ifindex)))
        }
        Question::NameOf(ifindex) => {
            let found = host.now.by_index(space, ifindex);
            Answer::Name(Ok(found.as_ref().map(named)))
        }
        Question::InodeOf(name) => {
            let found = host.now.by_name(space, name);
            Answer::Inode(Ok(found.map(|device| device.id.into())))
        }
        Question::IdentityOf(name) => {
            let found = host.now.by_name(space, name);
            Answer::Identity(Ok(found.map(|Device { ifindex, id, .. }| {
                Identity::of_ifindex(ifindex).with_inode(id.into())
            })))
        }
        Question::NetnsOf(nsid) => Answer::Netns(Some(netns(nsid as usize))),
        Question::WhereIs(inode) => {
            let found = host.states[host.at()].by_id(inode as u32);
            Answer::Place(found.map(|device| Destination {
                netns: Some(netns(device.space)),
                ifindex: Some(device.ifindex),
                name: Some(device.name),
            }))
        }
        Question::Table => Answer::Table(Ok(table(host, space))),
        Question::Census(most) => {
            let LinkTable {
                links,
                is_interrupted,
            } = table(host, space);
            let inode_of = |name| {
                let found = host.now.by_name(space, name);
                found.map(|device| device.id.into())
            };
            let line = |(ifindex, Named { name, .. })| Counted {
                name,
                ifindex,
                inode: inode_of(name).filter(|_| !host.conduct.hides_inodes),
            };
            let is_whole = links.len() <= most && !is_interrupted;
            let census = || Census::new(links.into_iter().map(line).collect());
            Answer::Census(Ok(is_whole.then(census)))
        }
        Question::Barrier => Answer::Waited(true),
    }
}

/// It is read piece by piece, and links come and go meanwhile; but not those that cannot be set up,
/// since each piece is read under RTNL.
fn table(host: &Host, space: usize) -> LinkTable {
    let before = &host.states[host.asked_at.get()];
    let now = &host.states[host.at()];
    let is_early = |device: &Device| device.ifindex.is_multiple_of(2);
    let early = before.devices().filter(is_early);
    let late = now.devices().filter(|device| !is_early(device));
    let here = early.chain(late).filter(|device| device.space == space);
    // Who came or went in between is noticed (`dev_base_seq` of the namespace), and a new name is
    // not.
    let indexes = |state: &State| -> BTreeSet<u32> {
        let here = state.devices().filter(|device| device.space == space);
        here.map(|device| device.ifindex).collect()
    };
    LinkTable {
        links: here
            .map(|device| (device.ifindex, named(&device)))
            .collect(),
        is_interrupted: indexes(before) != indexes(now),
    }
}

fn named(device: &Device) -> Named {
    let Device { name, kind, .. } = *device;
    Named { name, kind }
}

/// The answer where a question was not answered.
pub(crate) fn no_answer(question: Question) -> Answer {
    match question {
        Question::IndexOf(_) => Answer::Index(Err(failure())),
        Question::NameOf(_) => Answer::Name(Err(failure())),
        Question::InodeOf(_) => Answer::Inode(Err(failure())),
        Question::IdentityOf(_) => Answer::Identity(Err(failure())),
        Question::NetnsOf(_) => Answer::Netns(None),
        Question::WhereIs(_) => Answer::Place(None),
        Question::Table => Answer::Table(Err(failure())),
        Question::Census(_) => Answer::Census(Err(failure())),
        Question::Barrier => Answer::Waited(false),
    }
}

/// Does it wait for changes that are being made?
pub(crate) fn waits(host: &Host, question: Question) -> bool {
    match question {
        Question::IndexOf(_) | Question::NameOf(_) | Question::Table | Question::Census(_) => {
            !host.conduct.lockless
        }
        Question::InodeOf(_)
        | Question::IdentityOf(_)
        | Question::NetnsOf(_)
        | Question::WhereIs(_) => false,
        Question::Barrier => true,
    }
}

/// Kinds of questions; each can fail for a while.
pub(crate) const fn kind_of(question: Question) -> usize {
    match question {
        Question::IndexOf(_) => 0,
        Question::NameOf(_) => 1,
        Question::InodeOf(_) | Question::IdentityOf(_) => 2,
        Question::NetnsOf(_) => 3,
        Question::WhereIs(_) => 4,
        Question::Barrier => 5,
        Question::Table => 6,
        Question::Census(_) => 7,
    }
}
pub(crate) const KINDS_OF_QUESTIONS: usize = 8;

impl Side for Sockets {
    type Machine = Netlink;

    const KINDS: &'static [BackendKind] = &[BackendKind::Netlink, BackendKind::NetlinkUnfiltered];

    fn new(setting: Setting) -> Self {
        Self {
            filtered: setting.kind == BackendKind::Netlink,
            room: setting.conduct.room,
            sockets: [None, None],
            read: 0,
            has_lost: false,
        }
    }

    fn machine(&self) -> Netlink {
        Netlink::new(self.filtered)
    }

    fn kind_of(request: &Request) -> usize {
        match request {
            Request::Ask(_, question) => kind_of(*question),
            Request::Open(_) => KINDS_OF_QUESTIONS,
            Request::Close(_) => KINDS_OF_QUESTIONS + 1,
            Request::Filter(..) => KINDS_OF_QUESTIONS + 2,
            Request::Read(_) => KINDS_OF_QUESTIONS + 3,
            Request::Unsubscribe(_) => KINDS_OF_QUESTIONS + 4,
        }
    }

    fn waits(host: &Host, request: &Request) -> bool {
        match request {
            Request::Ask(_, question) => waits(host, *question),
            Request::Open(_)
            | Request::Unsubscribe(_)
            | Request::Close(_)
            | Request::Filter(..)
            | Request::Read(_) => false,
        }
    }

    fn fail(&mut self, request: &Request) -> Option<Reply> {
        match request {
            Request::Ask(_, question) => Some(Reply::Answer(no_answer(*question))),
            // The old socket stays, if there is one.
            Request::Open(_) | Request::Filter(..) => Some(Reply::Done(Err(failure()))),
            Request::Read(_) => Some(Reply::Read(Err(failure()))),
            // What cannot fail.
            Request::Unsubscribe(_) | Request::Close(_) => None,
        }
    }

    fn serve(&mut self, _: &mut Decisions, host: &Host, request: Request) -> Reply {
        match request {
            Request::Ask(netns, question) => Reply::Answer(answer(host, netns, question)),
            Request::Open(netns) => {
                let socket = &mut self.sockets[host::space_of(netns)];
                *socket = Some(Socket::default());
                Reply::Done(Ok(()))
            }
            Request::Unsubscribe(netns) => {
                self.has_lost = true;
                self.sockets[host::space_of(netns)] = Some(Socket {
                    is_closed: true,
                    ..Socket::default()
                });
                Reply::Done(Ok(()))
            }
            Request::Close(netns) => {
                self.sockets[host::space_of(netns)] = None;
                Reply::Done(Ok(()))
            }
            Request::Filter(netns, interest) => {
                let Some(socket) = self.open(netns) else {
                    return Reply::Done(Err(io::ErrorKind::NotFound.into()));
                };
                socket.filter = interest;
                Reply::Done(Ok(()))
            }
            Request::Read(netns) => {
                let Some(socket) = self.open(netns) else {
                    return Reply::Read(Err(io::ErrorKind::NotFound.into()));
                };
                let received = socket.read();
                self.has_lost |= received == Received::Overflow;
                self.read += u64::from(matches!(received, Received::Message(_)));
                Reply::Read(Ok(received))
            }
        }
    }

    fn notice(&mut self, _: &mut Decisions, _: &Host, _: bool, notice: Notice) {
        match notice {
            Notice::Registered(device)
            | Notice::Renamed(device)
            | Notice::Altered(device)
            | Notice::Arrived(device) => self.tell_new(device),
            Notice::Unregistered(device) => self.tell_deleted(device, None),
            Notice::Leaving(old, new) => {
                let moved = Moved {
                    nsid: new.space as i32,
                    ifindex: Some(new.ifindex),
                };
                self.tell_deleted(old, Some(moved));
            }
            Notice::Released(device) => self.tell(device.space, None),
            Notice::Repeated(_) | Notice::NetnsGone(_) | Notice::NetnsNew(_) => {}
        }
    }

    fn take_ready(&mut self, mut ready: impl FnMut(Source)) {
        for (space, socket) in self.sockets.iter().enumerate() {
            if socket.as_ref().is_some_and(Socket::is_readable) {
                ready(Source::Socket(netns(space)));
            }
        }
    }

    fn sources(&self, mut source: impl FnMut(Source)) {
        for space in (0..SPACES).filter(|&space| self.sockets[space].is_some()) {
            source(Source::Socket(netns(space)));
        }
    }

    fn is_holding(&self, space: usize) -> bool {
        self.sockets[space].is_some()
    }

    fn check_rest(
        &mut self,
        host: &Host,
        machine: &Netlink,
        watched: &[host::Spot],
        patterns: &[patterns::Place],
    ) {
        let mut all_matching = 0;
        for (space, socket) in self.sockets.iter().enumerate() {
            let names = || watched.iter().filter(|spot| spot.space == space);
            let patterns: Vec<_> = patterns
                .iter()
                .filter(|place| place.spot.space == space)
                .collect();
            let matches = |device: &Device| {
                let matches =
                    |place: &&patterns::Place| place.pattern.accepts(&device.name, device.kind);
                device.space == space && patterns.iter().any(matches)
            };
            let matching = host.now.devices().filter(matches).count();
            all_matching += matching;
            let count = names().count() + patterns.len();
            let Some(socket) = socket else {
                assert_eq!(count, 0, "nobody listens in {space}");
                continue;
            };
            assert!(count > 0, "namespace {space} is held for nothing");
            assert!(
                socket.queue.is_empty() && !socket.has_error,
                "{socket:?} is left unread"
            );
            assert_eq!(self.filtered, socket.filter.is_some(), "{socket:?}");
            if let Some(Interest {
                names: in_it,
                indexes,
                masks,
                kinds,
            }) = &socket.filter
            {
                assert!(names().all(|spot| in_it.contains(&spot.name)), "{in_it:?}");
                assert_eq!(masks.len(), patterns.len(), "{masks:?}");
                let all = crate::pattern::kinds(patterns.iter().map(|place| &place.pattern));
                assert_eq!(*kinds, all);
                // Some of it may be for nothing. What matches no pattern any more stays in it until
                // something else does.
                let needed = 2 * names().count();
                let most = needed + needed.max(SPARE);
                assert!(
                    !patterns.is_empty() || in_it.len() + indexes.len() <= most,
                    "{in_it:?} and {indexes:?} are in the filter"
                );
            }
        }
        let remembered = machine.remembered_of_patterns();
        assert!(
            remembered <= all_matching,
            "{remembered} devices are remembered, and {all_matching} match"
        );
        let remembered = machine.remembered();
        assert!(
            remembered <= watched.len(),
            "{remembered} devices are remembered"
        );
    }

    fn check_counters(&self, counters: &Counters, told: bool, is_faulty: bool) {
        let Counters {
            seen,
            matched,
            ignored,
            lost,
        } = *counters;
        assert_eq!(seen, (!self.filtered).then_some(self.read), "{counters:?}");
        assert!(matched.is_some_and(|matched| matched <= self.read));
        let rest = seen.zip(matched).map(|(seen, matched)| seen - matched);
        assert_eq!(ignored, rest);
        if self.has_lost || told {
            assert_eq!(lost, None, "messages were lost");
        } else if !is_faulty && !self.filtered {
            assert_eq!(lost, Some(0), "nothing was lost");
        }
    }
}
