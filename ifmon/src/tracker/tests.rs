//! The tracker against a model of a host: any changes, any losses; exactly the right verdicts.

pub(crate) mod host;

use proptest::prelude::*;

use self::host::{Attempt, Done, Host, Random, SPACES, Told, netns, run_length, watches};
use super::*;

/// What a backend is to the tracker: tells changes, or that some were lost.
struct Model {
    host: Host,
    tracker: Tracker,
    told: Vec<Told>,
    /// How many changes were not told.
    lost: Option<u64>,
    verdicts: u64,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Attempt(Attempt),
    /// From here on nothing is told.
    Lose,
    /// The state is read again.
    Resync,
    /// A namespace ends.
    End(u8),
}

fn device(device: host::Device) -> Device {
    Device {
        ifindex: device.ifindex,
        generation: device.id,
    }
}

fn place(device: host::Device) -> Place {
    Place {
        netns: Some(netns(device.space)),
        ifindex: Some(device.ifindex),
        name: Some(device.name),
    }
}

fn verdict(watch: Watch, kind: EventKind, recovered: bool) -> Verdict {
    Verdict {
        watch,
        kind,
        recovered,
    }
}

impl Model {
    fn new() -> Self {
        let mut tracker = Tracker::default();
        let host = Host::default();
        let told = watches().map(|watch| {
            let first = tracker.begin(watch, None);
            assert_eq!(
                first,
                verdict(watch, EventKind::Watching { ifindex: None }, false)
            );
            Told::new(watch, &host)
        });
        Self {
            host,
            tracker,
            told: told.to_vec(),
            lost: None,
            verdicts: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Attempt(attempt) => {
                if let Some(done) = self.host.attempt(attempt) {
                    self.happened(&done);
                }
            }
            Step::Lose => self.lost = self.lost.or(Some(0)),
            Step::Resync => self.resync(),
            Step::End(space) => self.end(space % SPACES),
        }
    }

    fn happened(&mut self, done: &Done) {
        if let Some(lost) = &mut self.lost {
            *lost += 1;
            return;
        }
        let left = |old: host::Device, to| Change::Left {
            watch: old.watch(),
            generation: old.id,
            to,
        };
        let took = |new: host::Device| Change::Took {
            watch: new.watch(),
            device: device(new),
        };
        let changes = match *done {
            Done::Created(new) => [None, Some(took(new))],
            Done::Deleted(old) => [Some(left(old, None)), None],
            Done::Renamed { old, new } | Done::Moved { old, new } => {
                [Some(left(old, Some(place(new)))), Some(took(new))]
            }
            // Told once more, to no effect.
            Done::Altered(same) => [Some(took(same)), None],
            // Somebody who never had the name, or has it no more, cannot lose it.
            Done::Released(same) => [
                Some(Change::Left {
                    watch: same.watch(),
                    generation: u64::MAX,
                    to: None,
                }),
                None,
            ],
        };
        let mut verdicts = Vec::new();
        for change in changes.iter().flatten() {
            self.tracker.change(change, &mut verdicts);
        }
        let mut expected = Vec::new();
        for told in &mut self.told {
            expected.extend(
                told.tell(&self.host)
                    .map(|kind| verdict(told.watch, kind, false)),
            );
        }
        // Of a device that goes from one watched name to another, leaving comes first.
        expected.sort_by_key(|verdict| {
            matches!(
                verdict.kind,
                EventKind::Appeared { .. }
                    | EventKind::Returned { .. }
                    | EventKind::Recreated { .. }
            )
        });
        assert_eq!(verdicts, expected, "{done:?}");
        self.count(&verdicts);
    }

    fn resync(&mut self) {
        let lost = self.lost.take();
        for told in &mut self.told {
            let holder = self.host.by_name(told.watch);
            let away = told.last.and_then(|last| self.host.by_id(last.id));
            let observed = Observed {
                holder: holder.map(device),
                away: match holder {
                    Some(_) => None,
                    None => away.map(|away| (away.id, place(away))),
                },
            };
            let mut verdicts = Vec::new();
            self.tracker
                .resync(told.watch, &observed, lost, &mut verdicts);
            let change = told.tell(&self.host);
            let resynced = EventKind::Resynced {
                lost,
                changed: change.is_some(),
                ifindex: holder.map(|holder| holder.ifindex),
            };
            let mut expected = vec![verdict(told.watch, resynced, false)];
            expected.extend(change.map(|kind| verdict(told.watch, kind, true)));
            assert_eq!(verdicts, expected);
            for Verdict { kind, .. } in &verdicts {
                assert_eq!(kind.should_restart(), must_restart(kind));
            }
            self.verdicts += verdicts.len() as u64;
        }
    }

    fn end(&mut self, space: u8) {
        // What was lost up to now has to be made good before anything else can be said.
        if self.lost.is_some() {
            self.resync();
        }
        self.host.devices.retain(|device| device.space != space);
        let mut verdicts = Vec::new();
        self.tracker.netns_gone(netns(space), &mut verdicts);
        let mut expected = Vec::new();
        for told in &mut self.told {
            if told.watch.netns == netns(space) {
                expected.extend(
                    told.tell(&self.host)
                        .map(|kind| verdict(told.watch, kind, false)),
                );
                assert!(!self.tracker.is_watching(told.watch));
                assert!(!self.tracker.end(told.watch));
                // The inode number of a namespace is used again at once.
                self.tracker.begin(told.watch, None);
                assert!(self.tracker.is_watching(told.watch));
                *told = Told::new(told.watch, &self.host);
            }
        }
        assert_eq!(verdicts, expected);
        self.count(&verdicts);
    }

    fn count(&mut self, verdicts: &[Verdict]) {
        self.verdicts += verdicts.len() as u64;
        for Verdict { kind, .. } in verdicts {
            assert_eq!(kind.should_restart(), must_restart(kind));
        }
    }
}

/// The rule of the contract, by the names that users see.
fn must_restart(kind: &EventKind) -> bool {
    ["deleted", "renamed", "moved", "recreated"].contains(&kind.as_str())
}

fn step(word: u64, attempt: Attempt) -> Step {
    match word % 64 {
        0 => Step::Lose,
        1..=4 => Step::Resync,
        5 => Step::End(attempt[0]),
        _ => Step::Attempt(attempt),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn every_sequence_gets_exactly_its_verdicts(
        steps in prop::collection::vec((0_u64..64, any::<Attempt>()), 0..200)
    ) {
        let mut model = Model::new();
        for (word, attempt) in steps {
            model.step(step(word, attempt));
        }
        model.resync();
    }
}

/// Longer than anything that could be made shorter: finds what only a long life brings about.
#[test]
fn a_long_life_gets_exactly_its_verdicts() {
    let (steps, seed) = run_length(200_000);
    let mut random = Random(seed);
    let mut model = Model::new();
    for _ in 0..steps {
        let word = random.next();
        model.step(step(word, random.bytes()));
    }
    model.resync();
    println!("seed {seed}: {steps} steps, {} verdicts", model.verdicts);
    assert!(model.verdicts > steps / 10, "the model is idle");
}
