//! The package that an upgrade goes to: the same files with a higher version.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::command;

/// Packs `package` again as `newer`, by way of the directory `unpacked`.
pub(super) fn newer(package: &Path, unpacked: &Path, newer: &Path) -> Result<()> {
    command::output(
        Command::new("dpkg-deb")
            .arg("--raw-extract")
            .args([package, unpacked]),
    )?;
    let path = unpacked.join("DEBIAN/control");
    let control = fs::read_to_string(&path).context("the package has no control file")?;
    let raised = raise(&control);
    ensure!(raised != control, "the package has no version");
    fs::write(&path, raised)?;
    command::output(
        Command::new("dpkg-deb")
            // Unpacked in an emulated machine, where decompression takes its time.
            .args(["--build", "--root-owner-group", "-Znone"])
            .args([unpacked, newer]),
    )
    .map(drop)
}

fn raise(control: &str) -> String {
    let lines = control
        .lines()
        .map(|line| match line.strip_prefix("Version: ") {
            Some(version) => format!("Version: {version}+newer\n"),
            None => format!("{line}\n"),
        });
    lines.collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_version_is_raised() {
        assert_eq!(
            super::raise("Package: ifmon\nVersion: 1.0\nSection: net\n"),
            "Package: ifmon\nVersion: 1.0+newer\nSection: net\n"
        );
    }
}
