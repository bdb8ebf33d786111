//! Which ways there are to hear of changes, in what order they are tried, and why one does not
//! work.

use std::{path::PathBuf, sync::Arc};

use tokio::{sync::mpsc, task::AbortHandle};

#[cfg(feature = "agent")]
use crate::agent;
use crate::{
    BackendChoice, BackendKind, Error, Facts, Netns, NetnsId, Unavailable,
    bpf::{Loader, Running},
    driver::{self, HandleCommand, Mailbox},
    engine::Engine,
    netlink::{core::Netlink, shell::Sockets},
};

/// Every backend, best first.
pub(crate) const ALL: [BackendKind; 6] = [
    BackendKind::Fentry,
    BackendKind::Kprobe,
    BackendKind::NetlinkEbpf,
    BackendKind::Agent,
    BackendKind::Netlink,
    BackendKind::NetlinkUnfiltered,
];

/// How a backend is to be opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) choice: BackendChoice,
    /// How many watches there shall be room for.
    pub(crate) capacity: usize,
    /// In how many namespaces there may be patterns.
    pub(crate) patterns: usize,
    /// There may be some for all namespaces.
    pub(crate) everywhere: bool,
    /// Bytes of the queue between the kernel and the process.
    pub(crate) receive_buffer: Option<u32>,
    /// Has a BPF program send every change of every interface.
    pub(crate) open_filter: bool,
    /// The number of a namespace in which something is watched is not known.
    pub(crate) numberless: bool,
}

/// Which agent is asked.
#[derive(Clone, Debug, Default)]
pub(crate) enum AgentChoice {
    /// The one that the units of the packages have.
    #[default]
    Usual,
    /// The one that listens here.
    #[cfg_attr(not(feature = "agent"), expect(dead_code, reason = "nobody is asked"))]
    At(PathBuf),
    Nobody,
}

impl AgentChoice {
    #[cfg(feature = "agent")]
    fn open(&self) -> Result<Backend, Unavailable> {
        const USUAL: &str = "/run/ifmon/io.ifmon";
        let path = match self {
            Self::Usual => PathBuf::from(USUAL),
            Self::At(path) => path.clone(),
            Self::Nobody => return Err(Unavailable::AgentNotWanted),
        };
        agent::Running::open(path).map(Box::new).map(Backend::Agent)
    }

    #[cfg(not(feature = "agent"))]
    #[expect(clippy::unused_self, reason = "with the agent it is used")]
    fn open(&self) -> Result<Backend, Unavailable> {
        Err(Unavailable::AgentNotBuilt)
    }
}

/// A backend that works: what has the descriptors. What decides is made for it.
#[derive(Debug)]
enum Backend {
    Bpf(Running),
    #[cfg(feature = "agent")]
    Agent(Box<agent::Running>),
    Netlink(Sockets),
}

/// Opens the backend that was chosen, or the best that works, and starts the task of a monitor.
pub(crate) fn start(
    options: Options,
    agent: &AgentChoice,
    commands: mpsc::Receiver<HandleCommand>,
    shared: Arc<Mailbox>,
) -> Result<(BackendKind, AbortHandle), Error> {
    let (kind, backend) = open(options, agent)?;
    let task = match backend {
        Backend::Bpf(running) => running.spawn(kind, commands, shared),
        #[cfg(feature = "agent")]
        Backend::Agent(running) => {
            let by_name = options.choice == BackendChoice::Only(BackendKind::Agent);
            running.spawn(by_name, commands, shared)
        }
        Backend::Netlink(sockets) => {
            let engine = Engine::new(kind, Netlink::new(kind == BackendKind::Netlink));
            tokio::spawn(driver::run(engine, sockets, commands, shared))
        }
    };
    Ok((kind, task.abort_handle()))
}

fn open(options: Options, agent: &AgentChoice) -> Result<(BackendKind, Backend), Error> {
    let only;
    let candidates: &[BackendKind] = match options.choice {
        BackendChoice::Auto => &ALL,
        BackendChoice::Ebpf => &ALL[..3],
        BackendChoice::Only(kind) => {
            only = [kind];
            &only
        }
    };
    let mut loader = Loader::default();
    let mut refused: Vec<(BackendKind, Unavailable)> = Vec::new();
    for &kind in candidates {
        if kind == BackendKind::Agent
            && candidates.len() > 1
            && matches!(agent, AgentChoice::Nobody)
        {
            continue;
        }
        match open_one(kind, &mut loader, agent, options) {
            Ok(backend) => {
                if !refused.is_empty() {
                    log::warn!("{}; using {kind}", sentence(&refused));
                }
                return Ok((kind, backend));
            }
            Err(reason) => refused.push((kind, reason)),
        }
    }
    let sentence = sentence(&refused);
    match refused.pop() {
        Some((backend, reason)) if refused.is_empty() => {
            Err(Error::Unavailable { backend, reason })
        }
        _ => Err(Error::NoBackend(sentence)),
    }
}

