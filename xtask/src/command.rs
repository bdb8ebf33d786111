//! Running other programs, with errors that name the program.

use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Runs it with its output going where ours goes.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot run {}", name(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs it for the text that it prints on its standard output. Its standard error is shown only in
/// the error.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let stdout = bytes(command)?;
    String::from_utf8(stdout).with_context(|| format!("{} printed no text", name(command)))
}

/// The same for any bytes.
pub(crate) fn bytes(command: &mut Command) -> Result<Vec<u8>> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", name(command)))?;
    if !status.success() {
        bail!(
            "`{}` ended with {status}: {}",
            line(command),
            last_lines(&stderr)
        );
    }
    Ok(stdout)
}

/// The end of what a program said, on one line.
fn last_lines(stderr: &[u8]) -> String {
    const LINES: usize = 3;
    let text = String::from_utf8_lossy(stderr);
    let mut lines: Vec<_> = text.trim().lines().rev().take(LINES).collect();
    lines.reverse();
    lines.join("; ")
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

/// Program and first argument are enough to know it by: the whole line of a cargo call fills a
/// screen.
fn line(command: &Command) -> String {
    let mut line = name(command);
    if let Some(first) = command.get_args().next() {
        line.push(' ');
        line.push_str(&first.to_string_lossy());
    }
    line
}
