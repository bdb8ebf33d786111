//! The terminal that `--top` draws on and takes keys from.

use std::{
    io::{self, Write as _},
    os::fd::{AsFd as _, AsRawFd, OwnedFd, RawFd},
};

use anyhow::Context as _;
use rustix::{
    event::PollFlags,
    termios::{
        LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcgetwinsize, tcsetattr,
    },
};
use tokio::io::{Interest, unix::AsyncFd};

use super::Size;
use crate::cli::output::stdout::is_ready;

/// Another screen, without a cursor, and back.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[?25h\x1b[?1049l";

/// A terminal that gives each key at once and shows none. As it was, once this is dropped.
#[derive(Debug)]
pub(crate) struct Terminal {
    keys: AsyncFd<Input>,
    before: Termios,
}

#[derive(Debug)]
struct Input(OwnedFd);

impl AsRawFd for Input {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Terminal {
    /// Standard input and output have to be one.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let input = Input(io::stdin().as_fd().try_clone_to_owned()?);
        let before = tcgetattr(&input.0).context("cannot read how the terminal is set")?;
        let mut own = before.clone();
        own.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
        // Who stopped it would be left on the other screen.
        own.special_codes[SpecialCodeIndex::VSUSP] = 0;
        // SAFETY: `Input` owns its descriptor and always hands out the same one.
        let keys = unsafe { AsyncFd::register_with_interest(input, Interest::READABLE) }
            .context("cannot wait for keys")?;
        tcsetattr(&keys.get_ref().0, OptionalActions::Now, &own)
            .context("cannot set the terminal")?;
        let terminal = Self { keys, before };
        write(ENTER)?;
        // Messages would be written across the screen.
        log::set_max_level(log::LevelFilter::Off);
        Ok(terminal)
    }

    pub(crate) fn size(&self) -> Size {
        match tcgetwinsize(&self.keys.get_ref().0) {
            // A terminal that does not know it says 0.
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => Size {
                columns: size.ws_col,
                rows: size.ws_row,
            },
            _ => Size {
                columns: 80,
                rows: 24,
            },
        }
    }

    /// The next keys; none when the terminal has gone.
    pub(crate) async fn keys(&self) -> Vec<u8> {
        let mut buffer = [0; 64];
        loop {
            let Ok(mut ready) = self.keys.readable().await else {
                return Vec::new();
            };
            // The shell has the same terminal, so it is not set to never wait.
            if !is_ready(&self.keys.get_ref().0, PollFlags::IN).unwrap_or(false) {
                ready.clear_ready();
                continue;
            }
            match rustix::io::read(&self.keys.get_ref().0, &mut buffer) {
                Ok(length) => return buffer[..length].to_vec(),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => return Vec::new(),
            }
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.keys.get_ref().0, OptionalActions::Now, &self.before);
        // Where nobody reads, or Ctrl-S was pressed, that would wait for ever.
        if is_ready(io::stdout(), PollFlags::OUT).unwrap_or(false) {
            let _ = write(LEAVE);
        }
    }
}

fn write(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(bytes)?;
    stdout.flush()
}
