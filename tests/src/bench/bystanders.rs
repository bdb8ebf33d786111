//! What everybody else pays: the time that creating, renaming and deleting links takes while somebody watches, against
//! the time without.

use std::time::Instant;

use anyhow::Result;

use super::{
    bpf,
    figure::Figures,
    measure::Plan,
    requests::{Requests, add_pair, delete, rename},
    statistics::median,
    subject::{Running, Subject, WATCHED, WATCHED_INDEX},
};
use crate::namespace::Namespace;

const ROW: &str = "bystanders";
/// Pairs between two changes of who watches: few, so that a slow moment of the machine hits everyone.
const BLOCK: u32 = 20;
/// Renames of each pair; they take long on some kernels, and are few there.
const RENAMES: (u32, u32) = (10, 2);
const INDEX: u32 = 1_000_000;

/// Times of single requests, in microseconds.
#[derive(Default)]
struct Times {
    pair: Vec<f64>,
    create: Vec<f64>,
    rename: Vec<f64>,
}

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let blocks = plan.scale(2000, 400, 40) / BLOCK;
    let renames = if plan.emulated { RENAMES.1 } else { RENAMES.0 };
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    requests.add_bridge(WATCHED, WATCHED_INDEX)?;

    // Nobody, twice: how far the second is from the first is what the machine's noise makes of no difference.
    let mut who = vec![None, None];
    who.extend(plan.ifmon().map(Some));
    who.push(Some(Subject::IpMonitor));
    let mut times: Vec<Times> = who.iter().map(|_| Times::default()).collect();
    for _ in 0..blocks {
        for (subject, times) in who.iter().zip(&mut times) {
            let running = subject
                .map(|subject| Running::start(subject, &namespace, &[WATCHED.to_owned()]))
                .transpose()?;
            if let Some(mut running) = running {
                running.discard_output();
                block(&mut requests, renames, times)?;
            } else {
                block(&mut requests, renames, times)?;
            }
        }
    }

    let Some((nobody, others)) = times.split_first() else {
        return Ok(());
    };
    for (subject, times) in who.iter().skip(1).zip(others) {
        let name = subject.map_or_else(|| "nobody (noise)".to_owned(), Subject::name);
        // The goal is about a link's whole life; the parts show where the time goes.
        for (what, with, without, goal) in [
            (
                "creation and deletion, ratio",
                &times.pair,
                &nobody.pair,
                Some(1.01),
            ),
            ("creation, ratio", &times.create, &nobody.create, None),
            ("rename, ratio", &times.rename, &nobody.rename, None),
        ] {
            let ratio = median(with) / median(without);
            figures.push(ROW, what, &name, ratio, "");
            if let Some(goal) = goal
                && subject.is_some_and(Subject::has_goals)
            {
                figures.goal(goal);
            }
        }
    }
    for (what, samples) in [
        ("creation and deletion", &nobody.pair),
        ("creation", &nobody.create),
        ("rename", &nobody.rename),
    ] {
        figures.push(ROW, what, "nobody", median(samples), "µs");
    }
    for subject in plan.ifmon().filter(|subject| subject.is_bpf()) {
        program(subject, &namespace, &mut requests, renames, figures)?;
    }
    Ok(())
}

fn block(requests: &mut Requests, renames: u32, times: &mut Times) -> Result<()> {
    for _ in 0..BLOCK {
        let begin = Instant::now();
        requests.request(add_pair("veth0", "veth1", INDEX, 0))?;
        let created = begin.elapsed();
        for name in ["eth0", "veth0"].iter().cycle().take(renames as usize) {
            let begin = Instant::now();
            requests.request(rename(INDEX, name))?;
            times.rename.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        let begin = Instant::now();
        requests.request(delete(INDEX))?;
        let deleted = begin.elapsed();
        times.create.push(created.as_secs_f64() * 1e6);
        times.pair.push((created + deleted).as_secs_f64() * 1e6);
    }
    Ok(())
}

/// The BPF program by itself: its length, and its run time by the kernel's own account.
fn program(
    subject: Subject,
    namespace: &Namespace,
    requests: &mut Requests,
    renames: u32,
    figures: &mut Figures,
) -> Result<()> {
    let _statistics = bpf::Statistics::enable()?;
    let running = Running::start(subject, namespace, &[WATCHED.to_owned()])?;
    let before = bpf::Program::of(running.pid())?;
    block(requests, renames, &mut Times::default())?;
    let after = bpf::Program::of(running.pid())?;
    let name = &subject.name();
    let runs = after.runs - before.runs;
    let time = after.time - before.time;
    let events = BLOCK * (2 + renames + 2);
    // The clock of the emulated machine counts instructions.
    let executed = time as f64 / runs as f64;
    figures.push(ROW, "instructions executed a BPF run", name, executed, "");
    let per_event = runs as f64 / f64::from(events);
    figures.push(ROW, "BPF runs a change", name, per_event, "");
    let length = f64::from(after.instructions);
    figures.push(ROW, "length of the BPF program", name, length, "");
    if let Some(verified) = after.verified {
        let verified = verified as f64;
        figures.push(ROW, "instructions verified at its load", name, verified, "");
    }
    Ok(())
}
