//! Storms, losses, blocked readers, races, sudden death: drives the built ifmon through all of it,
//! and says what it saw.
//!
//! Run as root, here or in an emulated kernel.

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail};
use tests::{
    backend::{self, UNPRIVILEGED},
    stress::{PARTS, Settings},
};

const USAGE: &str = "usage: stress [--backend BACKEND]... [--seed N] [--quick] [PART]...";

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let mut backends = Vec::new();
    let mut wanted = Vec::new();
    let mut seed = None;
    let mut quick = false;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--backend" => backends.push(backend::named(&value()?)?),
            "--seed" => seed = Some(value()?.parse().context("a seed is a number")?),
            "--quick" => quick = true,
            "--help" => {
                println!("{USAGE}");
                return Ok(true);
            }
            option if option.starts_with('-') => bail!("there is no option {option}; {USAGE}"),
            _ => wanted.push(arg),
        }
    }
    if backends.is_empty() {
        backends = UNPRIVILEGED.to_vec();
    }
    let seed = seed.unwrap_or_else(|| std::process::id().into());
    let version = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    println!("kernel {}, seed {seed}", version.trim());
    let (mut passed, mut failed) = (0, 0);
    if let Some(unknown) = wanted
        .iter()
        .find(|wanted| !PARTS.iter().any(|part| part.name == *wanted))
    {
        bail!("there is no part {unknown}; {USAGE}");
    }
    for backend in backends {
        let settings = Settings {
            backend,
            seed,
            quick,
        };
        for part in PARTS {
            let name = part.name;
            if !part.is_for(&settings)
                || !wanted.is_empty() && !wanted.iter().any(|wanted| wanted == name)
            {
                continue;
            }
            if !quick {
                // Some take half an hour on an emulated kernel.
                println!("begun   {backend} {name}");
            }
            let begin = Instant::now();
            let result = (part.play)(&settings);
            let seconds = begin.elapsed().as_secs_f64();
            match result {
                Ok(figures) => {
                    passed += 1;
                    println!("ok      {backend} {name} ({seconds:.1} s): {figures}");
                }
                Err(error) => {
                    failed += 1;
                    println!("FAILED  {backend} {name} ({seconds:.1} s): {error:#}");
                }
            }
        }
    }
    if passed + failed == 0 {
        bail!("none of these parts is for these backends");
    }
    println!("{passed} passed, {failed} failed; --seed {seed} for the same again");
    Ok(failed == 0)
}
