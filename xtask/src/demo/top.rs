//! The screen of `ifmon --top`, while containers that are none make and delete interfaces.

use std::{
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::picture;
use crate::{
    command,
    host::{self, Missing, Tool},
    run::build,
    workspace,
};

const PICTURE: &str = "ifmon/assets/top.svg";

const TOOLS: &[Tool] = &[
    host::IP,
    host::UNSHARE,
    Tool {
        program: "script",
        package: "bsdutils",
    },
];

/// What all seconds that are recorded take: a screen each.
const SCREENS: usize = 15;
/// How long a cgroup may be in use after all in it was killed.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where cgroups are mounted, for this process and those that it starts.
const CGROUPS: &str = "/run/cgroup";

/// Those who make interfaces, and what each does again and again: what `ip` is told, and how long it
/// lets them live.
const MAKERS: [(&str, &str, &str); 4] = [
    (
        "system.slice/docker-6f0a1d2c3b4e5f60718293a4b5c6d7e8f9000102030405060708090a0b0c0d0e.scope",
        "veth6f0a1d2",
        "0.05",
    ),
    (
        "kubepods.slice/kubepods-pod8f1e3c5a_6b7d_4e2f_9a0b_1c2d3e4f5a6b.slice/cri-containerd-f9ab8e7d4c5f6aa9827364b5a4d7c6f9e8aaabacadaeafa0a1a2a3abacadaeaf.scope",
        "cali4f5a6b7",
        "0.15",
    ),
    ("system.slice/NetworkManager.service", "wl", "0.4"),
    (
        "machine.slice/libpod-0c9f3d5e7a1b2c3d4e5f60718293a4b5c6d7e8f9000102030405060708090a0b.scope",
        "veth0",
        "0.7",
    ),
];

/// Records it on this host: netlink-ebpf works on most, and it takes nothing of theirs.
pub(super) fn record() -> Result<()> {
    host::need(TOOLS)?;
    if !host::is_root() {
        let why = "the containers of the recording are cgroups, which takes root";
        return Err(Missing(why.to_owned()).into());
    }
    let program = build()?;
    let screen = command::output(
        Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "--",
            ])
            .arg(std::env::current_exe().context("cannot tell where xtask is")?)
            .args(["demo", "--inside-top"])
            .arg(program),
    )?;
    let picture = picture::svg("ifmon '*' --top", &screen);
    fs::write(workspace::root().join(PICTURE), picture)
        .with_context(|| format!("cannot write {PICTURE}"))?;
    println!("wrote {PICTURE}");
    Ok(())
}

/// Prints the last screen, inside the namespaces that were made for it.
pub(super) fn perform(program: &Path) -> Result<()> {
    command::output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
    fs::create_dir(CGROUPS)?;
    command::output(Command::new("mount").args(["-t", "cgroup2", "cgroup2", CGROUPS]))?;
    command::output(Command::new("ip").args(["netns", "add", "elsewhere"]))?;
    print!("{}", last_screen(program)?);
    Ok(())
}

/// Runs it in a terminal of the usual size until that has been drawn for a while.
fn last_screen(program: &Path) -> Result<String> {
    let watch = format!(
        "stty rows 24 columns 80 && exec '{}' '*' --top",
        program.display()
    );
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &watch, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run script")?;
    let mut keys = terminal.stdin.take().context("no standard input")?;
    let mut output = terminal.stdout.take().context("no standard output")?;
    let mut drawn = Vec::new();
    let mut buffer = [0; 4096];
    let mut makers: Vec<Maker> = Vec::new();
    loop {
        let length = output.read(&mut buffer)?;
        drawn.extend_from_slice(&buffer[..length]);
        let count = screens(&drawn).count();
        if length == 0 || count >= SCREENS {
            break;
        }
        // It has begun, and so sees all of them come.
        if count > 0 && makers.is_empty() {
            let begin = |(cgroup, name, life)| Maker::begin(cgroup, name, life);
            makers = MAKERS.into_iter().map(begin).collect::<Result<_>>()?;
        }
    }
    drop(makers);
    let text = String::from_utf8_lossy(&drawn).into_owned();
    let Some(screen) = screens(&drawn).nth(SCREENS - 1) else {
        bail!("it ended too early: {text:?}");
    };
    keys.write_all(b"q")?;
    // What it writes at its end, lest it waits for a reader.
    output.read_to_end(&mut Vec::new())?;
    let status = terminal.wait()?;
    ensure!(status.success(), "it ended with {status}: {text:?}");
    Ok(screen)
}

/// The screens that are complete: each begins in the upper left, and ends by clearing what is below
/// it.
fn screens(drawn: &[u8]) -> impl Iterator<Item = String> {
    let text = String::from_utf8_lossy(drawn).into_owned();
    let screens: Vec<String> = text
        .split("\x1b[H")
        .skip(1)
        .filter_map(|screen| Some(screen.split_once("\x1b[J")?.0.to_owned()))
        .map(|screen| screen.replace("\x1b[K", "").replace('\r', ""))
        .collect();
    screens.into_iter()
}

/// Somebody who makes and deletes interfaces until it is dropped, in a cgroup of its own.
struct Maker {
    shell: Child,
    cgroup: PathBuf,
}

impl Maker {
    fn begin(cgroup: &str, name: &str, life: &str) -> Result<Self> {
        let script = r#"
echo 0 > "$1"/cgroup.procs
while :; do
    for number in 1 2 3; do
        ip link add "$2$number" type veth peer name "e$2$number" netns elsewhere && sleep "$3"
        ip link delete "$2$number" && sleep "$3"
    done
done"#;
        let cgroup = Path::new(CGROUPS).join(cgroup);
        fs::create_dir_all(&cgroup).context("cannot make a cgroup")?;
        let shell = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(&cgroup)
            .args([name, life])
            .stdin(Stdio::null())
            .spawn()
            .context("cannot run sh")?;
        Ok(Self { shell, cgroup })
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let Self { shell, cgroup } = self;
        let _ = fs::write(cgroup.join("cgroup.kill"), "1");
        let _ = shell.wait();
        let begin = Instant::now();
        while fs::remove_dir(&*cgroup).is_err() && begin.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
        // Up to the first that others use.
        for cgroup in cgroup.ancestors().skip(1) {
            if fs::remove_dir(cgroup).is_err() {
                return;
            }
        }
    }
}
