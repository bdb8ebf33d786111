//! What every line has to look like, whatever it says.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// The fields of every line.
const COMMON: [&str; 7] = [
    "time",
    "event",
    "interface",
    "netns",
    "ifindex",
    "restart",
    "backend",
];

/// An event, whether it calls for a restart, and its fields beside the common ones.
const EVENTS: [(&str, bool, &[&str]); 9] = [
    ("watching", false, &[]),
    ("deleted", true, &[]),
    ("renamed", true, &["to"]),
    ("moved", true, &["to_netns", "to_ifindex"]),
    ("appeared", false, &[]),
    ("recreated", true, &["old_ifindex"]),
    ("returned", false, &[]),
    ("resynced", false, &["lost", "changed"]),
    ("stopped", false, &["reason", "seen", "delivered", "lost"]),
];

/// Clocks that are read one after the other are not quite the same.
const CLOCK_TOLERANCE: i64 = 1_000_000;

/// Checks the form of a line, and that its time is not before `begin`. Returns its time, in
/// microseconds.
pub fn check(line: &Value, backend: &str, begin: i64) -> Result<i64> {
    let fields = line
        .as_object()
        .with_context(|| format!("not an object: {line}"))?;
    let text = |name: &str| {
        line[name]
            .as_str()
            .with_context(|| format!("{name} is no text in {line}"))
    };
    let event = text("event")?;
    let &(_, restart, own) = EVENTS
        .iter()
        .find(|(name, ..)| *name == event)
        .with_context(|| format!("no such event: {line}"))?;
    // What the engine did itself is no reason to restart it.
    let restart = restart && line["own"] != true;
    ensure!(
        line["restart"] == restart,
        "restart is not {restart}: {line}"
    );
    ensure!(line["backend"] == backend, "not by {backend}: {line}");
    let is_pattern = line["pattern"].is_string();
    let whole = is_pattern && matches!(event, "watching" | "resynced" | "stopped");
    ensure!(
        whole && line["interface"].is_null()
            || line["interface"]
                .as_str()
                .is_some_and(|name| !name.is_empty()),
        "no interface: {line}"
    );
    let counts = whole && event != "stopped";
    ensure!(
        is_number(&line["matches"]) == counts,
        "not how many match: {line}"
    );
    // What is said of a pattern in all namespaces is said of none of them.
    let of_all = whole && event != "resynced" && line["netns"].is_null();
    ensure!(
        is_number(&line["netns"]) || of_all,
        "netns is no number: {line}"
    );
    let no_index = matches!(event, "watching" | "resynced" | "stopped");
    ensure!(
        is_number(&line["ifindex"]) || no_index && line["ifindex"].is_null(),
        "ifindex is no number: {line}"
    );
    for name in COMMON.iter().chain(own) {
        ensure!(fields.contains_key(*name), "no {name}: {line}");
    }
    for name in fields.keys() {
        let name = name.as_str();
        let known = COMMON.contains(&name) || own.contains(&name) || name == "by";
        // There only where the namespace has a name.
        let known = known
            || name == "netns_name" && line[name].is_string()
            || name == "pattern" && is_pattern
            || name == "matches" && counts
            || name == "kind" && is_pattern && matches!(event, "appeared" | "deleted")
            || name == "to_netns_name" && event == "moved" && line[name].is_string()
            || name == "peer" && event == "appeared" && is_pattern && is_peer(&line[name]);
        ensure!(
            known || matches!(name, "recovered" | "own") && line[name] == true,
            "{name} does not belong here: {line}"
        );
    }
    if let Some(by) = fields.get("by") {
        ensure!(
            ["pid", "uid", "cgroup"]
                .iter()
                .all(|part| is_number(&by[part]) || by[part].is_null())
                && (by["comm"].is_string() || by["comm"].is_null())
                && (by["kthread"].is_boolean() || by["kthread"].is_null()),
            "a malformed actor: {line}"
        );
    }
    let time = microseconds(text("time")?).with_context(|| format!("a malformed time: {line}"))?;
    ensure!(
        time >= begin - CLOCK_TOLERANCE && time <= now() + CLOCK_TOLERANCE,
        "a time that cannot be: {line}"
    );
    Ok(time)
}

/// Has the other end of a pair what it has to have, and nothing that is unknown beside that?
fn is_peer(peer: &Value) -> bool {
    let container = &peer["container"];
    is_number(&peer["ifindex"])
        && (is_number(&peer["netns"]) || peer.get("netns").is_some_and(Value::is_null))
        && peer.get("netns_name").is_none_or(Value::is_string)
        && (peer.get("container").is_none() || container["id"].is_string())
        && peer.as_object().is_some_and(|fields| fields.len() <= 4)
}

fn is_number(value: &Value) -> bool {
    value.as_u64().is_some()
}

/// Now, in microseconds since 1970.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_micros() as i64)
}

/// Are two times in this order, as well as clocks can tell?
pub fn in_order(earlier: i64, later: i64) -> bool {
    later >= earlier - CLOCK_TOLERANCE
}

/// Reads `2026-11-23T12:00:01.123456Z`, to the microsecond and in UTC only, as microseconds since
/// 1970.
fn microseconds(text: &str) -> Result<i64> {
    const FORM: &[u8] = b"0000-00-00T00:00:00.000000Z";
    let bytes = text.as_bytes();
    let fits = bytes.len() == FORM.len()
        && bytes.iter().zip(FORM).all(|(byte, form)| match form {
            b'0' => byte.is_ascii_digit(),
            form => byte == form,
        });
    if !fits {
        bail!("{text} is not of the form YYYY-MM-DDThh:mm:ss.uuuuuuZ");
    }
    let number = |from: usize, to: usize| text[from..to].parse::<i64>();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let seconds = ((days(year, month, day) * 24 + hour) * 60 + minute) * 60 + second;
    Ok(seconds * 1_000_000 + number(20, 26)?)
}

/// Days since 1970. The year begins in March here, so that a leap day is its last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year / 4 - year / 100 + year / 400;
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 719_469
}

#[cfg(test)]
mod tests {
    use super::{check, microseconds, now};
    use serde_json::json;

    #[test]
    fn times_are_read() {
        let at = |text| microseconds(text).expect("a time");
        assert_eq!(at("1970-01-01T00:00:00.000000Z"), 0);
        assert_eq!(at("2000-02-29T12:00:00.000001Z"), 951_825_600_000_001);
        assert_eq!(at("2026-11-23T12:00:01.123456Z"), 1_795_435_201_123_456);
        for bad in ["", "2026-11-23T12:00:01Z", "2026-11-23 12:00:01.123456Z"] {
            assert!(microseconds(bad).is_err());
        }
    }

    #[test]
    fn lines_are_checked() {
        let good = json!({"time": "2026-11-23T12:00:01.123456Z", "event": "renamed", "interface": "wg0", "netns": 1,
            "ifindex": 7, "restart": true, "backend": "netlink", "to": "old0"});
        let check = |line| check(&line, "netlink", 0);
        assert!(check(good.clone()).is_ok());
        for (field, bad) in [
            ("time", json!("today")),
            ("event", json!("gone")),
            ("ifindex", json!(null)),
            ("restart", json!(false)),
            ("backend", json!("fentry")),
            ("more", json!(1)),
        ] {
            let mut line = good.clone();
            line[field] = bad;
            assert!(check(line).is_err(), "{field}");
        }
        assert!(super::check(&good, "netlink", now() + 10_000_000).is_err());
    }
}
