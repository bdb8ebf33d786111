//! The program: arguments, output, hooks. All that it knows of interfaces it has from the library.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
