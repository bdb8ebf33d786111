//! The scenarios: one table with one expected answer for every backend.
//!
//! Links have the indexes that the scenario gives them, from 100 on; so an expected line can state
//! them.

mod continuity;
mod everywhere;
mod hooks;
mod identity;
mod library;
mod load;
mod names;
mod namespaces;
mod origins;
mod others;
mod patterns;
mod peers;
mod restarts;
mod silence;
mod start;
mod users;
mod verdicts;

use anyhow::Result;
use ifmon::BackendKind;

use crate::{backend::BACKENDS, stage::Stage};

/// For what has nothing to do with the backend under test, and is played once.
const ONCE: &[BackendKind] = &[BackendKind::Netlink];

/// One scenario.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// What it shows.
    pub name: &'static str,
    /// Which kinds of devices it is for.
    pub devices: Devices,
    /// Which backends it is for.
    pub backends: &'static [BackendKind],
    /// Played on an emulated processor, too.
    pub is_for_emulated: bool,
    /// Does the kernel have a part in the answer, so that each has to be asked?
    pub is_of_kernel: bool,
    /// Plays it.
    pub play: fn(&mut Stage) -> Result<()>,
}

/// For which kinds of devices a scenario is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Devices {
    /// Each kind that the kernel has.
    All,
    /// The kind does not matter, or it has to be this one.
    Veth,
}

const fn all(name: &'static str, play: fn(&mut Stage) -> Result<()>) -> Scenario {
    Scenario {
        name,
        devices: Devices::All,
        backends: &BACKENDS,
        is_for_emulated: true,
        is_of_kernel: true,
        play,
    }
}

const fn veth(name: &'static str, play: fn(&mut Stage) -> Result<()>) -> Scenario {
    Scenario {
        name,
        devices: Devices::Veth,
        backends: &BACKENDS,
        is_for_emulated: true,
        is_of_kernel: true,
        play,
    }
}

/// A scenario that has a meaning with some backends alone.
const fn only(backends: &'static [BackendKind], scenario: Scenario) -> Scenario {
    Scenario {
        backends,
        ..scenario
    }
}

/// What others show of each kernel as well: it is left out where everything takes many times as
/// long.
const fn native(scenario: Scenario) -> Scenario {
    Scenario {
        is_for_emulated: false,
        ..scenario
    }
}

/// What the kernel does and says.
const OF_KERNEL: [&[Scenario]; 11] = [
    verdicts::TABLE,
    identity::TABLE,
    silence::TABLE,
    names::TABLE,
    namespaces::TABLE,
    patterns::TABLE,
    everywhere::TABLE,
    peers::TABLE,
    origins::TABLE,
    users::TABLE,
    load::TABLE,
];

/// What the program makes of it: its options, hooks, restarts and state, and its library.
const OF_PROGRAM: [&[Scenario]; 6] = [
    start::TABLE,
    others::TABLE,
    hooks::TABLE,
    restarts::TABLE,
    continuity::TABLE,
    library::TABLE,
];

/// The whole table.
pub fn scenarios() -> impl Iterator<Item = Scenario> {
    let of_program = |scenario: &Scenario| Scenario {
        is_of_kernel: false,
        ..*scenario
    };
    let of_kernel = OF_KERNEL.into_iter().flatten().copied();
    of_kernel.chain(OF_PROGRAM.into_iter().flatten().map(of_program))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let mut seen = HashSet::new();
        for scenario in super::scenarios() {
            assert!(
                seen.insert(scenario.name),
                "{} is there twice",
                scenario.name
            );
        }
    }
}
