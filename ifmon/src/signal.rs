//! What a backend says, in the order in which the kernel made the changes.

use std::time::SystemTime;

use crate::{
    Actor, NetnsId,
    pattern::table::PatternVerdict,
    tracker::{Change, Observed, Tracker, Verdict, Watch},
};

/// Something that a backend has to say.
#[derive(Clone, Debug)]
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
        time: SystemTime,
    },
    /// What there is to say of a pattern.
    Pattern {
        netns: NetnsId,
        told: PatternVerdict,
        time: SystemTime,
        by: Option<Actor>,
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
                time,
            } => {
                tracker.resync(watch, &observed, lost, verdicts);
                (time, None)
            }
            // Decided by then.
            Self::Pattern { time, by, .. } => (time, by),
            Self::NetnsGone { netns, time, by } => {
                tracker.netns_gone(netns, verdicts);
                (time, by)
            }
        }
    }
}

/// What a backend has counted since it began. `None` stands for what it cannot know, or could not
/// read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Counters {
    /// Changes of any interface that reached the filter (BPF) or the process
    /// (`netlink-unfiltered`).
    pub seen: Option<u64>,
    /// Those of them that concerned a watch.
    pub matched: Option<u64>,
    /// Those of them that did not.
    pub ignored: Option<u64>,
    /// Events that concerned a watch and were lost on the way to the process.
    pub lost: Option<u64>,
}
