//! Is the device that has a watched name one that was here before? A program on a socket loses
//! sight of those that move to another namespace; the inode in sysfs tells who has come back.

use std::io;

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
    /// The name has changed hands since.
    Outdated,
    /// Something could not be read.
    Failed(io::Error),
}

impl Recognition {
    pub(super) fn new(watch: Watch, ifindex: u32, took: (u32, u64)) -> Self {
        Self {
            watch,
            ifindex,
            took,
            step: RecognitionStep::Inode,
        }
    }

    pub(super) fn request(&self) -> Request {
        let Watch { netns, name } = self.watch;
        match self.step {
            RecognitionStep::Inode => Request::Ask(netns, Question::IdentityOf(name)),
            RecognitionStep::Heard(_) => Request::Overflowed(netns),
            RecognitionStep::Confirm(_) => Request::Name(key_of(&self.watch)),
        }
    }

    /// Goes on with the answer to the request.
    pub(super) fn answer(mut self, reply: Reply) -> Result<Self, Recognized> {
        self.step = match (self.step, reply) {
            (RecognitionStep::Inode, Reply::Answer(Answer::Identity(found))) => {
                let found = found.map_err(Recognized::Failed)?;
                let found = found.ok_or(Recognized::Nothing)?;
                RecognitionStep::Heard(found.inode_of(self.ifindex))
            }
            (RecognitionStep::Heard(inode), Reply::Overflowed(Ok(false))) => {
                RecognitionStep::Confirm(inode.ok_or(Recognized::Nothing)?)
            }
            (RecognitionStep::Heard(_), Reply::Overflowed(_)) => return Err(Recognized::Unheard),
            (RecognitionStep::Confirm(inode), Reply::Name(state)) => {
                let state = state.map_err(Recognized::Failed)?;
                let is_it = state.is_some_and(|state| {
                    is_whole(&state) && (state.epoch, state.opened) == self.took
                });
                return Err(if is_it {
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
}
