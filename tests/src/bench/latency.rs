//! How long it takes from a change to the line that tells of it, for each kind of change, with few
//! watches and with many.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use netlink_packet_route::RouteNetlinkMessage;

use super::{
    figure::Figures,
    measure::Plan,
    process,
    statistics::Quantile,
    subject::{Running, Subject, WATCHED, WATCHED_INDEX},
};
use crate::{
    namespace::Namespace,
    program::PATIENCE,
    requests::{Requests, add_veth_apart, delete, move_to, rename},
};

const ROW: &str = "latency";
/// Changes of a kind between two changes of who is measured.
const BLOCK: usize = 25;
/// The polling design takes a second or so for each.
const POLLED: usize = 10;

/// What is done to the watched link, one after the other. Some kinds wait in the kernel for a time
/// that says nothing of who listens: deletion and moves everywhere, a rename before Linux 6.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Created,
    Renamed,
    RenamedBack,
    MovedOut,
    MovedBack,
    Deleted,
}

const KINDS: [Kind; 6] = [
    Kind::Created,
    Kind::Renamed,
    Kind::RenamedBack,
    Kind::MovedOut,
    Kind::MovedBack,
    Kind::Deleted,
];

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Renamed => "renamed",
            Self::RenamedBack => "renamed back",
            Self::MovedOut => "moved away",
            Self::MovedBack => "moved back",
            Self::Deleted => "deleted",
        }
    }

    /// Those that only look for the name, and know the index from their start, do not hear of all.
    fn is_told_by(self, subject: Subject) -> bool {
        matches!(self, Self::Created | Self::Deleted)
            || !matches!(subject, Subject::Subscribe | Subject::Go | Subject::Poll)
    }
}

/// Times of each kind, in microseconds.
type Times = [Vec<f64>; KINDS.len()];

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let cases: &[(usize, usize)] = match (plan.quick, plan.emulated) {
        (true, _) => &[(1, BLOCK)],
        (false, true) => &[(1, 200), (1000, BLOCK)],
        (false, false) => &[(1, 400), (1000, 100), (10_000, 50)],
    };
    let _first = process::First::come()?;
    let mut stage = Stage::new()?;
    for &(watches, cycles) in cases {
        let names: Vec<String> = (1..watches).map(|number| format!("tun{number}")).collect();
        let names = [vec![WATCHED.to_owned()], names].concat();
        let mut all: Vec<(Subject, Times)> = plan
            .subjects
            .iter()
            .copied()
            .chain(plan.bare())
            .filter(|subject| watches == 1 || subject.has_goals() || subject.is_limit())
            .map(|subject| (subject, Times::default()))
            .collect();
        // One at a time, in turns: none waits for a processor that another one has.
        for block in 0..cycles.div_ceil(BLOCK) {
            for (subject, times) in &mut all {
                let count = match subject {
                    Subject::Poll if plan.quick || block > 0 => continue,
                    Subject::Poll => POLLED,
                    _ => BLOCK,
                };
                let mut running = Running::start(*subject, &stage.here, &names)?;
                for _ in 0..count {
                    stage
                        .cycle(*subject, &mut running, times)
                        .with_context(|| format!("cannot measure {}", subject.name()))?;
                }
            }
        }
        report(figures, watches, &all);
    }
    Ok(())
}

fn report(figures: &mut Figures, watches: usize, all: &[(Subject, Times)]) {
    for (at, kind) in KINDS.iter().enumerate() {
        for (what, fraction) in [("p50", 0.5), ("p99", 0.99)] {
            let what = match watches {
                1 => format!("{}, {what}", kind.name()),
                _ => format!("{}, {watches} watches, {what}", kind.name()),
            };
            let peer = all
                .iter()
                .find(|(subject, _)| *subject == Subject::IpMonitor)
                .map(|(_, times)| Quantile::of(&times[at], fraction).value);
            for (subject, times) in all.iter().filter(|(_, times)| !times[at].is_empty()) {
                let quantile = Quantile::of(&times[at], fraction);
                figures.push_quantile(ROW, &what, &subject.name(), quantile, "µs");
                if let Some(peer) = peer
                    && subject.has_goals()
                {
                    figures.goal(peer);
                }
            }
        }
    }
}

/// Where the watched link is, where it can be moved to, and where the other end of it is, of which
/// nobody is to hear.
struct Stage {
    here: Namespace,
    there: Namespace,
    elsewhere: Namespace,
    requests: Requests,
    requests_there: Requests,
    /// Of the watched link. The next one has another index, as the kernel gives them.
    index: u32,
}

impl Stage {
    fn new() -> Result<Self> {
        let [here, there, elsewhere] = [Namespace::new()?, Namespace::new()?, Namespace::new()?];
        let requests = Requests::new(&here)?;
        let requests_there = Requests::new(&there)?;
        Ok(Self {
            here,
            there,
            elsewhere,
            requests,
            requests_there,
            index: WATCHED_INDEX,
        })
    }

    /// Makes every kind of change, each once the one before has been told of.
    fn cycle(&mut self, subject: Subject, running: &mut Running, times: &mut Times) -> Result<()> {
        self.index += 1;
        let index = self.index;
        for (kind, times) in KINDS.into_iter().zip(times) {
            let is_told = kind.is_told_by(subject);
            let requests = match kind {
                Kind::MovedBack => &mut self.requests_there,
                _ => &mut self.requests,
            };
            let message = match kind {
                Kind::Created => add_veth_apart(WATCHED, index, self.elsewhere.file()),
                Kind::Renamed => rename(index, "away0"),
                Kind::RenamedBack => rename(index, WATCHED),
                Kind::MovedOut => move_to(index, self.there.file()),
                Kind::MovedBack => move_to(index, self.here.file()),
                Kind::Deleted => delete(index),
            };
            let change = Change { requests, message };
            let time = change.until_told(running, is_told)?;
            times.extend(time.map(|time| time.as_secs_f64() * 1e6));
        }
        Ok(())
    }
}

struct Change<'a> {
    requests: &'a mut Requests,
    message: RouteNetlinkMessage,
}

impl Change<'_> {
    /// From the request until the first line, where there is to be one.
    fn until_told(self, running: &mut Running, is_told: bool) -> Result<Option<Duration>> {
        let Self { requests, message } = self;
        let begin = Instant::now();
        requests.send(message)?;
        let time = if is_told {
            running.lines()?.expect(1, PATIENCE)?;
            Some(begin.elapsed())
        } else {
            None
        };
        requests.answer()?;
        // Whoever hears of it in more than one message may still say more.
        running.drain()?;
        Ok(time)
    }
}
