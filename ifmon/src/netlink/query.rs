//! Asks the kernel about one link: never a dump, which may be interrupted for ever while links come and go.
//!
//! The kernel answers a request for one link while it is being sent, so this neither waits nor needs a task. That, and
//! an answer that cannot be lost to one odd attribute, is why it is not done through the `rtnetlink` crate: there an
//! answer that cannot be decoded whole is dropped, and whoever asked waits for ever.

use std::io;

use super::{
    message::{LinkMessage, get_link, messages},
    socket::Socket,
};
use crate::{InterfaceName, Netns};

/// Room for the answer: with the tables of all virtual functions left out, a link is described in 2 to 4 KiB.
const ANSWER: usize = 32 * 1024;

/// A socket for questions about links of one namespace. It keeps the namespace alive.
#[derive(Debug)]
pub(crate) struct Query {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Query {
    pub(crate) fn new(netns: &Netns) -> io::Result<Self> {
        Ok(Self {
            socket: Socket::for_requests(netns)?,
            sequence: 0,
            buffer: vec![0; ANSWER],
        })
    }

    /// The index of the device that has this name now. A device that has it as an alternative name does not count.
    pub(crate) fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>> {
        Ok(self
            .ask(0, Some(name))?
            .filter(|(_, found)| found == name)
            .map(|(ifindex, _)| ifindex))
    }

    /// The name of the device that has this index now.
    pub(crate) fn by_index(&mut self, ifindex: u32) -> io::Result<Option<InterfaceName>> {
        Ok(self.ask(ifindex, None)?.map(|(_, name)| name))
    }

    fn ask(
        &mut self,
        ifindex: u32,
        name: Option<&InterfaceName>,
    ) -> io::Result<Option<(u32, InterfaceName)>> {
        self.sequence = self.sequence.wrapping_add(1);
        self.socket.send(&get_link(self.sequence, ifindex, name))?;
        loop {
            let Some(length) = self.socket.receive(&mut self.buffer)? else {
                continue;
            };
            let datagram = self.buffer.get(..length).unwrap_or(&self.buffer);
            for message in messages(datagram) {
                if message.sequence != self.sequence {
                    continue;
                }
                match (message.error(), message.link()) {
                    (Some(libc::ENODEV), _) => return Ok(None),
                    (Some(code), _) => return Err(io::Error::from_raw_os_error(code)),
                    (None, Some(LinkMessage::New { ifindex, name })) => {
                        return Ok(Some((ifindex, name)));
                    }
                    (None, _) => {}
                }
            }
            // A datagram that was cut off holds the header, the index and the name all the same: they come first.
            if length > self.buffer.len() {
                return Err(io::Error::other(format!(
                    "the answer has {length} bytes, more than ifmon expects"
                )));
            }
        }
    }
}
