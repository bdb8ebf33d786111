//! `bench report`: one table of all places, a chart, and a file with every number.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{
    chart,
    figure::{Figure, Figures, Spread},
};

pub(super) fn run(options: &[&str]) -> Result<()> {
    let mut assets = None;
    let mut places = Vec::new();
    let mut options = options.iter();
    while let Some(&option) = options.next() {
        if option == "--assets" {
            assets = Some(PathBuf::from(options.next().context("--assets DIR")?));
            continue;
        }
        let text = fs::read_to_string(option).with_context(|| format!("cannot read {option}"))?;
        places.push(Figures::from_json(&serde_json::from_str(&text)?)?);
    }
    for place in &places {
        print!("{}", table(place));
    }
    if let Some(assets) = assets {
        let before = fs::read_to_string(assets.join("cost.json"))?;
        let before: Vec<Value> = serde_json::from_str(&before)?;
        for (before, place) in before.iter().zip(&places) {
            print!("{}", moved(&Figures::from_json(before)?, place));
        }
        let json: Vec<Value> = places.iter().map(Figures::to_json).collect();
        let json = serde_json::to_string_pretty(&json)? + "\n";
        fs::create_dir_all(&assets)?;
        fs::write(assets.join("cost.json"), json)?;
        fs::write(assets.join("cost.svg"), chart::draw(&places))?;
    }
    Ok(())
}

/// What is another figure than it was, by more than both are unsure; of what is counted and not
/// measured, which goals are reached no longer or for the first time.
fn moved(before: &Figures, now: &Figures) -> String {
    let mut text = format!("\nMoved since the last whole run, {}:\n", now.place);
    for figure in &now.figures {
        let is_same = |other: &&Figure| {
            (&other.row, &other.what, &other.subject)
                == (&figure.row, &figure.what, &figure.subject)
        };
        let Some(other) = before.figures.iter().find(is_same) else {
            continue;
        };
        let has_moved = match (other.spread, figure.spread) {
            (Some(other), Some(now)) => other.high < now.low || now.high < other.low,
            _ => other.is_reached() != figure.is_reached(),
        };
        if has_moved {
            let Figure {
                row, what, subject, ..
            } = figure;
            let (other, now) = (cell(other), cell(figure));
            text += &format!("- {row}: {what}, {subject}: {other} -> {now}\n");
        }
    }
    text
}

/// A Markdown table: what was measured down, who was measured across.
fn table(place: &Figures) -> String {
    let mut subjects: Vec<&str> = Vec::new();
    let mut order: Vec<(&str, &str)> = Vec::new();
    let mut cells: BTreeMap<(&str, &str), Vec<&Figure>> = BTreeMap::new();
    for figure in &place.figures {
        if !subjects.contains(&figure.subject.as_str()) {
            subjects.push(&figure.subject);
        }
        let key = (figure.row.as_str(), figure.what.as_str());
        if !order.contains(&key) {
            order.push(key);
        }
        cells.entry(key).or_default().push(figure);
    }
    let Figures { place, quick, .. } = place;
    let warning = if *quick { " (a quick run)" } else { "" };
    let mut text = format!("\n**{place}**{warning}\n\n| |");
    for subject in &subjects {
        text += &format!(" {subject} |");
    }
    text += " goal | reached |\n|---|";
    text += &"---:|".repeat(subjects.len() + 1);
    text += "---|\n";
    for key in order {
        let (row, what) = key;
        let figures = &cells[&key];
        text += &format!("| {row}: {what} |");
        for subject in &subjects {
            let figure = figures.iter().find(|figure| figure.subject == *subject);
            text +=
                &figure.map_or_else(|| " |".to_owned(), |figure| format!(" {} |", cell(figure)));
        }
        text += &verdict(figures);
    }
    text
}

/// The goal, and who missed it.
fn verdict(figures: &[&Figure]) -> String {
    let with_goal: Vec<_> = figures
        .iter()
        .filter_map(|figure| Some((figure, figure.goal?)))
        .collect();
    let Some((first, goal)) = with_goal.first() else {
        return " | |\n".to_owned();
    };
    let missed: Vec<&str> = with_goal
        .iter()
        .filter(|(figure, _)| figure.is_reached() == Some(false))
        .map(|(figure, _)| figure.subject.as_str())
        .collect();
    let verdict = match missed.as_slice() {
        [] => "yes".to_owned(),
        missed => format!("**no**: {}", missed.join(", ")),
    };
    format!(" ≤ {} | {verdict} |\n", with_unit(*goal, &first.unit))
}

/// The value; where it is a quantile, how sure it is and of how many.
fn cell(figure: &Figure) -> String {
    let mut cell = with_unit(figure.value, &figure.unit);
    if let Some(Spread { low, high, count }) = figure.spread {
        let count = number(count as f64);
        cell += &format!(" ({} to {}, {count})", number(low), number(high));
    }
    cell
}

fn with_unit(value: f64, unit: &str) -> String {
    let number = number(value);
    if unit.is_empty() {
        number
    } else {
        format!("{number} {unit}")
    }
}

/// Three digits that mean something, or all of those before the point.
pub(super) fn number(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 100.0 || size == size.trunc() => 0,
        size if size >= 10.0 => 1,
        // A ratio of 1.01 is a goal.
        size if size >= 1.1 => 2,
        _ => 3,
    };
    let plain = format!("{value:.digits$}");
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let (sign, whole) = whole
        .strip_prefix('-')
        .map_or(("", whole), |whole| ("-", whole));
    let mut grouped = String::new();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

#[cfg(test)]
mod tests {
    use super::{moved, number};
    use crate::bench::{figure::Figures, statistics::Quantile};

    fn figures(median: f64, wake_ups: f64) -> Figures {
        let mut figures = Figures {
            place: "here".to_owned(),
            quick: false,
            figures: Vec::new(),
        };
        let quantile = Quantile {
            value: median,
            low: median - 5.0,
            high: median + 5.0,
            count: 100,
        };
        figures.push_quantile("latency", "p50", "ifmon", quantile, "µs");
        figures.push("unrelated", "wake-ups", "ifmon", wake_ups, "");
        figures.goal(5.0);
        figures
    }

    #[test]
    fn what_is_within_the_spread_has_not_moved() {
        let moved = |median, wake_ups| moved(&figures(100.0, 0.0), &figures(median, wake_ups));
        assert_eq!(
            moved(109.0, 4.0)
                .lines()
                .filter(|line| line.starts_with('-'))
                .count(),
            0
        );
        assert!(
            moved(111.0, 0.0).contains("- latency: p50, ifmon: 100 µs (95 to 105, 100) -> 111")
        );
        assert!(moved(89.0, 0.0).contains("- latency"));
        assert!(moved(100.0, 6.0).contains("- unrelated: wake-ups, ifmon: 0 -> 6"));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(number(0.0), "0");
        assert_eq!(number(0.12345), "0.123");
        assert_eq!(number(1.0049), "1.005");
        assert_eq!(number(12.345), "12.3");
        assert_eq!(number(1234.5), "1,234");
        assert_eq!(number(-1_000_000.0), "-1,000,000");
    }
}
