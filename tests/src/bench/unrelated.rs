//! What changes cost each program that do not concern it: all of them see the same changes at the
//! same time.

use anyhow::Result;

use super::{
    figure::Figures,
    measure::Plan,
    process::Usage,
    report::number,
    subject::{Running, WATCHED, WATCHED_INDEX},
};
use crate::{
    namespace::Namespace,
    requests::{Requests, rename, set_arp, set_mtu},
};

const ROW: &str = "unrelated";
/// Pairs of links that live at the same time.
const PAIRS: u32 = 50;
/// Changes that each pair goes through, its two creations and deletions included.
const CHANGES: u32 = 10;
/// Changes of a round.
pub(super) const CHANGES_OF_ROUND: u32 = PAIRS * CHANGES;
const GROUP: u32 = 7;
/// The index of the first link, above those that the kernel gives to the peers.
const FIRST: u32 = 1_000_000;

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let rounds = plan.scale(200, 20, 4);
    let changes = number(f64::from(rounds * CHANGES_OF_ROUND));
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    requests.add_bridge(WATCHED, WATCHED_INDEX)?;

    let mut all = Vec::new();
    for &subject in &plan.subjects {
        let mut running = Running::start(subject, &namespace, &[WATCHED.to_owned()])?;
        running.discard_output();
        all.push((subject, running));
    }
    let mut before = Vec::new();
    for (_, running) in &all {
        before.push(Usage::settled(running.pid())?);
    }
    for _ in 0..rounds {
        round(&mut requests)?;
    }
    for ((subject, running), before) in all.iter_mut().zip(before) {
        let name = &subject.name();
        // A library can give up when its queue has been full.
        if let (false, Some(error)) = (subject.is_ifmon(), running.ended()) {
            eprintln!("{name} did not live through {changes} changes: {error}");
            figures.push(
                ROW,
                &format!("gave up during {changes} changes"),
                name,
                1.0,
                "",
            );
            continue;
        }
        let after = Usage::settled(running.pid())?;
        let mut push = |what: &str, value: u64, divisor: f64, unit, goal| {
            figures.push(ROW, what, name, value as f64 / divisor, unit);
            if subject.has_goals() {
                figures.goal(goal);
            }
        };
        let switches = after.switches - before.switches;
        push(
            &format!("wake-ups for {changes} changes"),
            switches,
            1.0,
            "",
            5.0,
        );
        let cpu = after.cpu - before.cpu;
        push(&format!("CPU for {changes} changes"), cpu, 1e6, "ms", 1.0);
        push("memory after start", before.resident, 1e3, "MB", 5.0);
        let growth = after.resident.saturating_sub(before.resident);
        push("memory growth by then", growth, 1.0, "KiB", 0.0);
        push("peak memory", after.peak, 1e3, "MB", 5.0);
    }
    Ok(())
}

/// Creates pairs, changes one end of each, and deletes them.
pub(super) fn round(requests: &mut Requests) -> Result<()> {
    for pair in 0..PAIRS {
        let name = format!("veth{pair}a");
        requests.add_pair(&name, &format!("veth{pair}b"), FIRST + pair, GROUP)?;
    }
    for pair in 0..PAIRS {
        let index = FIRST + pair;
        for change in [
            rename(index, &format!("eth{pair}")),
            set_mtu(index, 1400),
            set_arp(index, false),
            rename(index, &format!("veth{pair}a")),
            set_mtu(index, 1500),
            set_arp(index, true),
        ] {
            requests.request(change)?;
        }
    }
    requests.delete_group(GROUP)
}
