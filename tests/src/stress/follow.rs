//! What the lines of a watch say, added up.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::{
    holder::Holder,
    links::{Kind, Links},
    program::Ifmon,
};

/// The watched interface.
pub(super) const WATCHED: &str = "wg0";
/// Watched too; made when everything was done, so that its line ends the lines of what was done.
pub(super) const MARK: &str = "mark0";
/// What the watched interface is called while it is called otherwise.
pub(super) const ALIAS: &str = "tmp0";

/// A line of the watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) event: String,
    pub(super) index: Option<u64>,
    pub(super) recovered: bool,
    /// How many changes `resynced` stands for, where it knows.
    pub(super) lost: Option<u64>,
}

/// The state that follows from the lines so far.
#[derive(Debug, Default)]
pub(super) struct Followed {
    pub(super) holder: Holder,
    /// The lines, in order.
    pub(super) told: Vec<Told>,
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

    /// The same watch, as if it began where another has got to.
    pub(super) fn after(before: &Self) -> Self {
        Self {
            holder: before.holder,
            told: before.told.last().cloned().into_iter().collect(),
            began: true,
            ..Self::new()
        }
    }

    /// Takes a line, which must make sense after those before.
    pub(super) fn line(&mut self, line: &Value) -> Result<()> {
        let event = line["event"].as_str().context("no event")?;
        let index = line["ifindex"].as_u64();
        let lost = line["lost"].as_u64();
        let recovered = line["recovered"] == true;
        ensure!(self.began != (event == "watching"), "out of place: {line}");
        match event {
            "watching" => self.began = true,
            "deleted" | "renamed" | "moved" | "appeared" | "returned" | "recreated" => {}
            "resynced" => {
                self.resyncs += 1;
                self.lost = self.lost.zip(lost).map(|(sum, lost)| sum + lost);
            }
            _ => bail!("what is this? {line}"),
        }
        self.holder.take(line)?;
        let restart = ["deleted", "renamed", "moved", "recreated"].contains(&event);
        ensure!(line["restart"] == restart, "restart is wrong: {line}");
        self.recovered += u64::from(recovered);
        self.told.push(Told {
            event: event.to_owned(),
            index,
            recovered,
            lost,
        });
        Ok(())
    }

    /// Was any line this event, from a place in the lines on?
    pub(super) fn any(&self, from: usize, event: &str) -> bool {
        self.told.iter().skip(from).any(|told| told.event == event)
    }

    /// Are the lines what happened, each change once and in order? What `resynced` stands for may
    /// be missing in its place, and no more than that. A device that came while that was lost, and
    /// was called otherwise at its end, is another one to the watch when it returns; and where all
    /// that had the name so far had it in the loss, whoever has it next is the first.
    ///
    /// With a filter that is to learn the index of each new device (`learns`), what that does next
    /// may go unheard: it needs no line where it was undone, nor where the device is gone,
    /// which then is the line.
    pub(super) fn explain(&self, happened: &[(&str, u64)], learns: bool) -> Result<()> {
        // How many of the changes may be accounted for.
        let mut places = vec![0];
        let mut is_after_loss = false;
        for (number, told) in self.told.iter().enumerate().skip(1) {
            let from = places.first().copied().unwrap_or_default();
            match (told.event.as_str(), told.lost) {
                ("resynced", Some(lost)) => {
                    let lost = usize::try_from(lost)?;
                    places.iter_mut().for_each(|place| *place += lost);
                    is_after_loss = true;
                }
                ("resynced", None) => {
                    places = (from..=happened.len()).collect();
                    is_after_loss = true;
                }
                _ if told.recovered => {}
                (event, _) => {
                    let is_first = self
                        .told
                        .iter()
                        .take(number)
                        .all(|told| told.index.is_none());
                    places.retain(|&place| {
                        let was_last = || {
                            let next = happened.get(place + 1);
                            next.is_none_or(|&(next, _)| next == "recreated")
                        };
                        happened.get(place).is_some_and(|&(happened, index)| {
                            let same = happened == event
                                || is_after_loss
                                    && match (happened, event) {
                                        ("returned", "recreated") => true,
                                        ("recreated" | "returned", "appeared") => is_first,
                                        _ => false,
                                    }
                                || learns
                                    && (happened, event) == ("renamed", "deleted")
                                    && was_last();
                            same && told.index == Some(index)
                        })
                    });
                    is_after_loss = false;
                    places.iter_mut().for_each(|place| *place += 1);
                    let Some(&from) = places.first() else {
                        bail!(
                            "line {number} is not what happened after {from} changes, {:?}: {:?}",
                            happened.get(from..happened.len().min(from + 4)),
                            self.told.get(number.saturating_sub(4)..=number)
                        );
                    };
                    if learns && matches!(event, "appeared" | "recreated") {
                        places = (from..=happened.len()).collect();
                    }
                }
            }
        }
        ensure!(
            places.contains(&happened.len()),
            "{} changes, and the lines end after {places:?}",
            happened.len()
        );
        Ok(())
    }

