//! Text with the colours of a terminal as an SVG picture. It knows the codes that ifmon and the
//! demo write.

use std::fmt::Write as _;

/// Columns of the picture, whatever the text: longer lines are broken, so that its size depends on
/// nothing else.
const COLUMNS: usize = 92;
const CELL_WIDTH: f32 = 8.4;
const LINE_HEIGHT: usize = 20;
const MARGIN: usize = 20;
/// The bar with the title.
const BAR: usize = 34;
/// How far a broken line's rest is moved in.
const INDENT: usize = 4;

/// A picture of a terminal that shows the text.
pub(super) fn svg(title: &str, text: &str) -> String {
    let lines: Vec<Vec<Span>> = text.lines().flat_map(|line| wrap(spans(line))).collect();
    let width = (COLUMNS as f32 * CELL_WIDTH) as usize + 2 * MARGIN;
    let height = BAR + lines.len() * LINE_HEIGHT + MARGIN;
    let title = escape(title);
    let x = |column: usize| MARGIN as f32 + column as f32 * CELL_WIDTH;
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">
<title>{title}</title>
<style>
text {{ font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; fill: #1f2328; white-space: pre }}
.dim {{ fill: #6e7781 }} .reverse {{ fill: #ffffff }} .bold {{ font-weight: bold }} .red {{ fill: #cf222e }} .green {{ fill: #1a7f37 }} .yellow {{ fill: #9a6700 }}
</style>
<rect x="0.5" y="0.5" width="{inner_width}" height="{inner_height}" rx="8" fill="#ffffff" stroke="#d0d7de"/>
<circle cx="20" cy="17" r="5" fill="#d0d7de"/><circle cx="38" cy="17" r="5" fill="#d0d7de"/><circle cx="56" cy="17" r="5" fill="#d0d7de"/>
<text x="50%" y="22" text-anchor="middle" class="dim">{title}</text>
"##,
        inner_width = width - 1,
        inner_height = height - 1,
    );
    for (row, line) in lines.iter().enumerate() {
        let y = BAR + (row + 1) * LINE_HEIGHT - 5;
        let mut column = 0;
        for Span { style, text } in line {
            let width = text.chars().count();
            if style.reverse {
                let _ = writeln!(
                    svg,
                    r##"<rect x="{:.1}" y="{}" width="{:.1}" height="{LINE_HEIGHT}" fill="#1f2328"/>"##,
                    x(column),
                    y + 5 - LINE_HEIGHT,
                    width as f32 * CELL_WIDTH,
                );
            }
            // SVG viewers differ in what they make of white space at either end, and of more than
            // one space.
            let mut begin = column;
            for part in text.split("  ") {
                let width = part.chars().count();
                let word = part.trim();
                if !word.is_empty() {
                    let before = width - part.trim_start().chars().count();
                    // Each is put where it belongs and stretched to its width, whatever the
                    // viewer's font is.
                    let _ = writeln!(
                        svg,
                        r#"<text x="{:.1}" y="{y}" textLength="{:.1}"{}>{}</text>"#,
                        x(begin + before),
                        word.chars().count() as f32 * CELL_WIDTH,
                        style.class(),
                        escape(word),
                    );
                }
                begin += width + 2;
            }
            column += width;
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// What the codes so far say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Style {
    bold: bool,
    dim: bool,
    reverse: bool,
    color: Option<&'static str>,
}

impl Style {
    /// Applies one number of a "select graphic rendition" sequence (ECMA-48, 8.3.117).
    fn apply(&mut self, code: &str) {
        match code {
            "" | "0" => *self = Self::default(),
            "1" => self.bold = true,
            "2" => self.dim = true,
            "7" => self.reverse = true,
            "31" => self.color = Some("red"),
            "32" => self.color = Some("green"),
            "33" => self.color = Some("yellow"),
            _ => {}
        }
    }

    fn class(self) -> String {
        let classes: Vec<_> = [
            self.bold.then_some("bold"),
            self.dim.then_some("dim"),
            self.reverse.then_some("reverse"),
            self.color,
        ]
        .into_iter()
        .flatten()
        .collect();
        if classes.is_empty() {
            String::new()
        } else {
            format!(r#" class="{}""#, classes.join(" "))
        }
    }
}

/// Some text in one style.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    style: Style,
    text: String,
}

/// Takes a line apart at its colour codes.
fn spans(line: &str) -> Vec<Span> {
    let mut style = Style::default();
    let mut spans = Vec::new();
    let mut parts = line.split("\x1b[");
    let mut push = |style, text: &str| {
        if !text.is_empty() {
            spans.push(Span {
                style,
                text: text.to_owned(),
            });
        }
    };
    push(style, parts.next().unwrap_or_default());
    for part in parts {
        let Some((codes, text)) = part.split_once('m') else {
            continue;
        };
        codes.split(';').for_each(|code| style.apply(code));
        push(style, text);
    }
    spans
}

/// Breaks a line between words where it is too long.
fn wrap(spans: Vec<Span>) -> Vec<Vec<Span>> {
    let mut lines = vec![Vec::new()];
    let mut column = 0;
    for Span { style, text } in spans {
        let mut rest = String::new();
        for word in text.split_inclusive(' ') {
            let width = word.trim_end().chars().count();
            if column + width > COLUMNS && column > INDENT {
                let done = std::mem::take(&mut rest);
                lines
                    .last_mut()
                    .expect("there is one")
                    .push(Span { style, text: done });
                lines.push(Vec::new());
                rest.push_str(&" ".repeat(INDENT));
                column = INDENT;
            }
            rest.push_str(word);
            column += word.chars().count();
        }
        lines
            .last_mut()
            .expect("there is one")
            .push(Span { style, text: rest });
    }
    lines
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_become_classes_and_text_stays() {
        let picture = svg(
            "a & b",
            "\x1b[2mwhen\x1b[0m wg0 \x1b[1m\x1b[31mdeleted\x1b[0m: 1 < 2",
        );
        assert!(picture.contains(r#"class="dim">when<"#), "{picture}");
        assert!(
            picture.contains(r#"class="bold red">deleted<"#),
            "{picture}"
        );
        assert!(picture.contains("1 &lt; 2"), "{picture}");
        assert!(picture.contains("<title>a &amp; b</title>"), "{picture}");
    }

    #[test]
    fn columns_keep_their_places() {
        let picture = svg("", "\x1b[7m 1   2 3\x1b[0m");
        let places: Vec<&str> = picture
            .lines()
            .filter(|line| line.contains("reverse\">"))
            .collect();
        assert_eq!(
            places,
            [
                r#"<text x="28.4" y="49" textLength="8.4" class="reverse">1</text>"#,
                r#"<text x="62.0" y="49" textLength="25.2" class="reverse">2 3</text>"#,
            ]
        );
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        let text = "word ".repeat(30);
        let lines = wrap(spans(&text));
        assert_eq!(lines.len(), 2);
        for line in &lines {
            let width: usize = line
                .iter()
                .map(|span| span.text.trim_end().chars().count())
                .sum();
            assert!(width <= COLUMNS);
        }
        let joined: String = lines
            .iter()
            .flatten()
            .map(|span| span.text.as_str())
            .collect();
        assert_eq!(joined.split_whitespace().count(), 30);
    }
}
