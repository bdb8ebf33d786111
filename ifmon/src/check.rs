//! What a host allows: which backends work, and why the others do not.

use crate::{
    BackendKind, Unavailable,
    backend::{self, Ebpf, Netlink},
    kernel::{Facts, load},
};

/// A host, tried out.
#[derive(Debug)]
#[non_exhaustive]
pub struct Check {
    /// What is known of the kernel and the rights of this process.
    pub facts: Facts,
    /// Each backend, best first, set up for real and taken down again.
    pub backends: Vec<(BackendKind, Result<(), Unavailable>)>,
}

impl Check {
    /// Tries every backend. Needs a tokio runtime with I/O enabled.
    pub fn run() -> Self {
        let facts = Facts::gather();
        let backends = backend::ALL
            .into_iter()
            .map(|kind| (kind, attempt(kind, &facts)))
            .collect();
        Self { facts, backends }
    }

    /// What [`BackendChoice::Auto`](crate::BackendChoice::Auto) takes here.
    pub fn best(&self) -> Option<BackendKind> {
        self.backends
            .iter()
            .find(|(_, result)| result.is_ok())
            .map(|&(kind, _)| kind)
    }
}

fn attempt(kind: BackendKind, facts: &Facts) -> Result<(), Unavailable> {
    match kind {
        BackendKind::Fentry | BackendKind::Kprobe => {
            load::check()?;
            let layout = facts.layout.as_ref().map_err(Unavailable::again)?;
            Ebpf::new(kind, layout, 1, None).map(drop)
        }
        BackendKind::Netlink | BackendKind::NetlinkUnfiltered => {
            Netlink::new(kind == BackendKind::Netlink, None)
                .map(drop)
                .map_err(Unavailable::NoSocketFilter)
        }
    }
}
