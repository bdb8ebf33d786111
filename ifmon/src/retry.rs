//! How long to wait before what failed is tried again, and how often that is done.

use std::time::Duration;

/// The waits double from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LAST_WAIT: Duration = Duration::from_secs(5);
/// How often in a row it is tried again before that is an error.
const ATTEMPTS: u32 = 12;

/// The wait after so many failures in a row, one at least; `None` when that was often enough.
pub(crate) fn wait_after(failures: u32) -> Option<Duration> {
    (failures <= ATTEMPTS).then(|| doubled(FIRST_WAIT, LAST_WAIT, failures.saturating_sub(1)))
}

/// A wait that was doubled so many times, and is no longer than the last one.
pub(crate) fn doubled(first: Duration, last: Duration, times: u32) -> Duration {
    let factor = 1_u32.checked_shl(times).unwrap_or(u32::MAX);
    first.saturating_mul(factor).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_last_one() {
        let seconds = |times| {
            let [first, last] = [1, 64].map(Duration::from_secs);
            doubled(first, last, times).as_secs()
        };
        assert_eq!(
            [0, 1, 5, 6, 7, 31, 32, u32::MAX].map(seconds),
            [1, 2, 32, 64, 64, 64, 64, 64]
        );
    }

    #[test]
    fn it_is_given_up_after_the_last_attempt() {
        let wait = |failures| wait_after(failures).map(|wait| wait.as_millis());
        assert_eq!(
            [1, 2, 12, 13].map(wait),
            [Some(50), Some(100), Some(5000), None]
        );
    }
}
