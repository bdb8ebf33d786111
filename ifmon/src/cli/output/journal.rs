//! Messages for the journal: a level before each line, in the form of `sd-daemon(3)`.

use std::{env, os::unix::fs::MetadataExt as _, sync::OnceLock};

use log::Level;

/// What begins a line on standard error: the level where the journal reads it (which has the name
/// of the program already), else the name.
pub(crate) fn prefix(level: Level) -> &'static str {
    if !is_stderr() {
        return "ifmon: ";
    }
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

/// Is standard error the stream to the journal that the service manager made?
///
/// The variable alone would not tell: it is handed down to children whose output goes elsewhere
/// (`systemd.exec(5)`).
fn is_stderr() -> bool {
    static IS_STDERR: OnceLock<bool> = OnceLock::new();
    *IS_STDERR.get_or_init(|| {
        let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
        std::fs::metadata("/proc/self/fd/2")
            .is_ok_and(|stderr| stream == format!("{}:{}", stderr.dev(), stderr.ino()))
    })
}
