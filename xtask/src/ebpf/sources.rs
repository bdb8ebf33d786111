//! The record beside the objects of all that decides their bytes.
//!
//! It needs none of the tools that build them, so that an ordinary test run notices a source that
//! was changed and an object that was not.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use sha2::{Digest as _, Sha256};

use super::{
    build::{LINK_ARGS, PROFILE, VARIANTS},
    toolchain::{BPF_LINKER, RUSTC},
};

/// Where the record is, seen from the workspace.
pub(super) const RECORD: &str = "ifmon-ebpf/object/SOURCES";

const PACKAGE_DIR: &str = "ifmon-ebpf";

/// The record as it has to be now, of the workspace at `root`.
pub(super) fn record(root: &Path) -> Result<String> {
    let mut record = String::from(
        "# What the objects in this directory were made from, and their own sums. Written by `cargo xtask ebpf`.\n",
    );
    writeln!(record, "rustc {RUSTC}")?;
    writeln!(record, "bpf-linker {BPF_LINKER} {}", LINK_ARGS.join(" "))?;
    for setting in PROFILE {
        writeln!(record, "{setting}")?;
    }
    let lock = root.join("Cargo.lock");
    let lock =
        fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    for Locked { name, version, .. } in aya_packages(&lock) {
        writeln!(record, "{name} {version}")?;
    }
    for path in files(root)? {
        let file = root.join(&path);
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        // The format of `sha256sum`, so that anybody can check a line.
        writeln!(record, "{:x}  {path}", Sha256::digest(content))?;
    }
    Ok(record)
}

/// Says in a sentence what changed since the record was written, if anything did.
pub(super) fn compare(root: &Path) -> Result<Option<String>> {
    let now = record(root)?;
    let path = root.join(RECORD);
    let then =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if now == then {
        return Ok(None);
    }
    let (now, then) = (
        now.lines().collect::<BTreeSet<_>>(),
        then.lines().collect::<BTreeSet<_>>(),
    );
    // The last word of a line names what the line is about, but for versions, where it is the
    // first.
    let about = |line: &&str| {
        let word = match line.split_once("  ") {
            Some((_, path)) => path,
            None => line.split([' ', '=']).next().unwrap_or_default(),
        };
        word.to_owned()
    };
    let changed = now
        .symmetric_difference(&then)
        .map(about)
        .collect::<BTreeSet<_>>();
    let changed = changed.into_iter().collect::<Vec<_>>().join(", ");
    Ok(Some(format!(
        "changed since the BPF objects were built: {changed}; `cargo xtask ebpf` builds them again"
    )))
}

/// Everything of the package that the compiler reads, and the objects; in a fixed order, with `/`
/// between the parts.
fn files(root: &Path) -> Result<Vec<String>> {
    let mut files = vec![format!("{PACKAGE_DIR}/Cargo.toml")];
    let mut dirs = vec![PathBuf::from(PACKAGE_DIR).join("src")];
    while let Some(dir) = dirs.pop() {
        let entries = fs::read_dir(root.join(&dir))
            .with_context(|| format!("cannot read the directory {}", dir.display()))?;
        for entry in entries {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(
                    path.to_str()
                        .context("a source's name is not UTF-8")?
                        .to_owned(),
                );
            }
        }
    }
    files.extend(VARIANTS.map(|variant| variant.object()));
    files.sort();
    Ok(files)
}

/// A package in `Cargo.lock`.
struct Locked<'a> {
    name: &'a str,
    version: &'a str,
    /// `name`, or `name version` where there are several of the name.
    dependencies: Vec<&'a str>,
}

/// The packages of aya that the program depends on. What they depend on in turn are tools that
/// write code at compile time; to pin those as well would ask for a new object with every `cargo
/// update`, and give the same one.
fn aya_packages(lock: &str) -> Vec<Locked<'_>> {
    let mut packages = locked(lock);
    let mut wanted = vec![PACKAGE_DIR];
    let mut found = Vec::new();
    while let Some(dependency) = wanted.pop() {
        let (name, version) = match dependency.split_once(' ') {
            Some((name, version)) => (name, Some(version)),
            None => (dependency, None),
        };
        let is_wanted = |package: &Locked<'_>| {
            package.name == name && version.is_none_or(|version| package.version == version)
        };
        // Taken out, so that each is visited once.
        if let Some(at) = packages.iter().position(is_wanted) {
            let package = packages.swap_remove(at);
            wanted.extend(&package.dependencies);
            found.push(package);
        }
    }
    found.retain(|package| package.name.starts_with("aya-"));
    found.sort_by_key(|package| (package.name, package.version));
    found
}

/// Reads as much of `Cargo.lock` as is needed; cargo writes it, always in the same layout.
fn locked(lock: &str) -> Vec<Locked<'_>> {
    fn quoted(line: &str) -> Option<&str> {
        line.split('"').nth(1)
    }
    lock.split("[[package]]")
        .filter_map(|block| {
            let field = |key: &str| {
                block
                    .lines()
                    .find(|line| line.starts_with(key))
                    .and_then(quoted)
            };
            Some(Locked {
                name: field("name = ")?,
                version: field("version = ")?,
                dependencies: block
                    .lines()
                    .filter(|line| line.starts_with(" \""))
                    .filter_map(quoted)
                    .collect(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_objects_in_the_tree_belong_to_the_sources_in_the_tree() {
        let difference = compare(crate::workspace::root()).expect("the record can be made");
        assert_eq!(difference, None);
    }

    #[test]
    fn only_what_the_program_is_made_of_is_recorded() {
        let lock = r#"
version = 4

[[package]]
name = "aya"
version = "0.14.0"
dependencies = [
 "aya-obj",
]

[[package]]
name = "aya-ebpf"
version = "0.2.1"
dependencies = [
 "aya-ebpf-macros 0.2.0",
 "syn",
]

[[package]]
name = "aya-ebpf-macros"
version = "0.1.0"

[[package]]
name = "aya-ebpf-macros"
version = "0.2.0"
dependencies = [
 "aya-ebpf",
]

[[package]]
name = "ifmon-ebpf"
version = "0.1.0"
dependencies = [
 "aya-ebpf",
]

[[package]]
name = "syn"
version = "2.0.0"
"#;
        let packages = aya_packages(lock)
            .iter()
            .map(|Locked { name, version, .. }| format!("{name} {version}"))
            .collect::<Vec<_>>();
        assert_eq!(packages, ["aya-ebpf 0.2.1", "aya-ebpf-macros 0.2.0"]);
    }
}
