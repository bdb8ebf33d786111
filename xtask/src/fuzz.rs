//! `cargo xtask fuzz`: input that nobody would write, for whatever reads bytes from outside.
//!
//! Does what cargo-fuzz does, with the compiler that builds everything else and nothing to install:
//! only its sanitizers need a nightly one, and where there is no unsafe code they would have
//! nothing to find.

mod seeds;

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::{
    command,
    host::{self, Missing, Tool},
    workspace,
};

/// Exit code when this machine lacks what fuzzing needs, as test drivers know it from automake.
const LEFT_OUT: u8 = 77;

/// What makes the programs tell libFuzzer which code an input reaches, and what it is compared
/// with.
const INSTRUMENTATION: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Fuzz what reads bytes from outside, guided by the code that each input reaches
///
/// Ends with 1 when an input makes a parser panic or break a promise, take 20 seconds or hundreds
/// of megabytes, and with 77 when this machine cannot do it. What is found stays in `target/fuzz`,
/// and is tried first the next time.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// By default all, one after the other
    target: Option<Target>,
    /// For how long, all in all and without the building
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Target {
    /// The parser of netlink messages
    Messages,
    /// The reader of the kernel's BTF
    Btf,
    /// The parser of what a client of the agent sends
    Calls,
}

/// What came of it.
pub(crate) enum Outcome {
    /// Nothing was found.
    Clean,
    /// Input that breaks a parser, and how to see it again: a sentence for each target.
    Found(Vec<String>),
    /// Why it could not be done here, as a sentence.
    LeftOut(String),
}

pub(crate) fn run(Options { target, seconds }: Options) -> Result<ExitCode> {
    let outcome = match target {
        None => run_all(seconds)?,
        Some(target) => fuzz(&[target], seconds)?,
    };
    Ok(match outcome {
        Outcome::Clean => ExitCode::SUCCESS,
        Outcome::Found(findings) => {
            for finding in findings {
                eprintln!("error: {finding}");
            }
            ExitCode::FAILURE
        }
        Outcome::LeftOut(why) => {
            eprintln!("left out: {why}");
            ExitCode::from(LEFT_OUT)
        }
    })
}

/// Fuzzes everything, for so many seconds in total, and prints a line for each target.
pub(crate) fn run_all(seconds: u64) -> Result<Outcome> {
    fuzz(Target::value_variants(), seconds)
}

fn fuzz(targets: &[Target], seconds: u64) -> Result<Outcome> {
    let dir = workspace::target_dir().join("fuzz");
    let programs = match build(&dir) {
        Ok(programs) => programs,
        Err(error) => {
            let Missing(why) = error.downcast()?;
            return Ok(Outcome::LeftOut(why));
        }
    };
    // For libFuzzer, 0 would be for ever.
    let seconds = (seconds / targets.len() as u64).max(1);
    let mut findings = Vec::new();
    for target in targets {
        findings.extend(target.run(&programs, &dir, seconds)?);
    }
    Ok(if findings.is_empty() {
        Outcome::Clean
    } else {
        Outcome::Found(findings)
    })
}

/// Builds the programs, and says where they are; [`Missing`] says what cannot be had here.
fn build(dir: &Path) -> Result<PathBuf> {
    host::need(&[Tool {
        program: "c++",
        package: "g++",
    }])?;
    let manifest = workspace::root().join("tests/fuzz/Cargo.toml");
    let triple = format!("{}-unknown-linux-gnu", env::consts::ARCH);
    let cargo = |subcommand: &str| {
        let mut cargo = Command::new("cargo");
        cargo
            .args([subcommand, "--quiet", "--manifest-path"])
            .arg(&manifest);
        cargo
    };
    // A mistake of ours in the manifest is not to pass for a registry that is out of reach.
    command::output(cargo("metadata").args(["--no-deps", "--format-version=1"]))?;
    command::output(cargo("fetch").args(["--target", &triple]))
        .map_err(|error| Missing(format!("libFuzzer cannot be had: {error:#}")))?;
    command::run(
        cargo("build")
            // Named, so that build scripts and macros, which run without libFuzzer, are not instrumented.
            .args(["--release", "--target", &triple, "--target-dir"])
            .arg(dir)
            .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f")),
    )
    .context("cannot build the programs that are fuzzed")?;
    Ok(dir.join(triple).join("release"))
}

