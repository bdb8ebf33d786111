//! Where clients find the agent: a socket of its own, or one that a service manager holds.

use std::{
    env,
    fs::{self, Permissions},
    io,
    os::{
        fd::{BorrowedFd, FromRawFd as _},
        linux::fs::MetadataExt as _,
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rustix::net::{AddressFamily, sockopt};

use crate::cli::refused::refused;

/// For want of a right to make a socket.
const TO_DO: &str = "run it as root, or name a path that its user may write to with --serve";

/// The first descriptor that a service manager hands over (`sd_listen_fds(3)`).
const LISTEN_FDS_START: i32 = 3;

/// Which file it is: of which device, and by which inode.
type FileIdentity = (u64, u64);

/// A socket that listens.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    pub(super) listener: UnixListener,
    /// Where it is, for a person.
    pub(super) place: String,
    /// The group that owns it, where that is known.
    pub(super) group: Option<u32>,
    /// What is to be removed at the end, as long as it is this one.
    own: Option<(PathBuf, FileIdentity)>,
}

/// The socket of the service manager, if there is one. To be called once, before anything is opened:
/// that could get the number of a descriptor that was not handed over.
pub(crate) fn take_handed_over() -> anyhow::Result<Option<UnixListener>> {
    let count = handed_over(
        env::var("LISTEN_PID").ok().as_deref(),
        env::var("LISTEN_FDS").ok().as_deref(),
    );
    match count {
        0 => return Ok(None),
        1 => {}
        more => bail!("the service manager handed over {more} sockets, one is wanted"),
    }
    // SAFETY: it takes a number, and says whether there is such a descriptor.
    let is_open = unsafe { libc::fcntl(LISTEN_FDS_START, libc::F_GETFD) } >= 0;
    let listens = is_open && {
        // SAFETY: it is open, and nobody closes it meanwhile.
        let socket = unsafe { BorrowedFd::borrow_raw(LISTEN_FDS_START) };
        sockopt::socket_domain(socket) == Ok(AddressFamily::UNIX)
            && sockopt::socket_acceptconn(socket) == Ok(true)
    };
    if !listens {
        bail!(
            "LISTEN_FDS says that the service manager handed over descriptor {LISTEN_FDS_START}, which is no listening unix socket"
        );
    }
    // SAFETY: it is open and, by LISTEN_PID, meant for this process, which takes it here, once.
    Ok(Some(unsafe { UnixListener::from_raw_fd(LISTEN_FDS_START) }))
}

impl ListeningSocket {
    /// The socket of the service manager if there is one, else one at this path.
    pub(super) fn open(path: &Path, handed_over: Option<UnixListener>) -> anyhow::Result<Self> {
        let socket = match handed_over {
            Some(listener) => Self::of_service_manager(listener),
            None => Self::bind(path)?,
        };
        socket
            .listener
            .set_nonblocking(true)
            .context("cannot listen")?;
        Ok(socket)
    }

    fn of_service_manager(listener: UnixListener) -> Self {
        let group = listener
            .local_addr()
            .ok()
            .and_then(|address| group_of(address.as_pathname()?));
        Self {
            listener,
            place: "the socket of the service manager".to_owned(),
            group,
            own: None,
        }
    }

    fn bind(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|error| {
                let tried = format!("cannot make the directory {}", folder.display());
                refused(error, tried, TO_DO)
            })?;
        }
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if path.is_dir() {
                    bail!("{shown} is a directory: name a file in it, such as {shown}/io.ifmon");
                }
                if !is_socket(path) {
                    bail!(
                        "{shown} is a file already, and no socket: name another path, or remove it"
                    );
                }
                // An agent that was killed leaves its socket behind.
                match UnixStream::connect(path) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                        fs::remove_file(path)
                            .with_context(|| format!("cannot remove the old {shown}"))?;
                    }
                    Ok(_) => {
                        bail!("another agent listens on {shown}: stop it, or name another path")
                    }
                    Err(error) => return Err(error).context(format!("{shown} is in use")),
                }
                UnixListener::bind(path)
            }
            other => other,
        }
        .map_err(|error| refused(error, format_args!("cannot listen on {shown}"), TO_DO))?;
        fs::set_permissions(path, Permissions::from_mode(0o666))
            .with_context(|| format!("cannot open {shown} to all users"))?;
        Ok(Self {
            listener,
            place: shown.to_string(),
            group: group_of(path),
            own: file_at(path).map(|file| (path.to_owned(), file)),
        })
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        if let Some((path, file)) = &self.own
            && file_at(path) == Some(*file)
        {
            // Whoever comes next removes it, if this fails.
            let _ = fs::remove_file(path);
        }
    }
}

fn file_at(path: &Path) -> Option<FileIdentity> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.st_dev(), found.st_ino()))
}

/// `connect(2)` says of any other file as well that nobody listens.
fn is_socket(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn group_of(path: &Path) -> Option<u32> {
    fs::metadata(path).ok().map(|socket| socket.st_gid())
}

/// How many descriptors were handed over to this process.
fn handed_over(pid: Option<&str>, count: Option<&str>) -> u32 {
    if pid.is_none_or(|pid| pid.parse() != Ok(std::process::id())) {
        return 0;
    }
    count.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::handed_over;

    #[test]
    fn descriptors_of_another_process_are_not_taken() {
        let own = std::process::id().to_string();
        for (pid, count, taken) in [
            (Some(own.as_str()), Some("1"), 1),
            (Some(own.as_str()), Some("2"), 2),
            (Some(own.as_str()), None, 0),
            (Some("1"), Some("1"), 0),
            (None, Some("1"), 0),
        ] {
            assert_eq!(handed_over(pid, count), taken, "{pid:?} {count:?}");
        }
    }
}
