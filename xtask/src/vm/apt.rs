//! Debian packages of any suite and architecture, through apt with a state of its own: the
//! machine's sources, lists and installed packages are neither used nor changed, and signatures and
//! checksums are verified as ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command,
    host::{self, Missing, Tool},
};

const TOOLS: [Tool; 2] = [
    Tool {
        program: "apt-get",
        package: "apt",
    },
    Tool {
        program: "dpkg-deb",
        package: "dpkg",
    },
];

/// The keys of all suites; the machine's own sources may name a file with those of its release
/// only.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The package lists of one suite for one architecture.
pub(super) struct Apt {
    dir: PathBuf,
    architecture: &'static str,
}

impl Apt {
    /// Fetches the lists, keeping everything below `dir`, which must not be used by anybody else.
    pub(super) fn new(dir: &Path, suite: &str, architecture: &'static str) -> Result<Self> {
        host::need(&TOOLS)?;
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).with_context(|| format!("cannot make {}", sub.display()))?;
        }
        fs::write(dir.join("sources.list"), sources(suite)?)?;
        // Nothing is installed, as far as this apt knows.
        fs::write(dir.join("state/status"), "")?;
        let apt = Self {
            dir: dir.to_owned(),
            architecture,
        };
        command::output(apt.command("apt-get").args(["-qq", "update"])).map_err(|error| {
            Missing(format!(
                "cannot fetch the package lists of Debian {suite}: {error:#}"
            ))
        })?;
        Ok(apt)
    }

    /// Downloads `packages` and what they depend on, directly or not, as far as `follow` says yes;
    /// into `into`.
    pub(super) fn download(
        &self,
        packages: &[&str],
        follow: impl Fn(&str) -> bool,
        into: &Path,
    ) -> Result<()> {
        let names = self.with_dependencies(packages, follow)?;
        fs::create_dir_all(into)?;
        command::output(
            self.command("apt-get")
                .args(["-qq", "download"])
                .args(&names)
                .current_dir(into),
        )
        .map_err(|error| {
            Missing(format!(
                "cannot download {}: {error:#}",
                packages.join(" and ")
            ))
        })?;
        Ok(())
    }

    fn with_dependencies(
        &self,
        packages: &[&str],
        follow: impl Fn(&str) -> bool,
    ) -> Result<BTreeSet<String>> {
        let text = command::output(
            self.command("apt-cache")
                .args(["depends", "--recurse", "--important"])
                .args(packages),
        )
        .with_context(|| format!("no package {}", packages.join(", ")))?;
        let graph = dependencies(&text);
        let mut found = BTreeSet::new();
        let mut wanted: Vec<_> = packages.to_vec();
        while let Some(package) = wanted.pop() {
            if found.insert(package.to_owned())
                && let Some(dependencies) = graph.get(package)
            {
                wanted.extend(dependencies.iter().filter(|name| follow(name)));
            }
        }
        Ok(found)
    }

    fn command(&self, program: &str) -> Command {
        let Self { dir, architecture } = self;
        let path = |key: &str, sub: &str| format!("{key}={}", dir.join(sub).display());
        let options = [
            path("Dir::State", "state"),
            path("Dir::State::status", "state/status"),
            path("Dir::Cache", "cache"),
            path("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("APT::Architecture={architecture}"),
            format!("APT::Architectures={architecture}"),
            // The unprivileged user that apt changes to could not write into a directory of
            // root's.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let mut command = Command::new(program);
        for option in options {
            command.arg("-o").arg(option);
        }
        // Its output is read by us.
        command.env("LC_ALL", "C");
        command
    }
}

/// The `sources.list` of a suite: the archive that this machine uses, with another suite.
pub(crate) fn sources(suite: &str) -> Result<String> {
    let Source { uri, keyrings } = Source::find()?;
    let signed_by = match keyrings.as_slice() {
        [] => String::new(),
        keyrings => format!("[signed-by={}] ", keyrings.join(",")),
    };
    Ok(format!("deb {signed_by}{uri} {suite} main\n"))
}

/// Unpacks every package in `packages` into `root`.
pub(crate) fn unpack(packages: &Path, root: &Path) -> Result<()> {
    let entries = fs::read_dir(packages)
        .with_context(|| format!("cannot read the directory {}", packages.display()))?;
    for entry in entries {
        let package = entry?.path();
        if package
            .extension()
            .is_some_and(|extension| extension == "deb")
        {
            command::output(Command::new("dpkg-deb").arg("-x").args([&package, root]))
                .with_context(|| format!("cannot unpack {}", package.display()))?;
        }
    }
    Ok(())
}

/// The Debian archive that this machine uses.
struct Source {
    uri: String,
    keyrings: Vec<String>,
}

impl Source {
    fn find() -> Result<Self> {
        if let Some(source) = Self::configured()? {
            return Ok(source);
        }
        // What an archive calls itself is known from its lists, which a fresh system may not have
        // fetched yet.
        if host::is_root() {
            host::update_package_lists()?;
        }
        Self::configured()?.ok_or_else(|| {
            let why = "apt has no Debian archive among its sources, or never fetched its lists (`apt-get update`)";
            Missing(why.to_owned()).into()
        })
    }

    fn configured() -> Result<Option<Self>> {
        let text = command::output(
            Command::new("apt-get").args(["indextargets", "Created-By: Packages"]),
        )?;
        let Some(target) = text.split("\n\n").find(|target| is_debian(target)) else {
            return Ok(None);
        };
        let uri = field(target, "Repo-URI").context("apt says no address of its archive")?;
        let mut keyrings: Vec<_> = field(target, "Sourcesentry")
            .and_then(|entry| entry.rsplit_once(':'))
            .and_then(|(path, _line)| fs::read_to_string(path).ok())
            .map(|sources| signed_by(&sources))
            .unwrap_or_default();
        if Path::new(KEYRING).exists() && !keyrings.iter().any(|keyring| keyring == KEYRING) {
            keyrings.push(KEYRING.to_owned());
        }
        Ok(Some(Self {
            uri: uri.to_owned(),
            keyrings,
        }))
    }
}

fn field<'a>(target: &'a str, key: &str) -> Option<&'a str> {
    target
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
}

