//! What the people who run ifmon put around it: a service manager, the journal, Prometheus, hooks, namespaces.
//!
//! Each makes a network namespace of its own, which takes root.

use std::{
    env, fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use tests::{
    links::{Kind, Links},
    namespace::Namespace,
    program::{self, Ifmon, PATIENCE},
};

const PAIR: Kind<'_> = Kind::Veth { peer: "peer" };

#[test]
fn a_service_manager_hears_when_all_watches_are_live_that_they_are_and_that_they_end() -> Result<()>
{
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let folder = Folder::new("notify")?;
    let path = folder.path.join("socket");
    let name = format!("ifmon-people-{}", process::id());
    for (address, socket) in [
        (
            path.to_string_lossy().into_owned(),
            UnixDatagram::bind(&path)?,
        ),
        (
            format!("@{name}"),
            // Such a name is one of the network namespace, unlike a path.
            namespace.run(|| -> Result<UnixDatagram> {
                let address = SocketAddr::from_abstract_name(&name)?;
                Ok(UnixDatagram::bind_addr(&address)?)
            })??,
        ),
    ] {
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut command = ifmon(&namespace, &["wg0", "wg1"])?;
        command
            .env("NOTIFY_SOCKET", address)
            .env("WATCHDOG_USEC", "100000");
        let ifmon = Ifmon::spawn(command)?;
        // The watchdog may be first: it is about the process, not about a single watch.
        let ready = loop {
            let message = receive(&socket)?;
            if message != "WATCHDOG=1" {
                break message;
            }
        };
        ensure!(
            ready.starts_with("READY=1\nSTATUS=watching 2 interfaces by "),
            "not ready: {ready}"
        );
        ifmon.expect("wg0", "watching")?;
        ifmon.expect("wg1", "watching")?;
        for _ in 0..3 {
            ensure!(receive(&socket)? == "WATCHDOG=1", "no watchdog");
        }
        ifmon.signal(rustix::process::Signal::TERM)?;
        loop {
            match receive(&socket)?.as_str() {
                "WATCHDOG=1" => {}
                "STOPPING=1" => break,
                other => bail!("neither alive nor stopping: {other}"),
            }
        }
        ensure!(ifmon.finish()?.status.success());
    }
    Ok(())
}

#[test]
fn a_service_manager_that_is_not_there_stops_nothing() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let mut command = ifmon(&namespace, &["wg0"])?;
    command
        .env("NOTIFY_SOCKET", "/nowhere/socket")
        .env("WATCHDOG_USEC", "100000");
    let ifmon = Ifmon::spawn(command)?;
    ifmon.expect("wg0", "watching")?;
    links.delete("wg0")?;
    ifmon.expect("wg0", "deleted")?;
    let outcome = ifmon.stop()?;
    ensure!(
        outcome.stderr.contains("NOTIFY_SOCKET"),
        "no warning: {}",
        outcome.stderr
    );
    Ok(())
}

#[test]
fn the_journal_gets_levels_and_others_a_name() -> Result<()> {
    let (namespace, _) = namespace()?;
    let folder = Folder::new("journal")?;
    let path = folder.path.join("stderr");
    let file = fs::File::create(&path)?;
    let metadata = file.metadata()?;
    let stream = format!("{}:{}", metadata.dev(), metadata.ino());
    for (stream, begin) in [
        (stream.as_str(), "<3>wg0 does not"),
        ("1:1", "ifmon: wg0 does not"),
    ] {
        file.set_len(0)?;
        let status = ifmon(&namespace, &["--quiet", "--must-exist", "wg0"])?
            .env("JOURNAL_STREAM", stream)
            .stdout(Stdio::null())
            // Written from its end, wherever the last run left it.
            .stderr(fs::OpenOptions::new().append(true).open(&path)?)
            .status()?;
        ensure!(status.code() == Some(3), "ended with {status}");
        let said = fs::read_to_string(&path)?;
        ensure!(said.starts_with(begin), "not {begin}: {said}");
    }
    Ok(())
}

