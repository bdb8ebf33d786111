//! Limits the time that looking something up takes.

use std::time::{Duration, Instant};

/// In the long run one part in `SHARE` of the time may be spent.
#[derive(Debug, Default)]
pub(crate) struct Budget<const SHARE: u32> {
    debt: Duration,
    since: Option<Instant>,
}

impl<const SHARE: u32> Budget<SHARE> {
    /// What may be spent at once.
    pub(crate) const BURST: Duration = Duration::from_millis(100);

    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        if let Some(since) = self.since.replace(now) {
            let paid = now.saturating_duration_since(since) / SHARE;
            self.debt = self.debt.saturating_sub(paid);
        }
        self.debt < Self::BURST
    }

    pub(crate) fn spend(&mut self, took: Duration) {
        self.debt += took;
    }
}
