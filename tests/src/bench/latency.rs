//! How long it takes from a change to the line that tells of it.

use std::time::Instant;

use anyhow::Result;

use super::{
    figure::Figures,
    measure::Plan,
    process,
    statistics::quantile,
    subject::{Running, Subject, WATCHED, WATCHED_INDEX},
};
use crate::{
    requests::{Requests, add_bridge},
    {namespace::Namespace, program::PATIENCE},
};

const ROW: &str = "latency";
/// Changes between two changes of who is measured.
const BLOCK: usize = 50;
/// The polling design takes a second or so for each.
const POLLED: usize = 10;

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let blocks = plan.scale(1000, 500, 100) / BLOCK;
    let _first = process::First::come()?;
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    let mut all: Vec<(Subject, Vec<f64>)> = plan
        .subjects
        .iter()
        .map(|&subject| (subject, Vec::new()))
        .collect();
    // One at a time, in turns: none waits for a processor that another one has.
    for block in 0..blocks {
        for (subject, times) in &mut all {
            let count = match subject {
                Subject::Poll if plan.quick || block > 0 => continue,
                Subject::Poll => POLLED,
                _ => BLOCK,
            };
            let mut running = Running::start(*subject, &namespace, &[WATCHED.to_owned()])?;
            changes(&mut requests, &mut running, count, times)?;
        }
    }
    for (what, fraction) in [("p50", 0.5), ("p99", 0.99)] {
        let peer = all
            .iter()
            .find(|(subject, _)| *subject == Subject::IpMonitor)
            .map(|(_, times)| quantile(times, fraction));
        for (subject, times) in &all {
            if times.is_empty() {
                continue;
            }
            let value = quantile(times, fraction);
            figures.push(ROW, what, &subject.name(), value, "µs");
            if let Some(peer) = peer
                && matches!(subject, Subject::Ifmon(_))
            {
                figures.goal(peer);
            }
        }
    }
    Ok(())
}

/// Creates the watched link, waits until that is told, and deletes it. Creation, because other
/// changes wait in the kernel for a time that says nothing of who listens: deletion everywhere, a
/// rename before Linux 6.2.
fn changes(
    requests: &mut Requests,
    running: &mut Running,
    count: usize,
    times: &mut Vec<f64>,
) -> Result<()> {
    let lines = running.lines()?;
    for _ in 0..count {
        let begin = Instant::now();
        requests.send(add_bridge(WATCHED, WATCHED_INDEX))?;
        lines.expect(1, PATIENCE)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        requests.answer()?;
        requests.delete(WATCHED_INDEX)?;
        lines.expect(1, PATIENCE)?;
        // Whoever writes more than one line for a change does it at once.
        lines.discard()?;
    }
    Ok(())
}
