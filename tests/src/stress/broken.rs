//! A subscription that breaks.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;

use super::{
    Random, Settings,
    follow::{ALIAS, MARK, WATCHED, begin},
};
use crate::{
    calls::{self, Calls},
    links::{Kind, Links},
    namespace::Namespace,
    program::{self, Ifmon},
};

/// Reading the socket fails, and then opening another one does, some times; changes go on
/// meanwhile. Each time the state is read again and what changed is told, once.
pub(super) fn broken(settings: &Settings) -> Result<String> {
    let rounds = settings.scaled(60);
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    let mut random = Random(settings.seed);
    let mut command = Command::new(program::path());
    command.args([
        "--json",
        "--backend",
        settings.backend.as_str(),
        WATCHED,
        MARK,
    ]);
    namespace.enter(&mut command)?;
    let (read, open) = (libc::SYS_recvfrom, libc::SYS_socket);
    calls::ask(&mut command, [read, open]);
    let ifmon = Ifmon::spawn(command)?;
    let calls = Calls::of(ifmon.pid())?;
    let mut followed = begin(&ifmon)?;
    let veth = Kind::Veth { peer: "peer0" };
    let mut ours = None;
    let (mut refused, mut replaced) = (0, 0);
    for round in 0..rounds {
        let present = match ours {
            Some(ours) => ours,
            None => {
                let made = links.add(WATCHED, veth, None)?;
                ours = Some(made);
                made
            }
        };
        followed.until_mark(&ifmon, &links)?;
        followed.expect(&links)?;
        let before = (followed.told.len(), followed.resyncs);

        ifmon.signal(Signal::STOP)?;
        // What is read next is what the subscription has for it.
        calls.fail(read, libc::EIO, 1);
        let failures = random.below(4) as u32;
        calls.fail(open, libc::EMFILE, failures);
        let (wanted, changed) = match random.below(5) {
            0 => {
                links.rename_index(present, ALIAS)?;
                links.rename_index(present, WATCHED)?;
                (None, false)
            }
            1 => {
                links.delete(WATCHED)?;
                ours = None;
                (Some("deleted"), true)
            }
            2 => {
                links.rename_index(present, ALIAS)?;
                (Some("renamed"), true)
            }
            3 => {
                links.delete(WATCHED)?;
                ours = Some(links.add(WATCHED, veth, None)?);
                replaced += 1;
                (Some("recreated"), true)
            }
            _ => {
                links.delete(WATCHED)?;
                links.add(WATCHED, veth, Some(present))?;
                replaced += 1;
                (Some("recreated"), true)
            }
        };
        ifmon.signal(Signal::CONT)?;
        followed.until_mark(&ifmon, &links)?;
        followed.expect(&links)?;
        let told = &followed.told[before.0..];
        ensure!(
            followed.resyncs == before.1 + 1
                && told.first().is_some_and(|told| told.event == "resynced")
                && told.len() == 1 + usize::from(changed)
                && told
                    .get(1)
                    .is_none_or(|told| told.recovered && Some(told.event.as_str()) == wanted),
            "in round {round}, for {wanted:?}: {told:?}"
        );
        ensure!(
            calls.to_come(read) == 0 && calls.to_come(open) == 0,
            "the subscription was not opened again until that worked"
        );
        refused += failures;
        if wanted == Some("renamed") {
            links.delete(ALIAS)?;
            ours = None;
        }
    }
    ensure!(
        followed.lost.is_none(),
        "nobody can know how many were lost"
    );
    let outcome = ifmon.stop()?;
    ensure!(outcome.status.success(), "ended with {}", outcome.status);
    let warnings = outcome
        .stderr
        .lines()
        .filter(|line| line.contains("opening it again"))
        .count();
    ensure!(
        warnings == (rounds + refused) as usize,
        "{warnings} warnings for {rounds} failures and {refused} of opening again: {}",
        outcome.stderr
    );
    let last = outcome.lines.last().context("no last line")?;
    ensure!(last["lost"].is_null(), "a count that nobody knows: {last}");
    Ok(format!(
        "broke {rounds} times, and could not be opened {refused} times; {} lines, {replaced} devices replaced meanwhile",
        followed.told.len()
    ))
}
