//! Does a hook answer itself? Decided without I/O.
//!
//! A hook that restarts a tunnel deletes the interface and makes it again: changes, for which it is
//! run again, and so on for ever. What happens while such a hook runs can be its own doing or
//! somebody else's, and a hook is run for each change all the same. So the first time it is told
//! that there is reason to restart. Only what happens while *that* hook runs, the second in a row,
//! is called its own doing.

use std::collections::HashMap;

use crate::cli::watches::WatchKey;

/// How many hooks in a row ran while the next change came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Depth(u32);

impl Depth {
    /// Is a change at this depth taken for the hook's own doing?
    pub(crate) fn is_own(self) -> bool {
        self > Self(1)
    }
}

/// A hook that runs because there was reason to restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HookRun {
    watch: WatchKey,
    number: u64,
}

/// Which hooks run, for each watch.
#[derive(Debug, Default)]
pub(crate) struct Feedback {
    running: HashMap<WatchKey, (u64, Depth)>,
    begun: u64,
}

impl Feedback {
    /// A change was told that calls for a restart.
    pub(crate) fn told(&self, watch: WatchKey) -> Depth {
        let running = self.running.get(&watch);
        running.map_or_else(Depth::default, |&(_, Depth(depth))| Depth(depth + 1))
    }

    /// The hook for such a change begins.
    pub(crate) fn begins(&mut self, watch: WatchKey, depth: Depth) -> HookRun {
        self.begun += 1;
        let number = self.begun;
        self.running.insert(watch, (number, depth));
        HookRun { watch, number }
    }

    /// It has ended, and all that happened until then was told.
    pub(crate) fn ended(&mut self, HookRun { watch, number }: HookRun) {
        if self
            .running
            .get(&watch)
            .is_some_and(|&(last, _)| last == number)
        {
            self.running.remove(&watch);
        }
    }
}

#[cfg(test)]
mod tests {
    use ifmon::{InterfaceName, NetnsId};

    use super::*;

    fn watch() -> WatchKey {
        let name = InterfaceName::new("wg0").unwrap_or_else(|error| panic!("{error}"));
        (NetnsId(1), name)
    }

    #[test]
    fn a_hook_that_makes_the_interface_again_runs_twice_for_one_deletion() {
        let mut feedback = Feedback::default();
        let deleted = feedback.told(watch());
        assert!(!deleted.is_own());
        let first = feedback.begins(watch(), deleted);
        let recreated = feedback.told(watch());
        assert!(!recreated.is_own(), "it could be somebody else's");
        feedback.ended(first);
        feedback.begins(watch(), recreated);
        for _ in 0..2 {
            assert!(feedback.told(watch()).is_own());
        }
    }

    #[test]
    fn what_comes_after_a_hook_is_somebody_elses() {
        let mut feedback = Feedback::default();
        for _ in 0..5 {
            let deleted = feedback.told(watch());
            assert!(!deleted.is_own());
            let run = feedback.begins(watch(), deleted);
            feedback.ended(run);
        }
    }

    #[test]
    fn the_next_hook_begins_before_all_of_the_last_was_told() {
        let mut feedback = Feedback::default();
        let first = feedback.begins(watch(), Depth::default());
        let depth = feedback.told(watch());
        let second = feedback.begins(watch(), depth);
        feedback.ended(first);
        assert!(feedback.told(watch()).is_own(), "the second still runs");
        feedback.ended(second);
        assert!(!feedback.told(watch()).is_own());
    }

    #[test]
    fn a_hook_answers_for_its_own_interface_alone() {
        let mut feedback = Feedback::default();
        feedback.begins(watch(), Depth(1));
        let (netns, _) = watch();
        let other = InterfaceName::new("wg1").unwrap_or_else(|error| panic!("{error}"));
        assert!(!feedback.told((netns, other)).is_own());
    }
}
