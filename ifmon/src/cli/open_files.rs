//! How many descriptors may be open: as many as the kernel lets this process have.
//!
//! The usual limit of 1,024 is for programs that use `select(2)`. Each watched namespace takes four
//! descriptors, and each client of the agent one.

use std::{io, sync::OnceLock};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the limit was.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one.
pub(crate) fn raise() {
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        ..before
    };
    if raised == before {
        return;
    }
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => drop(BEFORE.set(before)),
        Err(error) => log::warn!("cannot raise the limit of open files: {error}"),
    }
}

/// Gives a process that is about to be another program the limit that it would have had. Makes one
/// system call, and allocates nothing.
pub(crate) fn restore() -> io::Result<()> {
    match BEFORE.get() {
        Some(before) => Ok(setrlimit(Resource::Nofile, *before)?),
        None => Ok(()),
    }
}
