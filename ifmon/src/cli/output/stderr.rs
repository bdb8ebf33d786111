//! Standard error: a message at a time, and never a wait for somebody to read it.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::fs::{FileTypeExt as _, OpenOptionsExt as _},
    },
    sync::{Mutex, OnceLock, PoisonError},
};

use rustix::{event::PollFlags, net::SendFlags};

use super::{journal::prefix, stdout::is_ready};

/// What a pipe takes in one piece, without the line feed. A longer message is cut.
const LONGEST: usize = 4095;

/// A way to standard error that does not wait.
#[derive(Debug)]
pub(crate) struct Stderr {
    /// Opened again, so that it does not wait for us and still does for those who share it.
    file: Option<File>,
    is_socket: bool,
    /// Messages for which there was no room.
    dropped: u64,
}

impl Stderr {
    fn open() -> Self {
        let path = format!("/proc/self/fd/{}", io::stderr().as_raw_fd());
        let kind = std::fs::metadata(&path).map(|metadata| metadata.file_type());
        let is_socket = kind.as_ref().is_ok_and(|kind| kind.is_socket());
        // A pipe and a terminal can be opened once more; a regular file never waits, and would be
        // written from its beginning.
        let waits = kind.is_ok_and(|kind| kind.is_fifo() || kind.is_char_device());
        let file = waits.then(|| {
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(path)
                .ok()
        });
        Self {
            file: file.flatten(),
            is_socket,
            dropped: 0,
        }
    }

    /// Writes what does not have to wait.
    fn write(&mut self, message: &[u8]) -> io::Result<()> {
        if self.dropped > 0 {
            let prefix = prefix(log::Level::Warn);
            let note = format!(
                "{prefix}{} messages are missing here, since nobody read them\n",
                self.dropped
            );
            self.attempt(note.as_bytes())?;
            self.dropped = 0;
        }
        self.attempt(message).inspect_err(|_| self.dropped += 1)
    }

    fn attempt(&self, message: &[u8]) -> io::Result<()> {
        let stderr = io::stderr();
        match &self.file {
            Some(file) => (&*file).write_all(message),
            None if self.is_socket => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                rustix::net::send(stderr.as_fd(), message, flags)?;
                Ok(())
            }
            None => {
                if !is_ready(&stderr, PollFlags::OUT)? {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                rustix::io::write(&stderr, message)?;
                Ok(())
            }
        }
    }
}

/// To be called before privileges are given up: the pipe may be somebody else's.
pub(crate) fn open() -> &'static Mutex<Stderr> {
    static STDERR: OnceLock<Mutex<Stderr>> = OnceLock::new();
    STDERR.get_or_init(|| Mutex::new(Stderr::open()))
}

/// Writes a message of one line. Control characters, which names may have in them, do not reach a
/// terminal. When nobody reads, nobody is told.
pub(crate) fn say(level: log::Level, message: &str) {
    let message = printable(&message.replace('\n', " "));
    let mut line = format!("{}{message}", prefix(level)).into_bytes();
    line.truncate(LONGEST);
    line.push(b'\n');
    let _ = open()
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .write(&line);
}

/// A name may hold any byte: control characters must not reach a terminal, nor what turns the line
/// around or is not seen in it.
pub(crate) fn printable(text: &str) -> String {
    let is_unseen = |character| {
        matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
    };
    let mut shown = String::new();
    for character in text.chars() {
        if character.is_control() || is_unseen(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn nothing_in_a_name_moves_the_rest_of_the_line() {
        for hidden in [
            '\u{7}', '\u{9b}', '\u{200b}', '\u{202e}', '\u{2028}', '\u{2066}',
        ] {
            let shown = printable(&format!("wg{hidden}0"));
            assert_eq!(shown, format!("wg{}0", hidden.escape_unicode()));
        }
        assert_eq!(printable("w\u{fc}g-\u{1f600}"), "w\u{fc}g-\u{1f600}");
    }
}
