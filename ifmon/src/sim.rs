//! The whole monitor under one seed: a host, a kernel's side of a backend, somebody who asks,
//! somebody who reads, time, and failures; and who knows better than the monitor what there is to
//! say.
//!
//! `IFMON_SIM_SEED` says where to begin, `IFMON_SIM_STEPS` how far to go. A run that fails is made
//! as small as it gets, and told.

#[cfg(feature = "cli")]
mod agent;
mod bpf;
#[cfg(feature = "cli")]
mod clients;
mod host;
mod netlink;
mod oracle;
mod patterns;
mod run;
#[cfg(feature = "cli")]
mod serving;
mod shrink;

use std::{
    cell::{Cell, RefCell},
    panic::{self, AssertUnwindSafe},
    sync::Once,
    time::Instant,
};

use self::{
    bpf::Programs,
    netlink::Sockets,
    run::{Run, Setting, Side, Sum},
    shrink::{Decisions, mixed},
};
use crate::BackendKind;

/// One life, from its decisions.
fn live<S: Side>(kind: BackendKind, decisions: &mut Decisions) -> Sum {
    decisions.turn();
    let setting = Setting::decide::<S>(kind, decisions);
    let mut run = Run::<S>::new(setting);
    run.live(decisions);
    run.sum
}

/// The same, told step by step.
fn retell<S: Side>(kind: BackendKind, decisions: &mut Decisions) -> String {
    STORY.set(Some(Vec::new()));
    decisions.turn();
    let setting = Setting::decide::<S>(kind, decisions);
    let mut run = Run::<S>::new(setting);
    let result = panic::catch_unwind(AssertUnwindSafe(|| run.live(decisions)));
    let mut story = STORY.take().unwrap_or_default();
    if story.len() > 2 * SHOWN {
        let end = story.len() - SHOWN;
        story.splice(SHOWN..end, [String::from("[…]")]);
    }
    let story = story.join("\n");
    format!("{setting:?}\n{story}\n{}", reason(result.err()))
}

/// Why it failed.
fn reason(payload: Option<Box<dyn std::any::Any + Send>>) -> String {
    let Some(payload) = payload else {
        return String::from("nothing is wrong");
    };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload
            .downcast::<&str>()
            .map_or_else(|_| String::from("?"), |text| text.to_string()),
    }
}

/// Adds to what is told of the run, when that is wanted.
fn tell(line: impl FnOnce() -> String) {
    STORY.with_borrow_mut(|story| {
        if let Some(story) = story {
            story.push(line());
        }
    });
}

fn is_told() -> bool {
    STORY.with_borrow(Option::is_some)
}

thread_local! {
    /// What is told of the run, step by step.
    static STORY: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
    /// What fails in this thread is caught, and told in other ways.
    static IS_QUIET: Cell<bool> = const { Cell::new(false) };
}

fn be_quiet(quiet: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !IS_QUIET.get() {
                loud(info);
            }
        }));
    });
    IS_QUIET.set(quiet);
}

/// Many lives, short and long; shows what the first that fails comes down to.
fn live_many<S: Side>(kind: BackendKind, steps: u64, seed: u64) -> Sum {
    let begin = Instant::now();
    let mut sum = Sum::default();
    let mut lives = 0;
    let mut random = seed;
    be_quiet(true);
    while sum.polls < steps {
        // The first life has the seed that was given.
        let seed = if lives == 0 { seed } else { mixed(&mut random) };
        let count = [30, 100, 400, 3000][seed as usize % 4];
        let mut decisions = Decisions::drawn(seed, count);
        let result = panic::catch_unwind(AssertUnwindSafe(|| live::<S>(kind, &mut decisions)));
        lives += 1;
        match result {
            Ok(life) => sum.add(&life),
            Err(payload) => {
                let first = reason(Some(payload));
                eprintln!("{kind}, IFMON_SIM_SEED={seed}: {first}\nit is being made small");
                let fails = |decisions: &mut Decisions| {
                    panic::catch_unwind(AssertUnwindSafe(|| live::<S>(kind, decisions))).is_err()
                };
                let small = shrink::shrink(seed, count, fails);
                let story = retell::<S>(kind, &mut small.again());
                be_quiet(false);
                panic!(
                    "{kind}, IFMON_SIM_SEED={seed}, after {} steps of {lives} lives: {first}\n\n\
                     {:?}\n{story}",
                    sum.polls,
                    small.turns(),
                );
            }
        }
    }
    be_quiet(false);
    println!(
        "{kind}, seed {seed}: {lives} lives in {:.1} s, {sum:?}",
        begin.elapsed().as_secs_f64()
    );
    sum
}

/// How far to go, and with which seed.
fn tell_what_happened<S: Side>(kind: BackendKind) {
    assert!(S::KINDS.contains(&kind));
    let number = |variable: &str| std::env::var(variable).ok()?.parse().ok();
    // With an agent, several monitors live at a time.
    let usual = if S::BEHIND.is_empty() {
        STEPS
    } else {
        STEPS / 10
    };
    let steps = number("IFMON_SIM_STEPS").unwrap_or(usual);
    let seed = number("IFMON_SIM_SEED").unwrap_or(1);
    let sum = live_many::<S>(kind, steps, seed);
    // It is not idle.
    assert!(sum.changes > steps / 100, "{sum:?}");
    assert!(sum.verdicts > sum.changes / 100, "{sum:?}");
    let counts = [sum.resyncs, sum.failures, sum.asked, sum.refused, sum.rests];
    assert!(
        counts.iter().all(|&count| count > steps / 10_000),
        "{sum:?}"
    );
    let is_served = S::BEHIND.is_empty() || sum.served > steps / 100;
    assert!(is_served, "{sum:?}");
}

/// Lines of a story that are shown at its beginning, and at its end.
const SHOWN: usize = 100;
/// Of each test, but for those of the agent.
const STEPS: u64 = 1_000_000;

#[test]
fn the_whole_monitor_tells_what_happened_by_netlink() {
    tell_what_happened::<Sockets>(BackendKind::Netlink);
}

#[test]
fn the_whole_monitor_tells_what_happened_by_netlink_unfiltered() {
    tell_what_happened::<Sockets>(BackendKind::NetlinkUnfiltered);
}

#[cfg(feature = "cli")]
#[test]
fn the_agent_tells_all_its_clients_what_happened_by_netlink() {
    tell_what_happened::<agent::Service<Sockets>>(BackendKind::Agent);
}

#[cfg(feature = "cli")]
#[test]
fn the_agent_tells_all_its_clients_what_happened_by_bpf() {
    tell_what_happened::<agent::Service<Programs>>(BackendKind::Agent);
}

#[test]
fn the_whole_monitor_tells_what_happened_by_fentry() {
    tell_what_happened::<Programs>(BackendKind::Fentry);
}

#[test]
fn the_whole_monitor_tells_what_happened_by_netlink_ebpf() {
    tell_what_happened::<Programs>(BackendKind::NetlinkEbpf);
}
