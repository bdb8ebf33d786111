//! The documents, and what they point to beside each other.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::Item;
use crate::workspace;

/// Where they are installed.
pub(super) const FOLDER: &str = "usr/share/doc/ifmon/";
const PAGES: [&str; 2] = ["README.md", "docs"];
/// In the folder `ifmon` of the tree, which is not there in a package.
const POINTED_TO: [&str; 6] = [
    "assets",
    "clients",
    "examples",
    "io.ifmon.varlink",
    "packaging/Dockerfile",
    "packaging/daemonset.yaml",
];

pub(super) fn items() -> Result<Vec<Item>> {
    let mut items = Vec::new();
    for page in PAGES {
        add(&mut items, workspace::root(), page)?;
    }
    for name in POINTED_TO {
        add(&mut items, &workspace::root().join("ifmon"), name)?;
    }
    for item in &mut items {
        if item.path.ends_with(".md") {
            let text = std::str::from_utf8(&item.content)?;
            item.content = text
                .replace("](ifmon/", "](")
                .replace("](../ifmon/", "](../")
                .into();
        }
    }
    Ok(items)
}

/// Adds `name` in `tree`, with all that is in it.
fn add(items: &mut Vec<Item>, tree: &Path, name: &str) -> Result<()> {
    let path = tree.join(name);
    let context = || format!("cannot read {}", path.display());
    if !path.is_dir() {
        items.push(Item {
            path: format!("{FOLDER}{name}"),
            mode: 0o644,
            content: fs::read(&path).with_context(context)?,
        });
        return Ok(());
    }
    let mut names = fs::read_dir(&path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(context)?;
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names {
        let file_name = entry.file_name();
        let file_name = file_name.to_str().context("a file has another name")?;
        add(items, tree, &format!("{name}/{file_name}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file or folder that a link in `page` is to; `None` for one to elsewhere.
    fn target(page: &str, link: &str) -> Option<String> {
        let (file, _) = link.split_once('#').unwrap_or((link, ""));
        if file.is_empty() || file.contains("://") {
            return None;
        }
        let mut parts: Vec<&str> = page.split('/').collect();
        parts.pop();
        for part in file.split('/') {
            match part {
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        Some(parts.join("/"))
    }

    #[test]
    fn what_a_page_points_to_is_installed_with_it() {
        let items = items().expect("they can be read");
        let mut count = 0;
        for page in items.iter().filter(|item| item.path.ends_with(".md")) {
            let text = std::str::from_utf8(&page.content).expect("text");
            let links = text.split("](").skip(1);
            for link in links.filter_map(|rest| Some(rest.split_once(')')?.0)) {
                let Some(target) = target(&page.path, link) else {
                    continue;
                };
                let inside = format!("{target}/");
                let mut paths = items.iter().map(|item| &item.path);
                assert!(
                    paths.any(|path| *path == target || path.starts_with(&inside)),
                    "{}: {link}",
                    page.path
                );
                count += 1;
            }
        }
        assert!(count > 20, "{count}");
    }
}
