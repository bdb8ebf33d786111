//! Everything about this project that is more than `cargo build`.

mod api;
mod bench;
mod command;
mod debian;
mod demo;
mod dist;
mod ebpf;
mod fuzz;
mod host;
mod run;
mod scratch;
mod standalone;
mod stress;
mod systemd;
mod test;
mod variants;
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
    Run(run::Options),
    Demo(demo::Options),
    Dist(dist::Options),
    Test(test::Options),
    Stress(stress::Options),
    Systemd(systemd::Options),
    Variants(variants::Options),
    Api(api::Options),
    Fuzz(fuzz::Options),
    Ebpf(ebpf::Options),
    Vm(vm::Options),
    Bench(bench::Options),
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
        Command::Run(options) => run::run(options),
        Command::Demo(options) => demo::run(options),
        Command::Dist(options) => dist::run(options),
        Command::Test(options) => test::run(options),
        Command::Stress(options) => stress::run(options),
        Command::Systemd(options) => systemd::run(options),
        Command::Variants(options) => variants::run(options),
        Command::Api(options) => api::run(options),
        Command::Fuzz(options) => fuzz::run(options),
        Command::Ebpf(options) => ebpf::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Vm(options) => Ok(vm::run(options)),
    }
}
