//! How the cost grows with the number of watches.

use std::time::Instant;

use anyhow::Result;

use super::{
    bpf,
    figure::Figures,
    measure::Plan,
    process::Usage,
    statistics::Quantile,
    subject::{Running, Subject},
};
use crate::{
    namespace::Namespace,
    requests::{Requests, rename, set_mtu},
};

const ROW: &str = "watches";
const GROUP: u32 = 7;
/// Index of the link that is changed, and that nobody watches: beside those that are watched, not
/// among them.
const OTHER: u32 = 900_000;
/// Names that begin like watched ones: a filter that is not exact lets some of them through.
const ALIKE: usize = 20;
/// Index of the first watched link; each second one is watched by the same number as its peer.
const FIRST: u32 = 1_000_000;

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let counts: &[usize] = if plan.quick {
        &[1, 1000]
    } else {
        &[1, 10, 1000, 10_000]
    };
    let most = counts.last().copied().unwrap_or(1);
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    requests.add_bridge("other0", OTHER)?;
    let names: Vec<String> = (0..most).map(|number| format!("tun{number}")).collect();
    for (pair, names) in names.chunks(2).enumerate() {
        let alone = format!("alone{pair}");
        let peer = names.get(1).unwrap_or(&alone);
        requests.add_pair(&names[0], peer, FIRST + 2 * pair as u32, GROUP)?;
    }
    for subject in plan.ifmon() {
        let mut smallest = None;
        for &count in counts {
            let sample = sample(plan, subject, &namespace, &names[..count], &mut requests)?;
            let name = &subject.name();
            let what = format!("{count} watched: an MTU change of another link");
            figures.push_quantile(ROW, &what, name, sample.change, "µs");
            let mut push = |what: &str, value: f64, unit| {
                figures.push(ROW, &format!("{count} watched: {what}"), name, value, unit);
            };
            if let Some(time) = sample.program {
                push(&format!("{} a BPF run", plan.bpf_unit()), time, "");
            }
            push(
                "wake-ups for 1,000 changes of another link",
                sample.woken,
                "",
            );
            push(
                "the same, with a name like those watched",
                sample.woken_alike,
                "",
            );
            push("start", sample.start * 1e3, "ms");
            push("memory", sample.resident / 1e3, "MB");
            let smallest = smallest.get_or_insert(sample);
            if count == most {
                figures.goals(plan, subject, count, smallest, &sample);
            }
        }
    }
    requests.delete_group(GROUP)
}

#[derive(Clone, Copy)]
struct Sample {
    /// Median time of a change of a link that nobody watches, in microseconds.
    change: Quantile,
    /// Mean time of the BPF program when that link is renamed, in nanoseconds, each an
    /// instruction.
    program: Option<f64>,
    /// Wake-ups for a thousand changes of it.
    woken: f64,
    /// The same while its name begins like those that are watched.
    woken_alike: f64,
    /// In seconds.
    start: f64,
    /// In KiB.
    resident: f64,
}

impl Figures {
    /// The comparison of many watches with one, which the goals are about.
    fn goals(&mut self, plan: &Plan, subject: Subject, count: usize, one: &Sample, many: &Sample) {
        let name = &subject.name();
        let what = format!("{count} : 1, an MTU change of another link, ratio");
        self.push_quantile(ROW, &what, name, many.change.ratio(one.change), "");
        if subject.has_goals() {
            self.goal(1.2);
        }
        let mut push = |what: &str, value, unit, goal| {
            self.push(ROW, what, name, value, unit);
            if subject.has_goals() {
                self.goal(goal);
            }
        };
        if let (Some(many), Some(one)) = (many.program, one.program) {
            push(
                &format!("{count} : 1, {} a BPF run, ratio", plan.bpf_unit()),
                many / one,
                "",
                1.2,
            );
        }
        let bytes = (many.resident - one.resident) * 1024.0 / (count - 1) as f64;
        let goal = if subject.is_bpf() { 136.0 } else { 200.0 };
        push("memory a watch", bytes, "bytes", goal);
        if subject.is_bpf() {
            // Names are compared, and not what a few bits have left of them.
            let what =
                format!("{count} watched: wake-ups for names like those, a thousand changes");
            push(&what, many.woken_alike, "", 0.0);
        }
        push(&format!("start with {count} watches"), many.start, "s", 1.0);
    }
}

fn sample(
    plan: &Plan,
    subject: Subject,
    namespace: &Namespace,
    names: &[String],
    requests: &mut Requests,
) -> Result<Sample> {
    let changes = plan.scale(4000, 2000, 400);
    let mut running = Running::start(subject, namespace, names)?;
    running.discard_output();
    let begin = Usage::settled(running.pid())?;
    // Accounting for BPF takes time itself, so the requests are timed without it.
    let mut times = Vec::new();
    change_often(requests, changes, &mut times)?;
    let between = Usage::settled(running.pid())?;
    for number in 0..ALIKE {
        requests.request(rename(OTHER, &format!("tun{number}x")))?;
        change_often(requests, changes / ALIKE, &mut Vec::new())?;
    }
    let after = Usage::settled(running.pid())?;
    requests.request(rename(OTHER, "other0"))?;
    let program = if subject.is_bpf() {
        Some(program(running.pid(), requests, changes / 10)?)
    } else {
        None
    };
    let a_thousand = 1000.0 / changes as f64;
    Ok(Sample {
        change: Quantile::of(&times, 0.5),
        program,
        woken: (between.switches - begin.switches) as f64 * a_thousand,
        woken_alike: (after.switches - between.switches) as f64 * a_thousand,
        start: running.start.as_secs_f64(),
        resident: begin.resident as f64,
    })
}

/// Changes the MTU there and back: one message to each subscriber, and nothing for the kernel to
/// wait for.
fn change_often(requests: &mut Requests, count: usize, times: &mut Vec<f64>) -> Result<()> {
    for &mtu in [1400, 1500].iter().cycle().take(count) {
        let begin = Instant::now();
        requests.request(set_mtu(OTHER, mtu))?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    Ok(())
}

/// Renames there and back, which the BPF program has to look at; how long it takes it.
fn program(pid: u32, requests: &mut Requests, count: usize) -> Result<f64> {
    let _statistics = bpf::Statistics::enable()?;
    let before = bpf::Program::of(pid)?;
    for name in ["other1", "other0"].iter().cycle().take(count) {
        requests.request(rename(OTHER, name))?;
    }
    let after = bpf::Program::of(pid)?;
    Ok((after.time - before.time) as f64 / (after.runs - before.runs) as f64)
}
