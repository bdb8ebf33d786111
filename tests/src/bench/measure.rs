//! `bench measure`: goes through the rows and prints the figures as JSON.

use std::{fs, process::Command, thread};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::{
    burst, bystanders, churn, clients, figure::Figures, latency, namespaces, start,
    subject::Subject, unrelated, watches,
};
use crate::program;

/// The rows, by the names that `--only` takes.
const ROWS: [(&str, Row); 10] = [
    ("unrelated", unrelated::measure),
    ("bystanders", bystanders::measure),
    ("watches", watches::measure),
    ("latency", latency::measure),
    ("namespaces", namespaces::measure),
    ("burst", burst::measure),
    ("clients", clients::measure),
    ("churn", churn::measure),
    ("start", start::measure),
    ("size", size),
];

type Row = fn(&Plan, &mut Figures) -> Result<()>;

/// What to measure, and how much of it.
pub(super) struct Plan {
    /// In an emulated machine: slower by an order of magnitude, and BPF is allowed.
    pub(super) emulated: bool,
    /// A small run, to see that everything works.
    pub(super) quick: bool,
    pub(super) subjects: Vec<Subject>,
}

impl Plan {
    /// One of three sizes of the same work.
    pub(super) fn scale<T>(&self, native: T, emulated: T, quick: T) -> T {
        match (self.quick, self.emulated) {
            (true, _) => quick,
            (false, true) => emulated,
            (false, false) => native,
        }
    }

    /// What the kernel's account of the time of a BPF program is in.
    pub(super) fn bpf_unit(&self) -> &'static str {
        if self.emulated {
            // Its clock counts them.
            "instructions"
        } else {
            "ns"
        }
    }

    /// The least that can be done in the way of each backend.
    pub(super) fn bare(&self) -> impl Iterator<Item = Subject> {
        self.ifmon().filter_map(|subject| match subject {
            Subject::Ifmon("netlink-unfiltered") => None,
            Subject::Ifmon(backend) => Some(Subject::Bare(backend)),
            _ => None,
        })
    }

    pub(super) fn ifmon(&self) -> impl Iterator<Item = Subject> {
        self.subjects
            .iter()
            .copied()
            .filter(|subject| subject.is_ifmon())
    }
}

pub(super) fn run(options: &[&str]) -> Result<()> {
    let mut emulated = false;
    let mut quick = false;
    let mut only = None;
    let mut options = options.iter();
    while let Some(&option) = options.next() {
        match option {
            "--emulated" => emulated = true,
            "--quick" => quick = true,
            "--only" => only = options.next().copied(),
            _ => bail!("unknown option {option}"),
        }
    }
    if let Some(only) = only
        && !ROWS.iter().any(|&(name, _)| name == only)
    {
        bail!(
            "no row {only}; there are {}",
            ROWS.map(|(name, _)| name).join(", ")
        );
    }
    let mut subjects = if emulated {
        vec!["fentry", "kprobe", "netlink-ebpf", "netlink"]
    } else if has_socket_filter()? {
        vec!["netlink-ebpf", "netlink", "netlink-unfiltered"]
    } else {
        eprintln!("left out: netlink-ebpf, which does not work on this kernel");
        vec!["netlink", "netlink-unfiltered"]
    }
    .into_iter()
    .map(Subject::Ifmon)
    .collect::<Vec<_>>();
    if Subject::before().is_some() {
        let backends: &[_] = if emulated {
            &["fentry", "kprobe", "netlink"]
        } else {
            &["netlink"]
        };
        subjects.extend(backends.iter().map(|backend| Subject::Before(backend)));
    }
    subjects.extend([Subject::IpMonitor, Subject::Subscribe]);
    subjects.extend(Subject::go().map(|_| Subject::Go));
    subjects.push(Subject::Poll);
    let plan = Plan {
        emulated,
        quick,
        subjects,
    };
    let mut figures = Figures {
        place: place(emulated)?,
        quick,
        figures: Vec::new(),
    };
    let mut failed = None;
    for (name, measure) in ROWS {
        if only.is_none_or(|only| only == name) {
            eprintln!("measuring {name}");
            // What the other rows gave should not be lost.
            if let Err(error) = measure(&plan, &mut figures) {
                let error = error.context(format!("cannot measure {name}"));
                eprintln!("{error:#}");
                failed = failed.or(Some(error));
            }
        }
    }
    println!("{}", figures.to_json());
    failed.map_or(Ok(()), Err)
}

/// Does this kernel take a BPF program as the filter of a socket?
fn has_socket_filter() -> Result<bool> {
    let output = Command::new(program::path())
        .args(["--check", "--json"])
        .output()?;
    let check: Value = serde_json::from_slice(&output.stdout)?;
    let backends = check["backends"].as_array().context("no backends")?;
    let works = |check: &Value| check["backend"] == "netlink-ebpf" && check["works"] == true;
    Ok(backends.iter().any(works))
}

/// The machine and its kernel, in words.
fn place(emulated: bool) -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    // What follows the version names a build, or a host.
    let version = release.trim().split('-').next().unwrap_or_default();
    let cores = thread::available_parallelism()?;
    Ok(if emulated {
        format!(
            "Debian's Linux {version}, emulated; its clock counts instructions, one a nanosecond"
        )
    } else {
        format!("Linux {version}, {cores} cores, shared with other work")
    })
}

fn size(plan: &Plan, figures: &mut Figures) -> Result<()> {
    if !plan.emulated {
        let bytes = fs::metadata(program::path())?.len();
        figures.push("size", "release binary", "ifmon", bytes as f64 / 1e6, "MB");
        figures.goal(4.0);
    }
    Ok(())
}
