//! The sockets of the netlink backend: does what [`core`](super::core) asks for, one thing at a
//! time, and knows nothing else.

use std::{collections::HashMap, io, os::fd::AsFd as _};

use rustix::buffer::spare_capacity;

use super::{
    MESSAGE, Received, Reply, Request,
    filter::{Interest, Precision, build},
    message::messages,
    socket::Socket,
};
use crate::{
    Netns, NetnsId, Unavailable,
    driver::Shell,
    inquiry::Inquiry,
    machine::{Answer, Source},
    readiness::Readiness,
};

/// Room for a burst of messages about the watched interfaces. The kernel charges it as messages
/// come, not before.
const RECEIVE_BUFFER: usize = 4 << 20;

/// The netlink backend's sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    receive_buffer: usize,
    connections: HashMap<NetnsId, NetnsSockets>,
    /// The namespace in which watches are about to begin.
    offered: Option<Netns>,
    readiness: Readiness,
    buffer: Vec<u8>,
}

/// A namespace: the socket that hears, and whom to ask.
#[derive(Debug)]
struct NetnsSockets {
    /// None while it is to be opened again.
    socket: Option<Socket>,
    inquiry: Inquiry,
}

impl Sockets {
    /// Makes sure that the kernel gives a socket, and takes a filter, where one is wanted; those that
    /// stay come with the watches.
    pub(crate) fn new(filtered: bool, receive_buffer: Option<usize>) -> Result<Self, Unavailable> {
        let netns = Netns::current().map_err(Unavailable::other)?;
        let socket = Socket::for_links(&netns).map_err(cannot_open)?;
        if filtered {
            let program = build(&Interest::default(), Precision::Exact).unwrap_or_default();
            let attached = socket.attach_filter(&program);
            attached.map_err(Unavailable::NoSocketFilter)?;
        }
        Ok(Self {
            receive_buffer: receive_buffer.unwrap_or(RECEIVE_BUFFER),
            connections: HashMap::new(),
            offered: None,
            readiness: Readiness::new().map_err(cannot_open)?,
            // What is not written to takes no memory. Zeros would be written where the allocator takes
            // what was in use before.
            buffer: Vec::with_capacity(MESSAGE),
        })
    }

    fn open(&mut self, netns: NetnsId) -> io::Result<()> {
        let handle = match self.connections.get(&netns) {
            Some(connection) => connection.inquiry.netns().clone(),
            None => {
                let offered = self.offered.as_ref().filter(|it| it.id() == netns);
                offered.cloned().ok_or(io::ErrorKind::NotFound)?
            }
        };
        let socket = Socket::for_links(&handle)?;
        socket.set_receive_buffer(self.receive_buffer)?;
        self.readiness.add(socket.as_fd(), Source::Socket(netns))?;
        match self.connections.get_mut(&netns) {
            Some(connection) => {
                connection.inquiry.open_again()?;
                connection.socket = Some(socket);
            }
            None => {
                let mut inquiry = Inquiry::new(&handle)?;
                inquiry.open_sysfs()?;
                let socket = Some(socket);
                self.connections
                    .insert(netns, NetnsSockets { socket, inquiry });
            }
        }
        Ok(())
    }

    fn read(&mut self, netns: NetnsId) -> io::Result<Received> {
        let connection = self.connections.get(&netns);
        let socket = connection.and_then(|connection| connection.socket.as_ref());
        let socket = socket.ok_or(io::ErrorKind::NotConnected)?;
        self.buffer.clear();
        let length = match socket.receive(spare_capacity(&mut self.buffer)) {
            Ok(Some(length)) => length,
            Ok(None) => return Ok(Received::Stray),
            Err(error) => {
                return match error.raw_os_error() {
                    Some(libc::EAGAIN) => Ok(Received::Nothing),
                    Some(libc::EINTR) => Ok(Received::Stray),
                    Some(libc::ENOBUFS) => Ok(Received::Overflow),
                    _ => Err(error),
                };
            }
        };
        Ok(match self.buffer.get(..length) {
            // A notification is a datagram of its own.
            Some(datagram) => {
                let message = messages(datagram).next();
                Received::Message(message.and_then(|message| message.link()))
            }
            // Cut off, which no notification should be: as good as lost.
            None => Received::Overflow,
        })
    }

    fn socket(&self, netns: NetnsId) -> io::Result<&Socket> {
        let connection = self.connections.get(&netns);
        let socket = connection.and_then(|connection| connection.socket.as_ref());
        socket.ok_or(io::ErrorKind::NotConnected.into())
    }

    fn filter(&self, netns: NetnsId, interest: Option<&Interest>) -> io::Result<()> {
        let socket = self.socket(netns)?;
        match interest {
            Some(interest) => attach(socket, interest),
            None => socket.detach_filter(),
        }
    }
}

pub(crate) fn cannot_open(error: io::Error) -> Unavailable {
    match error.raw_os_error() {
        Some(libc::EMFILE) => Unavailable::OpenFiles,
        _ => Unavailable::other(format_args!("cannot open a netlink socket: {error}")),
    }
}

/// Puts a filter on a socket, as exact as the kernel takes it.
fn attach(socket: &Socket, interest: &Interest) -> io::Result<()> {
    let mut refused = io::Error::other("too many watches for one filter");
    for precision in Precision::ALL {
        let Some(program) = build(interest, precision) else {
            continue;
        };
        let attached = socket.attach_filter(&program).or_else(|_| {
            // The kernel grants a socket so much memory for its filters, and until it has the new
            // one the old one counts. With none in between, only more is heard.
            socket.detach_filter()?;
            socket.attach_filter(&program)
        });
        match attached {
            Ok(()) => {
                if precision != Precision::Exact {
                    log::debug!(
                        "{} names and {} indexes: a {precision:?} filter of {} instructions",
                        interest.names.len(),
                        interest.indexes.len(),
                        program.len()
                    );
                }
                return Ok(());
            }
            Err(error) => refused = error,
        }
    }
    // An old filter would drop what it should not: rather none.
    log::warn!("the kernel takes no filter any more ({refused}); ifmon is woken for every link");
    socket.detach_filter()
}

impl Shell for Sockets {
    type Request = Request;
    type Reply = Reply;

    fn offer(&mut self, netns: Option<Netns>) {
        let before = std::mem::replace(&mut self.offered, netns);
        if let Some(connection) = before.and_then(|it| self.connections.get_mut(&it.id())) {
            connection.inquiry.has_found();
        }
    }

    fn perform(&mut self, request: Request) -> Reply {
        match request {
            Request::Open(netns) => Reply::Done(self.open(netns)),
            Request::Unsubscribe(netns) => {
                if let Some(connection) = self.connections.get_mut(&netns) {
                    connection.socket = None;
                }
                Reply::Done(Ok(()))
            }
            Request::Close(netns) => {
                self.connections.remove(&netns);
                Reply::Done(Ok(()))
            }
            Request::Filter(netns, interest) => Reply::Done(self.filter(netns, interest.as_ref())),
            Request::Read(netns) => Reply::Read(self.read(netns)),
            Request::Ask(netns, question) => {
                Reply::Answer(match self.connections.get_mut(&netns) {
                    Some(connection) => connection.inquiry.answer(question),
                    None => Answer::unknown(question),
                })
            }
        }
    }

    async fn ready(&mut self, sources: &mut Vec<Source>) -> io::Result<()> {
        self.readiness.next(sources).await
    }
}
