//! How many descriptors may be open: as many as the kernel lets this process have.
//!
//! The usual limit of 1,024 is for programs that use `select(2)`. Each watched namespace takes four
//! descriptors, and each client of the agent one.

use std::{fs::File, io, sync::OnceLock};

use anyhow::bail;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What the limit was.
static BEFORE: OnceLock<Rlimit> = OnceLock::new();

/// Raises the soft limit to the hard one, and makes sure that there are enough to begin with: tokio
/// panics for want of one.
pub(crate) fn raise() -> anyhow::Result<()> {
    const TO_BEGIN_WITH: usize = 13;
    let before = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: before.maximum,
        ..before
    };
    if raised != before {
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => drop(BEFORE.set(before)),
            Err(error) => log::warn!("cannot raise the limit of open files: {error}"),
        }
    }
    let opened: io::Result<Vec<File>> = (0..TO_BEGIN_WITH).map(|_| File::open("/")).collect();
    match opened {
        Err(error) if error.raw_os_error() == Some(libc::EMFILE) => {
            let limit = getrlimit(Resource::Nofile).current.unwrap_or(0);
            bail!(
                "this process may open {limit} files, which is too few; raise the limit (ulimit -n, LimitNOFILE=)"
            )
        }
        _ => Ok(()),
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
