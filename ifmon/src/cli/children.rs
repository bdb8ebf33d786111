//! Commands that ifmon runs: each ends with all that it started, and none is left as a zombie.
//!
//! What a command leaves behind when it ends becomes a child of ifmon, the *subreaper*
//! (`PR_SET_CHILD_SUBREAPER` of `prctl(2)`), and is waited for here. So it can be found and ended
//! when the command's time is over, even if it went to a session of its own.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fs, io,
    os::fd::AsFd as _,
    os::unix::{
        ffi::OsStrExt as _,
        process::{CommandExt as _, ExitStatusExt as _},
    },
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use super::open_files;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, kill_process_group, wait};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};

/// Variables and their values.
pub(crate) type Environment = Vec<(String, OsString)>;

/// A variable with the number of the command. What it starts has it, too, and so belongs to it and to no
/// other command that runs. It is none of `IFMON_*`, which tell the event.
const MARK: &str = "_IFMON_COMMAND";

/// Runs commands and waits for all children, also those that others left.
#[derive(Clone, Debug)]
pub(crate) struct Children {
    state: Arc<Mutex<ChildrenState>>,
}

#[derive(Debug, Default)]
struct ChildrenState {
    /// Who waits for the end of which command.
    running: HashMap<Pid, oneshot::Sender<ExitStatus>>,
    /// Children that came before a command ended by itself, and may be what it left to stay.
    left: BTreeSet<u32>,
    /// How many commands were started.
    count: u64,
}

/// What a command is told.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    /// What it is run for, in messages.
    pub(crate) what: String,
    pub(crate) environment: Environment,
}

impl Job {
    /// Takes back that there is reason to restart something.
    pub(crate) fn no_restart(&mut self) {
        for (name, value) in &mut self.environment {
            if name == "IFMON_RESTART" {
                *value = "false".into();
            }
        }
    }
}

/// A command, and how long it may run.
#[derive(Clone, Debug)]
pub(crate) struct ShellCommand {
    pub(crate) command: OsString,
    pub(crate) limit: Duration,
}

