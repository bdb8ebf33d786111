//! What was seen where, as a table.

use std::{
    collections::BTreeMap,
    fmt::{self, Display, Formatter},
};

use super::{
    Counts,
    progress::Slowest,
    scenarios::{Results, Row},
};

/// The columns of events, in the order of the contract.
const EVENTS: [&str; 8] = [
    "watching",
    "deleted",
    "renamed",
    "moved",
    "appeared",
    "recreated",
    "returned",
    "resynced",
];

/// Kernels by backends.
#[derive(Debug, Default)]
pub(super) struct Matrix {
    kernels: Vec<(String, BTreeMap<String, Row>)>,
    /// The scenarios that took longest.
    pub(super) slowest: Slowest,
}

impl Matrix {
    /// Adds a kernel, having said what failed there and what was left out. Returns what came of it.
    pub(super) fn add(&mut self, place: &str, results: Results) -> Counts {
        let counts = results.counts();
        let Results {
            kernel,
            rows,
            failures,
            left_out,
            times,
            ..
        } = results;
        for (time, what) in times {
            self.slowest.add(time, format!("{place}, {what}"));
        }
        let name = if kernel.is_empty() {
            place.to_owned()
        } else {
            format!("{place}, {kernel}")
        };
        let Counts {
            passed,
            failed,
            skipped,
        } = counts;
        println!("{name}: {passed} passed, {failed} failed, {skipped} left out");
        for failure in failures {
            println!("  FAILED {failure}");
        }
        for (backend, row) in &rows {
            if !row.complete {
                println!("  FAILED {backend}: it did not get to its end");
            }
        }
        for (why, count) in left_out {
            println!("  left out ({count}): {why}");
        }
        self.kernels.push((name, rows));
        counts
    }
}

impl Display for Matrix {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self {
            kernels,
            slowest: _,
        } = self;
        let kernel = kernels.iter().map(|(name, _)| name.len()).max();
        let kernel = kernel.unwrap_or_default().max("kernel".len());
        write!(
            f,
            "{:kernel$}  {:17} passed failed left-out",
            "kernel", "backend"
        )?;
        for event in EVENTS {
            write!(f, " {event}")?;
        }
        for (name, rows) in kernels {
            for (backend, row) in rows {
                let Row {
                    counts:
                        Counts {
                            passed,
                            failed,
                            skipped,
                        },
                    events,
                    complete: _,
                } = row;
                write!(
                    f,
                    "\n{name:kernel$}  {backend:17} {passed:6} {failed:6} {skipped:8}"
                )?;
                for event in EVENTS {
                    let count = events.get(event).copied().unwrap_or(0);
                    write!(f, " {count:width$}", width = event.len())?;
                }
            }
        }
        Ok(())
    }
}
