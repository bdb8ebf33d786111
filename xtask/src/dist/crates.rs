//! What crates.io would get: packed, looked into, and built from what was packed.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{command, workspace};

/// A package that is published, and the licences that have to be in it.
struct Published {
    name: &'static str,
    licences: [&'static str; 2],
}

const PUBLISHED: [Published; 2] = [
    Published {
        name: "ifmon-ebpf",
        licences: ["LICENSE-GPL2", "LICENSE-MIT"],
    },
    Published {
        name: "ifmon-watch",
        licences: ["LICENSE-APACHE", "LICENSE-MIT"],
    },
];

/// Where people read how to install.
const PAGES: [&str; 2] = ["README.md", "ifmon/README.md"];

pub(super) fn check() -> Result<()> {
    for Published { name, licences } in PUBLISHED {
        let files = command::output(cargo("package").args(["--list", "--package", name]))?;
        for wanted in licences.iter().chain(&["README.md", "Cargo.toml"]) {
            ensure!(
                files.lines().any(|file| file == *wanted),
                "{name} has no {wanted} in it"
            );
        }
    }
    for page in PAGES {
        let path = workspace::root().join(page);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        installs(&text).with_context(|| page.to_owned())?;
    }
    let mut publish = cargo("publish");
    publish.args(["--dry-run", "--locked"]);
    publish.args(PUBLISHED.iter().flat_map(|it| ["--package", it.name]));
    if let Err(error) = command::output(&mut publish) {
        let why = format!("{error:#}");
        // It asks the registry which versions there are.
        if why.contains("failed to query") || why.contains("failed to download") {
            println!("left out: crates.io cannot be asked whether it would take them: {why}");
            return Ok(());
        }
        return Err(error.context("crates.io would not take what is packed"));
    }
    let names = PUBLISHED.map(|it| it.name).join(" and ");
    println!("{names} can be published");
    Ok(())
}

fn cargo(subcommand: &str) -> Command {
    let mut cargo = Command::new("cargo");
    cargo
        .current_dir(workspace::root())
        // What is being worked on is what is looked at.
        .args([subcommand, "--allow-dirty"])
        .arg("--target-dir")
        // Apart, since its program would take the place of one that was built with other features.
        .arg(workspace::target_dir().join("crates"));
    cargo
}

/// Does a page have people install a package of ours, and none of somebody else's?
fn installs(page: &str) -> Result<()> {
    let mut named = 0;
    for line in page.lines() {
        let said = ["cargo install ", "cargo add "]
            .iter()
            .find_map(|begin| Some(line.split_once(begin)?.1));
        let Some(word) = said.and_then(|said| said.split([' ', '`']).next()) else {
            continue;
        };
        if word.starts_with('-') {
            continue;
        }
        ensure!(
            PUBLISHED.iter().any(|it| it.name == word),
            "{word} is no package of ours: {line}"
        );
        named += 1;
    }
    ensure!(named > 0, "it does not say how to install from crates.io");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::installs;

    #[test]
    fn a_page_names_packages_of_ours_only() {
        assert!(installs("cargo install ifmon-watch  # a program").is_ok());
        assert!(installs("`cargo add ifmon-watch`").is_ok());
        for page in [
            "",
            "cargo install --path ifmon",
            "cargo install ifmon",
            "cargo add ifmon",
        ] {
            assert!(installs(page).is_err(), "{page}");
        }
    }
}
