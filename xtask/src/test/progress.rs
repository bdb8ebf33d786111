//! What runs, what is left, and how long it took last time.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Duration};

use super::AT_ONCE;
use crate::workspace;

/// How long each job took when it was last run here, in seconds.
type Times = BTreeMap<String, u64>;

#[derive(Debug)]
pub(super) struct Progress {
    times: Times,
    /// Those that have not ended.
    left: Vec<String>,
    begun: usize,
    count: usize,
    /// Where the times are kept, if they are worth it.
    file: Option<PathBuf>,
}

impl Progress {
    /// A run of a part of the tests says nothing about how long the next whole one takes.
    pub(super) fn new(jobs: Vec<String>, is_whole: bool) -> Self {
        let file = workspace::target_dir().join("test-times");
        let times = fs::read_to_string(&file).unwrap_or_default();
        let times = times.lines().filter_map(|line| {
            let (seconds, job) = line.split_once(' ')?;
            Some((job.to_owned(), seconds.parse().ok()?))
        });
        Self {
            times: times.collect(),
            count: jobs.len(),
            left: jobs,
            begun: 0,
            file: is_whole.then_some(file),
        }
    }

    /// What there is to say of a job that begins.
    pub(super) fn begins(&mut self, job: &str) -> String {
        self.begun += 1;
        let Self { begun, count, .. } = self;
        let last = match self.times.get(job) {
            Some(seconds) => format!(", which took {seconds} s last time"),
            None => String::new(),
        };
        format!("[{begun}/{count}] {job}{last}")
    }

    /// The same of one that has ended.
    pub(super) fn ended(&mut self, job: &str, time: Duration) -> String {
        self.times.insert(job.to_owned(), time.as_secs());
        self.left.retain(|left| left != job);
        // Best effort: without the file, nobody knows the next time.
        let lines = self.times.iter();
        let text: String = lines
            .map(|(job, seconds)| format!("{seconds} {job}\n"))
            .collect();
        if let Some(file) = &self.file {
            let _ = fs::write(file, text);
        }
        let took = format!("{job} took {} s", time.as_secs());
        let known: Option<Vec<u64>> = self
            .left
            .iter()
            .map(|job| self.times.get(job).copied())
            .collect();
        match (self.left.len(), known) {
            (0, _) => took,
            (left, Some(times)) => {
                let seconds = times.iter().sum::<u64>() / AT_ONCE as u64;
                format!("{took}; {left} left, {} min or less", seconds.div_ceil(60))
            }
            (left, None) => format!("{took}; {left} left"),
        }
    }
}

/// The rows that took longest.
#[derive(Debug, Default)]
pub(super) struct Slowest(Vec<(u64, String)>);

impl Slowest {
    const COUNT: usize = 10;

    pub(super) fn add(&mut self, milliseconds: u64, what: String) {
        let Self(rows) = self;
        rows.push((milliseconds, what));
        rows.sort_unstable_by(|one, other| other.cmp(one));
        rows.truncate(Self::COUNT);
    }
}

impl std::fmt::Display for Slowest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(rows) = self;
        write!(f, "the slowest:")?;
        for (milliseconds, what) in rows {
            write!(f, "\n{:7.1} s  {what}", *milliseconds as f64 / 1e3)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(times: &[(&str, u64)], jobs: &[&str]) -> Progress {
        Progress {
            times: times
                .iter()
                .map(|&(job, time)| (job.to_owned(), time))
                .collect(),
            left: jobs.iter().map(|&job| job.to_owned()).collect(),
            begun: 0,
            count: jobs.len(),
            file: None,
        }
    }

    #[test]
    fn what_is_left_is_reckoned_from_the_last_time() {
        let mut progress = progress(&[("a", 10), ("b", 200)], &["a", "b", "c"]);
        assert_eq!(progress.begins("a"), "[1/3] a, which took 10 s last time");
        assert_eq!(progress.begins("c"), "[2/3] c");
        let time = Duration::from_secs(100);
        assert_eq!(
            progress.ended("c", time),
            "c took 100 s; 2 left, 2 min or less"
        );
        assert_eq!(
            progress.ended("a", time),
            "a took 100 s; 1 left, 2 min or less"
        );
        assert_eq!(progress.ended("b", time), "b took 100 s");
    }

    #[test]
    fn the_slowest_come_first() {
        let mut slowest = Slowest::default();
        for time in [3, 20, 1] {
            slowest.add(time * 1000, format!("row {time}"));
        }
        let text = slowest.to_string();
        let order: Vec<_> = text.lines().skip(1).map(str::trim).collect();
        assert_eq!(order, ["20.0 s  row 20", "3.0 s  row 3", "1.0 s  row 1"]);
    }
}
