//! How long it takes to start, and how much of that the number of links makes.

use std::time::Instant;

use anyhow::Result;

use super::{
    figure::Figures,
    measure::Plan,
    process::Usage,
    statistics::Quantile,
    subject::{Running, Subject, WATCHED, WATCHED_INDEX},
};
use crate::namespace::Namespace;
use crate::requests::Requests;

const ROW: &str = "start";
const GROUP: u32 = 7;
const FIRST: u32 = 1_000_000;

pub(super) fn measure(plan: &Plan, figures: &mut Figures) -> Result<()> {
    let many = plan.scale(5000, 5000, 1000);
    let runs = plan.scale(20, 5, 3);
    let namespace = Namespace::new()?;
    let mut requests = Requests::new(&namespace)?;
    requests.add_bridge(WATCHED, WATCHED_INDEX)?;
    // `ip monitor` does not say when it is ready.
    let subjects = || {
        plan.subjects
            .iter()
            .copied()
            .filter(|&subject| subject != Subject::IpMonitor)
            .chain(plan.bare())
    };
    let mut pairs = 0;
    for links in [10, many] {
        // `lo` and the watched link are there.
        while 2 * pairs + 2 < links {
            let name = format!("veth{pairs}a");
            requests.add_pair(&name, &format!("veth{pairs}b"), FIRST + pairs, GROUP)?;
            pairs += 1;
        }
        let mut all: Vec<_> = subjects()
            .map(|subject| (subject, Vec::new(), Vec::new()))
            .collect();
        for _ in 0..runs {
            for (subject, times, cpu) in &mut all {
                let running = Running::start(*subject, &namespace, &[WATCHED.to_owned()])?;
                times.push(running.start.as_secs_f64() * 1e3);
                cpu.push(Usage::settled(running.pid())?.cpu as f64 / 1e6);
            }
        }
        for (subject, times, cpu) in &all {
            let name = &subject.name();
            let what = format!("with {links} links");
            figures.push_quantile(ROW, &what, name, Quantile::of(times, 0.5), "ms");
            match subject {
                Subject::Ifmon("fentry") => figures.goal(50.0),
                Subject::Ifmon("kprobe") => figures.goal(40.0),
                Subject::Ifmon("netlink-ebpf") if !plan.emulated => figures.goal(3.0),
                Subject::Ifmon("netlink") if !plan.emulated => figures.goal(10.0),
                _ => {}
            }
            let what = format!("with {links} links, CPU");
            figures.push_quantile(ROW, &what, name, Quantile::of(cpu, 0.5), "ms");
        }
    }
    requests.delete_group(GROUP)?;
    if plan.ifmon().any(Subject::is_tracing) {
        let mut times = Vec::new();
        for _ in 0..runs {
            let begin = Instant::now();
            ifmon::internals::read_btf()?;
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        for subject in plan.ifmon().filter(|subject| subject.is_tracing()) {
            let what = "reading BTF alone";
            figures.push_quantile(ROW, what, &subject.name(), Quantile::of(&times, 0.5), "ms");
        }
    }
    Ok(())
}
