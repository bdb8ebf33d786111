//! The command line program.

mod args;
mod check;
mod detail;
mod exec;
#[cfg(feature = "generate")]
mod generate;
mod journal;
mod json;
mod memory;
#[cfg(feature = "metrics")]
mod metrics;
mod notify;
mod origin;
mod privileges;
mod run;
mod stdout;
mod text;

use std::{io::Write as _, process::ExitCode};

use self::args::Args;

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
    start_log(&args);
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let result = runtime.block_on(run::run(args));
            // A write to a terminal that hangs must not keep the program from ending.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(exit) => exit.into(),
        Err(error) => {
            let exit = error.downcast_ref().map_or(Exit::Failed, exit_of);
            complain(&sentence(&error));
            exit.into()
        }
    }
}

/// What cannot work with these arguments is wrong usage; the rest failed.
fn exit_of(error: &ifmon::Error) -> Exit {
    match error {
        ifmon::Error::InvalidName(_)
        | ifmon::Error::NothingToWatch
        | ifmon::Error::Netns { .. } => Exit::Usage,
        _ => Exit::Failed,
    }
}

/// The error with its causes, each said once: some errors give their cause themselves.
fn sentence(error: &anyhow::Error) -> String {
    let mut causes = error.chain().map(ToString::to_string);
    let first = causes.next().unwrap_or_default();
    causes.fold(first, |said, cause| {
        if said.ends_with(&cause) {
            said
        } else {
            format!("{said}: {cause}")
        }
    })
}

/// One line on standard error; when that is closed, there is nobody to tell.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(
        anstream::stderr(),
        "{}{}",
        journal::prefix(log::Level::Error),
        message.replace('\n', " ")
    );
}

/// Messages for people go to standard error, one plain line each.
fn start_log(args: &Args) {
    use log::LevelFilter::{Debug, Error, Info, Warn};
    let (own, others) = match (args.quiet, args.verbose) {
        (true, _) => (Error, Error),
        (false, 0) => (Warn, Error),
        (false, 1) => (Info, Warn),
        (false, _) => (Debug, Debug),
    };
    env_logger::Builder::new()
        .filter_level(others)
        .filter_module("ifmon", own)
        // How aya relocates a program is of use to nobody here.
        .filter_module("aya", others.min(Warn))
        .format(|out, record| {
            let message = record.args().to_string().replace('\n', " ");
            writeln!(out, "{}{message}", journal::prefix(record.level()))
        })
        .init();
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
            "cannot subscribe to link messages: no room"
        );
        let with_context = Err::<(), _>(io::Error::other("no room")).context("cannot write");
        assert_eq!(
            sentence(&with_context.expect_err("an error")),
            "cannot write: no room"
        );
    }
}
