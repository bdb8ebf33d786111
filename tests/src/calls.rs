//! System calls of the program under test that fail when a test wants it: the kernel asks the test
//! before it makes them (seccomp's user notification).

use std::{
    collections::HashMap,
    io,
    mem::zeroed,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use anyhow::{Context as _, Result};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

/// Where the process has the descriptor on which the kernel asks. It only inherits it.
const ASKS: libc::c_int = 100;

// Classic BPF, `include/uapi/linux/bpf_common.h`.
const LD_W_ABS: u16 = 0x20;
const JEQ: u16 = 0x15;
const RET: u16 = 0x06;

/// The calls of one process.
#[derive(Debug)]
pub struct Calls {
    failing: Arc<Mutex<HashMap<libc::c_long, Failing>>>,
}

#[derive(Clone, Copy, Debug)]
struct Failing {
    errno: i32,
    times: u32,
}

/// Has the command ask before it makes one of these calls. It waits for an answer, so [`Calls::of`]
/// has to follow.
pub fn ask(command: &mut Command, calls: [libc::c_long; 2]) {
    let rule = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let [first, second] = calls.map(|call| call as u32);
    let rules = [
        // The number of the call comes first in `struct seccomp_data`.
        rule(LD_W_ABS, 0, 0, 0),
        rule(JEQ, 1, 0, first),
        rule(JEQ, 0, 1, second),
        rule(RET, 0, 0, libc::SECCOMP_RET_USER_NOTIF),
        rule(RET, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    // SAFETY: between fork and exec the closure makes system calls alone; the rules outlive them.
    unsafe {
        command.pre_exec(move || {
            let program = libc::sock_fprog {
                len: rules.len() as u16,
                filter: rules.as_ptr().cast_mut(),
            };
            let listener = libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            );
            if listener < 0 || libc::dup2(listener as libc::c_int, ASKS) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
}

impl Calls {
    /// Begins to answer a process that was started by a command prepared with [`ask`]: with what
    /// the kernel does, until something else is wanted.
    pub fn of(process: u32) -> Result<Self> {
        let pid = Pid::from_raw(i32::try_from(process)?).context("no pid")?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        let listener = pidfd_getfd(process, ASKS, PidfdGetfdFlags::empty())
            .context("cannot listen to the calls")?;
        let failing = Arc::default();
        let calls = Self {
            failing: Arc::clone(&failing),
        };
        thread::spawn(move || while answer(&listener, &failing).is_ok() {});
        Ok(calls)
    }

    /// From now on the call fails so many times in this way.
    pub fn fail(&self, call: libc::c_long, errno: i32, times: u32) {
        lock(&self.failing).insert(call, Failing { errno, times });
    }

    /// How many of these failures are still to come.
    pub fn to_come(&self, call: libc::c_long) -> u32 {
        lock(&self.failing).get(&call).map_or(0, |left| left.times)
    }
}

fn lock(
    failing: &Mutex<HashMap<libc::c_long, Failing>>,
) -> MutexGuard<'_, HashMap<libc::c_long, Failing>> {
    failing.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Answers one question. An error says that nobody is left who could ask.
fn answer(listener: &OwnedFd, failing: &Mutex<HashMap<libc::c_long, Failing>>) -> io::Result<()> {
    let mut ready = [PollFd::new(listener, PollFlags::IN)];
    poll(&mut ready, None)?;
    if ready[0].revents().contains(PollFlags::HUP) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: all zeroes is a value of these plain C structures.
    let (mut question, mut answer): (libc::seccomp_notif, libc::seccomp_notif_resp) =
        unsafe { (zeroed(), zeroed()) };
    // SAFETY: the request takes a pointer to a zeroed `seccomp_notif`.
    let asked = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut question,
        )
    };
    if asked < 0 {
        // Whoever asked was interrupted.
        return Ok(());
    }
    answer.id = question.id;
    match lock(failing).get_mut(&libc::c_long::from(question.data.nr)) {
        Some(Failing { errno, times }) if *times > 0 => {
            *times -= 1;
            answer.error = -*errno;
        }
        _ => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    }
    // SAFETY: the request takes a pointer to a `seccomp_notif_resp`. It fails for one who does not
    // wait any more.
    unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw const answer,
        )
    };
    Ok(())
}
