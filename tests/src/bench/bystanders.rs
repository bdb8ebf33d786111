//! What everybody else pays: the time that creating, renaming and deleting links takes while
//! somebody watches, against the time without.

use std::time::Instant;

use anyhow::Result;

use super::{
    bpf,
    figure::Figures,
    measure::Plan,
    statistics::Quantile,
    subject::{Running, Subject, WATCHED, WATCHED_INDEX},
};
use crate::{
    namespace::Namespace,
    requests::{Requests, add_pair, delete, rename, set_mtu},
};

const ROW: &str = "bystanders";
/// Pairs between two changes of who watches: few, so that a slow moment of the machine hits
/// everyone.
const BLOCK: u32 = 20;
/// Renames of each pair; they take long on some kernels, and are few there.
const RENAMES: (u32, u32) = (10, 2);
const INDEX: u32 = 1_000_000;
/// Changes before those that the kernel's account of a BPF program is read for, and how many those
/// are.
const WARM_UP: u32 = 10;
const RUNS: u32 = 100;

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

    // Nobody, twice: how far the second is from the first is what the machine's noise makes of no
    // difference.
    let mut who = vec![None, None];
    who.extend(plan.ifmon().map(Some));
    who.push(Some(Subject::IpMonitor));
    let mut times: Vec<Times> = who.iter().map(|_| Times::default()).collect();
    // The first round finds cold caches and an allocator that grows, so it counts for nobody: this
    // row gives the same whether others were measured before it or not.
    for round in 0..=blocks {
        for (subject, times) in who.iter().zip(&mut times) {
            let mut unused = Times::default();
            let times = if round == 0 { &mut unused } else { times };
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
            let ratio = Quantile::of(with, 0.5).ratio(Quantile::of(without, 0.5));
            figures.push_quantile(ROW, what, &name, ratio, "");
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
        figures.push_quantile(ROW, what, "nobody", Quantile::of(samples, 0.5), "µs");
    }
    for subject in plan.ifmon().filter(|subject| subject.is_bpf()) {
        program(plan, subject, &namespace, &mut requests, figures)?;
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

/// What a BPF program is run for.
const KINDS: [&str; 4] = [
    "an MTU change of another link",
    "a rename where nobody watches",
    "a rename of another link",
    "a rename of the watched link, with its record",
];

/// The BPF program by itself: its length, and its run time by the kernel's own account, for each
/// kind of change. A change can be several events, of which the program looks at one.
fn program(
    plan: &Plan,
    subject: Subject,
    namespace: &Namespace,
    requests: &mut Requests,
    figures: &mut Figures,
) -> Result<()> {
    let _statistics = bpf::Statistics::enable()?;
    let mut running = Running::start(subject, namespace, &[WATCHED.to_owned()])?;
    running.discard_output();
    let elsewhere = Namespace::new()?;
    let mut others = Requests::new(&elsewhere)?;
    let name = &subject.name();
    requests.add_bridge("other0", INDEX)?;
    others.add_bridge("other0", INDEX)?;
    for kind in KINDS {
        let mut change = |turn: u32| {
            let (other, watched, mtu) = if turn.is_multiple_of(2) {
                ("other1", "away0", 1400)
            } else {
                ("other0", WATCHED, 1500)
            };
            if kind == KINDS[0] {
                requests.request(set_mtu(INDEX, mtu))
            } else if kind == KINDS[1] {
                others.request(rename(INDEX, other))
            } else if kind == KINDS[2] {
                requests.request(rename(INDEX, other))
            } else {
                requests.request(rename(WATCHED_INDEX, watched))
            }
        };
        // The first ones find cold caches.
        (0..WARM_UP).try_for_each(&mut change)?;
        let before = bpf::Program::of(running.pid())?;
        (0..RUNS).try_for_each(&mut change)?;
        let after = bpf::Program::of(running.pid())?;
        let each = |count: u64| count as f64 / f64::from(RUNS);
        let what = format!("{} of BPF for {kind}", plan.bpf_unit());
        figures.push(ROW, &what, name, each(after.time - before.time), "");
        let what = format!("BPF runs for {kind}");
        figures.push(ROW, &what, name, each(after.runs - before.runs), "");
    }
    let program = bpf::Program::of(running.pid())?;
    let length = f64::from(program.instructions);
    figures.push(ROW, "length of the BPF program", name, length, "");
    if let Some(verified) = program.verified {
        let verified = verified as f64;
        figures.push(ROW, "instructions verified at its load", name, verified, "");
    }
    requests.delete(INDEX)
}
