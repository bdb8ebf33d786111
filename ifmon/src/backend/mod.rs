//! Ways to hear of a change. Each has the same small face: watch and unwatch names, hand out signals, count.

mod ebpf;
mod ledger;
mod links;
mod netlink;
mod subscription;

use std::{io, os::fd::AsRawFd, time::SystemTime};

use tokio::io::{Interest, unix::AsyncFd};

pub(crate) use self::{ebpf::Ebpf, netlink::Netlink};
use crate::{
    Actor, BackendChoice, BackendKind, Error, InterfaceName, Netns, NetnsId, Unavailable,
    kernel::{Layout, load},
    tracker::{Change, Device, Observed, Tracker, Verdict, Watch},
};

/// What a backend has to say, in the order in which the kernel made the changes.
#[derive(Debug)]
pub(crate) enum Signal {
    /// A device changed.
    Change {
        change: Change,
        time: SystemTime,
        by: Option<Actor>,
    },
    /// Events about this watch may have been lost; its state was read again.
    Resync {
        watch: Watch,
        observed: Observed,
        lost: Option<u64>,
    },
    /// The namespace ended.
    NetnsGone {
        netns: NetnsId,
        time: SystemTime,
        by: Option<Actor>,
    },
}

impl Signal {
    /// Lets the tracker decide; says when it happened, and by whom.
    pub(crate) fn decide(
        self,
        tracker: &mut Tracker,
        verdicts: &mut Vec<Verdict>,
    ) -> (SystemTime, Option<Actor>) {
        match self {
            Self::Change { change, time, by } => {
                tracker.change(&change, verdicts);
                (time, by)
            }
            Self::Resync {
                watch,
                observed,
                lost,
            } => {
                tracker.resync(watch, &observed, lost, verdicts);
                (SystemTime::now(), None)
            }
            Self::NetnsGone { netns, time, by } => {
                tracker.netns_gone(netns, verdicts);
                (time, by)
            }
        }
    }
}

/// What a backend has counted since it began. `None` stands for what it cannot know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Changes of any interface that reached the filter (BPF) or the process (`netlink-unfiltered`).
    pub seen: Option<u64>,
    /// Those of them that concerned a watch.
    pub matched: Option<u64>,
    /// Those of them that did not.
    pub ignored: Option<u64>,
    /// Events that concerned a watch and were lost on the way to the process.
    pub lost: Option<u64>,
}

/// Has tokio wake the task when there is something to read from a descriptor.
///
/// Only for types that own the descriptor, hand out the same one each time, and close it when they are dropped.
fn readable<T: AsRawFd>(source: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: the two sources in this module, a socket and a ring buffer, are such types; each is registered once.
    unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) }.map_err(Into::into)
}

/// A backend that works.
#[derive(Debug)]
pub(crate) enum Backend {
    Ebpf(Box<Ebpf>),
    Netlink(Netlink),
}

/// Every backend, best first.
pub(crate) const ALL: [BackendKind; 4] = [
    BackendKind::Fentry,
    BackendKind::Kprobe,
    BackendKind::Netlink,
    BackendKind::NetlinkUnfiltered,
];

/// Opens the backend that was chosen, or the best that works.
pub(crate) fn open(
    choice: BackendChoice,
    watches: usize,
    receive_buffer: Option<u32>,
) -> Result<Backend, Error> {
    use BackendKind::{Fentry, Kprobe, Netlink as Filtered, NetlinkUnfiltered};
    let only;
    let candidates: &[BackendKind] = match choice {
        BackendChoice::Auto => &ALL,
        BackendChoice::Ebpf => &[Fentry, Kprobe],
        BackendChoice::Only(kind) => {
            only = [kind];
            &only
        }
    };
    // Read once for both hooks.
    let mut layout = None;
    let mut refused: Vec<(BackendKind, Unavailable)> = Vec::new();
    for &kind in candidates {
        let opened = match kind {
            Fentry | Kprobe => layout
                .get_or_insert_with(|| {
                    load::check()?;
                    Layout::read()
                })
                .as_ref()
                .map_err(Unavailable::again)
                .and_then(|layout| Ebpf::new(kind, layout, watches, receive_buffer))
                .map(|ebpf| Backend::Ebpf(Box::new(ebpf))),
            Filtered | NetlinkUnfiltered => {
                let bytes = receive_buffer.map(|bytes| bytes as usize);
                Netlink::new(kind == Filtered, bytes)
                    .map(Backend::Netlink)
                    .map_err(Unavailable::NoSocketFilter)
            }
        };
        match opened {
            Ok(backend) => {
                if !refused.is_empty() {
                    log::warn!("{}; using {kind}", sentence(&refused));
                }
                return Ok(backend);
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

impl Backend {
    pub(crate) fn kind(&self) -> BackendKind {
        match self {
            Self::Ebpf(ebpf) => ebpf.kind(),
            Self::Netlink(netlink) => netlink.kind(),
        }
    }

    /// Begins to watch names in a namespace: the filter is told first, then the state is read, in the order of `names`.
    ///
    /// Signals about earlier watches can come in meanwhile; what they say of the new ones is older than the state.
    pub(crate) fn watch(
        &mut self,
        netns: &Netns,
        names: &[InterfaceName],
        signals: &mut Vec<Signal>,
    ) -> Result<Vec<Option<Device>>, Error> {
        match self {
            Self::Ebpf(ebpf) => ebpf.watch(netns, names),
            Self::Netlink(netlink) => netlink.watch(netns, names, signals),
        }
    }

    /// Has the filter let everything through, where it is a BPF program.
    pub(crate) fn open_filter(&mut self, open: bool) -> Result<(), Error> {
        match self {
            Self::Ebpf(ebpf) => ebpf.open_filter(open),
            Self::Netlink(_) => Ok(()),
        }
    }

    pub(crate) fn unwatch(&mut self, watch: Watch) {
        match self {
            Self::Ebpf(ebpf) => ebpf.unwatch(watch),
            Self::Netlink(netlink) => netlink.unwatch(watch),
        }
    }

    /// Waits for signals and appends them. Nothing is lost when the future is dropped.
    pub(crate) async fn signals(&mut self, signals: &mut Vec<Signal>) -> Result<(), Error> {
        match self {
            Self::Ebpf(ebpf) => ebpf.signals(signals).await,
            Self::Netlink(netlink) => netlink.signals(signals).await,
        }
    }

    pub(crate) fn counters(&self) -> Counters {
        match self {
            Self::Ebpf(ebpf) => ebpf.counters(),
            Self::Netlink(netlink) => netlink.counters(),
        }
    }
}
