//! Kernel modules in the order in which they have to be loaded.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{
    command,
    host::{self, Tool},
};

/// A module of a kernel.
pub(super) struct Module {
    pub(super) name: String,
    /// What the kernel loads, not compressed.
    pub(super) content: Vec<u8>,
}

/// The modules `names` and those that they depend on, each after its dependencies. Names that
/// `tree` does not have are left out: what matters to a kernel may be built into it.
pub(super) fn in_load_order(tree: &Path, names: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(tree, &mut files)?;
    let mut order = Order {
        files,
        seen: BTreeSet::new(),
        modules: Vec::new(),
    };
    for name in names {
        order.add(name)?;
    }
    Ok(order.modules)
}

/// All modules below `dir`, by name.
fn collect(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir)
        .with_context(|| format!("cannot read the directory {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some((name, "ko" | "ko.xz" | "ko.zst" | "ko.gz")) =
            entry.file_name().to_string_lossy().split_once('.')
        {
            files.insert(canonical(name), path);
        }
    }
    Ok(())
}

/// The kernel takes `-` and `_` in a module's name as the same.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

struct Order {
    files: BTreeMap<String, PathBuf>,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Order {
    fn add(&mut self, name: &str) -> Result<()> {
        let name = canonical(name);
        if !self.seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            return Ok(());
        };
        let content = read(path).with_context(|| format!("cannot read {}", path.display()))?;
        for dependency in depends(&content)
            .with_context(|| format!("{} does not say what it depends on", path.display()))?
        {
            self.add(&dependency)?;
        }
        self.modules.push(Module { name, content });
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => Tool {
            program: "xz",
            package: "xz-utils",
        },
        Some("zst") => Tool {
            program: "zstd",
            package: "zstd",
        },
        Some("gz") => Tool {
            program: "gzip",
            package: "gzip",
        },
        _ => return Ok(fs::read(path)?),
    };
    host::need(std::slice::from_ref(&tool))?;
    command::bytes(Command::new(tool.program).arg("-dc").arg(path))
}

/// What `.modinfo` says: Debian's packages have no `modules.dep`, which is made when one is
/// installed.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let value = module
        .split(|&byte| byte == 0)
        .find_map(|string| string.strip_prefix(b"depends="))
        .context("it has no module information")?;
    let value = std::str::from_utf8(value)?;
    Ok(value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::depends;

    #[test]
    fn dependencies_are_read_from_the_module() {
        let module = b"ELF\0license=GPL\0depends=udp_tunnel,ip6-udp-tunnel\0name=x\0";
        assert_eq!(
            depends(module).expect("they are there"),
            ["udp_tunnel", "ip6_udp_tunnel"]
        );
        assert!(depends(b"ELF\0depends=\0").expect("it has none").is_empty());
        assert!(depends(b"ELF").is_err());
    }
}
