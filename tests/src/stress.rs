//! The parts of the stress run. Each takes a namespace of its own and ends with the figures that it
//! saw.

mod blocked;
mod broken;
mod clients;
mod death;
mod ending;
mod flood;
mod follow;
mod leftovers;
mod open;
mod race;
mod soak;

use anyhow::Result;
use ifmon::BackendKind;

use crate::backend::{BACKENDS, EBPF, TRACING, UNPRIVILEGED};

/// How to run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What is tried.
    pub backend: BackendKind,
    /// What looks random depends on this alone.
    pub seed: u64,
    /// A twentieth of everything.
    pub quick: bool,
}

impl Settings {
    fn scaled(&self, count: u32) -> u32 {
        if self.quick { count / 20 } else { count }
    }
}

/// A part.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    pub name: &'static str,
    backends: &'static [BackendKind],
    /// Does it, and says what it saw.
    pub play: fn(&Settings) -> Result<String>,
}

impl Part {
    const fn all(name: &'static str, play: fn(&Settings) -> Result<String>) -> Self {
        Self {
            name,
            backends: &BACKENDS,
            play,
        }
    }

    /// Is it for this backend?
    pub fn is_for(&self, settings: &Settings) -> bool {
        self.backends.contains(&settings.backend)
    }
}

/// All of them.
pub const PARTS: &[Part] = &[
    Part::all("storm", flood::storm),
    Part::all("overflow", flood::overflow),
    Part::all("stopped", flood::stopped),
    Part::all("blocked", blocked::blocked),
    Part::all("race", race::race),
    Part {
        backends: EBPF,
        ..Part::all("open", open::open)
    },
    Part {
        backends: EBPF,
        ..Part::all("leftovers", leftovers::leftovers)
    },
    Part {
        // A socket would keep the namespace alive.
        backends: TRACING,
        ..Part::all("ending", ending::ending)
    },
    Part {
        backends: UNPRIVILEGED,
        ..Part::all("broken", broken::broken)
    },
    Part::all("clients", clients::clients),
    Part::all("privileges", death::privileges),
    Part::all("death", death::death),
    Part::all("soak", soak::soak),
];

/// Numbers that look random (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % bound
    }
}
