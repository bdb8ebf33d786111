//! What nobody can do with less: hear of a change in the way that a backend does, with the smallest
//! program that can, and write a line. Whoever compares no names and looks nothing up is told of
//! everything; how fast is what the kernel allows.

use std::{
    ffi::CString,
    fs, io, mem,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, bail};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rustix::{
    buffer::spare_capacity,
    event::{
        PollFd, PollFlags,
        epoll::{self, EventData, EventFlags},
        poll,
    },
    mm::{MapFlags, ProtFlags, mmap},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{bpf, peer::say};
use crate::requests::LINK_GROUP;

const PAGE: usize = 4096;
/// Room for a link message.
const MESSAGE: usize = 16 * 1024;

/// Runs until it is ended.
pub(super) fn run(backend: &str, interface: &str, hook: Option<u32>) -> Result<()> {
    if backend == "netlink" {
        let socket = subscribe(None)?;
        let mut buffer = vec![0; MESSAGE];
        loop {
            say(interface)?;
            socket.recv(&mut &mut buffer[..], 0)?;
        }
    }
    let ring = Ring::new()?;
    // Both are alive as long as this runs.
    let _socket;
    let _attached = match backend {
        "netlink-ebpf" => {
            let program = ring.load(Kind::SocketFilter)?;
            _socket = subscribe(Some(&program))?;
            program
        }
        "kprobe" => attach_to_kprobe(&ring.load(Kind::Kprobe)?)?,
        "fentry" => {
            let hook = hook.context("which type the hook is")?;
            let program = ring.load(Kind::Fentry(hook))?;
            bpf::open_tracepoint(&program)?
        }
        _ => bail!("no backend {backend}"),
    };
    loop {
        say(interface)?;
        ring.wait()?;
    }
}

/// The same in many namespaces, whose files these are: a socket in each.
pub(super) fn run_in(backend: &str, interface: &str, namespaces: &[&str]) -> Result<()> {
    let ring = match backend {
        "netlink" => None,
        "netlink-ebpf" => Some(Ring::new()?),
        _ => bail!("{backend} has no sockets"),
    };
    let program = ring.as_ref().map(|ring| ring.load(Kind::SocketFilter));
    let program = program.transpose()?;
    let waiting = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut sockets = Vec::new();
    for namespace in namespaces {
        let file = fs::File::open(namespace)?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
        let socket = subscribe(program.as_ref())?;
        let number = EventData::new_u64(sockets.len() as u64);
        epoll::add(&waiting, &socket, number, EventFlags::IN)?;
        sockets.push(socket);
    }
    let mut buffer = vec![0; MESSAGE];
    let mut events = Vec::with_capacity(1);
    loop {
        say(interface)?;
        match &ring {
            Some(ring) => ring.wait()?,
            None => {
                epoll::wait(&waiting, spare_capacity(&mut events), None)?;
                let number = events.pop().context("no event")?.data.u64() as usize;
                sockets[number].recv(&mut &mut buffer[..], 0)?;
            }
        }
    }
}

/// A ring buffer of the kernel's, and the two positions in it.
struct Ring {
    map: OwnedFd,
    consumed: &'static AtomicU64,
    produced: &'static AtomicU64,
}

enum Kind {
    SocketFilter,
    Kprobe,
    /// With the type of the function in the kernel's BTF.
    Fentry(u32),
}

impl Ring {
    fn new() -> Result<Self> {
        let map = bpf::create_ring(64 * 1024)?;
        let page = |at: u64, access| -> io::Result<&'static AtomicU64> {
            // SAFETY: a new mapping; the first word of each of the two pages is a position, and they
            // stay mapped until the program ends.
            unsafe {
                let page = mmap(ptr::null_mut(), PAGE, access, MapFlags::SHARED, &map, at)?;
                Ok(AtomicU64::from_ptr(page.cast()))
            }
        };
        let consumed = page(0, ProtFlags::READ | ProtFlags::WRITE)?;
        let produced = page(PAGE as u64, ProtFlags::READ)?;
        Ok(Self {
            map,
            consumed,
            produced,
        })
    }

    /// Loads a program that sends eight bytes whenever it is run.
    fn load(&self, kind: Kind) -> Result<OwnedFd> {
        // include/uapi/linux/bpf.h: code, registers, offset and value of each instruction.
        let instruction = |code: u8, registers: u8, offset: i16, value: i32| {
            u64::from(code)
                | u64::from(registers) << 8
                | u64::from(offset.cast_unsigned()) << 16
                | u64::from(value.cast_unsigned()) << 32
        };
        const RINGBUF_OUTPUT: i32 = 130;
        let program = [
            instruction(0xb7, 0x02, 0, 0),                    // r2 = 0
            instruction(0x7b, 0x2a, -8, 0),                   // *(r10 - 8) = r2
            instruction(0x18, 0x11, 0, self.map.as_raw_fd()), // r1 = the map
            instruction(0, 0, 0, 0),
            instruction(0xbf, 0xa2, 0, 0),              // r2 = r10
            instruction(0x07, 0x02, 0, -8),             // r2 += -8
            instruction(0xb7, 0x03, 0, 8),              // r3 = 8
            instruction(0xb7, 0x04, 0, 0),              // r4 = 0
            instruction(0x85, 0x00, 0, RINGBUF_OUTPUT), // call
            instruction(0xb7, 0x00, 0, 0),              // r0 = 0
            instruction(0x95, 0x00, 0, 0),              // exit
        ];
        let (kind, hook) = match kind {
            Kind::SocketFilter => (bpf::SOCKET_FILTER, 0),
            Kind::Kprobe => (bpf::KPROBE, 0),
            Kind::Fentry(hook) => (bpf::TRACING, hook),
        };
        Ok(bpf::load(kind, hook, &program)?)
    }

    /// Waits until something was sent, and takes all of it.
    fn wait(&self) -> Result<()> {
        while self.produced.load(Ordering::Acquire) == self.consumed.load(Ordering::Relaxed) {
            poll(&mut [PollFd::new(&self.map, PollFlags::IN)], None)?;
        }
        self.consumed
            .store(self.produced.load(Ordering::Acquire), Ordering::Release);
        Ok(())
    }
}

