//! Sums every so often, in place of a line for each event.

use std::{
    fmt::{self, Display, Write as _},
    time::{Duration, SystemTime},
};

use ifmon::{LinkKind, NetnsId};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    json::{self, timestamp},
    stderr::printable,
    text::losses,
};
use crate::cli::{
    namespaces::Namespaces,
    tally::{Counts, Maker, Tally, busiest},
};

/// How many of each a person is shown.
const SHOWN: usize = 20;

/// What happened since the last sums.
#[derive(Debug)]
pub(crate) struct Summary {
    every: Duration,
    since: Instant,
    pub(crate) next: Instant,
    pub(crate) tally: Tally,
    json: bool,
}

impl Summary {
    pub(crate) fn new(every: Duration, json: bool) -> Self {
        let now = Instant::now();
        Self {
            every,
            since: now,
            next: now + every,
            tally: Tally::default(),
            json,
        }
    }

    /// The sums, with which the next time begins.
    pub(crate) fn take(&mut self, namespaces: &Namespaces) -> Vec<u8> {
        let now = Instant::now();
        let tally = std::mem::take(&mut self.tally);
        let time = SystemTime::now();
        let seconds = now.duration_since(self.since);
        self.since = now;
        // A time that was missed, since the process was stopped, is not made up for.
        while self.next <= now {
            self.next += self.every;
        }
        let mut said = if self.json {
            let mut object = Vec::new();
            json::write(&mut object, &Sums::of(&tally, time, seconds, namespaces));
            object
        } else {
            text(&tally, time, seconds, namespaces).into_bytes()
        };
        said.push(b'\n');
        said
    }
}

#[derive(Debug, Serialize)]
struct Sums<'a> {
    time: String,
    event: &'static str,
    seconds: f64,
    #[serde(flatten)]
    all: Counts,
    lost: Option<u64>,
    by: Vec<MakerSums<'a>>,
    netns: Vec<NetnsSums>,
    kind: Vec<KindSums>,
}

#[derive(Debug, Serialize)]
struct MakerSums<'a> {
    #[serde(flatten)]
    maker: Option<&'a Maker>,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Debug, Serialize)]
struct NetnsSums {
    netns: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    netns_name: Option<String>,
    #[serde(flatten)]
    counts: Counts,
}

#[derive(Debug, Serialize)]
struct KindSums {
    kind: Option<LinkKind>,
    #[serde(flatten)]
    counts: Counts,
}

impl<'a> Sums<'a> {
    fn of(tally: &'a Tally, time: SystemTime, seconds: Duration, namespaces: &Namespaces) -> Self {
        let by = busiest(&tally.makers)
            .into_iter()
            .map(|(maker, counts)| MakerSums {
                maker: (*maker != Maker::Unknown).then_some(maker),
                counts,
            });
        let netns = busiest(&tally.places).into_iter().map(|(place, counts)| {
            let name = place.and_then(|netns| namespaces.name(netns));
            NetnsSums {
                netns: place.map(|NetnsId(inum)| inum),
                netns_name: name.map(|name| name.display().to_string()),
                counts,
            }
        });
        let kinds = busiest(&tally.kinds).into_iter();
        let kinds = kinds.map(|(&kind, counts)| KindSums { kind, counts });
        Self {
            time: timestamp(time),
            event: "summary",
            seconds: (seconds.as_secs_f64() * 1e3).round() / 1e3,
            all: tally.all,
            lost: tally.lost(),
            by: by.collect(),
            netns: netns.collect(),
            kind: kinds.collect(),
        }
    }
}

fn text(tally: &Tally, time: SystemTime, seconds: Duration, namespaces: &Namespaces) -> String {
    let mut text = format!(
        "{} {:.0} s: {}, {}",
        timestamp(time),
        seconds.as_secs_f64(),
        CountsText(tally.all, 0),
        losses(tally.lost())
    );
    rows(&mut text, &busiest(&tally.makers), |maker| {
        format!("by {maker}")
    });
    if tally.places.len() > 1 {
        rows(&mut text, &busiest(&tally.places), |place| match place {
            Some(netns) => format!(
                "in {}",
                namespaces.describe(*netns, namespaces.name(*netns))
            ),
            None => "in others".to_owned(),
        });
    }
    rows(&mut text, &busiest(&tally.kinds), |kind| match kind {
        Some(kind) => format!("of kind {}", printable(&kind.to_string())),
        None => "of other kinds".to_owned(),
    });
    text
}

fn rows<K>(text: &mut String, rows: &[(&K, Counts)], name: impl Fn(&K) -> String) {
    for (key, counts) in rows.iter().take(SHOWN) {
        let _ = write!(text, "\n    {}  {}", CountsText(*counts, 7), name(key));
    }
    if let Some(more) = rows.len().checked_sub(SHOWN + 1) {
        let _ = write!(text, "\n    and {} more", more + 1);
    }
}

/// Counts in words, each number as wide as this.
struct CountsText(Counts, usize);

impl Display for CountsText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(
            Counts {
                made,
                deleted,
                other,
            },
            width,
        ) = *self;
        write!(
            f,
            "{made:width$} made, {deleted:width$} deleted, {other:width$} other"
        )
    }
}
