//! Is the device that has a watched name one that was here before? A program on a socket loses
//! sight of those that move to another namespace; the inode in sysfs tells who has come back.

use std::io;

use ifmon_ebpf::{Link, NameState};

use super::{
    Reply, Request,
    core::{is_whole, key_of},
};
use crate::{
    machine::{Answer, Question},
    tracker::Watch,
};

/// How far reading the inode of a name's holder is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recognition {
    pub(super) watch: Watch,
    ifindex: u32,
    /// The epoch of the watch, and the change by which the device took the name.
    took: (u32, u64),
    /// The change by which it took the name is over.
    is_settled: bool,
    step: RecognitionStep,
}

#[derive(Clone, Copy, Debug)]
enum RecognitionStep {
    Inode,
    /// sysfs can show who has the name next before the program is shown that, or without: was all
    /// shown to it by then? Nothing, where sysfs shows another device.
    Heard(Option<u64>),
    /// Does the device still have the name?
    Confirm(u64),
    /// sysfs does not show it. Is it there at all? Of one that could not be set up some kinds tell that
    /// it came and not that it went (seen of `gre` with an address that the host does not have).
    Index,
    /// It is not. The program is told that soon, if at all;
    Settle,
    /// what does it say?
    Missing,
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Recognized {
    /// This is its inode.
    Inode(u64),
    /// That cannot be known.
    Nothing,
    /// Nor was the program shown all that happened.
    Unheard,
    /// The program was not shown that the device, which has this id, is gone.
    Vanished(Link, u64),
    /// The name has changed hands since.
    Outdated,
    /// Something could not be read.
    Failed(io::Error),
}

impl Recognition {
    pub(super) fn new(watch: Watch, ifindex: u32, took: (u32, u64), is_settled: bool) -> Self {
        Self {
            watch,
            ifindex,
            took,
            is_settled,
            step: RecognitionStep::Inode,
        }
    }

    pub(super) fn request(&self) -> Request {
        let Watch { netns, name } = self.watch;
        match self.step {
            RecognitionStep::Inode => Request::Ask(netns, Question::IdentityOf(name)),
            RecognitionStep::Heard(_) => Request::Overflowed(netns),
            RecognitionStep::Confirm(_) | RecognitionStep::Missing => {
                Request::Name(key_of(&self.watch))
            }
            RecognitionStep::Index => Request::Ask(netns, Question::IndexOf(name)),
            RecognitionStep::Settle => Request::Ask(netns, Question::Barrier),
        }
    }

    /// Goes on with the answer to the request.
    pub(super) fn answer(mut self, reply: Reply) -> Result<Self, Recognized> {
        self.step = match (self.step, reply) {
            (RecognitionStep::Inode, Reply::Answer(Answer::Identity(found))) => {
                let found = found.map_err(Recognized::Failed)?;
                match found.map(|found| found.inode_of(self.ifindex)) {
                    None | Some(None) if self.is_settled => RecognitionStep::Index,
                    None => return Err(Recognized::Nothing),
                    Some(inode) => RecognitionStep::Heard(inode),
                }
            }
            (RecognitionStep::Index, Reply::Answer(Answer::Index(found))) => {
                if found.map_err(Recognized::Failed)? == Some(self.ifindex) {
                    return Err(Recognized::Nothing);
                }
                RecognitionStep::Settle
            }
            (RecognitionStep::Settle, _) => RecognitionStep::Missing,
            (RecognitionStep::Missing, Reply::Name(state)) => {
                let state = state.map_err(Recognized::Failed)?;
                let state = state.filter(|&state| self.is_it(Some(state)));
                let state = state.ok_or(Recognized::Outdated)?;
                let link = Link {
                    netns: self.watch.netns.0,
                    ifindex: self.ifindex,
                };
                return Err(Recognized::Vanished(link, state.id));
            }
            (RecognitionStep::Heard(inode), Reply::Overflowed(Ok(false))) => {
                RecognitionStep::Confirm(inode.ok_or(Recognized::Nothing)?)
            }
            (RecognitionStep::Heard(_), Reply::Overflowed(_)) => return Err(Recognized::Unheard),
            (RecognitionStep::Confirm(inode), Reply::Name(state)) => {
                let state = state.map_err(Recognized::Failed)?;
                return Err(if self.is_it(state) {
                    Recognized::Inode(inode)
                } else {
                    Recognized::Outdated
                });
            }
            (step, reply) => {
                debug_assert!(false, "{reply:?} to {step:?}");
                return Err(Recognized::Nothing);
            }
        };
        Ok(self)
    }

    /// Has the name not changed hands since?
    fn is_it(&self, state: Option<NameState>) -> bool {
        state.is_some_and(|state| is_whole(&state) && (state.epoch, state.opened) == self.took)
    }
}