/// A socket that hears of every link, through a program where there is one.
fn subscribe(program: Option<&OwnedFd>) -> Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    if let Some(program) = program {
        attach_to_socket(&socket, program)?;
    }
    socket.bind(&SocketAddr::new(0, LINK_GROUP))?;
    Ok(socket)
}

fn attach_to_socket(socket: &Socket, program: &OwnedFd) -> Result<()> {
    let program = program.as_raw_fd();
    // SAFETY: the option is a descriptor, which is alive during the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const program).cast(),
            mem::size_of_val(&program) as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("cannot attach to the socket");
    }
    Ok(())
}

/// A probe of the function that ifmon hooks, which runs the program.
fn attach_to_kprobe(program: &OwnedFd) -> Result<OwnedFd> {
    // include/uapi/linux/perf_event.h
    const IOC_ENABLE: libc::Ioctl = 0x2400;
    const IOC_SET_BPF: libc::Ioctl = 0x4004_2408;
    const CLOEXEC: libc::c_ulong = 8;
    /// `PERF_ATTR_SIZE_VER5`, in words.
    const WORDS: usize = 14;
    const CONFIG1: usize = 7;
    let kind = fs::read_to_string("/sys/bus/event_source/devices/kprobe/type")?;
    let function = CString::new(ifmon::internals::HOOK)?;
    let mut attributes = [0_u64; WORDS];
    attributes[0] = kind.trim().parse::<u64>()? | (mem::size_of_val(&attributes) as u64) << 32;
    attributes[CONFIG1] = function.as_ptr() as u64;
    // SAFETY: the attributes and what they point to are alive during the call; what it returns is a new
    // descriptor, or -1.
    let probe = unsafe {
        let probe = libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            -1,
            0,
            -1,
            CLOEXEC,
        );
        if probe < 0 {
            return Err(io::Error::last_os_error()).context("cannot make a kprobe");
        }
        OwnedFd::from_raw_fd(probe as libc::c_int)
    };
    for (request, argument) in [(IOC_SET_BPF, program.as_raw_fd()), (IOC_ENABLE, 0)] {
        // SAFETY: both take a number.
        if unsafe { libc::ioctl(probe.as_raw_fd(), request, argument) } < 0 {
            return Err(io::Error::last_os_error()).context("cannot attach to a kprobe");
        }
    }
    Ok(probe)
}
