//! What ifmon costs, beside what people use today: everyone is measured in the same run and on the
//! same work.
//!
//! `bench measure` prints its figures as JSON, `bench report` makes a table, a chart and a file of
//! them, and `bench peer` is one of those that ifmon is compared with.

mod bare;
mod bpf;
mod burst;
mod bystanders;
mod chart;
mod churn;
mod clients;
mod figure;
mod latency;
mod lines;
mod measure;
mod namespaces;
mod peer;
mod process;
mod report;
mod start;
mod statistics;
mod subject;
mod unrelated;
mod watches;

use std::env;

use anyhow::{Result, bail};

/// Runs the program `bench`.
pub fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["measure", options @ ..] => measure::run(options),
        ["container"] => churn::container(),
        ["peer", "poll", interface] => peer::poll(interface),
        ["peer", "subscribe", interface] => peer::subscribe(interface),
        ["peer", "bare-in", backend, interface, namespaces @ ..] => {
            bare::run_in(backend, interface, namespaces)
        }
        ["peer", "bare", backend, interface] => bare::run(backend, interface, None),
        ["peer", "bare", backend, interface, hook] => {
            bare::run(backend, interface, Some(hook.parse()?))
        }
        ["report", options @ ..] => report::run(options),
        _ => bail!("see `cargo xtask bench --help`, which runs this"),
    }
}
