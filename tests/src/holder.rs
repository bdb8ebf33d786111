//! Who holds a watched name, by what the lines of the watch say.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The index of the device that has the name; `None` while nobody has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holder(pub Option<u64>);

impl Holder {
    /// Takes a line, which must make sense after those before.
    pub fn take(&mut self, line: &Value) -> Result<()> {
        let Self(holder) = self;
        // Go writes 0 where there is none.
        let index = line["ifindex"].as_u64().filter(|&index| index != 0);
        let (makes_sense, after) = match line["event"].as_str().context("no event")? {
            "watching" => (true, index),
            "deleted" | "renamed" | "moved" => (holder.is_some() && *holder == index, None),
            "appeared" | "returned" => (holder.is_none(), index),
            "recreated" => (holder.is_none() || line["recovered"] == true, index),
            _ => return Ok(()),
        };
        ensure!(makes_sense, "{holder:?} has the name: {line}");
        *holder = after;
        Ok(())
    }
}