/// Security updates are an archive of their own, with another label; it has no package of every
/// suite.
fn is_debian(target: &str) -> bool {
    field(target, "Origin") == Some("Debian")
        && field(target, "Label") == Some("Debian")
        && field(target, "Component") == Some("main")
}

/// The keyrings that a file of sources names, in either of its two formats.
fn signed_by(sources: &str) -> Vec<String> {
    let mut keyrings: Vec<_> = sources
        .lines()
        .filter(|line| !line.starts_with('#') && line.to_ascii_lowercase().contains("signed-by"))
        .flat_map(|line| line.split([' ', '\t', '=', ',', '[', ']']))
        .filter(|word| word.starts_with('/') && Path::new(word).exists())
        .map(str::to_owned)
        .collect();
    keyrings.sort();
    keyrings.dedup();
    keyrings
}

/// Reads what `apt-cache depends --recurse` prints: a package at the start of a line, below it one
/// dependency a line.
fn dependencies(text: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut graph: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut package = "";
    for line in text.lines() {
        if let Some((kind, name)) = line.split_once(": ") {
            if kind.trim_start_matches([' ', '|']).ends_with("Depends") {
                graph.entry(package).or_default().push(name);
            }
        } else if !line.starts_with(' ') {
            package = line;
        }
    }
    graph
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read() {
        let graph = dependencies(
            "iproute2\n |Depends: debconf\n  Depends: <debconf-2.0>\n    cdebconf\n    debconf\n  Depends: libc6\n\
             libc6\n  PreDepends: libgcc-s1\n  Breaks: old\n",
        );
        assert_eq!(graph["iproute2"], ["debconf", "<debconf-2.0>", "libc6"]);
        assert_eq!(graph["libc6"], ["libgcc-s1"]);
    }

    #[test]
    fn an_archive_is_told_from_its_neighbours() {
        let debian =
            "Origin: Debian\nLabel: Debian\nComponent: main\nRepo-URI: http://a.example/debian/\n";
        assert!(is_debian(debian));
        assert_eq!(field(debian, "Repo-URI"), Some("http://a.example/debian/"));
        assert!(!is_debian(
            "Origin: Debian\nLabel: Debian-Security\nComponent: main\n"
        ));
        assert!(!is_debian(
            "Origin: Ubuntu\nLabel: Ubuntu\nComponent: main\n"
        ));
    }
}