#[test]
fn prometheus_scrapes_what_happened() -> Result<()> {
    let (namespace, links) = namespace()?;
    let help = Command::new(program::path()).arg("--help").output()?;
    if !String::from_utf8_lossy(&help.stdout).contains("--metrics") {
        bail!("this ifmon was built without the feature `metrics`; `cargo xtask test` has it");
    }
    links.set_up("lo", true)?;
    links.add("wg0", PAIR, None)?;
    // A port that is free: the namespace is ours alone, so that nobody takes it meanwhile.
    let port = namespace
        .run(|| TcpListener::bind("127.0.0.1:0")?.local_addr())??
        .port();
    let ifmon = Ifmon::start(&namespace, &["--metrics", &port.to_string(), "wg0"])?;
    let watching = ifmon.expect("wg0", "watching")?;
    let up = |value: u32| {
        format!(
            r#"ifmon_up{{interface="wg0",netns="{}"}} {value}"#,
            watching["netns"]
        )
    };
    let backend = watching["backend"]
        .as_str()
        .context("no backend")?
        .to_owned();

    let before = scrape(&namespace, port, "/metrics")?;
    for line in [
        up(1),
        format!(r#"ifmon_backend_info{{backend="{backend}"}} 1"#),
        "ifmon_resyncs_total 0".to_owned(),
        "# EOF".to_owned(),
    ] {
        ensure!(
            before.lines().any(|other| other == line),
            "{line} is not in {before}"
        );
    }
    links.delete("wg0")?;
    ifmon.expect("wg0", "deleted")?;
    let after = scrape(&namespace, port, "/metrics")?;
    let deleted = format!(
        r#"ifmon_events_total{{interface="wg0",netns="{}",event="deleted"}} 1"#,
        watching["netns"]
    );
    for line in [up(0), deleted] {
        ensure!(
            after.lines().any(|other| other == line),
            "{line} is not in {after}"
        );
    }
    ensure!(scrape(&namespace, port, "/")?.starts_with("HTTP/1.1 404"));
    ensure!(ifmon.stop()?.status.success());
    Ok(())
}

#[test]
fn a_hook_restarts_what_lost_its_interface() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let folder = Folder::new("hook")?;
    let engine = folder.path.join("engine");
    let seen = folder.path.join("seen");
    // The engine is a process that sleeps; its pid file says which one it is.
    let hook = format!(
        r#"echo "$IFMON_EVENT $IFMON_INTERFACE $IFMON_RESTART" >> {seen}
           if [ "$IFMON_EVENT" = watching ] || [ "$IFMON_RESTART" = true ]; then
               [ ! -e {engine} ] || kill "$(cat {engine})"
               sleep 1000 > /dev/null 2>&1 &
               echo $! > {engine}.new
               mv {engine}.new {engine}
           fi"#,
        seen = seen.display(),
        engine = engine.display()
    );
    let ifmon = Ifmon::start(&namespace, &["--exec", &hook, "wg0"])?;
    ifmon.expect("wg0", "watching")?;
    let first = wait_for(|| fs::read_to_string(&engine).ok())?;
    links.rename("wg0", "other")?;
    ifmon.expect("wg0", "renamed")?;
    let second = wait_for(|| fs::read_to_string(&engine).ok().filter(|pid| *pid != first))?;
    links.rename("other", "wg0")?;
    ifmon.expect("wg0", "returned")?;
    let outcome = ifmon.stop()?;
    ensure!(outcome.status.success());

    // Every hook has run by then, in order; the return restarted nothing.
    ensure!(
        fs::read_to_string(&seen)?
            == "watching wg0 false\nrenamed wg0 true\nreturned wg0 false\nstopped wg0 false\n"
    );
    ensure!(fs::read_to_string(&engine)? == second);
    // The one that was killed is nobody's child any more, and may stay a zombie where pid 1 is no init.
    let state = |pid: &str| fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    ensure!(state(&first).is_ok_and(|stat| stat.contains(") Z ")) || state(&first).is_err());
    ensure!(state(&second).is_ok_and(|stat| stat.contains("(sleep) S")));
    let pid = second
        .trim()
        .parse()
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    rustix::process::kill_process(pid.context("no pid")?, rustix::process::Signal::KILL)?;
    Ok(())
}

