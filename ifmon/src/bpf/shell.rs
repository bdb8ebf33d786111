//! The programs of the BPF backends and what they need: does what [`core`](super::core) asks for,
//! one thing at a time, and knows nothing else.

use std::{collections::HashMap, fmt, fs, io, os::fd::AsFd as _};

use aya::{
    Ebpf as Object,
    maps::{MapData, RingBuf},
    programs::{FEntry, KProbe, SocketFilter},
};
use aya_log::EbpfLogger;
use ifmon_ebpf::{
    FENTRY_PROGRAM, HOOK, KPROBE_PROGRAM, Record, SOCKET_NOBODY_PROGRAM, SOCKET_PID_PROGRAM,
    SOCKET_PROGRAM, flag,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::AbortHandle,
};

use super::{
    Reply, Request,
    core::Hook,
    layout::KernelLayout,
    load::{self, Load, Pid, Who},
    maps::{self, Maps},
    selftest,
};
use crate::{
    BackendKind, Netns, NetnsId, Unavailable,
    driver::Shell,
    inquiry::Inquiry,
    machine::{Answer, Question, Source},
    netlink::{shell::cannot_open, socket::Socket},
    netns::Places,
    readiness::Readiness,
};

/// Id of the root of all cgroups: the inode number of the root of a `kernfs`.
const ROOT_CGROUP: u64 = 1;

/// A loaded program, attached or to be attached, with its maps.
pub(crate) struct Programs {
    pub(crate) hook: Hook,
    maps: Maps,
    ring: RingBuf<MapData>,
    /// What is asked about each namespace.
    inquiries: HashMap<NetnsId, Inquiry>,
    /// The sockets whose filter the program is.
    sockets: HashMap<NetnsId, Socket>,
    /// The program's name, where it is one for sockets.
    filter: &'static str,
    offered: Option<Netns>,
    /// What is asked about it once it was left.
    visit: Option<Inquiry>,
    /// Where a tracing program was proven right. The end of a namespace is a change, takes the
    /// kernel milliseconds, and would come in the middle of the start.
    proof: Option<Netns>,
    /// Where namespaces are that nobody offers.
    places: Places,
    readiness: Readiness,
    who: Who,
    /// How many watches there is room for.
    pub(crate) room: usize,
    /// Hands the kernel side's log on, where one is wanted.
    log: Option<AbortHandle>,
    /// Drops the programs and their links with it; nothing is pinned, so a killed process leaves
    /// nothing behind.
    object: Object,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs").finish_non_exhaustive()
    }
}

/// What the programs are to be loaded for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadFor {
    pub(crate) watches: usize,
    pub(crate) patterns: usize,
    /// There may be some for all namespaces.
    pub(crate) everywhere: bool,
    pub(crate) ring_bytes: Option<u32>,
    /// Every change of every interface is to be sent.
    pub(crate) open_filter: bool,
}

impl Programs {
    /// Loads and attaches a tracing program, and proves that it reads the kernel right.
    pub(crate) fn tracing(
        kind: BackendKind,
        layout: &KernelLayout,
        wanted: LoadFor,
    ) -> Result<Self, Unavailable> {
        if wanted.patterns > 0 && layout.constants_for_patterns().is_none() {
            return Err(Unavailable::NoKind);
        }
        let attempt = |logs| {
            let load = Load {
                layout: Some(layout),
                who: Who::all(),
                watches: wanted.watches,
                patterns: wanted.patterns,
                everywhere: wanted.everywhere,
                ring_bytes: wanted.ring_bytes,
                logs,
            };
            let (mut object, room) = load.object()?;
            attach(&mut object, kind, layout)?;
            let mut programs = Self::of(object, Hook::Function, load.who, room, logs)?;
            let Self { maps, ring, .. } = &mut programs;
            programs.proof = selftest::run(&mut maps.shared, || next(ring))?;
            programs.maps.shared.set_open(wanted.open_filter);
            Ok(programs)
        };
        load::with_log(|logs| load::with_memory(|| attempt(logs)))
    }

