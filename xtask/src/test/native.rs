//! The scenarios on the kernel that runs this.

use std::{io, process::Stdio, sync::Mutex};

use anyhow::{Context as _, Result};

use super::{Counts, build::Programs, lock, matrix::Matrix, scenarios::Results};
use crate::host;

/// Those that work wherever namespaces do. What BPF needs is had in the emulated kernels, and not on every host.
const BACKENDS: &str = "netlink,netlink-unfiltered";

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
    println!("scenarios on this kernel");
    let args: Vec<&str> = ["--backends", BACKENDS].into_iter().chain(filter).collect();
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
    Ok(counts)
}
