//! Which of many descriptors can be read.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
};

use rustix::event::{Timespec, epoll};
use tokio::io::{Interest, unix::AsyncFd};

use crate::{NetnsId, machine::Source};

/// As many as are asked for at a time.
const AT_A_TIME: usize = 64;
/// The key of the ring buffer; a namespace's is its inode number.
const RING: u64 = 1 << 32;
/// The key of a call of the agent.
const CALL: u64 = RING + 1;

/// A set of descriptors. However many there are, only those that can be read cost anything.
///
/// The kernel is asked again until nothing can be read before it is waited for, and it answers for
/// as long as there is something (`epoll(7)`, level-triggered): so nothing that was there when the
/// wait began is waited past.
#[derive(Debug)]
pub(crate) struct Readiness {
    epoll: AsyncFd<OwnedFd>,
}

impl Readiness {
    pub(crate) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // SAFETY: an owned descriptor stays what it is, and is closed when it is dropped.
        let epoll = unsafe { AsyncFd::register_with_interest(epoll, Interest::READABLE) }?;
        Ok(Self { epoll })
    }

    /// Has something watched until it is closed.
    pub(crate) fn add(&self, what: impl AsFd, source: Source) -> io::Result<()> {
        let key = match source {
            Source::Ring => RING,
            Source::Call => CALL,
            Source::Socket(NetnsId(netns)) => u64::from(netns),
        };
        let data = epoll::EventData::new_u64(key);
        epoll::add(self.epoll.get_ref(), what, data, epoll::EventFlags::IN)?;
        Ok(())
    }

    /// Waits until something can be read, and says what. Nothing is lost when the future is
    /// dropped.
    pub(crate) async fn next(&mut self, sources: &mut Vec<Source>) -> io::Result<()> {
        loop {
            let mut ready = self.epoll.readable().await?;
            if take(self.epoll.get_ref(), sources)? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}

/// What can be read now; false when nothing can.
fn take(epoll: &OwnedFd, sources: &mut Vec<Source>) -> io::Result<bool> {
    let mut room = [MaybeUninit::uninit(); AT_A_TIME];
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let found = match epoll::wait(epoll, &mut room, Some(&now)) {
        Ok((found, _)) => found,
        Err(rustix::io::Errno::INTR) => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    sources.extend(found.iter().map(|event| {
        // A copy: the structure is packed on some architectures.
        let data = event.data;
        match data.u64() {
            RING => Source::Ring,
            CALL => Source::Call,
            netns => Source::Socket(NetnsId(netns as u32)),
        }
    }));
    Ok(!found.is_empty())
}
