//! Asks the kernel about one link; or about all, which may be interrupted for ever while links come
//! and go: patterns need that, and for many names it is tried once.
//!
//! The kernel answers a request for one link while it is being sent, so this neither waits nor
//! needs a task. That, and an answer that cannot be lost to one odd attribute, is why it is not
//! done through the `rtnetlink` crate: there an answer that cannot be decoded whole is dropped, and
//! whoever asked waits for ever.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use super::{
    MESSAGE,
    message::{
        LinkMessage, Message, OtherEnd, get_link, get_links, get_nsid, messages, sequence_of,
        uapi::{NETNSA_FD, NETNSA_PID, NLM_F_DUMP_INTR, NLMSG_DONE},
    },
    socket::Socket,
};
use crate::{
    InterfaceName, Netns,
    machine::{LinkTable, Named},
};

/// Room for the answer: with the tables of all virtual functions left out, a link is described in 2
/// to 4 KiB, as a rule.
const ANSWER: usize = 32 * 1024;

/// A socket for questions about links of one namespace. It keeps the namespace alive.
#[derive(Debug)]
pub(crate) struct Query {
    socket: Socket,
    sequence: u32,
}

impl Query {
    pub(crate) fn new(netns: &Netns) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::unsubscribed(netns)?,
            sequence: 0,
        })
    }

    /// The index of the device that has this name now. A device that has it as an alternative name
    /// does not count.
    pub(crate) fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>> {
        Ok(self
            .ask(0, Some(name))?
            .filter(|(_, found)| found.name == *name)
            .map(|(ifindex, _)| ifindex))
    }

    /// The device that has this index now.
    pub(crate) fn by_index(&mut self, ifindex: u32) -> io::Result<Option<Named>> {
        Ok(self.ask(ifindex, None)?.map(|(_, named)| named))
    }

    /// All devices; or the first of them, where there are more than so many. Then, and after an error,
    /// the rest of the answer is still to come, and this is of no use any more.
    pub(crate) fn table(&mut self, most: usize) -> io::Result<LinkTable> {
        let question = get_links(self.next());
        self.socket.send(&question)?;
        let mut table = LinkTable::default();
        // The kernel makes its pieces as large as what it has to say of one device.
        let mut buffer = vec![0; MESSAGE];
        loop {
            let Some(length) = self.socket.receive(&mut *buffer).map_err(unanswered)? else {
                continue;
            };
            let Some(datagram) = buffer.get(..length) else {
                return Err(io::Error::other(format!(
                    "a piece of the table has {length} bytes, more than ifmon expects"
                )));
            };
            for message in messages(datagram) {
                if message.sequence != self.sequence {
                    continue;
                }
                table.is_interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.error() {
                    Some(code) if code != 0 => return Err(io::Error::from_raw_os_error(code)),
                    _ => {}
                }
                if message.kind == NLMSG_DONE {
                    return match message.result() {
                        0.. => Ok(table),
                        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                    };
                }
                table.links.extend(existing(&message));
            }
            if table.links.len() > most {
                return Ok(table);
            }
        }
    }

    /// The hardware address of the device that has this name now; empty where it has none.
    pub(crate) fn address_of(&mut self, name: &InterfaceName) -> io::Result<Option<Vec<u8>>> {
        let question = get_link(self.next(), 0, Some(name));
        self.exchange(&question, |message| {
            message.link()?;
            Some(message.address().to_vec())
        })
    }

    /// The id that another namespace has in the numbering of this one (`ip netns list-id`), if it
    /// has one.
    pub(crate) fn nsid_of(&mut self, other: &Netns) -> io::Result<Option<i32>> {
        let Some(file) = other.file() else {
            return Ok(None);
        };
        let file = file.as_raw_fd().unsigned_abs();
        self.nsid(NETNSA_FD, file)
    }

    /// The same of the namespace that a process is in. Unlike `/proc/PID/ns/net` that takes no
    /// privilege: the kernel (`rtnl_net_getid` of `net/core/net_namespace.c`) looks for the process
    /// and asks no more.
    pub(crate) fn nsid_of_process(&mut self, pid: u32) -> io::Result<Option<i32>> {
        self.nsid(NETNSA_PID, pid)
    }

    fn nsid(&mut self, kind: u16, whose: u32) -> io::Result<Option<i32>> {
        let question = get_nsid(self.next(), kind, whose);
        Ok(self
            .exchange(&question, |message| Some(message.nsid()))?
            .flatten())
    }

    /// The other end of the device that has this index and this name now, where it is one end of a
    /// pair.
    pub(crate) fn other_end(
        &mut self,
        ifindex: u32,
        name: &InterfaceName,
    ) -> io::Result<Option<OtherEnd>> {
        let question = get_link(self.next(), ifindex, None);
        let answer = self.exchange(&question, |message| {
            let is_it = message.link()?.name() == *name;
            Some(message.other_end().filter(|_| is_it))
        })?;
        Ok(answer.flatten())
    }

    /// Returns once every change of a link that had begun before has ended, and was told to all who
    /// listen.
    ///
    /// A device goes out of sight well before the kernel says so, and on newer kernels (seen on
    /// 7.2) a request for one link does not wait for RTNL, under which it all happens. An
    /// ethtool request does; this one asks for the link state of `lo`, which anybody may.
    /// Should it be refused, nothing is waited for, and false says so: then an answer can be
    /// ahead of what was told, and a change perhaps be told as recovered, or as that of another
    /// device.
    pub(crate) fn wait_for_changes(&self) -> bool {
        /// `SIOCETHTOOL` and `ETHTOOL_GLINK` of `include/uapi/linux/`
        const SIOCETHTOOL: libc::Ioctl = 0x8946;
        const ETHTOOL_GLINK: u32 = 10;
        /// `struct ethtool_value`
        #[repr(C)]
        struct Value {
            command: u32,
            data: u32,
        }
        /// `struct ifreq`, as long as its longest variant.
        #[repr(C)]
        struct Request {
            name: [u8; 16],
            value: *mut Value,
            rest: [u8; 16],
        }
        let mut value = Value {
            command: ETHTOOL_GLINK,
            data: 0,
        };
        let mut request = Request {
            name: *b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            value: &raw mut value,
            rest: [0; 16],
        };
        // SAFETY: both structures are laid out as the kernel wants them for this request, and
        // outlive the call.
        let result = unsafe {
            libc::ioctl(
                self.socket.as_fd().as_raw_fd(),
                SIOCETHTOOL,
                &raw mut request,
            )
        };
        if result < 0 {
            log::debug!(
                "cannot wait for changes in progress: {}",
                io::Error::last_os_error()
            );
        }
        result >= 0
    }

    fn ask(
        &mut self,
        ifindex: u32,
        name: Option<&InterfaceName>,
    ) -> io::Result<Option<(u32, Named)>> {
        let question = get_link(self.next(), ifindex, name);
        self.exchange(&question, existing)
    }

    fn next(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends a question and reads the answer; `None` when there is no such device.
    fn exchange<T>(
        &mut self,
        question: &[u8],
        read: impl Fn(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        // Not kept: there can be a socket for each of many namespaces.
        self.exchange_in(&mut [0; ANSWER], question, &read)
    }

    fn exchange_in<T>(
        &mut self,
        buffer: &mut [u8],
        question: &[u8],
        read: &impl Fn(&Message<'_>) -> Option<T>,
    ) -> io::Result<Option<T>> {
        self.socket.send(question)?;
        loop {
            let Some(length) = self.socket.receive(&mut *buffer).map_err(unanswered)? else {
                continue;
            };
            let Some(datagram) = buffer.get(..length) else {
                if sequence_of(buffer) != Some(self.sequence) {
                    continue;
                }
                // It has thousands of alternative names, or of addresses.
                return self.exchange_in(&mut vec![0; 2 * length], question, read);
            };
            for message in messages(datagram) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.error() {
                    Some(libc::ENODEV) => return Ok(None),
                    Some(code) => return Err(io::Error::from_raw_os_error(code)),
                    None => {}
                }
                if let Some(answer) = read(&message) {
                    return Ok(Some(answer));
                }
            }
        }
    }
}

/// The kernel answers before the question is sent: what is not there by then was dropped.
fn unanswered(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::other("the kernel's answer was dropped"),
        _ => error,
    }
}

/// The device that an answer is about.
fn existing(message: &Message<'_>) -> Option<(u32, Named)> {
    match message.link()? {
        LinkMessage::New {
            ifindex,
            name,
            kind,
        } => Some((ifindex, Named { name, kind })),
        LinkMessage::Deleted { .. } => None,
    }
}