fn open_one(
    kind: BackendKind,
    loader: &mut Loader,
    agent: &AgentChoice,
    options: Options,
) -> Result<Backend, Unavailable> {
    if options.everywhere && kind.keeps_netns_alive() {
        return Err(Unavailable::OneNamespace);
    }
    if options.numberless {
        needs_number(kind, NetnsId(0))?;
    }
    match kind {
        BackendKind::Fentry | BackendKind::Kprobe | BackendKind::NetlinkEbpf => {
            loader.open(kind, options).map(Backend::Bpf)
        }
        BackendKind::Agent => agent.open(),
        BackendKind::Netlink | BackendKind::NetlinkUnfiltered => {
            let bytes = options.receive_buffer.map(|bytes| bytes as usize);
            Sockets::new(kind == BackendKind::Netlink, bytes).map(Backend::Netlink)
        }
    }
}

/// The BPF programs tell namespaces apart by their numbers, and would hear of nothing in one that has
/// none.
pub(crate) fn needs_number(kind: BackendKind, netns: NetnsId) -> Result<(), Unavailable> {
    if kind.is_ebpf() && netns == NetnsId(0) {
        return Err(Unavailable::other(
            "the number of the network namespace is not known: there is no /proc here, or the kernel has no \
             network namespaces, and asking a socket takes CAP_NET_ADMIN; mount /proc",
        ));
    }
    Ok(())
}

/// Why each of these backends does not work; a reason that several share is given once.
fn sentence(refused: &[(BackendKind, Unavailable)]) -> String {
    let reasons: Vec<(&BackendKind, String)> = refused
        .iter()
        .map(|(kind, reason)| (kind, reason.to_string()))
        .collect();
    reasons
        .chunk_by(|(_, one), (_, next)| one == next)
        .map(|alike| {
            let kinds: Vec<&str> = alike.iter().map(|(kind, _)| kind.as_str()).collect();
            let reason = alike.first().map_or("", |(_, reason)| reason);
            let verb = if kinds.len() == 1 { "does" } else { "do" };
            format!("{} {verb} not work here: {reason}", kinds.join(" and "))
        })
        .collect::<Vec<_>>()
        .join("; ")
}

/// A host, tried out: what it allows, which backends work, and why the others do not.
#[derive(Debug)]
#[non_exhaustive]
pub struct Check {
    /// What is known of the kernel and the rights of this process.
    pub facts: Facts,
    /// Each backend, best first, set up for real and taken down again.
    pub backends: Vec<(BackendKind, Result<(), Unavailable>)>,
    /// What `netlink-ebpf` can tell of who makes a change, where it works: of `pid`, `comm`,
    /// `uid`, `cgroup` and `kthread`.
    pub who: Vec<&'static str>,
}

impl Check {
    /// Tries every backend. Needs a tokio runtime with I/O enabled.
    pub fn run() -> Self {
        let options = Options {
            capacity: 1,
            numberless: Netns::current().is_ok_and(|own| own.id() == NetnsId(0)),
            ..Options::default()
        };
        let mut loader = Loader::default();
        let mut who = Vec::new();
        let backends = ALL
            .into_iter()
            .map(|kind| {
                let agent = AgentChoice::default();
                let result = open_one(kind, &mut loader, &agent, options).map(|backend| {
                    if let Backend::Bpf(running) = backend
                        && kind == BackendKind::NetlinkEbpf
                    {
                        who = running.who();
                    }
                });
                (kind, result)
            })
            .collect();
        Self {
            facts: Facts::gather(),
            backends,
            who,
        }
    }

    /// What [`BackendChoice::Auto`] takes here for names; patterns can take more of the kernel, and all
    /// namespaces a program that traces.
    pub fn best(&self) -> Option<BackendKind> {
        self.backends
            .iter()
            .find(|(_, result)| result.is_ok())
            .map(|&(kind, _)| kind)
    }
}
