//! The Debian package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Item, VERSION, source_time, write};
use crate::{command, workspace};

/// Puts the items and the control files into `tree`, and packs it.
pub(super) fn build(items: &[Item], tree: &Path, dist: &Path) -> Result<PathBuf> {
    let architecture = command::output(Command::new("dpkg").arg("--print-architecture"))?;
    let architecture = architecture.trim();
    let bytes: usize = items.iter().map(|item| item.content.len()).sum();
    for item in items {
        write(&tree.join(item.path), item.mode, &item.content)?;
    }
    let control = template("control")?
        .replace("@VERSION@", VERSION)
        .replace("@ARCHITECTURE@", architecture)
        .replace("@SIZE@", &bytes.div_ceil(1024).to_string());
    write(&tree.join("DEBIAN/control"), 0o644, control.as_bytes())?;
    for script in ["postinst", "prerm", "postrm"] {
        let path = tree.join("DEBIAN").join(script);
        write(&path, 0o755, template(script)?.as_bytes())?;
    }
    let package = dist.join(format!("ifmon_{VERSION}_{architecture}.deb"));
    let mut dpkg_deb = Command::new("dpkg-deb");
    // No newer compression: every dpkg reads xz.
    dpkg_deb.args(["--build", "--root-owner-group", "-Zxz"]);
    if let Some(time) = source_time() {
        dpkg_deb.env("SOURCE_DATE_EPOCH", time);
    }
    command::output(dpkg_deb.arg(tree).arg(&package))?;
    Ok(package)
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
