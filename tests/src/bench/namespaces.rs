//! How the cost grows with the number of network namespaces that are watched.

use std::{fs, path::Path, time::Instant};

use anyhow::{Context as _, Result};

use super::{
    figure::Figures,
    measure::Plan,
    process::{self, Usage},
    statistics::Quantile,
    subject::{Running, Subject, WATCHED, WATCHED_INDEX},
};
use crate::{namespace::Namespace, program::PATIENCE, requests::Requests};

const ROW: &str = "namespaces";

struct Sample {
    /// Processor time of a change, in microseconds.
    cpu: f64,
    /// From a creation to the line, in microseconds.
    latency: Quantile,
    /// In KiB.
    resident: f64,
    descriptors: f64,
}

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let counts: &[usize] = if plan.quick { &[1, 20] } else { &[1, 100, 500] };
    let most = counts.last().copied().unwrap_or(1);
    let namespaces: Vec<Namespace> = (0..most).map(|_| Namespace::new()).collect::<Result<_>>()?;
    let _first = process::First::come()?;
    let subjects = plan.ifmon().filter(|subject| subject.has_goals());
    // Who needs no socket in a namespace has no limit to be shown.
    let has_sockets =
        |subject: &Subject| matches!(subject, Subject::Bare("netlink" | "netlink-ebpf"));
    let limits = plan.bare().filter(has_sockets);
    for subject in subjects.chain(limits) {
        let name = &subject.name();
        let goal = |figures: &mut Figures, goal| {
            if subject.has_goals() {
                figures.goal(goal);
            }
        };
        let mut one: Option<Sample> = None;
        for &count in counts {
            let sample = sample(plan, subject, &namespaces[..count])?;
            let what = |what: &str| format!("{count} namespaces: {what}");
            figures.push(ROW, &what("CPU of a change"), name, sample.cpu, "µs");
            let latency = sample.latency;
            figures.push_quantile(ROW, &what("creation to line, p50"), name, latency, "µs");
            let resident = sample.resident / 1e3;
            figures.push(ROW, &what("memory"), name, resident, "MB");
            figures.push(ROW, &what("descriptors"), name, sample.descriptors, "");
            let Some(one) = &one else {
                one = Some(sample);
                continue;
            };
            if count == most {
                let ratio = sample.latency.ratio(one.latency);
                let what = format!("{count} : 1, creation to line, ratio");
                figures.push_quantile(ROW, &what, name, ratio, "");
                goal(figures, 1.1);
                let ratio = sample.cpu / one.cpu;
                figures.push(
                    ROW,
                    &format!("{count} : 1, CPU of a change, ratio"),
                    name,
                    ratio,
                    "",
                );
                goal(figures, 1.1);
                let others = (count - 1) as f64;
                let each = (sample.resident - one.resident) / others;
                figures.push(ROW, "memory of a namespace", name, each, "KiB");
                goal(figures, 8.0);
                let each = (sample.descriptors - one.descriptors) / others;
                figures.push(ROW, "descriptors of a namespace", name, each, "");
                goal(figures, 2.0);
            }
        }
    }
    Ok(())
}

fn sample(plan: &Plan, subject: Subject, namespaces: &[Namespace]) -> Result<Sample> {
    let changes = plan.scale(400, 100, 20);
    let last = namespaces.last().context("no namespace")?;
    let paths = namespaces.iter().map(Namespace::path);
    let command = match subject {
        Subject::Bare(backend) => Subject::bare_in(backend, WATCHED, paths)?,
        _ => {
            let mut command = subject.command(&[WATCHED.to_owned()])?;
            command.args(paths.flat_map(|path| ["--netns".to_owned(), path]));
            command
        }
    };
    let mut running = Running::spawn(subject, command, namespaces.len())?;
    let mut requests = Requests::new(last)?;
    let before = Usage::settled(running.pid())?;
    let mut times = Vec::new();
    for _ in 0..changes {
        let begin = Instant::now();
        requests.add_bridge(WATCHED, WATCHED_INDEX)?;
        running.lines()?.expect(1, PATIENCE)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        // Whoever hears of it in more than one message may still say more.
        running.drain()?;
        requests.delete(WATCHED_INDEX)?;
        running.lines()?.expect(1, PATIENCE)?;
        running.drain()?;
    }
    let after = Usage::settled(running.pid())?;
    let descriptors = fs::read_dir(
        Path::new("/proc")
            .join(running.pid().to_string())
            .join("fd"),
    )?;
    Ok(Sample {
        cpu: (after.cpu - before.cpu) as f64 / 1e3 / (2 * changes) as f64,
        latency: Quantile::of(&times, 0.5),
        resident: before.resident as f64,
        descriptors: descriptors.count() as f64,
    })
}
