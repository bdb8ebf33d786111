//! What the kernel says of the BPF program of a process.

use std::{
    fs, io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
    ptr,
};

use anyhow::{Context as _, Result};

// include/uapi/linux/bpf.h
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;

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
    let program = descriptor(call(BPF_PROG_GET_FD_BY_ID, &mut id.clone())?);
    let mut info = Info::default();
    /// The part of `union bpf_attr` for information on an object.
    #[repr(C)]
    struct Attributes {
        object: libc::c_int,
        length: u32,
        info: u64,
    }
    call(
        BPF_OBJ_GET_INFO_BY_FD,
        &mut Attributes {
            object: program.as_raw_fd(),
            length: mem::size_of::<Info>() as u32,
            info: ptr::from_mut(&mut info) as u64,
        },
    )?;
    Ok(info.translated_length / INSTRUCTION)
}

/// `BPF_PROG_TYPE_*`
pub(super) const SOCKET_FILTER: u32 = 1;
/// See [`SOCKET_FILTER`].
pub(super) const KPROBE: u32 = 2;
/// See [`SOCKET_FILTER`]; to be attached at a function's entry.
pub(super) const TRACING: u32 = 26;

/// A ring buffer of so many bytes.
pub(super) fn create_ring(bytes: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    const BPF_MAP_TYPE_RINGBUF: u32 = 27;
    // Type, sizes of keys and values, entries.
    let mut attributes = [BPF_MAP_TYPE_RINGBUF, 0, 0, bytes];
    Ok(descriptor(call(BPF_MAP_CREATE, &mut attributes)?))
}

/// Loads a program; `function` is the type of the function that a tracing program is for, in the
/// kernel's BTF.
pub(super) fn load(kind: u32, function: u32, program: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_TRACE_FENTRY: u32 = 24;
    /// The part of `union bpf_attr` for programs, up to `attach_btf_id`.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        kind: u32,
        length: u32,
        instructions: u64,
        license: u64,
        log: [u64; 2],
        version_and_flags: u64,
        name: [u64; 2],
        ifindex: u32,
        attach_type: u32,
        btf: u32,
        function_size: u32,
        functions: u64,
        function_count: u32,
        line_size: u32,
        lines: u64,
        line_count: u32,
        function: u32,
    }
    call(
        BPF_PROG_LOAD,
        &mut Attributes {
            kind,
            length: program.len() as u32,
            instructions: program.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            attach_type: if kind == TRACING { BPF_TRACE_FENTRY } else { 0 },
            function,
            ..Attributes::default()
        },
    )
    .map(descriptor)
}

/// Attaches a tracing program to its function.
pub(super) fn open_tracepoint(program: &OwnedFd) -> io::Result<OwnedFd> {
    const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
    // The name of none, and the program.
    let mut attributes = [0, u64::from(program.as_raw_fd().unsigned_abs())];
    Ok(descriptor(call(BPF_RAW_TRACEPOINT_OPEN, &mut attributes)?))
}

/// bpf(2). `attributes` is the beginning of a `union bpf_attr`, of which the rest is taken for 0.
fn call<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the attributes are as long as is said, and what they point to is the caller's and
    // alive.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            ptr::from_mut(attributes),
            mem::size_of::<T>(),
        )
    };
    match libc::c_int::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What a call returned that makes one.
fn descriptor(result: libc::c_int) -> OwnedFd {
    // SAFETY: it is new, and nobody else's.
    unsafe { OwnedFd::from_raw_fd(result) }
}