    /// Loads a program to be the filter of netlink sockets. `layout` is asked for where nothing but
    /// the kernel's own structures say who makes a change.
    pub(crate) fn socket_filter(
        layout: impl Fn() -> Option<KernelLayout>,
        wanted: LoadFor,
    ) -> Result<Self, Unavailable> {
        let Filter {
            object,
            name,
            room,
            who,
            logs,
        } = load_socket_filter(layout, wanted)?;
        // Attached to each socket as it is made.
        let mut programs = Self::of(object, Hook::Socket, who, room, logs)?;
        programs.filter = name;
        programs.maps.shared.set_open(wanted.open_filter);
        Ok(programs)
    }

    fn of(
        mut object: Object,
        hook: Hook,
        who: Who,
        room: usize,
        logs: bool,
    ) -> Result<Self, Unavailable> {
        let log = logs.then(|| follow_log(&mut object)).flatten();
        let ring = maps::take::<RingBuf<_>>(&mut object, "EVENTS")?;
        let readiness = Readiness::new().map_err(Unavailable::other)?;
        let ring_fd = ring.as_fd();
        readiness
            .add(ring_fd, Source::Ring)
            .map_err(Unavailable::other)?;
        let mut maps = Maps::of(&mut object)?;
        // There is room for twice as many as there are names, of which one a name cannot be missed, and
        // others are not come to at once. Userspace finds one a name at most.
        let crowd = u32::try_from(room / 2).unwrap_or(u32::MAX);
        maps.shared.set_crowd(crowd);
        Ok(Self {
            hook,
            maps,
            ring,
            inquiries: HashMap::new(),
            sockets: HashMap::new(),
            filter: SOCKET_PROGRAM,
            offered: None,
            visit: None,
            proof: None,
            places: Places::default(),
            readiness,
            who,
            room,
            log,
            object,
        })
    }

    /// How much is known of who makes a change.
    pub(crate) fn who(&self) -> Who {
        self.who
    }

    fn enter(&mut self, netns: NetnsId) -> io::Result<()> {
        if self.inquiries.contains_key(&netns) {
            return Ok(());
        }
        let handle = &self.places.handle(self.offered.as_ref(), netns)?;
        let mut inquiry = Inquiry::new(handle)?;
        if self.hook == Hook::Socket {
            inquiry.open_sysfs()?;
            let socket = Socket::unsubscribed(handle)?;
            // Nothing is ever queued on it: the filter is there before the subscription.
            let program: &mut SocketFilter =
                program(&mut self.object, self.filter).map_err(io::Error::other)?;
            program.attach(socket.as_fd()).map_err(io::Error::other)?;
            let cookie = socket.cookie()?;
            self.maps.insert_socket(cookie, netns)?;
            let subscribed = self
                .readiness
                .add(socket.as_fd(), Source::Socket(netns))
                .and_then(|()| socket.subscribe());
            if let Err(error) = subscribed {
                self.maps.remove_socket(cookie);
                return Err(error);
            }
            self.sockets.insert(netns, socket);
        }
        self.inquiries.insert(netns, inquiry);
        Ok(())
    }

    fn leave(&mut self, netns: NetnsId) {
        self.inquiries.remove(&netns);
        if let Some(socket) = self.sockets.remove(&netns)
            && let Ok(cookie) = socket.cookie()
        {
            self.maps.remove_socket(cookie);
        }
    }

