use ifmon::{LinkKind, NetnsId};

use super::*;
use crate::cli::tally::Maker;

fn top() -> Top {
    let mut top = Top::new(BackendKind::NetlinkEbpf);
    for (name, made, deleted) in [("busy", 30, 5), ("tidy", 10, 20), ("able", 1, 0)] {
        let counts = Counts {
            made,
            deleted,
            other: 0,
        };
        let Shown { total, recent, .. } = &mut top.now;
        for tally in [total, &mut recent[0]] {
            tally.add(counts, Maker::Comm(name.to_owned()), NetnsId(1));
            let kind = if name == "busy" { "veth" } else { "bridge" };
            tally.add_kind(counts, LinkKind::new(kind).expect("a good kind"));
        }
        top.now
            .newest
            .push_front(format!("12:00:00 wg0 deleted: by {name}"));
    }
    top
}

/// A second passes.
fn second(top: &mut Top) {
    top.next = Instant::now();
    top.tick();
}

/// What a terminal of this size would show.
fn shown(top: &Top, columns: u16, rows: u16) -> Vec<String> {
    let screen = top.draw(Size { columns, rows }, &Namespaces::new());
    let mut text = String::from_utf8(screen).expect("text");
    for code in [
        "\x1b[H", "\x1b[J", "\x1b[K", "\x1b[0m", "\x1b[1m", "\x1b[7m",
    ] {
        text = text.replace(code, "");
    }
    assert!(!text.contains('\x1b'), "{text:?}");
    text.lines().map(str::to_owned).collect()
}

fn names(top: &Top) -> Vec<String> {
    let lines = shown(top, 80, 40);
    let rows = lines.iter().skip(5).take_while(|line| !line.is_empty());
    rows.filter_map(|line| Some(line.split_whitespace().last()?.to_owned()))
        .collect()
}

#[test]
fn it_fits_the_terminal() {
    let mut top = top();
    second(&mut top);
    for (columns, rows) in [(80, 24), (40, 10), (10, 4), (200, 60)] {
        let lines = shown(&top, columns, rows);
        assert!(lines.len() <= rows.into(), "{lines:?}");
        let is_wide = |line: &String| line.chars().count() > columns.into();
        assert!(!lines.iter().any(is_wide), "{lines:?}");
    }
    let small = shown(&top, 80, 12);
    assert!(small.contains(&"and 2 more".to_owned()), "{small:?}");
    assert!(small.iter().any(|line| line == "NEWEST"), "{small:?}");
}

#[test]
fn rates_are_of_the_last_seconds_and_sums_of_all() {
    let mut top = top();
    let row = |top: &Top| {
        let lines = shown(top, 80, 40);
        let all = lines.iter().find(|line| line.ends_with(" all"));
        all.map(|line| line.split_whitespace().take(5).map(str::to_owned).collect())
    };
    let mut expect = |seconds: usize, shown: [&str; 5]| {
        for _ in 0..seconds {
            second(&mut top);
        }
        assert_eq!(row(&top), Some(shown.map(str::to_owned).to_vec()));
    };
    // The first second is not over.
    expect(0, ["0.0", "0.0", "0.0", "41", "25"]);
    expect(1, ["41.0", "25.0", "0.0", "41", "25"]);
    expect(1, ["20.5", "12.5", "0.0", "41", "25"]);
    expect(8, ["4.1", "2.5", "0.0", "41", "25"]);
    expect(1, ["0.0", "0.0", "0.0", "41", "25"]);
}

#[test]
fn keys_sort_filter_and_group() {
    let mut top = top();
    second(&mut top);
    assert_eq!(names(&top), ["busy", "tidy", "able"]);
    // The key that moves the cursor up has no letter.
    assert!(top.keys(b"\x1b[A"));
    assert!(top.keys(b"ss"));
    assert_eq!(names(&top), ["tidy", "busy", "able"]);
    assert!(top.keys(b"s"));
    assert_eq!(names(&top), ["able", "busy", "tidy"]);
    // While one types, letters are not keys.
    assert!(top.keys(b"/Qp"));
    assert!(names(&top).is_empty());
    assert!(top.keys(b"\x7f\x7fBus\r"));
    assert_eq!(names(&top), ["busy"]);
    let lines = shown(&top, 80, 40);
    let newest = lines.iter().filter(|line| line.contains("wg0")).count();
    assert_eq!(newest, 1);
    assert!(top.keys(b"\x1b"));
    assert_eq!(names(&top).len(), 3);
    assert!(top.keys(b"g"));
    assert_eq!(names(&top), ["1"]);
    assert!(shown(&top, 80, 40)[1].contains("g by kind"));
    assert!(top.keys(b"g"));
    assert_eq!(names(&top), ["bridge", "veth"]);
    assert!(top.keys(b"g"));
    assert_eq!(names(&top).len(), 3);
    assert!(!top.keys(b"q"));
}

#[test]
fn a_pause_stops_the_screen_and_not_the_counting() {
    let mut top = top();
    second(&mut top);
    assert!(top.keys(b"p"));
    let before = names(&top);
    let counts = Counts {
        made: 1000,
        ..Counts::default()
    };
    top.now.total.add(counts, Maker::Unknown, NetnsId(1));
    assert_eq!(names(&top), before);
    assert!(shown(&top, 80, 24)[0].contains("PAUSED"));
    assert!(top.keys(b"p"));
    assert_eq!(names(&top).len(), 4);
}
