//! Which kernel to boot.

use std::{fmt, path::PathBuf, str::FromStr};

/// A Debian suite, each with the kernel that it is known for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suite {
    /// Linux 5.10
    Bullseye,
    /// Linux 6.1
    Bookworm,
    /// Linux 6.12
    Trixie,
    /// The newest that is packaged
    Sid,
}

impl Suite {
    /// From the oldest kernel to the newest.
    pub(crate) const ALL: [Self; 4] = [Self::Bullseye, Self::Bookworm, Self::Trixie, Self::Sid];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Suite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|suite| suite.name() == text);
        named.ok_or_else(|| format!("no suite ({})", Self::ALL.map(Self::name).join(", ")))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    Suite(Suite),
    /// An image that the emulator can load, or a directory with one and its modules below.
    Path(PathBuf),
}

impl FromStr for Kernel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(suite) = text.parse() {
            return Ok(Self::Suite(suite));
        }
        let path = PathBuf::from(text);
        if path.exists() {
            return Ok(Self::Path(path));
        }
        let suites = Suite::ALL.map(Suite::name).join(", ");
        Err(format!("neither a suite ({suites}) nor a file"))
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suite(suite) => suite.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}