    /// Makes the mark, and takes the lines of the watch until that is told.
    pub(super) fn until_mark(&mut self, ifmon: &Ifmon, links: &Links) -> Result<()> {
        self.until_mark_of(links, || ifmon.next()?.context("ended early"))
    }

    /// The same with lines that come from elsewhere.
    pub(super) fn until_mark_of(
        &mut self,
        links: &Links,
        mut next: impl FnMut() -> Result<Value>,
    ) -> Result<()> {
        let mut until = |events: &[&str]| -> Result<()> {
            loop {
                let line = next()?;
                if line["interface"] == WATCHED {
                    self.line(&line)?;
                } else if line["event"]
                    .as_str()
                    .is_some_and(|event| events.contains(&event))
                {
                    return Ok(());
                }
            }
        };
        links.add_quick(MARK, Kind::Veth { peer: "mark1" })?;
        until(&["appeared", "recreated"])?;
        // Of several names that are looked up together, the mark can be told first.
        links.delete(MARK)?;
        until(&["deleted"])
    }

    /// Takes lines until they say who has the name now. Those of different watches need not come in
    /// the order of the changes, where something had to be looked up.
    pub(super) fn until_truth(&mut self, ifmon: &Ifmon, links: &Links) -> Result<()> {
        while self.expect(links).is_err() {
            let line = ifmon.next().with_context(|| {
                let wrong = self.expect(links).err();
                wrong.map_or_else(String::new, |error| error.to_string())
            })?;
            let line = line.context("ended early")?;
            if line["interface"] == WATCHED {
                self.line(&line)?;
            }
        }
        Ok(())
    }

    /// The end of it: who has the name now.
    pub(super) fn expect(&self, links: &Links) -> Result<()> {
        let truth = links.index_of(WATCHED)?.map(u64::from);
        ensure!(
            self.holder == Holder(truth),
            "the lines say that {:?} has the name, and {truth:?} has it; the last: {:?}",
            self.holder,
            self.told.iter().rev().take(10).collect::<Vec<_>>()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(lines: &[(&str, Option<u64>)]) -> Followed {
        let told = |&(event, lost): &(&str, Option<u64>)| Told {
            event: event.to_owned(),
            index: (event != "resynced").then_some(7),
            recovered: false,
            lost,
        };
        Followed {
            told: lines.iter().map(told).collect(),
            ..Followed::new()
        }
    }

    #[test]
    fn a_device_that_came_in_a_loss_is_another_one_when_it_returns() {
        let happened = ["renamed", "recreated", "renamed", "returned"].map(|event| (event, 7));
        let begin = [("watching", None), ("renamed", None)];
        let lost = [("resynced", Some(2))];
        for (lines, is_right) in [
            ([("recreated", None)], true),
            ([("returned", None)], true),
            ([("appeared", None)], false),
        ] {
            let lines = [&begin[..], &lost, &lines].concat();
            let explained = followed(&lines).explain(&happened, false);
            assert_eq!(explained.is_ok(), is_right, "{lines:?}");
        }
        // Nobody was told to have the name before.
        let happened = ["appeared", "renamed", "recreated"].map(|event| (event, 7));
        for (event, is_right) in [("appeared", true), ("returned", false)] {
            let mut lines = followed(&[("watching", None), ("resynced", Some(2)), (event, None)]);
            lines.told[0].index = None;
            let explained = lines.explain(&happened, false);
            assert_eq!(explained.is_ok(), is_right, "{event}");
        }
        let lines = [&begin[..], &[("recreated", None)]].concat();
        let happened = ["renamed", "returned"].map(|event| (event, 7));
        assert!(followed(&lines).explain(&happened, false).is_err());
    }
}
