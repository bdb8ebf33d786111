//! The command line program.

mod args;
mod check;
mod children;
#[cfg(feature = "generate")]
mod generate;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
mod mine;
mod namespaces;
mod notify;
mod open_files;
pub(crate) mod output;
mod privileges;
mod refused;
mod restart;
mod restarts;
mod run;
pub(crate) mod service;
mod signals;
mod state;
mod tally;
mod target;
mod top;
mod watches;

use std::{io, process::ExitCode, sync::OnceLock};

use ifmon::InterfaceName;
use tokio::runtime::LocalOptions;

use self::{
    args::Args,
    output::stderr::{self, say},
};

/// How the program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Stopped as asked.
    Stopped = 0,
    /// Failed while running.
    Failed = 1,
    /// Wrong usage.
    Usage = 2,
    /// An interface does not exist, and `--must-exist` was given.
    Absent = 3,
    /// What `--wait` waited for had not come when its time was over, or when it was stopped.
    InVain = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Parses, runs, and says in one line what went wrong.
pub(crate) fn main() -> ExitCode {
    let args = match Args::parse() {
        Ok(args) => args,
        Err(exit) => return exit.into(),
    };
    #[cfg(feature = "generate")]
    if let Some(what) = args.generate {
        let written = what.write(&mut std::io::stdout().lock());
        return written.map_or(Exit::Failed, |()| Exit::Stopped).into();
    }
    let handed_over = match args.serve {
        Some(_) => service::take_handed_over(),
        None => Ok(None),
    };
    start_log(&args);
    let result = open_files::raise()
        .and(handed_over)
        .and_then(|handed_over| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build_local(LocalOptions::default())?;
            // As a task, it goes on as soon as the monitor has something for it. What is blocked on
            // itself goes on after a turn of waiting for input, which costs each line a tenth of its
            // time.
            let result = runtime.block_on(runtime.spawn_local(run::run(args, handed_over)));
            let result = result.unwrap_or_else(|error| Err(error.into()));
            // A write to a terminal that hangs must not keep the program from ending.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = match error.downcast_ref() {
                Some(Misused::Netns(ifmon::Error::Netns { source, .. }))
                    if !is_mistaken(source) =>
                {
                    Exit::Failed
                }
                Some(Misused::Netns(_) | Misused::TwoDevices(..)) => Exit::Usage,
                None => Exit::Failed,
            };
            complain(&sentence(&error));
            exit.into()
        }
    }
}

/// Is there no such network namespace? Or may this user not have it, or is something short that is there
/// at the next attempt?
fn is_mistaken(error: &io::Error) -> bool {
    let is_short = matches!(
        error.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM)
    );
    !is_short && error.kind() != io::ErrorKind::PermissionDenied
}

/// What cannot work with these arguments is wrong usage.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Misused {
    #[error(transparent)]
    Netns(#[from] ifmon::Error),
    #[error("{0} cannot be both the device {1} and the device {2}")]
    TwoDevices(InterfaceName, u32, u32),
}

/// The error with its causes, each said once: those of the library give their cause themselves, as
/// it is or in words that help more.
fn sentence(error: &anyhow::Error) -> String {
    let mut said = Vec::new();
    for cause in error.chain() {
        said.push(cause.to_string());
        if cause.is::<ifmon::Error>() || cause.is::<Misused>() {
            break;
        }
    }
    said.join(": ")
}

/// One line on standard error; when that is closed, there is nobody to tell.
pub(crate) fn complain(message: &str) {
    say(log::Level::Error, message);
}

/// Messages for people go to standard error, one plain line each.
struct Log {
    own: log::LevelFilter,
    others: log::LevelFilter,
}

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        let from = |name: &str| {
            let rest = metadata.target().strip_prefix(name);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let filter = if from("ifmon") {
            self.own
        } else if from("aya") {
            // How aya relocates a program is of use to nobody here.
            self.others.min(log::LevelFilter::Warn)
        } else {
            self.others
        };
        metadata.level() <= filter
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            say(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn start_log(args: &Args) {
    use log::LevelFilter::{Debug, Error, Info, Warn};
    let (own, others) = match (args.quiet, args.verbose) {
        (true, _) => (Error, Error),
        (false, 0) => (Warn, Error),
        (false, 1) => (Info, Warn),
        (false, _) => (Debug, Debug),
    };
    static LOG: OnceLock<Log> = OnceLock::new();
    stderr::open();
    log::set_max_level(own.max(others));
    // It is the first and the only one.
    let _ = log::set_logger(LOG.get_or_init(|| Log { own, others }));
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::sentence;

    #[test]
    fn a_cause_is_said_once() {
        let own_words = ifmon::Error::Subscribe(io::Error::other("no room"));
        assert_eq!(
            sentence(&own_words.into()),
            "cannot begin to watch in a network namespace: no room"
        );
        let with_context = Err::<(), _>(io::Error::other("no room")).context("cannot write");
        assert_eq!(
            sentence(&with_context.expect_err("an error")),
            "cannot write: no room"
        );
    }
}
