//! What the scenarios print, line by line as they come.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::Counts;

/// What one backend did on one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) counts: Counts,
    /// How often each event was seen in scenarios that passed.
    pub(super) events: BTreeMap<String, u64>,
    /// Its last line was there, so it went through all scenarios.
    pub(super) complete: bool,
}

/// All that the scenarios printed on one kernel. Write their output into it.
#[derive(Debug, Default)]
pub(super) struct Results {
    partial: Vec<u8>,
    /// The version of the kernel.
    pub(super) kernel: String,
    pub(super) rows: BTreeMap<String, Row>,
    pub(super) failures: Vec<String>,
    /// Why scenarios were left out, and how many for each reason.
    pub(super) left_out: BTreeMap<String, u32>,
    /// How many milliseconds each took that passed.
    pub(super) times: Vec<(u64, String)>,
}

impl Results {
    fn line(&mut self, line: &str) {
        if let Some(version) = line.strip_prefix("kernel ") {
            version.clone_into(&mut self.kernel);
        } else if let Some(what) = line.strip_prefix("ok ") {
            self.row(what).counts.passed += 1;
            let words = what.strip_suffix(" ms");
            if let Some((what, time)) = words.and_then(|words| words.rsplit_once(' '))
                && let Ok(time) = time.parse()
            {
                self.times.push((time, what.to_owned()));
            }
        } else if let Some(what) = line.strip_prefix("FAILED ") {
            self.row(what).counts.failed += 1;
            self.failures.push(what.to_owned());
        } else if let Some(what) = line.strip_prefix("left out ") {
            self.row(what).counts.skipped += 1;
            let why = what.split_once("): ").map_or(what, |(_, why)| why);
            *self.left_out.entry(why.to_owned()).or_default() += 1;
        } else if let Some(summary) = line.strip_prefix("backend ") {
            self.summary(summary);
        }
    }

    /// The row that a line is about, which begins with the name of the backend.
    fn row(&mut self, what: &str) -> &mut Row {
        let backend = what.split(':').next().unwrap_or_default();
        self.rows.entry(backend.to_owned()).or_default()
    }

    fn summary(&mut self, summary: &str) {
        let mut words = summary.split_whitespace();
        let backend = words.next().unwrap_or_default();
        let row = self.rows.entry(backend.to_owned()).or_default();
        row.complete = true;
        for word in words {
            let Some((name, count)) = word.split_once('=') else {
                continue;
            };
            if !matches!(name, "passed" | "failed" | "left-out") {
                row.events
                    .insert(name.to_owned(), count.parse().unwrap_or(0));
            }
        }
    }

    /// What came of all of them; a backend that did not get to its end has failed once more.
    pub(super) fn counts(&self) -> Counts {
        let mut total = Counts::default();
        for row in self.rows.values() {
            total.add(row.counts);
            total.failed += u32::from(!row.complete);
        }
        total
    }
}

impl Write for Results {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                self.line(&String::from_utf8_lossy(&line));
            } else {
                self.partial.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_by_backend() -> io::Result<()> {
        let mut results = Results::default();
        results.write_all(b"kernel 6.1.0\nok netlink: deleted (veth) 5 ms\nFAILED netlink: mo")?;
        results.write_all(b"ved (veth): why\nleft out fentry: deleted (tun): no tun here\n")?;
        results.write_all(b"noise\nbackend netlink passed=1 failed=1 left-out=0 deleted=3\n")?;
        assert_eq!(results.kernel, "6.1.0");
        assert_eq!(results.times, [(5, "netlink: deleted (veth)".to_owned())]);
        assert_eq!(results.failures, ["netlink: moved (veth): why"]);
        assert_eq!(results.left_out["no tun here"], 1);
        assert_eq!(results.rows["netlink"].events["deleted"], 3);
        assert_eq!(
            results.counts(),
            Counts {
                passed: 1,
                // One scenario, and fentry that did not get to its end.
                failed: 2,
                skipped: 1
            }
        );
        Ok(())
    }
}
