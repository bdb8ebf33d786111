//! `cargo xtask ebpf`: builds the BPF object that is shipped in the tree, or proves that it comes
//! from the sources.

mod build;
mod sources;
mod toolchain;

use std::{fs, process::ExitCode};

use anyhow::{Context as _, Result};

use self::toolchain::Toolchain;
use crate::{host::Missing, scratch::ScratchDir, workspace};

/// Exit code of `--check` when this machine lacks what the comparison needs, as test drivers know
/// it from automake.
const LEFT_OUT: u8 = 77;

/// Build the BPF objects: for each processor architecture, with and without a log
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Build in a temporary directory and compare with the objects in the tree, byte for byte;
    /// ends with 1 when they differ and with 77 when this machine cannot build them
    #[arg(long)]
    check: bool,
}

/// What a comparison with the objects in the tree showed.
pub(crate) enum Check {
    Same,
    /// In which way they differ, as a sentence.
    Different(String),
    /// Why it could not be made here, as a sentence.
    LeftOut(String),
}

pub(crate) fn run(Options { check }: Options) -> Result<ExitCode> {
    if !check {
        build()?;
        return Ok(ExitCode::SUCCESS);
    }
    Ok(match self::check()? {
        Check::Same => {
            println!("the BPF objects in the tree are what their sources give, byte for byte");
            ExitCode::SUCCESS
        }
        Check::Different(how) => {
            eprintln!("error: {how}");
            ExitCode::FAILURE
        }
        Check::LeftOut(why) => {
            eprintln!("left out: {why}");
            ExitCode::from(LEFT_OUT)
        }
    })
}

/// Rebuilds the objects and compares them with those in the tree.
pub(crate) fn check() -> Result<Check> {
    let toolchain = match Toolchain::find() {
        Ok(toolchain) => toolchain,
        Err(error) => {
            let Missing(why) = error.downcast()?;
            return Ok(Check::LeftOut(why));
        }
    };
    let scratch = ScratchDir::new(&workspace::target_dir())?;
    for variant in build::VARIANTS {
        let built = build::object(&toolchain, variant, scratch.path())?;
        let path = workspace::root().join(variant.object());
        let shipped = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if let Some(at) = first_difference(&built, &shipped) {
            return Ok(Check::Different(format!(
                "{} ({} bytes) is not what its sources give ({} bytes): they differ from byte {at} on; \
                 `cargo xtask ebpf` builds it again",
                path.display(),
                shipped.len(),
                built.len(),
            )));
        }
    }
    let root = workspace::root();
    Ok(match sources::compare(root)? {
        None => Check::Same,
        Some(difference) => Check::Different(difference),
    })
}

/// Builds the objects into the tree.
fn build() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let target_dir = workspace::target_dir().join("ebpf");
    // All are built before any is written, so that a failure leaves a set that belongs together.
    let objects = build::VARIANTS
        .into_iter()
        .map(|variant| {
            Ok((
                workspace::root().join(variant.object()),
                build::object(&toolchain, variant, &target_dir)?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    for (path, object) in objects {
        write(&path, &object)?;
        println!("{} ({} bytes)", path.display(), object.len());
    }
    let root = workspace::root();
    write(
        &root.join(sources::RECORD),
        sources::record(root)?.as_bytes(),
    )
}

fn write(path: &std::path::Path, content: &[u8]) -> Result<()> {
    let dir = path.parent().context("no directory to write to")?;
    fs::create_dir_all(dir)
        .and_then(|()| fs::write(path, content))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Where two files stop being alike.
fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let alike = one
        .iter()
        .zip(other)
        .take_while(|(one, other)| one == other)
        .count();
    (alike < one.len() || alike < other.len()).then_some(alike)
}

#[cfg(test)]
mod tests {
    use super::first_difference;

    #[test]
    fn differences_are_found_at_the_first_byte_and_after_the_last() {
        assert_eq!(first_difference(b"", b""), None);
        assert_eq!(first_difference(b"abc", b"abc"), None);
        assert_eq!(first_difference(b"abc", b"xbc"), Some(0));
        assert_eq!(first_difference(b"abc", b"abcd"), Some(3));
        assert_eq!(first_difference(b"abc", b""), Some(0));
    }
}
