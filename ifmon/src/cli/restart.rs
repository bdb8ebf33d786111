//! When the command of `--on-restart` runs: decided for one watch, without I/O. Time is passed in.
//!
//! The question is not what happened but what is there: is the name held by the device that was
//! there when the command last ended? That state is the *baseline*. Whatever happens while the
//! command runs is its own doing and becomes the next baseline. A name that was absent then and is
//! taken now is work that the command left to somebody else, and is a baseline as well: so one
//! deletion leads to one run, also of a command that returns before its work is done.

use std::time::Duration;

/// How long after a run the next one may begin. It doubles while changes come that fast.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// Time since any moment that stays the same.
pub(crate) type Time = Duration;

/// What a line means for who holds the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HolderChange {
    /// Nobody has the name any more.
    Gone,
    /// A device has the name that is not the last one.
    New,
    /// The last one has it again.
    Back,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Nothing,
    /// Run the command, and say [`Restart::ended`] once it has ended and all that happened until
    /// then was told.
    Start,
    /// Say [`Restart::due`] at this time.
    WakeAt(Time),
}

/// A device, told from all others that held the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HolderNumber(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Quiet,
    /// The state is not the baseline, and it is too soon after the last run.
    Waiting(Time),
    Running,
}

/// The state of one watch.
#[derive(Debug)]
pub(crate) struct Restart {
    /// Who held the name last, and whether it still does.
    last: HolderNumber,
    held: bool,
    baseline: Option<HolderNumber>,
    phase: Phase,
    /// When the last run ended.
    ended: Option<Time>,
    /// How long from then until the next may begin.
    wait: Duration,
}

impl Restart {
    /// A watch that begins, and whether the name is held.
    pub(crate) fn new(held: bool) -> Self {
        let mut restart = Self {
            last: HolderNumber(0),
            held,
            baseline: None,
            phase: Phase::Quiet,
            ended: None,
            wait: SHORTEST,
        };
        restart.baseline = restart.holder();
        restart
    }

    fn holder(&self) -> Option<HolderNumber> {
        self.held.then_some(self.last)
    }

    /// A change was told; `own` when it is known to be the engine's own doing.
    pub(crate) fn change(&mut self, now: Time, change: HolderChange, own: bool) -> Action {
        let before = self.holder();
        match change {
            HolderChange::Gone => self.held = false,
            HolderChange::New => {
                self.last = HolderNumber(self.last.0 + 1);
                self.held = true;
            }
            HolderChange::Back => self.held = true,
        }
        match self.phase {
            Phase::Running => return Action::Nothing,
            Phase::Quiet | Phase::Waiting(_) if own => {
                self.phase = Phase::Quiet;
                self.baseline = self.holder();
                return Action::Nothing;
            }
            Phase::Waiting(_) => return Action::Nothing,
            Phase::Quiet => {}
        }
        if self.baseline.is_none() && before.is_none() {
            match change {
                HolderChange::New | HolderChange::Back => self.baseline = self.holder(),
                // It was gone before the watch began: there was one to be expected.
                HolderChange::Gone => self.baseline = Some(self.last),
            }
        }
        if self.holder() == self.baseline {
            return Action::Nothing;
        }
        match self.ended.map(|ended| ended + self.wait) {
            Some(until) if now < until => {
                self.phase = Phase::Waiting(until);
                self.wait = (self.wait * 2).min(LONGEST);
                Action::WakeAt(until)
            }
            Some(_) | None => {
                self.wait = SHORTEST;
                self.start()
            }
        }
    }

    /// The time of [`Action::WakeAt`] has come, perhaps one that is no longer waited for.
    pub(crate) fn due(&mut self, now: Time) -> Action {
        match self.phase {
            Phase::Waiting(until) if until <= now => {
                if self.holder() == self.baseline {
                    self.phase = Phase::Quiet;
                    Action::Nothing
                } else {
                    self.start()
                }
            }
            Phase::Waiting(_) | Phase::Quiet | Phase::Running => Action::Nothing,
        }
    }

    fn start(&mut self) -> Action {
        self.phase = Phase::Running;
        Action::Start
    }

    /// The command has ended, and all that happened until then was told.
    pub(crate) fn ended(&mut self, now: Time) {
        self.phase = Phase::Quiet;
        self.ended = Some(now);
        self.baseline = self.holder();
    }

    /// Is what is there taken for what is meant to be there?
    pub(crate) fn is_settled(&self) -> bool {
        self.phase == Phase::Quiet
    }
}

#[cfg(test)]
mod tests {
    use super::{Action::*, HolderChange::*, *};

    fn at(seconds: u64) -> Time {
        Duration::from_secs(seconds)
    }

    /// A change from outside.
    fn change(restart: &mut Restart, seconds: u64, change: HolderChange) -> Action {
        restart.change(at(seconds), change, false)
    }

    #[test]
    fn one_deletion_is_one_run_of_a_command_that_does_its_work() {
        let mut restart = Restart::new(true);
        assert_eq!(change(&mut restart, 0, Gone), Start);
        // `wg-quick down` and `up`, or an engine that makes it twice.
        for own in [New, Gone, New] {
            assert_eq!(change(&mut restart, 1, own), Nothing);
        }
        restart.ended(at(2));
        assert_eq!(change(&mut restart, 3600, Gone), Start);
    }

