//! rtnetlink: a subscription to the link messages of each namespace, with a filter in the kernel
//! that wakes nobody for links that are not watched, or without one.
//!
//! [`core`] decides, without I/O; [`shell`] has the sockets.

pub(crate) mod core;
pub(crate) mod devices;
pub(crate) mod filter;
pub(crate) mod message;
pub(crate) mod query;
pub(crate) mod shell;
pub(crate) mod socket;
pub(crate) mod subscription;
pub(crate) mod sysfs;

use std::io;

use self::{filter::Interest, message::LinkMessage};
use crate::{
    NetnsId,
    machine::{Answer, Question},
};

/// Room for one link message. Most have 2 KiB; but each list in it, of alternative names or of what a
/// kind of device keeps, can have 64, which is as long as an attribute can say (`nla_len` of
/// `struct nlattr`).
const MESSAGE: usize = 256 * 1024;

/// What the deciding part asks of the one that has the sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Subscribe to the link messages of a namespace, anew if there is a subscription already. It
    /// has no filter: [`Reply::Done`].
    Open(NetnsId),
    /// Hear nothing more of a namespace until it is opened again: [`Reply::Done`].
    Unsubscribe(NetnsId),
    /// Let go of a namespace: [`Reply::Done`].
    Close(NetnsId),
    /// From now on put into the queue only what concerns these names and indexes; everything for
    /// `None`: [`Reply::Done`].
    Filter(NetnsId, Option<Interest>),
    /// Take what is first in the queue, without waiting: [`Reply::Read`].
    Read(NetnsId),
    /// [`Reply::Answer`].
    Ask(NetnsId, Question),
}

/// The answer to a [`Request`].
#[derive(Debug)]
pub(crate) enum Reply {
    Done(io::Result<()>),
    Read(io::Result<Received>),
    Answer(Answer),
}

/// What was first in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// From the kernel; `None` when it says nothing about a link's name or existence.
    Message(Option<LinkMessage>),
    /// From anybody else, which says nothing.
    Stray,
    /// The queue was full, and nobody knows how many messages were lost. Those that come next were
    /// sent before that, and new ones are put into the queue again once it was empty.
    Overflow,
    /// It is empty.
    Nothing,
}
