//! How long to wait before what failed is tried again, and how often that is done.

use std::time::Duration;

/// The waits double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(5);
/// How often in a row it is tried again before that is an error.
const ATTEMPTS: u32 = 12;

/// The wait after so many failures in a row, one at least; `None` when that was often enough.
pub(crate) fn wait_after(failures: u32) -> Option<Duration> {
    (failures <= ATTEMPTS).then(|| {
        FIRST_WAIT
            .saturating_mul(1 << failures.saturating_sub(1))
            .min(LAST_WAIT)
    })
}
