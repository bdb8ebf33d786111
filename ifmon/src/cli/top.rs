//! `--top`: a screen that shows who makes and deletes how many interfaces.
//!
//! Pure: events, keys and time in, a screen out. [`terminal`] has the terminal.

pub(crate) mod terminal;
#[cfg(test)]
mod tests;

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    fmt::Write as _,
    hash::Hash,
    time::{Duration, SystemTime},
};

use ifmon::{BackendKind, Event};
use tokio::time::Instant;

use super::{
    namespaces::Namespaces,
    output::{facts::EventFacts, json::timestamp, stderr::printable, text::losses},
    tally::{Counts, Tally, busiest},
};

/// How often the screen is drawn, and how long a part of what is recent is.
const TICK: Duration = Duration::from_secs(1);
/// How many of these make up what is shown for each second.
const RECENT: usize = 10;
/// How many of the newest events are kept.
const NEWEST: usize = 100;
/// What no name on the screen exceeds, whatever the width: `systemd-nspawn` and an id of 64 digits.
const WIDEST: usize = 80;

/// What is shown, and how.
#[derive(Debug)]
pub(crate) struct Top {
    begun: Instant,
    pub(crate) next: Instant,
    now: Shown,
    /// What the screen shows while it is paused.
    paused: Option<Shown>,
    group: Group,
    sort: Sort,
    filter: String,
    /// Keys go into the filter.
    is_typing: bool,
    backend: BackendKind,
}

/// What happened.
#[derive(Clone, Debug, Default)]
struct Shown {
    total: Tally,
    /// The one that is being filled first.
    recent: VecDeque<Tally>,
    /// The newest first.
    newest: VecDeque<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    Maker,
    Place,
    Kind,
}

