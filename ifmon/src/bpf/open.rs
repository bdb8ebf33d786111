//! What the rest of ifmon sees of the BPF backends. `without_bpf.rs` has the same face.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    core::Bpf,
    layout::KernelLayout,
    load,
    shell::{LoadFor, Programs},
};
use crate::{
    BackendKind, Unavailable,
    backend::Options,
    driver::{self, HandleCommand, Mailbox},
    engine::Engine,
};

/// Whether there is a program for this processor.
pub(crate) const HAS_OBJECT: bool = ifmon_ebpf::OBJECT.is_some();

/// Looks up where the kernel keeps what the programs read.
pub(crate) fn read_layout() -> Result<(), Unavailable> {
    KernelLayout::read().map(drop)
}

/// Opens backends, and remembers what it learnt of the kernel from one to the next.
#[derive(Debug, Default)]
pub(crate) struct Loader {
    /// Read once for both hooks.
    layout: Option<Result<KernelLayout, Unavailable>>,
}

impl Loader {
    /// Loads the program of a backend, attaches it, and makes sure that it works.
    pub(crate) fn open(
        &mut self,
        kind: BackendKind,
        options: Options,
    ) -> Result<Running, Unavailable> {
        let wanted = LoadFor {
            watches: options.capacity,
            patterns: options.patterns,
            everywhere: options.everywhere,
            ring_bytes: options.receive_buffer,
            open_filter: options.open_filter,
        };
        let programs = if kind == BackendKind::NetlinkEbpf {
            load::check_socket_filter()?;
            let known = self.layout.as_ref().and_then(|layout| layout.as_ref().ok());
            let layout = || known.copied().or_else(|| KernelLayout::read().ok());
            Programs::socket_filter(layout, wanted)?
        } else {
            let layout = self.layout.get_or_insert_with(|| {
                load::check_tracing()?;
                KernelLayout::read()
            });
            let layout = layout.as_ref().map_err(Unavailable::again)?;
            Programs::tracing(kind, layout, wanted)?
        };
        Ok(Running {
            programs: Box::new(programs),
        })
    }
}

/// A backend that works.
#[derive(Debug)]
pub(crate) struct Running {
    programs: Box<Programs>,
}

impl Running {
    /// What it can tell of who makes a change.
    pub(crate) fn who(&self) -> Vec<&'static str> {
        self.programs.who().known()
    }

    /// Starts the task of a monitor.
    pub(crate) fn spawn(
        self,
        kind: BackendKind,
        commands: mpsc::Receiver<HandleCommand>,
        shared: Arc<Mailbox>,
    ) -> JoinHandle<()> {
        let engine = Engine::new(kind, Bpf::new(self.programs.hook, self.programs.room));
        tokio::spawn(driver::run(engine, *self.programs, commands, shared))
    }
}
