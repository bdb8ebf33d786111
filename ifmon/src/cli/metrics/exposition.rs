//! The two text formats in which Prometheus reads metrics. They differ in what a counter's family
//! is called, and in how the text ends.

use std::fmt::Write as _;

/// What every name begins with.
const PREFIX: &str = "ifmon_";

/// How metrics are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Prometheus' own, 0.0.4, which all that scrapes can read.
    Text,
    OpenMetrics,
}

impl Format {
    /// The better of those that a client accepts, by the values of its `Accept` headers (RFC 9110,
    /// 12.5.1).
    pub(super) fn wanted<'a>(accepted: impl Iterator<Item = &'a str>) -> Self {
        let (mut text, mut open_metrics) = (0.0, 0.0);
        for range in accepted.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim_end().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            let best = match (media_type.as_str(), version) {
                ("application/openmetrics-text", None | Some("0.0.1" | "1.0.0")) => {
                    &mut open_metrics
                }
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => &mut text,
                _ => continue,
            };
            *best = f32::max(*best, quality);
        }
        if open_metrics > 0.0 && open_metrics >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    /// Its samples have the suffix `_total`.
    Counter,
}

/// A text that grows by families of metrics, each followed by its samples.
#[derive(Debug)]
pub(super) struct Exposition {
    format: Format,
    text: String,
    /// The name of the samples of this family.
    sample: String,
}

impl Exposition {
    pub(super) fn new(format: Format) -> Self {
        Self {
            format,
            text: String::new(),
            sample: String::new(),
        }
    }

    pub(super) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let (kind, suffix) = match kind {
            Kind::Gauge => ("gauge", ""),
            Kind::Counter => ("counter", "_total"),
        };
        self.sample = format!("{PREFIX}{name}{suffix}");
        let family = match self.format {
            Format::Text => self.sample.clone(),
            Format::OpenMetrics => format!("{PREFIX}{name}"),
        };
        // A string can always be written to.
        let _ = writeln!(self.text, "# HELP {family} {help}");
        let _ = writeln!(self.text, "# TYPE {family} {kind}");
    }

    pub(super) fn sample(&mut self, labels: &[(&str, String)], value: u64) {
        self.text.push_str(&self.sample);
        for (at, (name, value)) in labels.iter().enumerate() {
            let before = if at == 0 { '{' } else { ',' };
            let _ = write!(self.text, "{before}{name}=\"{}\"", escape(value));
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// What may not stand in a label's value as it is; the same in both formats.
fn escape(value: &str) -> String {
    value
        .replace('\\', r"\\")
        .replace('"', r#"\""#)
        .replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_chooses() {
        const PROMETHEUS_2: &str = "application/openmetrics-text;version=1.0.0,\
             application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,\
             */*;q=0.1";
        const PROMETHEUS_3: &str = "application/openmetrics-text;version=1.0.0;\
             escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,\
             */*;q=0.1";
        for (accepted, format) in [
            (&[][..], Format::Text),
            (&["*/*"], Format::Text),
            (&["text/html, */*;q=0.8"], Format::Text),
            (&["text/plain"], Format::Text),
            (&["image/png"], Format::Text),
            (&[PROMETHEUS_2], Format::OpenMetrics),
            (&[PROMETHEUS_3], Format::OpenMetrics),
            (&["application/openmetrics-text"], Format::OpenMetrics),
            (
                &[
                    "*/*;q=0.1",
                    "Application/OpenMetrics-Text ; Version=\"1.0.0\"",
                ],
                Format::OpenMetrics,
            ),
            (
                &["application/openmetrics-text;q=0.4, text/plain"],
                Format::Text,
            ),
            (&["application/openmetrics-text;q=0"], Format::Text),
            (
                &["application/openmetrics-text;version=2.0.0"],
                Format::Text,
            ),
        ] {
            let wanted = Format::wanted(accepted.iter().copied());
            assert_eq!(wanted, format, "{accepted:?}");
        }
    }

    #[test]
    fn counters_and_ends_differ() {
        for (format, expected) in [
            (
                Format::Text,
                "# HELP ifmon_a_total What\n# TYPE ifmon_a_total counter\nifmon_a_total 1\n\
                 # HELP ifmon_b Else\n# TYPE ifmon_b gauge\nifmon_b{c=\"\\\\d\\\"\\n\",e=\"\"} 2\n",
            ),
            (
                Format::OpenMetrics,
                "# HELP ifmon_a What\n# TYPE ifmon_a counter\nifmon_a_total 1\n\
                 # HELP ifmon_b Else\n# TYPE ifmon_b gauge\nifmon_b{c=\"\\\\d\\\"\\n\",e=\"\"} 2\n# EOF\n",
            ),
        ] {
            let mut exposition = Exposition::new(format);
            exposition.family("a", Kind::Counter, "What");
            exposition.sample(&[], 1);
            exposition.family("b", Kind::Gauge, "Else");
            exposition.sample(&[("c", "\\d\"\n".to_owned()), ("e", String::new())], 2);
            assert_eq!(exposition.finish(), expected);
        }
    }
}
