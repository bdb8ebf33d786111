//! The programs inside the emulated machine: busybox, and iproute2 with the libraries that it
//! needs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::cpio::Archive;

/// Not busybox-static, which is made for rescue: whatever it starts, it prefers its own `ip` to the
/// one on the PATH.
pub(super) const PACKAGES: [&str; 2] = ["busybox", "iproute2"];
const PROGRAMS: [&str; 3] = ["busybox", "ip", "bridge"];
/// Beyond what the programs need: every dynamically linked Rust program wants these.
const LIBRARIES: [&str; 3] = ["libc.so.6", "libgcc_s.so.1", "libm.so.6"];

/// Adds the programs and their libraries from the packages that were unpacked into `root`.
pub(super) fn add(archive: &mut Archive, root: &Path) -> Result<()> {
    let libraries = Libraries::below(root)?;
    let mut wanted: Vec<_> = LIBRARIES.into_iter().map(str::to_owned).collect();
    for name in PROGRAMS {
        let content = read(&program(root, name)?)?;
        wanted.extend(libraries.named_in(&content));
        archive.file(&format!("bin/{name}"), 0o755, &content);
    }
    let mut added = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if added.insert(name.clone()) {
            let content = read(libraries.path(&name)?)?;
            wanted.extend(libraries.named_in(&content));
            archive.file(&format!("lib/{name}"), 0o755, &content);
        }
    }
    // Where programs for x86_64 look for their loader.
    archive.symlink("lib64", "lib");
    for bin in ["sbin", "usr/bin", "usr/sbin"] {
        archive.symlink(bin, "/bin");
    }
    Ok(())
}

fn program(root: &Path, name: &str) -> Result<PathBuf> {
    ["usr/bin", "usr/sbin", "bin", "sbin"]
        .into_iter()
        .map(|dir| root.join(dir).join(name))
        // A link to another of these directories is absolute, so it would lead out of `root`.
        .find(|path| path.symlink_metadata().is_ok_and(|file| file.is_file()))
        .with_context(|| format!("the packages have no program {name}"))
}

/// Shared libraries by the name that programs need them under.
struct Libraries(BTreeMap<String, PathBuf>);

impl Libraries {
    fn below(root: &Path) -> Result<Self> {
        let mut found = BTreeMap::new();
        for lib in ["usr/lib", "lib"] {
            // One directory an architecture.
            for dir in directories(&root.join(lib))? {
                for entry in fs::read_dir(dir)? {
                    let path = entry?.path();
                    let name = path.file_name().unwrap_or_default().to_string_lossy();
                    if name.contains(".so") && path.is_file() {
                        found.insert(name.into_owned(), path);
                    }
                }
            }
        }
        Ok(Self(found))
    }

    fn path(&self, name: &str) -> Result<&Path> {
        let Self(found) = self;
        found
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("no package has {name}"))
    }

    /// Those that a program or library names anywhere as a string: all that it needs, since those
    /// names are among its strings, and at worst one too many.
    fn named_in(&self, content: &[u8]) -> Vec<String> {
        let Self(found) = self;
        content
            .split(|&byte| byte == 0)
            .filter_map(|string| std::str::from_utf8(string).ok())
            .filter(|string| found.contains_key(*string))
            .map(str::to_owned)
            .collect()
    }
}

fn directories(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.path()));
    let entries = entries.collect::<Result<Vec<_>>>()?;
    Ok(entries.into_iter().filter(|path| path.is_dir()).collect())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
