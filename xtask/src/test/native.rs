//! The scenarios on the kernel that runs this.

use std::{
    io,
    process::{Command, Stdio},
    sync::Mutex,
};

use anyhow::{Context as _, Result};

use super::{Counts, build::Programs, lock, matrix::Matrix, scenarios::Results};
use crate::host;

/// Those that work wherever namespaces do, and the filter of a socket where this kernel takes it.
/// What tracing needs is had in the emulated kernels, and not on every host.
const BACKENDS: &str = "netlink,netlink-unfiltered";
const BACKENDS_WITH_BPF: &str = "netlink-ebpf,netlink,netlink-unfiltered";

/// Does this kernel take a BPF program as the filter of a socket?
pub(super) fn has_socket_filter(programs: &Programs) -> Result<bool> {
    let output = Command::new(&programs.ifmon)
        .args(["--check", "--json"])
        .output()
        .context("cannot run ifmon")?;
    let check = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(check.contains(r#"{"backend":"netlink-ebpf","reason":null,"works":true}"#))
}

pub(super) fn run(
    programs: &Programs,
    filter: Option<&str>,
    matrix: &Mutex<Matrix>,
) -> Result<Counts> {
    if !host::is_root() {
        return Ok(Counts::left_out(
            "the scenarios on this kernel: network namespaces need root",
        ));
    }
    let mut left_out = Counts::default();
    let backends = if has_socket_filter(programs)? {
        BACKENDS_WITH_BPF
    } else {
        left_out = Counts::left_out("netlink-ebpf on this kernel: it does not work here");
        BACKENDS
    };
    println!("scenarios on this kernel");
    let args: Vec<&str> = ["--backends", backends].into_iter().chain(filter).collect();
    let mut child = programs
        .scenarios(&args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run the scenarios")?;
    let mut results = Results::default();
    let mut stdout = child.stdout.take().context("no standard output")?;
    io::copy(&mut stdout, &mut results)?;
    let status = child.wait()?;
    let mut counts = lock(matrix).add("this host", results);
    if !status.success() && counts.failed == 0 {
        counts.add(Counts::failed(&format!(
            "the scenarios ended with {status}"
        )));
    }
    counts.add(left_out);
    Ok(counts)
}
