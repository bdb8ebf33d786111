//! Why a backend does not work here, in one plain sentence each, with what would change it.

use std::{error::Error, fmt, io, path::PathBuf};

use crate::NetnsId;

/// Why a backend does not work on this host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// The kernel is locked down against reading its memory.
    #[error(
        "the kernel is in lockdown mode \"confidentiality\", which refuses BPF tracing; boot with lockdown=integrity or \
         none to have it"
    )]
    Lockdown,
    /// The process lacks capabilities.
    #[error(
        "{missing} needed, which this process does not have; run it as root or give it the capability"
    )]
    NotPermitted {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The process is in a user namespace of its own.
    #[error(
        "BPF wants its capabilities in the initial user namespace, and this process is in another one"
    )]
    UserNamespace,
    /// All capabilities are there, and still the kernel, a security module or a seccomp filter says
    /// no.
    #[error(
        "the kernel refuses the BPF program although the capabilities are there; a seccomp filter or security module may forbid it"
    )]
    Forbidden,
    /// The kernel was built without bpf(2).
    #[error("this kernel has no bpf(2); it needs CONFIG_BPF_SYSCALL")]
    NoBpf,
    /// The kernel's types cannot be read.
    #[error(transparent)]
    Btf(Box<dyn Error + Send + Sync>),
    /// The function to hook is not in the kernel's BTF.
    #[error(
        "the kernel's BTF does not have the function rtnetlink_event, to which fentry attaches"
    )]
    NoFunction,
    /// The kind of an interface is not in the kernel's BTF.
    #[error(
        "the kernel's BTF does not say where the kind of an interface is, which is needed for patterns"
    )]
    NoKind,
    /// No BPF trampolines.
    #[error("this kernel has no BPF trampolines on this architecture; kprobe does the same job")]
    NoTrampoline,
    /// The kernel puts only so many programs on one function (40 before Linux 5.12, 38 since), and
    /// they are there.
    #[error(
        "as many other BPF programs sit on the function rtnetlink_event as the kernel takes; \
         kprobe does the same job"
    )]
    TooManyPrograms,
    /// The program was loaded and could not be attached.
    #[error("the kernel does not attach the BPF program: {0}")]
    Attach(#[source] io::Error),
    /// The maps of the program could not be made.
    #[error("the kernel does not make the BPF maps: {0}")]
    Maps(#[source] io::Error),
    /// No kprobes.
    #[error("this kernel has no kprobes; it needs CONFIG_KPROBES and CONFIG_KPROBE_EVENTS")]
    NoKprobes,
    /// The function to hook is not a symbol of the kernel.
    #[error("this kernel has no function rtnetlink_event to put a probe on")]
    NoSymbol,
    /// Kprobes are refused to processes without CAP_SYS_ADMIN.
    #[error(
        "kernel.perf_event_paranoid is {level}, which refuses kprobes to processes without CAP_SYS_ADMIN; fentry does \
         not need it"
    )]
    PerfEventParanoid {
        /// The value of the setting.
        level: i32,
    },
    /// The limit on locked memory is too small for the maps (kernels before 5.11 count them).
    #[error(
        "the limit on locked memory is too small for the BPF maps; raise it (ulimit -l, LimitMEMLOCK=) or grant \
         CAP_SYS_RESOURCE"
    )]
    Memlock,
    /// The process has as many files open as it may.
    #[error(
        "this process may open no more files; raise the limit (ulimit -n, LimitNOFILE=); to begin with BPF takes some 30"
    )]
    OpenFiles,
    /// The program does not read this kernel right.
    #[error(
        "the BPF program does not read this kernel right: asked to see \"lo\" in namespace {netns} it saw {}",
        .seen.as_deref().unwrap_or("nothing")
    )]
    Misread {
        /// The namespace that was made for the proof.
        netns: NetnsId,
        /// What the program read instead.
        seen: Option<String>,
    },
    /// The feature `ebpf` of the crate was not chosen.
    #[error("ifmon was built without BPF")]
    NotBuilt,
    /// There is no BPF object for this architecture.
    #[error("ifmon has no BPF program for this processor architecture")]
    NoObject,
    /// The verifier refused the program.
    #[error(
        "the kernel's verifier refuses the BPF program ({summary}); please report this with your kernel version"
    )]
    Verifier {
        /// The verifier's last words.
        summary: String,
    },
    /// The kernel refuses a filter on a netlink socket.
    #[error("the kernel takes no filter on a netlink socket: {0}")]
    NoSocketFilter(#[source] io::Error),
    /// There is no agent.
    #[error(
        "no agent listens on {}{}; `systemctl enable --now ifmon.socket` or `ifmon --serve` has one",
        .path.display(), refusal(.source)
    )]
    NoAgent {
        /// Where it would listen.
        path: PathBuf,
        /// Why it cannot be asked.
        source: io::Error,
    },
    /// Nobody is to be asked: the agent itself, or whoever asked for no agent.
    #[error("no agent is to be asked")]
    AgentNotWanted,
    /// The feature `agent` of the crate was not chosen.
    #[error("ifmon was built without the agent")]
    AgentNotBuilt,
    /// All network namespaces are to be watched.
    #[error(
        "network namespaces are heard of one by one, as they are watched; all of them, and those to come, take \
         fentry or kprobe"
    )]
    OneNamespace,
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Why nobody could be asked, where it is not that nobody is there.
fn refusal(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => String::new(),
        _ => format!(" ({source})"),
    }
}

impl Unavailable {
    /// The same reason, for the next backend that it holds for.
    pub(crate) fn again(&self) -> Self {
        match self {
            Self::Lockdown => Self::Lockdown,
            Self::NoBpf => Self::NoBpf,
            Self::NotBuilt => Self::NotBuilt,
            Self::NoObject => Self::NoObject,
            Self::UserNamespace => Self::UserNamespace,
            other => Self::Other(other.to_string()),
        }
    }

    pub(crate) fn other(error: impl fmt::Display) -> Self {
        Self::Other(error.to_string())
    }
}
