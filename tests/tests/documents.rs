//! Does what the documents have people type work?
//!
//! Takes root, for namespaces of its own: whatever a trial starts, mounts or makes ends with it.

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    documents::{Block, Trial, blocks},
    program,
    scratch::Scratch,
};

/// What each trial begins with: an ifmon on PATH, a wg0, and nothing of this machine's.
const BEGIN: &str = r#"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t sysfs sysfs /sys
mkdir /run/netns
ip link set lo up
ip link add wg0 type veth peer name peer

# Waits until a command succeeds, a minute at most: many times what any of them takes.
until_true() {
    tries=0
    until "$@" > /dev/null 2>&1; do
        tries=$((tries + 1))
        [ "$tries" -lt 1200 ] || { echo "still not true: $*"; exit 1; }
        sleep 0.05
    done
}

# Waits for a line in the output.
says() {
    until_true grep -q -e "$1" "${2-out}"
}

# Stands for a program that is not here: what it is given is kept, and then it does something.
stand_in() {
    rm -f "bin/$1"
    printf '#!/bin/sh\necho "$@" >> %s/%s.log\n%s\n' "$PWD" "$1" "${2-:}" > "bin/$1"
    chmod +x "bin/$1"
}
"#;

#[test]
fn every_command_in_the_documents_works() -> Result<()> {
    let mut faults = Vec::new();
    for page in pages()? {
        let text = fs::read_to_string(root().join(&page))?;
        let name = page.display();
        let blocks = blocks(&text)
            .map_err(anyhow::Error::msg)
            .with_context(|| name.to_string())?;
        for block in blocks {
            let place = format!("{name}, line {}", block.line);
            // Past the capture of the test runner: what is left out is told where nothing fails,
            // too.
            match &block.trial {
                Trial::Here(_) => {
                    if let Err(error) = try_out(&block) {
                        faults.push(format!("{place}: {error:#}"));
                    }
                }
                Trial::Systemd(_) => {
                    writeln!(io::stderr(), "left to `cargo xtask systemd`: {place}")?;
                }
                Trial::Left(why) => writeln!(io::stderr(), "not tried, since {why}: {place}")?,
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// Rust in the documents is a part of an example, or of the documentation, which are compiled.
#[test]
fn all_rust_in_the_documents_is_compiled() -> Result<()> {
    let words = |text: &str| {
        let words: Vec<_> = text.split_whitespace().collect();
        words.join(" ")
    };
    let mut compiled = vec![words(
        &fs::read_to_string(root().join("ifmon/src/lib.rs"))?.replace("//!", ""),
    )];
    for entry in fs::read_dir(root().join("ifmon/examples"))? {
        compiled.push(words(&fs::read_to_string(entry?.path())?));
    }
    for page in pages()? {
        let text = fs::read_to_string(root().join(&page))?;
        // `people.rs` has those of the READMEs.
        if !page.starts_with("docs") {
            continue;
        }
        for part in text.split("```rust\n").skip(1) {
            let shown = words(part.split("```").next().context("no end")?);
            ensure!(
                compiled.iter().any(|text| text.contains(&shown)),
                "{}: in no example: {shown}",
                page.display()
            );
        }
    }
    Ok(())
}

#[test]
fn no_link_leads_nowhere() -> Result<()> {
    for page in pages()? {
        let text = fs::read_to_string(root().join(&page))?;
        let folder = page.parent().context("a page is in a folder")?;
        for link in text.split("](").skip(1) {
            let (link, _) = link.split_once(')').context("a link has no end")?;
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => root().join(&page),
                _ => root().join(folder).join(file),
            };
            ensure!(target.exists(), "{}: {link}", page.display());
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target)?;
                ensure!(
                    text.lines().any(|line| leads_to(line, anchor)),
                    "{}: {link}",
                    page.display()
                );
            }
        }
    }
    Ok(())
}

/// Is that the heading, or the anchor, of this name?
fn leads_to(line: &str, anchor: &str) -> bool {
    if line.contains(&format!(r#"<a id="{anchor}">"#)) {
        return true;
    }
    let heading = line.trim_start_matches('#');
    heading.len() < line.len()
        && heading
            .trim()
            .to_lowercase()
            .chars()
            .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter))
            .map(|letter| if letter == ' ' { '-' } else { letter })
            .eq(anchor.chars())
}

/// Runs a block's script in namespaces of its own, and in a folder that is deleted afterwards.
fn try_out(block: &Block) -> Result<()> {
    let script = block.script().context("it has no script")?;
    let folder = Scratch::new(&format!("documents-{}", block.line))?;
    let bin = folder.path().join("bin");
    fs::create_dir_all(&bin)?;
    let ifmon = fs::canonicalize(program::path()).context("is ifmon built?")?;
    std::os::unix::fs::symlink(ifmon, bin.join("ifmon"))?;
    let mut path = OsString::from(&bin);
    if let Some(rest) = env::var_os("PATH") {
        path.push(":");
        path.push(rest);
    }
    let output = Command::new("unshare")
        // With its first process all others of the namespace end.
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .args(["sh", "-eu", "-c", &format!("{BEGIN}{script}")])
        .current_dir(folder.path())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()
        .context("cannot run unshare")?;
    let said = [output.stdout, output.stderr].concat();
    let out = fs::read_to_string(folder.path().join("out")).unwrap_or_default();
    ensure!(
        output.status.success(),
        "ended with {}: {}{out}",
        output.status,
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// What people read, seen from the top of the tree.
fn pages() -> Result<Vec<PathBuf>> {
    let mut pages = vec!["README.md".into(), "ifmon/README.md".into()];
    for entry in fs::read_dir(root().join("docs"))? {
        pages.push(Path::new("docs").join(entry?.file_name()));
    }
    pages.sort();
    Ok(pages)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
