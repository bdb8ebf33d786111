//! Everything about this project that is more than `cargo build`.

mod command;
mod ebpf;
mod host;
mod scratch;
mod vm;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Ebpf(ebpf::Options),
    Vm(vm::Options),
}

fn main() -> ExitCode {
    match run(Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Options { command }: Options) -> Result<ExitCode> {
    match command {
        Command::Ebpf(options) => ebpf::run(options),
        Command::Vm(options) => Ok(vm::run(options)),
    }
}