    #[test]
    fn one_deletion_is_one_run_of_a_command_that_returns_early() {
        let mut restart = Restart::new(true);
        assert_eq!(change(&mut restart, 0, Gone), Start);
        restart.ended(at(0));
        // Its work is done later, by somebody else.
        assert_eq!(change(&mut restart, 1, New), Nothing);
        assert_eq!(change(&mut restart, 3600, Gone), Start);
    }

    #[test]
    fn one_deletion_is_one_run_of_a_command_that_fails() {
        let mut restart = Restart::new(true);
        assert_eq!(change(&mut restart, 0, Gone), Start);
        restart.ended(at(1));
        assert!(restart.is_settled());
        // Mended by hand, and broken again.
        assert_eq!(change(&mut restart, 100, New), Nothing);
        assert_eq!(change(&mut restart, 200, Gone), Start);
    }

    #[test]
    fn a_device_that_is_not_the_one_of_the_baseline_is_a_reason() {
        let mut restart = Restart::new(true);
        assert_eq!(change(&mut restart, 0, New), Start);
        restart.ended(at(0));
        assert_eq!(change(&mut restart, 10, New), Start);
    }

    #[test]
    fn a_name_that_is_absent_at_the_start_and_then_taken_is_no_reason() {
        let mut restart = Restart::new(false);
        assert_eq!(change(&mut restart, 0, New), Nothing);
        assert_eq!(change(&mut restart, 1, Gone), Start);
    }

    #[test]
    fn a_device_that_was_gone_before_the_watch_began_is_a_reason() {
        let mut restart = Restart::new(false);
        assert_eq!(change(&mut restart, 0, Gone), Start);
        // So is one that was replaced: the library tells it right after the start.
        assert_eq!(change(&mut Restart::new(true), 0, New), Start);
    }

    #[test]
    fn the_wait_doubles_up_to_a_minute_and_falls_back_after_as_long_a_quiet() {
        let mut restart = Restart::new(true);
        let mut now = 0;
        assert_eq!(change(&mut restart, now, New), Start);
        for wait in [1, 2, 4, 8, 16, 32, 60, 60] {
            restart.ended(at(now));
            assert_eq!(change(&mut restart, now, New), WakeAt(at(now + wait)));
            // More of them change nothing.
            assert_eq!(change(&mut restart, now, New), Nothing);
            assert_eq!(restart.due(at(now + wait - 1)), Nothing);
            now += wait;
            assert_eq!(restart.due(at(now)), Start);
        }
        restart.ended(at(now));
        // Not quiet for as long as the wait is by now.
        assert_eq!(change(&mut restart, now + 59, New), WakeAt(at(now + 60)));
        assert_eq!(restart.due(at(now + 60)), Start);
        restart.ended(at(now + 60));
        assert_eq!(change(&mut restart, now + 120, New), Start);
        restart.ended(at(now + 120));
        assert_eq!(change(&mut restart, now + 120, New), WakeAt(at(now + 121)));
    }

    #[test]
    fn what_was_undone_while_it_was_waited_is_no_reason() {
        let mut restart = Restart::new(true);
        assert_eq!(change(&mut restart, 0, New), Start);
        restart.ended(at(0));
        assert_eq!(change(&mut restart, 0, Gone), WakeAt(at(1)));
        assert_eq!(change(&mut restart, 0, Back), Nothing);
        assert_eq!(restart.due(at(1)), Nothing);
        assert!(restart.is_settled());
        // The next change is not too soon any more.
        assert_eq!(change(&mut restart, 10, Gone), Start);
    }

    #[test]
    fn what_the_engine_does_by_itself_is_no_reason() {
        let mut restart = Restart::new(true);
        let own = |restart: &mut Restart, change| restart.change(at(0), change, true);
        assert_eq!(own(&mut restart, Gone), Nothing);
        assert_eq!(own(&mut restart, New), Nothing);
        assert_eq!(change(&mut restart, 0, Gone), Start);
        restart.ended(at(0));
        assert_eq!(change(&mut restart, 0, New), Nothing);
        // It mends by itself what somebody else broke, before its turn has come.
        assert_eq!(change(&mut restart, 0, Gone), WakeAt(at(1)));
        assert_eq!(own(&mut restart, New), Nothing);
        assert_eq!(restart.due(at(1)), Nothing);
    }

    /// Whatever happens, in whatever order: the command is not run twice at a time, and what is
    /// there when all is quiet is what was there when it ended, or was set up by somebody after
    /// that.
    #[test]
    fn every_short_history_ends_settled() {
        const STEPS: u32 = 7;
        for history in 0..5_u32.pow(STEPS) {
            let mut restart = Restart::new(true);
            let (mut running, mut waking, mut now) = (false, None, 0);
            let mut left = history;
            for _ in 0..STEPS {
                let step = left % 5;
                left /= 5;
                let held = restart.held;
                let action = match step {
                    0 if held => restart.change(at(now), Gone, false),
                    1 => restart.change(at(now), New, false),
                    2 if !held => restart.change(at(now), Back, false),
                    3 if running => {
                        restart.ended(at(now));
                        running = false;
                        Nothing
                    }
                    _ => {
                        now += 1;
                        restart.due(at(now))
                    }
                };
                match action {
                    Start => {
                        assert!(!running, "twice at a time in {history}");
                        running = true;
                    }
                    WakeAt(time) => waking = Some(time),
                    Nothing => {}
                }
            }
            if running {
                restart.ended(at(now));
            } else if let Some(time) = waking
                && restart.due(time) == Start
            {
                restart.ended(time);
            }
            assert!(restart.is_settled(), "not settled after {history}");
            assert_eq!(restart.holder(), restart.baseline, "in {history}");
        }
    }
}