impl Target {
    const fn name(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Btf => "btf",
            Self::Calls => "calls",
        }
    }

    /// Prints what was done, and returns what was found, as a sentence.
    fn run(self, programs: &Path, dir: &Path, seconds: u64) -> Result<Option<String>> {
        let name = self.name();
        let program = programs.join(name);
        let place = |what: &str| {
            let dir = dir.join(what).join(name);
            fs::create_dir_all(&dir)
                .with_context(|| format!("cannot make {}", dir.display()))
                .map(|()| dir)
        };
        // libFuzzer writes what reaches new code to the first directory, and tries all that is in
        // any of them first.
        let (corpus, seeds, findings) = (place("corpus")?, place("seeds")?, place("findings")?);
        for (file, bytes) in self.seeds()? {
            let path = seeds.join(file);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        let log = dir.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let status = Command::new(&program)
            .args([&corpus, &seeds, &findings])
            .arg(format!("-max_total_time={seconds}"))
            // Ends with a slash, since libFuzzer puts the name right behind it.
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .args(["-timeout=20", "-rss_limit_mb=512", "-print_final_stats=1"])
            .stdout(file.try_clone()?)
            .stderr(file)
            .status()
            .with_context(|| format!("cannot run {}", program.display()))?;
        // A parser may have printed anything.
        let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let Report {
            executions,
            coverage,
            reason,
            input,
        } = Report::new(&String::from_utf8_lossy(&said));
        let crashes = u8::from(!status.success());
        println!(
            "fuzz {name}: {executions} executions, {coverage} places reached, crashes: {crashes}"
        );
        if status.success() {
            return Ok(None);
        }
        let Some(input) = input else {
            bail!("fuzzing {name} ended with {status}: see {}", log.display());
        };
        Ok(Some(format!(
            "{name}: {reason}; again with `{} {input}`",
            program.display()
        )))
    }

    /// What the parser takes, by file name: the fuzzer would be long in coming upon it.
    fn seeds(self) -> Result<Vec<(String, Vec<u8>)>> {
        match self {
            Self::Messages => Ok(seeds::datagrams()),
            Self::Calls => Ok(seeds::calls()),
            Self::Btf => {
                let mut seeds = vec![("small".to_owned(), seeds::small_btf())];
                let dir = workspace::root().join("ifmon/testdata/btf");
                let read = || {
                    for entry in fs::read_dir(&dir)? {
                        let path = entry?.path();
                        if path.extension().is_some_and(|extension| extension == "btf")
                            && let Some(name) = path.file_name()
                        {
                            seeds.push((name.to_string_lossy().into_owned(), fs::read(&path)?));
                        }
                    }
                    std::io::Result::Ok(seeds)
                };
                read().with_context(|| format!("cannot read {}", dir.display()))
            }
        }
    }
}

/// What libFuzzer says of a run.
#[derive(Debug, PartialEq, Eq)]
struct Report {
    executions: u64,
    /// Edges between basic blocks.
    coverage: u64,
    /// Why it ended, if not because the time was over.
    reason: String,
    /// Where the input is with which it ended.
    input: Option<String>,
}

impl Report {
    fn new(log: &str) -> Self {
        let last = |before: &str| log.rsplit_once(before).map(|(_, rest)| rest.trim_start());
        let number = |before: &str| {
            last(before)
                .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
                .unwrap_or(0)
        };
        // A panic names its place on one line, and its reason on the next.
        let panic = last("' panicked at ").or_else(|| last(") panicked at "));
        let reason = match panic {
            Some(rest) => {
                let line: Vec<_> = rest.lines().take(2).collect();
                format!("panicked at {}", line.join(" "))
            }
            None => last("ERROR: libFuzzer: ")
                .and_then(|rest| rest.lines().next())
                .unwrap_or("crashed")
                .to_owned(),
        };
        Self {
            executions: number("stat::number_of_executed_units:"),
            coverage: number(" cov: "),
            reason,
            input: last("Test unit written to ")
                .and_then(|rest| rest.lines().next())
                .map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn reads_what_libfuzzer_says() {
        let clean = "#2\tINITED cov: 80 ft: 81 corp: 1/1b exec/s: 0 rss: 30Mb\n\
                     #900\tDONE   cov: 95 ft: 120 corp: 9/99b lim: 4 exec/s: 0 rss: 31Mb\n\
                     stat::number_of_executed_units: 900\n";
        assert_eq!(
            Report::new(clean),
            Report {
                executions: 900,
                coverage: 95,
                reason: "crashed".to_owned(),
                input: None,
            }
        );
        let crashed = "thread '<unnamed>' (7) panicked at src/a.rs:1:2:\n\
                       no such thing\n\
                       ==7== ERROR: libFuzzer: deadly signal\n\
                       artifact_prefix='/f/'; Test unit written to /f/crash-1\n";
        let Report { reason, input, .. } = Report::new(crashed);
        assert_eq!(reason, "panicked at src/a.rs:1:2: no such thing");
        assert_eq!(input.as_deref(), Some("/f/crash-1"));
        let slow = Report::new("==7== ERROR: libFuzzer: timeout after 20 seconds\n");
        assert_eq!(slow.reason, "timeout after 20 seconds");
    }
}