    /// Was there a message that the kernel could not show to the program?
    fn overflowed(&self, netns: NetnsId) -> io::Result<bool> {
        let Some(socket) = self.sockets.get(&netns) else {
            return Ok(false);
        };
        match socket.receive(&mut [0; 16]) {
            Ok(_) => Ok(false),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(false),
                Some(libc::ENOBUFS) => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// The next record, with what can be found out of who made the change where the program could
    /// not.
    fn record(&mut self) -> Option<Record> {
        let mut record = next(&mut self.ring)?;
        if record.flags & (flag::HAS_PID | flag::HAS_KTHREAD) == flag::HAS_PID
            && self.who.pid == Pid::Initial
        {
            // Threads of the kernel are in the root cgroup, where they must stay
            // (`cgroup_procs_write_start` in `kernel/cgroup/cgroup.c`).
            let is_root = record.flags & flag::HAS_CGROUP == 0 || record.cgroup == ROOT_CGROUP;
            let is_kthread = if is_root {
                is_kernel_thread(record.pid)
            } else {
                Some(false)
            };
            record.flags |= match is_kthread {
                Some(true) => flag::HAS_KTHREAD | flag::KTHREAD,
                Some(false) => flag::HAS_KTHREAD,
                None => 0,
            };
        }
        Some(record)
    }

    fn ask(&mut self, netns: NetnsId, question: Question) -> Answer {
        if let Some(inquiry) = self.inquiries.get_mut(&netns) {
            return inquiry.answer(question);
        }
        // A namespace that is not entered any more, about a watch that has just begun.
        match &self.offered {
            Some(handle) if handle.id() == netns => {
                if self.visit.is_none() {
                    self.visit = Inquiry::new(handle).ok();
                }
                match &mut self.visit {
                    Some(inquiry) => inquiry.answer(question),
                    None => Answer::unknown(question),
                }
            }
            // Changes are made under one lock, wherever that is asked for.
            _ if question == Question::Barrier => {
                let own = Netns::current().ok();
                let own = own.and_then(|own| Inquiry::new(&own).ok());
                own.map_or(Answer::unknown(question), |mut own| own.answer(question))
            }
            _ => Answer::unknown(question),
        }
    }
}

impl Shell for Programs {
    type Request = Request;
    type Reply = Reply;

    fn offer(&mut self, netns: Option<Netns>) {
        if netns.is_none() {
            // What was asked first is done.
            self.proof = None;
        }
        self.visit = None;
        let before = std::mem::replace(&mut self.offered, netns);
        if let Some(inquiry) = before.and_then(|it| self.inquiries.get_mut(&it.id())) {
            inquiry.has_found();
        }
    }

    fn perform(&mut self, request: Request) -> Reply {
        match self.maps.perform(request) {
            Ok(reply) => reply,
            Err(Request::Enter(netns)) => Reply::Done(self.enter(netns)),
            Err(Request::Leave(netns)) => {
                self.leave(netns);
                Reply::Done(Ok(()))
            }
            Err(Request::Namespaces) => Reply::Namespaces(self.places.look()),
            Err(Request::Record) => Reply::Record(self.record()),
            Err(Request::Overflowed(netns)) => Reply::Overflowed(self.overflowed(netns)),
            Err(Request::Ask(netns, question)) => Reply::Answer(self.ask(netns, question)),
            Err(request) => {
                debug_assert!(false, "{request:?} is about a map");
                Reply::Done(Ok(()))
            }
        }
    }

    async fn ready(&mut self, sources: &mut Vec<Source>) -> io::Result<()> {
        self.readiness.next(sources).await
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        if let Some(log) = &self.log {
            log.abort();
        }
    }
}

/// A loaded socket filter.
struct Filter {
    object: Object,
    /// Which of the programs it is.
    name: &'static str,
    /// How many watches there is room for.
    room: usize,
    who: Who,
    logs: bool,
}

/// Does a socket take the program? Each has so much memory for its filters and options, and the
/// program is some 10 KB long, or 20 with patterns.
fn fits(filter: &SocketFilter) -> Result<(), Unavailable> {
    let socket = Socket::to_ask().map_err(cannot_open)?;
    filter.attach(socket.as_fd()).map_err(|error| {
        let why = load::root_cause(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Unavailable::other(format_args!(
            "a socket does not take the BPF program ({why}); a higher net.core.optmem_max may help"
        ))
    })
}

/// Loads the socket filter with as much of "who" as this kernel and these capabilities allow.
fn load_socket_filter(
    layout: impl Fn() -> Option<KernelLayout>,
    wanted: LoadFor,
) -> Result<Filter, Unavailable> {
    let who = load::who_by_helpers()?;
    // A structure is read where no helper says it, since that takes the kernel's BTF.
    let of_task = match who.pid {
        Pid::OfTask => layout().filter(KernelLayout::has_tgid),
        _ => None,
    };
    let who = match (who.pid, &of_task) {
        (Pid::OfTask, None) => Who {
            pid: Pid::Unknown,
            kthread: false,
            ..who
        },
        _ => who,
    };
    let attempt = |name: &'static str, who: Who, logs| {
        let load = Load {
            layout: of_task.as_ref(),
            who,
            watches: wanted.watches,
            patterns: wanted.patterns,
            everywhere: false,
            ring_bytes: wanted.ring_bytes,
            logs,
        };
        // What was tried before and given back can still count as locked.
        load::with_memory(|| {
            let (mut object, room) = load.object()?;
            let filter: &mut SocketFilter = program(&mut object, name)?;
            filter.load().map_err(|error| {
                let reason = load::refused(&error);
                log::debug!("{name} was refused: {reason}");
                reason
            })?;
            fits(filter)?;
            Ok(Filter {
                object,
                name,
                room,
                who,
                logs,
            })
        })
    };
    let attempt = |name, who| load::with_log(|logs| attempt(name, who, logs));
    // Without CAP_PERFMON, a helper that may not be called may not be in the program either
    // (`ifmon-ebpf/src/who.rs`).
    let pid_and_cgroup = Who {
        pid: who.pid,
        cgroup: who.cgroup,
        ..Who::NOBODY
    };
    match attempt(SOCKET_PROGRAM, who) {
        Err(error) if !matches!(error, Unavailable::Memlock) => {
            attempt(SOCKET_PID_PROGRAM, pid_and_cgroup)
                .or_else(|_| attempt(SOCKET_NOBODY_PROGRAM, Who::NOBODY))
                .map_err(|reason| match wanted.patterns {
                    0 => reason,
                    _ => load::refused_to_patterns(reason),
                })
        }
        result => result,
    }
}

/// The next record of the ring buffer.
fn next(ring: &mut RingBuf<MapData>) -> Option<Record> {
    while let Some(item) = ring.next() {
        if let Some(record) = Record::read(&item) {
            return Some(record);
        }
    }
    None
}

/// Is this process a thread of the kernel? One that has gone was none, since the kernel keeps its
/// idle workers for minutes (`IDLE_WORKER_TIMEOUT` in `kernel/workqueue.c`). `None` where that
/// cannot be told from one that is hidden (`hidepid` in proc(5)).
fn is_kernel_thread(pid: u32) -> Option<bool> {
    /// `PF_KTHREAD` of `include/linux/sched.h`
    const PF_KTHREAD: u64 = 0x0020_0000;
    // They are in the process group 0, as is what a first process starts that has never made one.
    // Most others are not, which one call says where reading the file takes eight.
    // SAFETY: takes a number.
    match unsafe { libc::getpgid(i32::try_from(pid).ok()?) } {
        0 => {}
        -1 if io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) => {}
        _ => return Some(false),
    }
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses can have any characters in it; the seventh field after it is `flags`.
    let rest = stat.rsplit(|&byte| byte == b')').next()?;
    let fields = std::str::from_utf8(rest).ok()?;
    let flags: u64 = fields.split_whitespace().nth(6)?.parse().ok()?;
    Some(flags & PF_KTHREAD != 0)
}

/// Passes what the kernel side has to say to the logger of this process.
fn follow_log(object: &mut Object) -> Option<AbortHandle> {
    let logger = EbpfLogger::init(object)
        .map_err(|error| error.to_string())
        .and_then(|logger| {
            // SAFETY: the logger owns its descriptor, hands out the same one each time, and closes
            // it when it is dropped.
            unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
                .map_err(|error| error.to_string())
        });
    let mut logger = match logger {
        Ok(logger) => logger,
        Err(error) => {
            log::warn!("no log from the kernel side: {error}");
            return None;
        }
    };
    let task = tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
    Some(task.abort_handle())
}

fn attach(
    object: &mut Object,
    kind: BackendKind,
    layout: &KernelLayout,
) -> Result<(), Unavailable> {
    if kind == BackendKind::Kprobe {
        let program: &mut KProbe = program(object, KPROBE_PROGRAM)?;
        program.load().map_err(|error| load::refused(&error))?;
        program
            .attach(HOOK, 0)
            .map_err(|error| load::refused(&error))?;
    } else {
        let program: &mut FEntry = program(object, FENTRY_PROGRAM)?;
        program
            .load(HOOK, &layout.hook_btf()?)
            .map_err(|error| load::refused(&error))?;
        program.attach().map_err(|error| load::refused(&error))?;
    }
    Ok(())
}

fn program<'a, P>(object: &'a mut Object, name: &str) -> Result<&'a mut P, Unavailable>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    object
        .program_mut(name)
        .ok_or_else(|| Unavailable::other("the program is not in the object"))?
        .try_into()
        .map_err(Unavailable::other)
}
