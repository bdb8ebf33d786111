//! A host with an agent on it, and those who ask it.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead as _, BufReader, ErrorKind, Lines, Read as _, Write as _},
    os::{
        fd::AsFd as _,
        unix::{fs::PermissionsExt as _, net::UnixStream, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    program::{self, Ifmon, PATIENCE},
    room::{Device, Room},
    scratch::Scratch,
};
use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};
use serde_json::{Value, json};

/// An ordinary user.
pub const NOBODY: u32 = 65534;

/// A folder that any user can look into.
pub struct Folder(Scratch);

impl Folder {
    pub fn new(name: &str) -> Result<Self> {
        let scratch = Scratch::new(name)?;
        fs::set_permissions(scratch.path(), Permissions::from_mode(0o755))?;
        Ok(Self(scratch))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.path().join("run/io.ifmon")
    }
}

/// A host, and the agent on it.
pub struct Host {
    pub room: Room,
    pub folder: Folder,
    pub agent: Ifmon,
}

impl Host {
    pub fn new(name: &str) -> Result<Self> {
        Self::with(name, &[])
    }

    pub fn with(name: &str, options: &[&str]) -> Result<Self> {
        let room = Room::new(Device::Veth)?;
        let folder = Folder::new(name)?;
        let agent = start(&room, &folder, options)?;
        Ok(Self {
            room,
            folder,
            agent,
        })
    }

    pub fn client(&self, room: &Room, uid: u32) -> Result<Client> {
        Client::connect(&self.folder, room, uid)
    }

    pub fn info(&self) -> Result<Value> {
        let mut client = self.client(&self.room, 0)?;
        client.call("io.ifmon.Info", &json!({}), false)?;
        Ok(client.next_reply()?["parameters"].take())
    }
}

pub fn start(room: &Room, folder: &Folder, options: &[&str]) -> Result<Ifmon> {
    let mut command = Command::new(program::path());
    command.arg("--serve").arg(folder.socket());
    command.args(options);
    room.enter(&mut command)?;
    let agent = Ifmon::spawn(command)?;
    until("a socket", || {
        Ok(UnixStream::connect(folder.socket()).is_ok())
    })?;
    Ok(agent)
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        if Instant::now() > deadline {
            bail!("there is not {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// One connection.
pub struct Client {
    pub stream: UnixStream,
    input: Vec<u8>,
}

impl Client {
    /// Connects as this user, from this namespace.
    pub fn connect(folder: &Folder, room: &Room, uid: u32) -> Result<Self> {
        Self::connect_as(folder, room, uid, uid)
    }

    pub fn connect_as(folder: &Folder, room: &Room, uid: u32, gid: u32) -> Result<Self> {
        let namespace = File::open(room.path())?;
        let path = folder.socket();
        let stream = thread::scope(|scope| {
            let connect = || -> Result<UnixStream> {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                // SAFETY: each changes this thread alone, which ends right after.
                let changed = unsafe {
                    libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>()) == 0
                        && libc::syscall(libc::SYS_setresgid, gid, gid, gid) == 0
                        && libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0
                };
                ensure!(changed, "cannot be user {uid}");
                Ok(UnixStream::connect(path)?)
            };
            scope
                .spawn(connect)
                .join()
                .expect("the thread does not panic")
        })?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let input = Vec::new();
        Ok(Self { stream, input })
    }

    pub fn call(&mut self, method: &str, parameters: &Value, more: bool) -> Result<()> {
        let call = json!({ "method": method, "parameters": parameters, "more": more });
        let mut message = serde_json::to_vec(&call)?;
        message.push(0);
        Ok(self.stream.write_all(&message)?)
    }

    pub fn watch(&mut self, parameters: &Value) -> Result<()> {
        self.call("io.ifmon.Watch", parameters, true)
    }

    /// The next reply; `None` at the end.
    pub fn reply(&mut self) -> Result<Option<Value>> {
        loop {
            if let Some(at) = self.input.iter().position(|byte| *byte == 0) {
                let message: Vec<u8> = self.input.drain(..=at).collect();
                let object = message.get(..at).unwrap_or_default();
                return Ok(Some(serde_json::from_slice(object)?));
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(None),
                Ok(count) => self.input.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error).context("no reply"),
            }
        }
    }

    /// Is there something to read?
    pub fn is_ready(&self) -> Result<bool> {
        let mut readable = [PollFd::new(&self.stream, PollFlags::IN)];
        Ok(self.input.contains(&0) || poll(&mut readable, Some(&Timespec::default()))? > 0)
    }

    pub fn next_reply(&mut self) -> Result<Value> {
        self.reply()?.context("the agent has closed the connection")
    }

    /// The next reply, which has to be this event of this interface.
    pub fn expect(&mut self, interface: &str, event: &str) -> Result<Value> {
        let mut reply = self.next_reply()?;
        let told = reply["parameters"].take();
        ensure!(
            told["event"] == event && told["interface"] == interface && reply["continues"] == true,
            "expected {event} of {interface}, got {told} {reply}"
        );
        Ok(told)
    }

    /// The next reply, which has to be this error.
    pub fn refused(&mut self, error: &str) -> Result<Value> {
        let mut reply = self.next_reply()?;
        ensure!(reply["error"] == error, "expected {error}, got {reply}");
        Ok(reply["parameters"].take())
    }
}

/// A program of an ordinary user, and the lines that it writes.
pub struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    /// Starts it in the namespace.
    pub fn start(room: &Room, mut command: Command) -> Result<Self> {
        command.uid(NOBODY).gid(NOBODY);
        // After the user has changed there is no right to go to a namespace.
        let namespace = File::open(room.path())?;
        thread::scope(|scope| {
            let spawn = || -> Result<Self> {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
                Self::spawn(command)
            };
            scope
                .spawn(spawn)
                .join()
                .expect("the thread does not panic")
        })
    }

    /// Starts it as whoever it is.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        Ok(Self { child, lines })
    }

    /// Waits for its end, which has to be a good one.
    pub fn end(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "it ended with {status}");
        Ok(())
    }

    pub fn line(&mut self) -> Result<String> {
        self.lines
            .next()
            .context("it has ended")?
            .context("no output")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
