//! The journal of systemd: levels for what is said on standard error, and fields for what is told.

use std::{
    collections::VecDeque,
    env,
    ffi::{OsStr, OsString},
    io,
    os::unix::{ffi::OsStrExt as _, fs::MetadataExt as _},
    path::Path,
    sync::OnceLock,
};

use ifmon::{Event, EventKind};
use log::Level;
use tokio::net::UnixDatagram;

/// Where the journal takes messages with fields (`systemd.journal-fields(7)`).
const SOCKET: &str = "/run/systemd/journal/socket";

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

fn is_stderr() -> bool {
    static IS_STDERR: OnceLock<bool> = OnceLock::new();
    *IS_STDERR.get_or_init(|| is_stream("/proc/self/fd/2"))
}

/// Is this the stream to the journal that the service manager made?
///
/// The variable alone would not tell: it is handed down to children whose output goes elsewhere
/// (`systemd.exec(5)`).
fn is_stream(path: &str) -> bool {
    let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
    std::fs::metadata(path)
        .is_ok_and(|metadata| stream == format!("{}:{}", metadata.dev(), metadata.ino()))
}

/// How much what is told stands out, in the words of `syslog(3)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Something is amiss on this host: a loss.
    Warning = 4,
    /// Whoever depends on the interface has to do something.
    Notice = 5,
    Info = 6,
}

impl Priority {
    pub(crate) const fn of(event: &Event, restart: bool) -> Self {
        if let EventKind::Resynced { .. } = event.kind {
            Self::Warning
        } else if restart {
            Self::Notice
        } else {
            Self::Info
        }
    }
}

/// Lines on their way to the journal, with their fields.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    waiting: VecDeque<JournalEntry>,
}

#[derive(Debug)]
struct JournalEntry {
    line: Vec<u8>,
    message: Vec<u8>,
}

impl Journal {
    /// `None` where standard output does not go to the journal.
    pub(crate) fn open() -> Option<Self> {
        if is_stream("/proc/self/fd/1") {
            Self::connect(Path::new(SOCKET)).ok()
        } else {
            None
        }
    }

    fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        Ok(Self {
            socket,
            waiting: VecDeque::new(),
        })
    }

    /// Takes a line, which [`Self::write`] sends.
    pub(crate) fn push(
        &mut self,
        line: Vec<u8>,
        priority: Priority,
        fields: &[(String, OsString)],
    ) {
        let message = message(&line, priority, fields);
        self.waiting.push_back(JournalEntry { line, message });
    }

    /// Is everything sent?
    pub(crate) fn is_flushed(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Sends the first of what was pushed. Waits while the journal is slow; when the future is
    /// dropped, nothing was sent.
    pub(crate) async fn write(&mut self) -> io::Result<()> {
        if let Some(entry) = self.waiting.front() {
            self.socket.send(&entry.message).await?;
            self.waiting.pop_front();
        }
        Ok(())
    }

    /// The lines that were not sent.
    pub(crate) fn into_lines(self) -> impl Iterator<Item = Vec<u8>> {
        self.waiting.into_iter().map(|entry| entry.line)
    }
}

/// A message in the journal's own protocol, <https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>.
fn message(line: &[u8], priority: Priority, fields: &[(String, OsString)]) -> Vec<u8> {
    let mut message = Vec::new();
    let priority = (priority as u8).to_string();
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    field(&mut message, "MESSAGE", OsStr::from_bytes(line));
    field(&mut message, "PRIORITY", priority.as_ref());
    field(&mut message, "SYSLOG_IDENTIFIER", "ifmon".as_ref());
    for (name, value) in fields {
        // Nobody looks for what is not known.
        if !value.is_empty() {
            field(&mut message, name, value);
        }
    }
    message
}

fn field(message: &mut Vec<u8>, name: &str, value: &OsStr) {
    let value = value.as_bytes();
    message.extend_from_slice(name.as_bytes());
    // A name of an interface or a namespace may have a line feed in it.
    if value.contains(&b'\n') {
        message.push(b'\n');
        message.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        message.push(b'=');
    }
    message.extend_from_slice(value);
    message.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    #[test]
    fn a_value_with_a_line_feed_has_its_length_before_it() {
        let fields = [
            (
                "IFMON_INTERFACE",
                OsString::from_vec(b"a\nPRIORITY=0".to_vec()),
            ),
            ("IFMON_IFINDEX", OsString::new()),
            ("IFMON_NETNS", "7".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        let said = message(b"gone\n", Priority::Notice, &fields);
        let mut expected =
            b"MESSAGE=gone\nPRIORITY=5\nSYSLOG_IDENTIFIER=ifmon\nIFMON_INTERFACE\n".to_vec();
        expected.extend_from_slice(b"\x0c\0\0\0\0\0\0\0a\nPRIORITY=0\nIFMON_NETNS=7\n");
        assert_eq!(said, expected);
    }

    #[tokio::test]
    async fn a_journal_that_is_slow_or_gone_loses_nothing() -> io::Result<()> {
        let folder = std::env::temp_dir().join(format!("ifmon-journal-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join("socket");
        let server = UnixDatagram::bind(&path)?;
        let mut journal = Journal::connect(&path)?;
        let lines: Vec<Vec<u8>> = (0..100_000)
            .map(|number| format!("{number}\n").into_bytes())
            .collect();
        for line in &lines {
            journal.push(line.clone(), Priority::Info, &[]);
        }
        let mut sent = 0;
        loop {
            tokio::select! {
                biased;
                written = journal.write() => written?,
                // There is no room.
                () = std::future::ready(()) => break,
            }
            sent += 1;
        }
        let mut buffer = [0; 128];
        for number in 0..2 * sent {
            let (length, written) = tokio::join!(server.recv(&mut buffer), journal.write());
            written?;
            let line = format!("MESSAGE={number}\n");
            assert!(
                buffer[..length?].starts_with(line.as_bytes()),
                "not {number}"
            );
        }
        drop(server);
        assert!(journal.write().await.is_err());
        let unsent: Vec<Vec<u8>> = journal.into_lines().collect();
        assert_eq!(unsent, lines[3 * sent..]);
        std::fs::remove_dir_all(&folder)
    }
}