impl Group {
    const fn next(self) -> Self {
        match self {
            Self::Maker => Self::Place,
            Self::Place => Self::Kind,
            Self::Kind => Self::Maker,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Busiest,
    Made,
    Deleted,
    Name,
}

impl Sort {
    const fn next(self) -> Self {
        match self {
            Self::Busiest => Self::Made,
            Self::Made => Self::Deleted,
            Self::Deleted => Self::Name,
            Self::Name => Self::Busiest,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Busiest => "busiest",
            Self::Made => "made",
            Self::Deleted => "deleted",
            Self::Name => "name",
        }
    }
}

/// A row of the table.
struct Row {
    name: String,
    recent: Counts,
    total: Counts,
}

impl Top {
    pub(crate) fn new(backend: BackendKind) -> Self {
        let now = Instant::now();
        let mut shown = Shown::default();
        shown.recent.push_front(Tally::default());
        Self {
            begun: now,
            next: now,
            now: shown,
            paused: None,
            group: Group::Maker,
            sort: Sort::Busiest,
            filter: String::new(),
            is_typing: false,
            backend,
        }
    }

    /// Takes an event, and what a line would say of it.
    pub(crate) fn event(&mut self, event: &Event, facts: &EventFacts, line: &str) {
        let Shown {
            total,
            recent,
            newest,
        } = &mut self.now;
        total.event(event, facts);
        if let Some(recent) = recent.front_mut() {
            recent.event(event, facts);
        }
        newest.push_front(format!("{} {line}", time_of_day(event.time)));
        newest.truncate(NEWEST);
    }

    /// Takes keys as a terminal sends them; false when the end is asked for.
    pub(crate) fn keys(&mut self, keys: &[u8]) -> bool {
        // What begins so is a key without a letter.
        if keys.len() > 1 && keys.first() == Some(&0x1b) {
            return true;
        }
        for &key in keys {
            match key {
                b'\r' | b'\n' if self.is_typing => self.is_typing = false,
                0x1b => {
                    self.is_typing = false;
                    self.filter.clear();
                }
                0x08 | 0x7f if self.is_typing => {
                    self.filter.pop();
                }
                b' '..=b'~' if self.is_typing => self.filter.push(key.into()),
                b'q' => return false,
                b'p' | b' ' => {
                    self.paused = match self.paused {
                        Some(_) => None,
                        None => Some(self.now.clone()),
                    };
                }
                b's' => self.sort = self.sort.next(),
                b'g' | b'\t' => self.group = self.group.next(),
                b'/' => self.is_typing = true,
                _ => {}
            }
        }
        true
    }

    /// Time has passed.
    pub(crate) fn tick(&mut self) {
        let now = Instant::now();
        let recent = &mut self.now.recent;
        while self.next <= now {
            self.next += TICK;
            recent.push_front(Tally::default());
            recent.truncate(RECENT + 1);
        }
    }

    /// What the screen shows.
    pub(crate) fn draw(&self, size: Size, namespaces: &Namespaces) -> Vec<u8> {
        // To the upper left; each line clears what is left of the one before, the last one what is
        // below it.
        let mut screen = "\x1b[H".to_owned();
        let rows = usize::from(size.rows.max(4));
        let lines = self.lines(rows, namespaces);
        for (number, (style, line)) in lines.iter().take(rows).enumerate() {
            let end = if number + 1 == rows { "" } else { "\r\n" };
            let line: String = line.chars().take(size.columns.into()).collect();
            let _ = write!(screen, "{style}{line}\x1b[0m\x1b[K{end}");
        }
        screen.push_str("\x1b[J");
        screen.into_bytes()
    }

    fn lines(&self, height: usize, namespaces: &Namespaces) -> Vec<(&'static str, String)> {
        const BOLD: &str = "\x1b[1m";
        const REVERSE: &str = "\x1b[7m";
        const PLAIN: &str = "";
        let shown = self.paused.as_ref().unwrap_or(&self.now);
        let mut recent = Tally::default();
        // The second that is being filled is not over.
        for second in shown.recent.iter().skip(1) {
            recent.extend(second);
        }
        let seconds = shown.recent.len().saturating_sub(1).max(1) as f64;
        let mut lines = vec![
            (BOLD, self.title(shown)),
            (PLAIN, self.help()),
            (PLAIN, String::new()),
        ];
        let heading = match self.group {
            Group::Maker => "BY",
            Group::Place => "NAMESPACE",
            Group::Kind => "KIND",
        };
        let head = ["MADE/s", "DELETED/s", "OTHER/s", "MADE", "DELETED", "OTHER"];
        lines.push((REVERSE, columns(head.map(str::to_owned), heading)));
        let per_second = |count: u64| format!("{:.1}", count as f64 / seconds);
        let row = |row: &Row| {
            let Row {
                name,
                recent,
                total,
            } = row;
            let rates = [recent.made, recent.deleted, recent.other].map(per_second);
            let sums = [total.made, total.deleted, total.other].map(|count| count.to_string());
            let [a, b, c] = rates;
            let [d, e, f] = sums;
            columns([a, b, c, d, e, f], name)
        };
        let all = Row {
            name: "all".to_owned(),
            recent: recent.all,
            total: shown.total.all,
        };
        lines.push((BOLD, row(&all)));
        let rows = self.rows(&shown.total, &recent, namespaces);
        // Half of the height is for the newest events.
        let half = (height / 2).saturating_sub(lines.len()).max(1);
        lines.extend(rows.iter().take(half).map(|entry| (PLAIN, row(entry))));
        if rows.len() > half {
            lines.push((PLAIN, format!("and {} more", rows.len() - half)));
        }
        lines.push((PLAIN, String::new()));
        lines.push((REVERSE, "NEWEST".to_owned()));
        let newest = shown.newest.iter().filter(|line| self.is_wanted(line));
        lines.extend(newest.map(|line| (PLAIN, line.clone())));
        lines
    }

    fn title(&self, shown: &Shown) -> String {
        let lost = losses(shown.total.lost());
        let since = self.begun.elapsed().as_secs();
        let (hours, minutes, seconds) = (since / 3600, since / 60 % 60, since % 60);
        let paused = if self.paused.is_some() {
            ", PAUSED"
        } else {
            ""
        };
        format!(
            "ifmon by {}, {} for {hours}:{minutes:02}:{seconds:02}, {lost}{paused}",
            self.backend,
            time_of_day(SystemTime::now()),
        )
    }

    fn help(&self) -> String {
        let group = match self.group.next() {
            Group::Maker => "who did it",
            Group::Place => "namespace",
            Group::Kind => "kind",
        };
        let mut help = format!(
            "q end  p pause  s sort ({})  g by {group}  / filter",
            self.sort.as_str()
        );
        if self.is_typing || !self.filter.is_empty() {
            let cursor = if self.is_typing { "_" } else { "" };
            let _ = write!(help, ": {}{cursor}", self.filter);
        }
        help
    }

    /// The rows of the table, in their order.
    fn rows(&self, total: &Tally, recent: &Tally, namespaces: &Namespaces) -> Vec<Row> {
        let mut rows = match self.group {
            Group::Maker => table(&total.makers, &recent.makers, ToString::to_string),
            Group::Place => table(&total.places, &recent.places, |place| match place {
                Some(netns) => namespaces.describe(*netns, namespaces.name(*netns)),
                None => "others".to_owned(),
            }),
            Group::Kind => table(&total.kinds, &recent.kinds, |kind| match kind {
                Some(kind) => printable(&kind.to_string()),
                None => "others".to_owned(),
            }),
        };
        rows.retain(|row| self.is_wanted(&row.name));
        let most =
            |of: fn(Counts) -> u64| move |row: &Row| Reverse((of(row.recent), of(row.total)));
        match self.sort {
            Sort::Busiest => rows.sort_by_key(most(Counts::all)),
            Sort::Made => rows.sort_by_key(most(|counts| counts.made)),
            Sort::Deleted => rows.sort_by_key(most(|counts| counts.deleted)),
            Sort::Name => rows.sort_by(|a, b| a.name.cmp(&b.name)),
        }
        rows
    }

    fn is_wanted(&self, text: &str) -> bool {
        text.to_lowercase().contains(&self.filter.to_lowercase())
    }
}

/// To the second, in UTC.
fn time_of_day(time: SystemTime) -> String {
    let time = timestamp(time);
    time.get(11..19).unwrap_or(&time).to_owned()
}

/// The rows of all that are in the total.
fn table<K: Ord + Hash>(
    total: &HashMap<K, Counts>,
    recent: &HashMap<K, Counts>,
    name: impl Fn(&K) -> String,
) -> Vec<Row> {
    let row = |(key, total)| Row {
        name: name(key),
        recent: recent.get(key).copied().unwrap_or_default(),
        total,
    };
    busiest(total).into_iter().map(row).collect()
}

/// Of a terminal, in characters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
}

fn columns(numbers: [String; 6], name: &str) -> String {
    let mut line = String::new();
    for number in numbers {
        let _ = write!(line, "{number:>9} ");
    }
    line.extend(name.chars().take(WIDEST));
    line
}
