//! What the kernel says of the BPF program of a process.

use std::{fs, io, mem, path::Path};

use anyhow::{Context as _, Result};

const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// The kernel accounts for each run of a program as long as this lives.
pub(super) struct Statistics;

impl Statistics {
    pub(super) fn enable() -> Result<Self> {
        fs::write(STATISTICS, "1").context("cannot enable the kernel's BPF statistics")?;
        Ok(Self)
    }
}

impl Drop for Statistics {
    fn drop(&mut self) {
        let _ = fs::write(STATISTICS, "0");
    }
}

/// A loaded program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Program {
    /// In nanoseconds, with statistics enabled.
    pub(super) time: u64,
    pub(super) runs: u64,
    /// As the kernel runs it, dead branches removed.
    pub(super) instructions: u32,
    /// How many the verifier had to walk; not told before Linux 5.16.
    pub(super) verified: Option<u64>,
}

impl Program {
    /// The tracing program that a process holds.
    pub(super) fn of(pid: u32) -> Result<Self> {
        for descriptor in fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fdinfo"))? {
            let info = fs::read_to_string(descriptor?.path())?;
            let field = |name: &str| -> Option<u64> {
                info.lines()
                    .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))?
                    .parse()
                    .ok()
            };
            // A link has the id of its program too, but not how long it ran.
            if let (Some(id), Some(time)) = (field("prog_id"), field("run_time_ns")) {
                return Ok(Self {
                    time,
                    runs: field("run_cnt").context("no count of runs")?,
                    instructions: instructions(u32::try_from(id)?)?,
                    verified: field("verified_insns"),
                });
            }
        }
        anyhow::bail!("the process holds no BPF program")
    }
}

/// The length of a program, which is in no file.
fn instructions(id: u32) -> io::Result<u32> {
    // include/uapi/linux/bpf.h
    const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    const INSTRUCTION: u32 = 8;
    /// The beginning of `struct bpf_prog_info`; the kernel fills as much as there is room for.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        jited_length: u32,
        translated_length: u32,
        jited: u64,
        translated: u64,
    }
    /// The part of `union bpf_attr` for objects and their information.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        object: u32,
        length: u32,
        info: u64,
    }
    let call = |command: libc::c_int, attributes: &mut Attributes| -> io::Result<libc::c_int> {
        // SAFETY: `attributes` is as long as is said; what its `info` points to is alive and as
        // long as its `length`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                std::ptr::from_mut(attributes),
                mem::size_of::<Attributes>(),
            )
        };
        match libc::c_int::try_from(result) {
            Ok(result) if result >= 0 => Ok(result),
            _ => Err(io::Error::last_os_error()),
        }
    };
    let program = call(
        BPF_PROG_GET_FD_BY_ID,
        &mut Attributes {
            object: id,
            ..Attributes::default()
        },
    )?;
    let mut info = Info::default();
    let result = call(
        BPF_OBJ_GET_INFO_BY_FD,
        &mut Attributes {
            object: program.unsigned_abs(),
            length: mem::size_of::<Info>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        },
    );
    // SAFETY: the descriptor was made above and is used nowhere else.
    unsafe { libc::close(program) };
    result.map(|_| info.translated_length / INSTRUCTION)
}
