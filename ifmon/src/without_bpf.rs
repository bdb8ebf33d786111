//! In place of the module `bpf` where ifmon is built without the feature `ebpf`, or for a processor
//! for which there is no BPF program: no backend opens.

use std::sync::Arc;

use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    BackendKind, Unavailable,
    backend::Options,
    driver::{HandleCommand, Mailbox},
};

pub(crate) const HAS_OBJECT: bool = false;

const REASON: Unavailable = if cfg!(feature = "ebpf") {
    Unavailable::NoObject
} else {
    Unavailable::NotBuilt
};

pub(crate) const fn read_layout() -> Result<(), Unavailable> {
    Err(REASON)
}

#[derive(Debug, Default)]
pub(crate) struct Loader(());

impl Loader {
    #[expect(
        clippy::unused_self,
        reason = "with BPF there is something to remember"
    )]
    pub(crate) const fn open(
        &mut self,
        _: BackendKind,
        _: Options,
    ) -> Result<Running, Unavailable> {
        Err(REASON)
    }
}

/// There is none.
#[derive(Debug)]
pub(crate) enum Running {}

impl Running {
    pub(crate) fn who(&self) -> Vec<&'static str> {
        match *self {}
    }

    pub(crate) fn spawn(
        self,
        _: BackendKind,
        _: mpsc::Receiver<HandleCommand>,
        _: Arc<Mailbox>,
    ) -> JoinHandle<()> {
        match self {}
    }
}

#[cfg(test)]
mod tests {
    use crate::{BackendChoice, BackendKind, Check, Error, Monitor, Unavailable};

    #[tokio::test]
    async fn says_why_and_netlink_is_left() {
        let check = Check::run();
        assert_eq!(check.best(), Some(BackendKind::Netlink));
        let why = check.facts.btf().expect_err("nobody looks");
        assert!(why.starts_with("ifmon "), "{why}");
        for (kind, result) in check.backends {
            let refused = matches!(result, Err(Unavailable::NotBuilt | Unavailable::NoObject));
            assert_eq!(refused, kind.is_ebpf(), "{kind}: {result:?}");
        }
        let start = |choice| Monitor::builder().watch("lo").backend(choice).start();
        let error = start(BackendChoice::Ebpf).await.expect_err("no BPF");
        assert!(matches!(error, Error::NoBackend(_)), "{error}");
        let monitor = start(BackendChoice::Auto)
            .await
            .expect("netlink is for everybody");
        assert_eq!(monitor.backend(), BackendKind::Netlink);
    }
}
