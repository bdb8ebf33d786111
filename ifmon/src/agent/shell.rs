//! The connections to the agent, and the sockets of netlink that stand in for them: does what
//! [`core`](super::core) asks for, one thing at a time, and knows nothing else.

use std::{
    collections::HashMap,
    io::{self, Read as _, Write as _},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect as join, socket_with,
};

use super::{CallId, Reply, Request};
use crate::{
    Netns, NetnsId, Unavailable,
    driver::Shell,
    inquiry::Inquiry,
    machine::Source,
    netlink::{
        self,
        shell::{Sockets, cannot_open},
    },
    readiness::Readiness,
};

/// All connections.
#[derive(Debug)]
pub(super) struct Connections {
    path: PathBuf,
    home: Netns,
    calls: HashMap<CallId, UnixStream>,
    readiness: Readiness,
    /// Whom to ask about the own namespace.
    inquiry: Inquiry,
    sockets: Sockets,
    /// The namespace in which watches are about to begin.
    offered: Option<Netns>,
}

impl Connections {
    /// Says as well whether the kernel takes a filter on a netlink socket.
    pub(super) fn new(path: PathBuf, home: Netns) -> Result<(Self, bool), Unavailable> {
        let (sockets, is_filtered) = match Sockets::new(true, None) {
            Err(Unavailable::NoSocketFilter(_)) => (Sockets::new(false, None)?, false),
            sockets => (sockets?, true),
        };
        let mut inquiry = Inquiry::new(&home).map_err(cannot_open)?;
        // Where netlink stands in one day, it knows by this who comes back; and the right to mount
        // one is given up by then.
        inquiry.open_sysfs().map_err(cannot_open)?;
        let connections = Self {
            path,
            calls: HashMap::new(),
            readiness: Readiness::new().map_err(cannot_open)?,
            inquiry,
            home,
            sockets,
            offered: None,
        };
        Ok((connections, is_filtered))
    }

    pub(super) fn home(&self) -> NetnsId {
        self.home.id()
    }

    fn call(&mut self, id: CallId, message: &[u8]) -> io::Result<()> {
        let stream = connect(&self.path)?;
        (&stream).write_all(message)?;
        self.readiness.add(&stream, Source::Call)?;
        self.calls.insert(id, stream);
        Ok(())
    }

    /// There is room for a call in the socket, unless its agent does not read.
    fn send(&self, id: CallId, message: &[u8]) -> io::Result<()> {
        let mut stream = self.calls.get(&id).ok_or(io::ErrorKind::NotConnected)?;
        stream.write_all(message)
    }

    fn receive(&self, id: CallId) -> io::Result<Option<Vec<u8>>> {
        let mut stream = self.calls.get(&id).ok_or(io::ErrorKind::NotConnected)?;
        let mut bytes = vec![0; 4096];
        loop {
            return match stream.read(&mut bytes) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    bytes.truncate(count);
                    Ok(Some(bytes))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
        }
    }

    fn netlink(&mut self, request: netlink::Request) -> netlink::Reply {
        match request {
            netlink::Request::Ask(netns, question) if netns == self.home.id() => {
                netlink::Reply::Answer(self.inquiry.answer(question))
            }
            netlink::Request::Open(netns) => {
                let is_home = netns == self.home.id();
                let offered = is_home.then(|| self.home.clone());
                self.sockets.offer(offered.or_else(|| self.offered.clone()));
                self.sockets.perform(request)
            }
            _ => self.sockets.perform(request),
        }
    }
}

/// Connects without waiting for an agent that has no room for more.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    join(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

impl Shell for Connections {
    type Request = Request;
    type Reply = Reply;

    fn offer(&mut self, netns: Option<Netns>) {
        self.sockets.offer(netns.clone());
        self.offered = netns;
        self.inquiry.has_found();
    }

    fn perform(&mut self, request: Request) -> Reply {
        match request {
            Request::Call(id, message) => Reply::Done(self.call(id, &message)),
            Request::Send(id, message) => Reply::Done(self.send(id, &message)),
            Request::Receive(id) => Reply::Received(self.receive(id)),
            Request::Hang(id) => {
                self.calls.remove(&id);
                Reply::Done(Ok(()))
            }
            Request::Netlink(request) => Reply::Netlink(self.netlink(request)),
        }
    }

    async fn ready(&mut self, sources: &mut Vec<Source>) -> io::Result<()> {
        let mut heard = Vec::new();
        tokio::select! {
            ready = self.readiness.next(sources) => ready,
            ready = self.sockets.ready(&mut heard) => {
                sources.append(&mut heard);
                ready
            }
        }
    }
}