impl Children {
    /// Begins to wait for children. To be called once.
    pub(crate) fn new() -> io::Result<Self> {
        let children = Self {
            state: Arc::default(),
        };
        let mut ended = signal(SignalKind::child())?;
        if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
            log::warn!("what commands leave behind cannot be ended with them: {error}");
        }
        let task = children.clone();
        tokio::spawn(async move {
            loop {
                task.reap();
                if ended.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(children)
    }

    /// Begins to wait for children where somebody else's orphans are ours: as the first process of
    /// a pid namespace.
    pub(crate) fn adopted() -> io::Result<()> {
        if rustix::process::getpid().is_init() {
            Self::new()?;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, ChildrenState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of all children that have ended.
    fn reap(&self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let mut state = self.lock();
            state.left.remove(&number(pid));
            if let Some(ended) = state.running.remove(&pid) {
                // Nobody may be waiting any more.
                let _ = ended.send(ExitStatus::from_raw(status.as_raw()));
            }
        }
    }

    /// Runs a command through sh, until it ends or its time is over. When the future is dropped,
    /// the command ends too.
    pub(crate) async fn run(&self, shell: &ShellCommand, job: Job) {
        let Job { what, environment } = job;
        let mut child = match self.start(&shell.command, environment) {
            Ok(child) => child,
            Err(error) => {
                log::warn!("{what} could not be started: {error}");
                return;
            }
        };
        match timeout(shell.limit, &mut child.ended).await {
            Ok(Ok(status)) => {
                child.end();
                if !status.success() {
                    log::warn!("{what} failed: {}", describe(status));
                }
            }
            // Nothing but the task that waits for children drops the other end.
            Ok(Err(_)) => log::warn!("{what} was lost sight of"),
            Err(_) => log::warn!(
                "{what} was ended: it ran longer than {} s",
                shell.limit.as_secs_f64()
            ),
        }
    }

    fn start(&self, text: &OsStr, environment: Environment) -> io::Result<Child> {
        let mut command = Command::new("/bin/sh");
        // What happened reaches the command as data only, never as a part of its text.
        command.arg("-c").arg(text);
        for (name, _) in std::env::vars_os() {
            if name.as_bytes().starts_with(b"IFMON_") {
                command.env_remove(name);
            }
        }
        let mark = {
            let mut state = self.lock();
            state.count += 1;
            state.count.to_string()
        };
        command
            .envs(environment)
            .env(MARK, &mark)
            // What a service manager wants to hear of ifmon, a command must not answer for it.
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            // Standard output is for lines.
            .stdout(io::stderr().as_fd().try_clone_to_owned()?)
            .process_group(0);
        // SAFETY: between fork and exec it makes one system call and allocates nothing.
        unsafe { command.pre_exec(open_files::restore) };
        let others = own_children();
        // Nothing is awaited from here on, so that the end of the command is not seen before it is
        // known.
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let (sender, ended) = oneshot::channel();
        self.lock().running.insert(pid, sender);
        Ok(Child {
            pid,
            ended,
            has_ended: false,
            others,
            mark,
            children: self.clone(),
        })
    }
}

/// A command that runs. Dropping it ends it with all that it started, unless it has ended by
/// itself.
struct Child {
    pid: Pid,
    ended: oneshot::Receiver<ExitStatus>,
    has_ended: bool,
    /// The children of ifmon that were there before.
    others: BTreeSet<u32>,
    /// The value of [`MARK`].
    mark: String,
    children: Children,
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        // It is not reaped before this returns, so the number is still its own.
        if self.children.lock().running.contains_key(&self.pid) {
            let _ = kill_process_group(self.pid, Signal::KILL);
        }
        // What is killed cannot fork any more; another look finds what was forked meanwhile.
        let mut killed = HashSet::new();
        loop {
            let mut found = self.descendants();
            found.retain(|&pid| killed.insert(pid));
            if found.is_empty() {
                break;
            }
            for pid in found {
                let _ = kill_process(pid, Signal::KILL);
            }
            self.children.reap();
        }
    }
}

impl Child {
    /// It has ended by itself. What it leaves is meant to stay.
    fn end(&mut self) {
        self.has_ended = true;
        let mut came = own_children();
        came.retain(|pid| !self.others.contains(pid));
        self.children.lock().left.extend(came);
    }

    /// All that it started and that still runs: what descends from it, and what descends from its
    /// orphans, which came to ifmon since it began.
    fn descendants(&self) -> Vec<Pid> {
        let processes = processes();
        let own = std::process::id();
        let (commands, left) = {
            let state = self.children.lock();
            let commands: BTreeSet<u32> = state.running.keys().copied().map(number).collect();
            (commands, state.left.clone())
        };
        // What has emptied its environment may be of any command that runs; and as the first process of
        // a pid namespace ifmon gets the orphans of others, too. To end one of these would do harm.
        let is_alone = commands.iter().all(|&pid| pid == number(self.pid));
        let are_own = is_alone && !rustix::process::getpid().is_init();
        let is_of = |pid: u32| match mark_of(pid) {
            Some(mark) => mark == self.mark.as_bytes(),
            None => are_own && !left.contains(&pid),
        };
        let is_root = |pid: u32, parent: u32| {
            parent == own
                && if commands.contains(&pid) {
                    pid == number(self.pid)
                } else {
                    !self.others.contains(&pid) && is_of(pid)
                }
        };
        let mut found: BTreeSet<u32> = processes
            .iter()
            .filter(|&(&pid, process)| is_root(pid, process.parent))
            .map(|(&pid, _)| pid)
            .collect();
        loop {
            let before = found.len();
            for (&pid, process) in &processes {
                if found.contains(&process.parent) {
                    found.insert(pid);
                }
            }
            if found.len() == before {
                break;
            }
        }
        found
            .into_iter()
            .filter(|pid| processes.get(pid).is_some_and(|process| !process.is_dead))
            .filter_map(|pid| i32::try_from(pid).ok().and_then(Pid::from_raw))
            .collect()
    }
}

/// Of which command a process is, unless it has emptied its environment.
fn mark_of(pid: u32) -> Option<Vec<u8>> {
    let environment = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|&byte| byte == 0);
    let mark = variables.find_map(|variable| {
        let value = variable.strip_prefix(MARK.as_bytes())?;
        value.strip_prefix(b"=")
    });
    mark.map(<[u8]>::to_vec)
}

struct Process {
    parent: u32,
    /// A zombie, or on the way to be none.
    is_dead: bool,
}

/// All processes that can be seen.
fn processes() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read(entry.path().join("stat")).ok()?;
            // The name of the process may hold anything; it ends with the last parenthesis
            // (`proc_pid_stat(5)`).
            let end = stat.iter().rposition(|&byte| byte == b')')?;
            let rest = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
            let mut fields = rest.split_whitespace();
            let is_dead = matches!(fields.next()?, "Z" | "X");
            let parent = fields.next()?.parse().ok()?;
            Some((pid, Process { parent, is_dead }))
        })
        .collect()
}

/// The children of ifmon.
fn own_children() -> BTreeSet<u32> {
    let listed = || -> io::Result<BTreeSet<u32>> {
        let mut children = BTreeSet::new();
        for thread in fs::read_dir("/proc/self/task")? {
            let list = fs::read_to_string(thread?.path().join("children"))?;
            children.extend(
                list.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        Ok(children)
    };
    // Only kernels with CONFIG_PROC_CHILDREN have the list.
    listed().unwrap_or_else(|_| {
        let mut processes = processes();
        processes.retain(|_, process| process.parent == std::process::id());
        processes.into_keys().collect()
    })
}

fn number(pid: Pid) -> u32 {
    pid.as_raw_nonzero().get().cast_unsigned()
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "unknown status".to_owned(),
    }
}
