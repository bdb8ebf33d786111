//! What differs between the processors that can be emulated.

use std::{env, fmt};

use anyhow::{Context as _, Result};
use clap::ValueEnum;

use crate::host::Tool;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
#[value(rename_all = "lower")]
pub(crate) enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    Aarch64,
}

impl Arch {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    pub(super) const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    pub(super) const fn emulator(self) -> Tool {
        match self {
            Self::X86_64 => Tool {
                program: "qemu-system-x86_64",
                package: "qemu-system-x86",
            },
            Self::Aarch64 => Tool {
                program: "qemu-system-aarch64",
                package: "qemu-system-arm",
            },
        }
    }

    /// Machine and processor. KVM is never used: the same machine everywhere, and many hosts cannot
    /// nest it.
    pub(super) const fn machine(self) -> &'static [&'static str] {
        match self {
            // Copies a byte at a time, and an instruction on both sides of each access to user
            // memory, take a fifth of the time under emulation.
            Self::X86_64 => &["-machine", "q35", "-cpu", "max,-erms,-fsrm,-smap"],
            // The architected algorithm of pointer authentication takes half of the time under
            // emulation.
            Self::Aarch64 => &["-machine", "virt", "-cpu", "max,pauth-impdef=on"],
        }
    }

    pub(super) const fn console(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// The architecture of this machine.
    pub(crate) fn host() -> Result<Self> {
        let is_host = |arch: &&Self| arch.is_host();
        Self::value_variants()
            .iter()
            .find(is_host)
            .copied()
            .with_context(|| format!("ifmon does not run on {}", env::consts::ARCH))
    }

    /// A target whose programs can be linked here without any shared library. A foreign one brings
    /// its own C library.
    pub(crate) fn rust_target(self) -> String {
        let library = if self.is_host() { "gnu" } else { "musl" };
        format!("{self}-unknown-linux-{library}")
    }

    pub(crate) fn is_host(self) -> bool {
        env::consts::ARCH == self.name()
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
