//! The chart: who costs how much, in bars.

use super::{
    figure::{Figure, Figures},
    report::number,
};

const WIDTH: f64 = 760.0;
const MARGIN: f64 = 24.0;
/// Where the bars begin and how long the longest is.
const BARS: f64 = 230.0;
const LONGEST: f64 = 400.0;
const LINE: f64 = 26.0;
const BAR: f64 = 16.0;

/// What is drawn of each place, by the beginning of its name.
const PANELS: [(&str, &str); 3] = [
    ("unrelated", "wake-ups"),
    ("unrelated", "CPU"),
    ("latency", "created, p50"),
];

/// An SVG that follows the reader's choice of a light or dark page.
pub(super) fn draw(places: &[Figures]) -> String {
    let mut body = String::new();
    let mut y = MARGIN;
    for place in places {
        y += 16.0;
        body += &text(MARGIN, y, "place", &place.place);
        y += 12.0;
        for (row, what) in PANELS {
            let figures: Vec<&Figure> = place
                .figures
                .iter()
                .filter(|figure| figure.row == row && figure.what.starts_with(what))
                // It takes a second, which would leave no bar for the rest.
                .filter(|figure| row != "latency" || !figure.subject.starts_with("polling"))
                .collect();
            y = panel(&mut body, y, &figures);
        }
        y += MARGIN;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"system-ui, sans-serif\" font-size=\"13\" role=\"img\">\n\
         <title>What ifmon costs, beside its peers</title>\n\
         <style>\n\
         text {{ fill: #1f2328 }} .quiet {{ fill: #59636e }} .place {{ font-weight: 600; font-size: 15px }}\n\
         .ifmon {{ fill: #1a7f64 }} .peer {{ fill: #9aa4af }}\n\
         @media (prefers-color-scheme: dark) {{\n\
         text {{ fill: #f0f6fc }} .quiet {{ fill: #9198a1 }} .ifmon {{ fill: #3fb68f }} .peer {{ fill: #656c76 }}\n\
         }}\n\
         </style>\n{body}</svg>\n"
    )
}

/// Draws one measurement of everyone, and says where the next goes.
fn panel(body: &mut String, top: f64, figures: &[&Figure]) -> f64 {
    let Some(first) = figures.first() else {
        return top;
    };
    let most = figures
        .iter()
        .map(|figure| figure.value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let title = match first.row.as_str() {
        "latency" => "From a creation to the line that tells of it, median".to_owned(),
        _ => first.what.replace("changes", "changes that concern nobody"),
    };
    let unit = match first.unit.as_str() {
        "" => String::new(),
        unit => format!(" ({unit})"),
    };
    let mut y = top + LINE;
    *body += &text(MARGIN, y, "", &format!("{title}{unit}"));
    y += 10.0;
    for figure in figures {
        let length = LONGEST * figure.value / most;
        let class = if figure.subject.starts_with("ifmon") {
            "ifmon"
        } else {
            "peer"
        };
        let middle = y + BAR - 3.0;
        *body += &text(
            MARGIN + 12.0,
            middle,
            "quiet",
            &figure.subject.replace('`', ""),
        );
        *body += &format!(
            "<rect class=\"{class}\" x=\"{BARS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR}\" rx=\"2\"/>\n"
        );
        *body += &text(BARS + length + 6.0, middle, "quiet", &number(figure.value));
        y += LINE - 4.0;
    }
    y
}

fn text(x: f64, y: f64, class: &str, content: &str) -> String {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{content}</text>\n")
}
