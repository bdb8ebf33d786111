//! The agent of the host as a backend: `ifmon --serve` is asked over its socket, which takes no
//! privileges. While it is away, netlink stands in for it.
//!
//! [`core`] decides, without I/O; [`shell`] has the connections. What is known of each name outlives
//! both ways to hear of it ([`names`]), so that a change from one to the other hides nothing.

mod call;
pub(crate) mod core;
mod names;
mod shell;

use std::{fmt, io, path::PathBuf, sync::Arc};

use tokio::{sync::mpsc, task::JoinHandle};

use self::{core::Agent, shell::Connections};
use crate::{
    BackendKind, Error, Netns, Unavailable,
    driver::{self, HandleCommand, Mailbox},
    engine::Engine,
    netlink,
};

/// Which call it is. An agent answers one call on each connection.
pub(crate) type CallId = u64;

/// What the deciding part asks of the one that has the connections.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// Connect, and send this: [`Reply::Done`].
    Call(CallId, Vec<u8>),
    /// Send this as well: [`Reply::Done`].
    Send(CallId, Vec<u8>),
    /// Take what has come, without waiting: [`Reply::Received`].
    Receive(CallId),
    /// Close the connection: [`Reply::Done`].
    Hang(CallId),
    /// [`Reply::Netlink`].
    Netlink(netlink::Request),
}

/// The answer to a [`Request`].
pub(crate) enum Reply {
    Done(io::Result<()>),
    /// `None` when there is nothing now; an error at the end.
    Received(io::Result<Option<Vec<u8>>>),
    Netlink(netlink::Reply),
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Call(id, message) => write!(f, "Call({id}, {})", message.escape_ascii()),
            Self::Send(id, message) => write!(f, "Send({id}, {})", message.escape_ascii()),
            Self::Receive(id) => write!(f, "Receive({id})"),
            Self::Hang(id) => write!(f, "Hang({id})"),
            Self::Netlink(request) => request.fmt(f),
        }
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(result) => write!(f, "{result:?}"),
            Self::Received(Ok(Some(bytes))) => write!(f, "{}", bytes.escape_ascii()),
            Self::Received(result) => write!(f, "{result:?}"),
            Self::Netlink(reply) => reply.fmt(f),
        }
    }
}

/// An agent that can be asked.
#[derive(Debug)]
pub(crate) struct Running {
    connections: Connections,
    is_filtered: bool,
}

impl Running {
    /// Makes sure that there is one at this path.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Unavailable> {
        shell::connect(&path).map_err(|source| Unavailable::NoAgent {
            path: path.clone(),
            source,
        })?;
        let home = Netns::current().map_err(Unavailable::other)?;
        let (connections, is_filtered) = Connections::new(path, home)?;
        Ok(Self {
            connections,
            is_filtered,
        })
    }

    /// Starts the task of a monitor. Who asked for the agent by its name gets an error where it
    /// refuses.
    pub(crate) fn spawn(
        self,
        by_name: bool,
        commands: mpsc::Receiver<HandleCommand>,
        shared: Arc<Mailbox>,
    ) -> JoinHandle<()> {
        let Self {
            connections,
            is_filtered,
        } = self;
        let agent = Agent::new(connections.home(), is_filtered, by_name);
        let engine = Engine::new(BackendKind::Agent, agent);
        tokio::spawn(driver::run(engine, connections, commands, shared))
    }
}

/// The agent refuses, or is not there.
fn refused(why: impl Into<String>) -> Error {
    Error::Agent(why.into())
}
