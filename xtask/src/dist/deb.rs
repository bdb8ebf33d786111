//! The Debian package.
//!
//! By hand, since the two tools for it would add a part and do the rest no better: `cargo-deb`
//! builds one program in one way, where this takes the man page and the completions from a second
//! build, and neither it nor `dh_installsystemd(1)` writes maintainer scripts for the instances of
//! a template, which all of ours are about.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Item, VERSION, gzip, source_time, write};
use crate::{command, workspace};

/// Puts the items and the control files into `tree`, and packs it.
pub(super) fn build(items: &[Item], tree: &Path, dist: &Path) -> Result<PathBuf> {
    let architecture = command::output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let version = version();
    let bytes: usize = items.iter().map(|item| item.content.len()).sum();
    for item in items {
        write(&tree.join(&item.path), item.mode, &item.content)?;
    }
    // What means something to Debian's tools only.
    let doc = "usr/share/doc/ifmon/changelog.Debian.gz";
    write(&tree.join(doc), 0o644, &gzip(changelog()?.as_bytes())?)?;
    let overrides = template("lintian-overrides")?;
    let path = tree.join("usr/share/lintian/overrides/ifmon");
    write(&path, 0o644, overrides.as_bytes())?;
    let sums = command::output(
        Command::new("sh")
            .args(["-c", "find usr -type f -print0 | sort -z | xargs -0 md5sum"])
            .current_dir(tree),
    )?;
    write(&tree.join("DEBIAN/md5sums"), 0o644, sums.as_bytes())?;
    let control = template("control")?
        .replace("@VERSION@", &version)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", &bytes.div_ceil(1024).to_string());
    write(&tree.join("DEBIAN/control"), 0o644, control.as_bytes())?;
    for script in ["postinst", "prerm", "postrm"] {
        let path = tree.join("DEBIAN").join(script);
        write(&path, 0o755, template(script)?.as_bytes())?;
    }
    let package = dist.join(format!("ifmon_{version}_{architecture}.deb"));
    let mut dpkg_deb = Command::new("dpkg-deb");
    // No newer compression: every dpkg reads xz.
    dpkg_deb.args(["--build", "--root-owner-group", "-Zxz"]);
    if let Some(time) = source_time() {
        dpkg_deb.env("SOURCE_DATE_EPOCH", time);
    }
    command::output(dpkg_deb.arg(tree).arg(&package))?;
    Ok(package)
}

/// The version, and the first package of it.
fn version() -> String {
    format!("{VERSION}-1")
}

/// The changelog of the package, which points to that of the program.
fn changelog() -> Result<String> {
    let control = template("control")?;
    let maintainer = control
        .lines()
        .find_map(|line| line.strip_prefix("Maintainer: "))
        .context("the package has no maintainer")?;
    let time = source_time().unwrap_or_else(|| "0".to_owned());
    let date = command::output(
        Command::new("date")
            .args(["--utc", "--rfc-email", "--date", &format!("@{time}")])
            .env("LC_ALL", "C"),
    )?;
    Ok(template("changelog")?
        .replace("@VERSION@", &version())
        .replace("@MAINTAINER@", maintainer)
        .replace("@DATE@", date.trim()))
}

/// The copyright file, with the text of the one licence that Debian does not keep a copy of.
pub(super) fn copyright() -> Result<Vec<u8>> {
    let mit = fs::read_to_string(workspace::root().join("LICENSE-MIT"))?;
    // Past the name and the copyright line; an empty line is a dot there.
    let text: Vec<_> = mit
        .lines()
        .skip(4)
        .map(|line| {
            if line.is_empty() {
                " .".to_owned()
            } else {
                format!(" {line}")
            }
        })
        .collect();
    Ok(template("copyright")?
        .replace("@MIT@", &text.join("\n"))
        .into_bytes())
}

fn template(name: &str) -> Result<String> {
    let path = workspace::root().join("ifmon/packaging/debian").join(name);
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}