#[test]
fn one_process_watches_two_namespaces() -> Result<()> {
    let (first, first_links) = namespace()?;
    let second = Namespace::new()?;
    let second_links = Links::new(&second)?;
    first_links.add("wg0", PAIR, Some(100))?;
    second_links.add("wg0", PAIR, Some(100))?;
    let target = format!(
        "/proc/{}/fd/{}/wg0",
        process::id(),
        second.file().as_raw_fd()
    );
    let ifmon = Ifmon::start(&first, &["wg0", &target])?;
    let mut watched = Vec::new();
    for _ in 0..2 {
        watched.push(ifmon.expect("wg0", "watching")?["netns"].as_u64());
    }
    watched.sort_unstable();
    let mut ids = [Some(u64::from(first.id()?)), Some(u64::from(second.id()?))];
    ids.sort_unstable();
    ensure!(watched == ids, "{watched:?} and not {ids:?}");

    second_links.delete("wg0")?;
    let deleted = ifmon.expect("wg0", "deleted")?;
    ensure!(
        deleted["netns"] == second.id()?,
        "in the other one: {deleted}"
    );
    first_links.delete("wg0")?;
    let deleted = ifmon.expect("wg0", "deleted")?;
    ensure!(
        deleted["netns"] == first.id()?,
        "in the other one: {deleted}"
    );

    let is_netlink = deleted["backend"]
        .as_str()
        .is_some_and(|backend| backend.starts_with("netlink"));
    let outcome = ifmon.stop()?;
    ensure!(
        outcome.stderr.contains("keeps it alive") == is_netlink,
        "a socket keeps a namespace alive, a BPF program does not: {}",
        outcome.stderr
    );
    Ok(())
}

#[test]
fn colours_are_for_those_who_want_them() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    for (when, colored) in [("auto", false), ("never", false), ("always", true)] {
        let mut command = Command::new(program::path());
        command
            .args(["--once", "--quiet", "--color", when, "wg0"])
            .stdout(Stdio::piped());
        namespace.enter(&mut command)?;
        let mut ifmon = command.spawn()?;
        let mut output = ifmon.stdout.take().context("no standard output")?;
        let mut first = [0; 64];
        let length = output.read(&mut first)?;
        ensure!(first[..length].contains(&0x1b) == colored, "--color {when}");
        ifmon.kill()?;
        ifmon.wait()?;
    }
    Ok(())
}

/// The README's example is the one in the documentation of the crate, which is compiled and run.
#[test]
fn the_example_in_the_readme_runs() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let readme = fs::read_to_string(root.join("README.md"))?;
    let crate_docs = fs::read_to_string(root.join("ifmon/src/lib.rs"))?;
    let between = |text: &str, fence: &str| {
        let (_, after) = text.split_once(fence)?;
        Some(after.split_once("```")?.0.to_owned())
    };
    let shown = between(&readme, "```rust\n").context("no example in the README")?;
    let docs: String = crate_docs
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        // Lines that the documentation does not show.
        .filter(|line| *line != "#" && !line.starts_with("# "))
        .flat_map(|line| [line, "\n"])
        .collect();
    let run = between(&docs, "```\n").context("no example in the documentation")?;
    ensure!(shown == run, "README:\n{shown}\ndocumentation:\n{run}");
    Ok(())
}

/// A namespace to change links in.
fn namespace() -> Result<(Namespace, Links)> {
    let namespace = Namespace::new().context("these tests have to be run as root")?;
    let links = Links::new(&namespace)?;
    Ok((namespace, links))
}

/// The program in a namespace, writing JSON.
fn ifmon(namespace: &Namespace, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(program::path());
    command.arg("--json").args(args);
    namespace.enter(&mut command)?;
    Ok(command)
}

fn receive(socket: &UnixDatagram) -> Result<String> {
    let mut message = [0; 512];
    let length = socket.recv(&mut message).context("no message")?;
    Ok(String::from_utf8_lossy(&message[..length]).into_owned())
}

/// What a server in the namespace answers to a plain GET.
fn scrape(namespace: &Namespace, port: u16, path: &str) -> Result<String> {
    namespace.run(|| -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}

/// Waits until there is something.
fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "waited in vain");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A folder that is deleted when dropped.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn new(name: &str) -> Result<Self> {
        let path = env::temp_dir().join(format!("ifmon-people-{name}-{}", process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let Self { path } = self;
        let _ = fs::remove_dir_all(Path::new(path));
    }
}
