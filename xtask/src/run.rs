//! Builds the program and becomes it, with the privileges that BPF needs where they can be had.

use std::{
    ffi::OsString,
    io::{IsTerminal as _, stdin},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Error, Result};

use crate::{command, host, workspace};

/// Build ifmon and run it with the privileges that BPF needs: `cargo xtask run -- wg0`
#[derive(clap::Args)]
pub(crate) struct Options {
    /// What ifmon is given
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

/// Comes back only when the program could not be started: its exit status is ours.
pub(crate) fn run(Options { args }: Options) -> Result<std::process::ExitCode> {
    let program = build()?;
    let mut command = privileged(&program);
    let error = command.args(args).exec();
    Err(Error::new(error).context(format!("cannot run {}", program.display())))
}

/// Builds the release program for this machine and says where it is.
pub(crate) fn build() -> Result<PathBuf> {
    let target_dir = workspace::target_dir();
    command::run(
        Command::new("cargo")
            .current_dir(workspace::root())
            .args(["build", "--quiet", "--release"])
            .args(["--package", "ifmon-watch", "--bin", "ifmon", "--target-dir"])
            .arg(&target_dir),
    )
    .context("cannot build ifmon")?;
    Ok(target_dir.join("release/ifmon"))
}

fn privileged(program: &Path) -> Command {
    if host::is_root() {
        return Command::new(program);
    }
    if may_sudo() {
        eprintln!("running ifmon through sudo, since BPF needs CAP_BPF and CAP_PERFMON");
        let mut command = Command::new("sudo");
        command.arg("--").arg(program);
        return command;
    }
    eprintln!("running ifmon without privileges, since sudo is not to be had: it will use netlink");
    Command::new(program)
}

/// Will sudo run something: at once, or after asking somebody for a password?
fn may_sudo() -> bool {
    host::is_program("sudo")
        && (stdin().is_terminal()
            || Command::new("sudo")
                .args(["--non-interactive", "true"])
                .stdin(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success()))
}
