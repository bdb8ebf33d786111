//! What the lines of a watch say, added up.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    links::{Kind, Links},
    program::Ifmon,
};

/// The watched interface.
pub(super) const WATCHED: &str = "wg0";
/// Watched too; made when everything was done, so that its line ends the lines of what was done.
pub(super) const MARK: &str = "mark0";
/// What the watched interface is called while it is called otherwise.
pub(super) const ALIAS: &str = "tmp0";

/// The state that follows from the lines so far.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// Index of the interface, while there is one.
    pub(super) holder: Option<u64>,
    /// The events, in order.
    pub(super) events: Vec<String>,
    pub(super) resyncs: u64,
    /// Sum of the counts that `resynced` gave; `None` once one of them could not say.
    pub(super) lost: Option<u64>,
    pub(super) recovered: u64,
    began: bool,
}

impl Followed {
    pub(super) fn new() -> Self {
        Self {
            lost: Some(0),
            ..Self::default()
        }
    }

    /// Takes a line, which must make sense after those before.
    pub(super) fn line(&mut self, line: &Value) -> Result<()> {
        let event = line["event"].as_str().context("no event")?;
        let index = line["ifindex"].as_u64();
        ensure!(self.began != (event == "watching"), "out of place: {line}");
        match event {
            "watching" => {
                self.began = true;
                self.holder = index;
            }
            "deleted" | "renamed" | "moved" => {
                ensure!(
                    self.holder.is_some() && self.holder == index,
                    "{:?} has the name: {line}",
                    self.holder
                );
                self.holder = None;
            }
            "appeared" | "returned" => {
                ensure!(
                    self.holder.is_none(),
                    "{:?} has the name: {line}",
                    self.holder
                );
                self.holder = index;
            }
            "recreated" => {
                ensure!(
                    self.holder.is_none() || line["recovered"] == true,
                    "{:?} has the name: {line}",
                    self.holder
                );
                self.holder = index;
            }
            "resynced" => {
                self.resyncs += 1;
                self.lost = self
                    .lost
                    .zip(line["lost"].as_u64())
                    .map(|(sum, lost)| sum + lost);
            }
            _ => bail!("what is this? {line}"),
        }
        let restart = ["deleted", "renamed", "moved", "recreated"].contains(&event);
        ensure!(line["restart"] == restart, "restart is wrong: {line}");
        if line["recovered"] == true {
            self.recovered += 1;
        }
        self.events.push(event.to_owned());
        Ok(())
    }

    /// Makes the mark, and takes the lines of the watch until that is told.
    pub(super) fn until_mark(&mut self, ifmon: &Ifmon, links: &Links) -> Result<()> {
        links.add_quick(MARK, Kind::Veth { peer: "mark1" })?;
        loop {
            let line = ifmon.next()?.context("ended early")?;
            if line["interface"] == WATCHED {
                self.line(&line)?;
            } else if matches!(line["event"].as_str(), Some("appeared" | "recreated")) {
                break;
            }
        }
        links.delete(MARK)?;
        loop {
            let line = ifmon.next()?.context("ended early")?;
            if line["interface"] == WATCHED {
                self.line(&line)?;
            } else if line["event"] == "deleted" {
                return Ok(());
            }
        }
    }

    /// The end of it: who has the name now.
    pub(super) fn expect(&self, links: &Links) -> Result<()> {
        let truth = links.index_of(WATCHED)?.map(u64::from);
        ensure!(
            self.holder == truth,
            "the lines say that {:?} has the name, and {truth:?} has it; the last: {:?}",
            self.holder,
            self.events.iter().rev().take(10).collect::<Vec<_>>()
        );
        Ok(())
    }
}

/// Reads the first line of both watches.
pub(super) fn begin(ifmon: &Ifmon) -> Result<Followed> {
    let mut followed = Followed::new();
    for _ in 0..2 {
        let line = ifmon.next()?.context("ended before it began")?;
        ensure!(line["event"] == "watching", "not what comes first: {line}");
        if line["interface"] == WATCHED {
            followed.line(&line)?;
        }
    }
    Ok(followed)
}
