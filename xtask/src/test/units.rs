//! Unit tests, doc tests, and the tests of the command line.

use std::{path::Path, process::Stdio};

use anyhow::{Context as _, Result};

use super::{Counts, build::Programs};
use crate::{
    debian,
    host::{self, Missing, Tool},
};

/// Tests that need more than this workspace, and what they need.
const WITH_TOOLS: [(&[&str], &[Tool]); 2] = [
    (
        &["prometheus_sees_the_first_deletion"],
        &[
            Tool {
                program: "prometheus",
                package: "prometheus",
            },
            Tool {
                program: "promtool",
                package: "prometheus",
            },
        ],
    ),
    (
        &[
            "languages::engines_in_go_are_told_also_when_the_agent_was_away",
            "storm::the_last_word_is_right_after_the_agent_was_killed_in_the_midst_of_a_storm",
        ],
        &[Tool {
            program: "go",
            package: "golang-go",
        }],
    ),
];

/// The test that needs a Debian system of its own.
const WITH_DEBIAN: &str = "languages::varlinkctl_and_c_by_sd_varlink_are_told";

/// Runs them all; a failure does not end the run.
pub(super) fn run(programs: &Programs, filter: Option<&str>) -> Result<Counts> {
    let mut total = Counts::default();
    let mut skip = Vec::new();
    for (tests, tools) in WITH_TOOLS {
        let is_wanted = |test: &&&str| filter.is_none_or(|filter| test.contains(filter));
        let tests: Vec<_> = tests.iter().filter(is_wanted).collect();
        if !tests.is_empty()
            && let Err(error) = host::need(tools)
        {
            let Missing(why) = error.downcast()?;
            for test in tests {
                total.add(Counts::left_out(&format!("{test}: {why}")));
                skip.extend(["--skip", test]);
            }
        }
    }
    let mut debian = None;
    if filter.is_none_or(|filter| WITH_DEBIAN.contains(filter)) {
        match debian::for_clients() {
            Ok(root) => debian = Some(root),
            Err(error) => {
                let Missing(why) = error.downcast()?;
                total.add(Counts::left_out(&format!("{WITH_DEBIAN}: {why}")));
                skip.extend(["--skip", WITH_DEBIAN]);
            }
        }
    }
    total.add(run_but(programs, filter, &skip, debian.as_deref())?);
    Ok(total)
}

fn run_but(
    programs: &Programs,
    filter: Option<&str>,
    skip: &[&str],
    debian: Option<&Path>,
) -> Result<Counts> {
    println!("unit tests, doc tests, command line");
    let mut command = programs.cargo("test");
    let output = command
        .arg("--no-fail-fast")
        .args(filter)
        .arg("--")
        .args(skip)
        .envs(debian.map(|root| ("IFMON_DEBIAN", root)))
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let counts = counts(&text);
    if output.status.success() {
        return Ok(counts);
    }
    print!("{text}");
    if counts.failed > 0 {
        Ok(counts)
    } else {
        Ok(Counts::failed("cargo test did not get as far as the tests"))
    }
}

/// Adds up what each test program says of itself at its end.
fn counts(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines() {
        let Some(results) = line.strip_prefix("test result: ") else {
            continue;
        };
        for part in results.split([';', '.']) {
            let mut words = part.split_whitespace();
            let (Some(number), Some(what)) = (words.next(), words.next()) else {
                continue;
            };
            let number = number.parse().unwrap_or(0);
            match what {
                "passed" => counts.passed += number,
                "failed" => counts.failed += number,
                "ignored" => counts.skipped += number,
                _ => {}
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::{Counts, counts};

    #[test]
    fn results_are_added_up() {
        let text = "\
test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s
test a ... FAILED
test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1.25s
";
        let expected = Counts {
            passed: 15,
            failed: 2,
            skipped: 1,
        };
        assert_eq!(counts(text), expected);
    }
}
