//! Measures what ifmon costs, beside its peers; `cargo xtask bench` builds, runs and reports it.

use std::process::ExitCode;

fn main() -> ExitCode {
    match tests::bench::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
