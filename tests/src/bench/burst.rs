//! All watched links at once: made in one go, and deleted in one request.

use std::time::Instant;

use anyhow::Result;

use super::{figure::Figures, measure::Plan, process::Usage, subject::Running};
use crate::{
    namespace::Namespace,
    program::PATIENCE,
    requests::{Requests, add_pair},
};

const ROW: &str = "burst";
const GROUP: u32 = 7;
const FIRST: u32 = 1_000_000;
/// Requests that fit into the kernel's buffer for them.
const CHUNK: usize = 100;

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let counts: &[usize] = match (plan.quick, plan.emulated) {
        (true, _) => &[10, 100],
        (false, true) => &[10, 100, 1000],
        (false, false) => &[10, 100, 1000, 10_000],
    };
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    for subject in plan.ifmon().filter(|subject| subject.has_goals()) {
        let name = &subject.name();
        for &count in counts {
            let names: Vec<String> = (0..count).map(|number| format!("tun{number}")).collect();
            let mut running = Running::start(subject, &namespace, &names)?;
            let before = Usage::settled(running.pid())?;
            let mut last_line = |requests: &mut Requests, change: Change<'_>| -> Result<f64> {
                let begin = Instant::now();
                change(requests)?;
                running.lines()?.expect(count, PATIENCE)?;
                let time = begin.elapsed().as_secs_f64() * 1e3;
                running.drain()?;
                Ok(time)
            };
            let made = last_line(&mut requests, &|requests| make(requests, &names))?;
            let deleted = last_line(&mut requests, &|requests| requests.delete_group(GROUP))?;
            let after = Usage::settled(running.pid())?;
            let what = |what: &str| format!("{count} at once: {what}");
            figures.push(
                ROW,
                &what("last line after all were made"),
                name,
                made,
                "ms",
            );
            figures.push(
                ROW,
                &what("last line after all were deleted"),
                name,
                deleted,
                "ms",
            );
            let cpu = (after.cpu - before.cpu) as f64 / 1e3 / (2 * count) as f64;
            figures.push(ROW, &what("CPU of a line"), name, cpu, "µs");
            let growth = (after.peak - before.resident.min(after.peak)) as f64;
            figures.push(
                ROW,
                &what("memory at the peak, above the start"),
                name,
                growth,
                "KiB",
            );
        }
    }
    Ok(())
}

type Change<'a> = &'a dyn Fn(&mut Requests) -> Result<()>;

/// Pairs whose ends are both watched.
fn make(requests: &mut Requests, names: &[String]) -> Result<()> {
    let pairs: Vec<&[String]> = names.chunks(2).collect();
    for (chunk, pairs) in pairs.chunks(CHUNK).enumerate() {
        requests.request_all(pairs.iter().enumerate().map(|(pair, names)| {
            let index = FIRST + 2 * (chunk * CHUNK + pair) as u32;
            add_pair(&names[0], &names[1], index, GROUP)
        }))?;
    }
    Ok(())
}
