//! What the people who run ifmon put around it: a service manager, the journal, Prometheus, hooks,
//! namespaces.
//!
//! Each makes a network namespace of its own, which takes root.

use std::{
    env, fs,
    io::{self, ErrorKind, Read as _, Write as _},
    net::{self, TcpListener, TcpStream},
    os::{
        fd::AsRawFd as _,
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr, UnixDatagram},
            process::CommandExt as _,
        },
    },
    path::Path,
    process::{self, Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;
use tests::{
    links::{Kind, Links},
    namespace::Namespace,
    program::{self, Ifmon, PATIENCE, wait_for},
    scratch::Scratch,
};

const PAIR: Kind<'_> = Kind::Veth { peer: "peer" };

#[test]
fn a_service_manager_hears_when_all_watches_are_live_that_they_are_and_that_they_end() -> Result<()>
{
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let folder = Scratch::new("notify")?;
    let path = folder.path().join("socket");
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

/// It is busy, and others have told it much.
#[test]
fn a_service_manager_that_has_no_room_hears_of_the_start_once_it_has() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let folder = Scratch::new("busy")?;
    let path = folder.path().join("socket");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let others = UnixDatagram::unbound()?;
    others.set_nonblocking(true)?;
    others.connect(&path)?;
    while others.send(b"STATUS=of another").is_ok() {}
    let mut command = ifmon(&namespace, &["wg0"])?;
    command.env("NOTIFY_SOCKET", &path);
    let ifmon = Ifmon::spawn(command)?;
    // Before this was written, it has tried.
    ifmon.expect("wg0", "watching")?;
    while !receive(&socket)?.starts_with("READY=1") {}
    let outcome = ifmon.stop()?;
    ensure!(
        outcome.status.success() && !outcome.stderr.contains("cannot tell"),
        "{outcome:?}"
    );
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
    let folder = Scratch::new("journal")?;
    let path = folder.path().join("stderr");
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

/// By its own protocol, so that it can be asked for one interface or one kind of event.
#[test]
fn the_journal_gets_fields_with_each_line() -> Result<()> {
    const SCRIPT: &str = "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
                          ln -s \"$1\" /run/systemd/journal/socket && shift && exec \"$@\"";
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let folder = Scratch::new("fields")?;
    let path = folder.path().join("socket");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let stream = folder.path().join("stdout");
    let stdout = fs::File::create(&stream)?;
    let metadata = stdout.metadata()?;
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", SCRIPT, "sh"])
        .arg(&path)
        .arg(program::path())
        .args(["--exec", "env | grep IFMON_EVENT >&2", "wg0"])
        .env(
            "JOURNAL_STREAM",
            format!("{}:{}", metadata.dev(), metadata.ino()),
        )
        .stdout(stdout)
        .stderr(Stdio::null());
    namespace.enter(&mut command)?;
    let mut ifmon = command.spawn()?;
    let expect = |begin: &str, fields: &[&str]| -> Result<()> {
        let message = receive(&socket)?;
        let lines: Vec<&str> = message.lines().collect();
        ensure!(
            message.starts_with(&format!("MESSAGE={begin}"))
                && fields.iter().all(|field| lines.contains(field)),
            "not {begin} with {fields:?}: {message}"
        );
        Ok(())
    };
    let always = ["SYSLOG_IDENTIFIER=ifmon", "IFMON_INTERFACE=wg0"];
    expect("wg0 watching: ifindex", &always)?;
    links.delete("wg0")?;
    let said = ["PRIORITY=5", "IFMON_EVENT=deleted", "IFMON_RESTART=true"];
    expect("wg0 deleted: ifindex", &[&always[..], &said].concat())?;
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&ifmon),
        rustix::process::Signal::TERM,
    )?;
    let said = ["PRIORITY=6", "IFMON_EVENT=stopped", "IFMON_REASON=signal"];
    expect("wg0 stopped: signal", &[&always[..], &said].concat())?;
    let status = ifmon.wait()?;
    ensure!(status.success(), "ended with {status}");
    let rest = fs::read_to_string(&stream)?;
    ensure!(rest.is_empty(), "on standard output beside it: {rest}");
    Ok(())
}

/// The numbers add up to what happened, whenever the sums were told.
#[test]
fn a_summary_tells_how_many_were_made_and_deleted() -> Result<()> {
    let (namespace, links) = namespace()?;
    let mut command = ifmon(&namespace, &["--summary", "0.1s", "wg0", "wg1"])?;
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let output = child.stdout.take().context("no output")?;
    let mut lines = io::BufRead::lines(io::BufReader::new(output));
    let mut sums = [0; 3];
    let mut by = 0;
    let mut take = |sums: &mut [u64; 3]| -> Result<bool> {
        let Some(line) = lines.next() else {
            return Ok(false);
        };
        let line: Value = serde_json::from_str(&line?)?;
        ensure!(line["event"] == "summary" && line["lost"] == 0, "{line}");
        for (sum, name) in sums.iter_mut().zip(["made", "deleted", "other"]) {
            *sum += line[name].as_u64().context(name)?;
        }
        let makers = line["by"].as_array().context("by")?;
        by += makers
            .iter()
            .filter_map(|maker| maker["made"].as_u64())
            .sum::<u64>();
        Ok(true)
    };
    // It is watching.
    take(&mut sums)?;
    for _ in 0..20 {
        links.add("wg0", PAIR, None)?;
        links.rename("wg0", "wg1")?;
        links.delete("wg1")?;
    }
    while sums != [40, 20, 20] {
        ensure!(take(&mut sums)?, "ended at {sums:?}");
    }
    links.add("wg0", PAIR, None)?;
    // A signal comes before what is queued. When it has slept since, it has heard of that.
    let slept = || program::status(child.id(), "voluntary_ctxt_switches");
    let before = slept()?;
    wait_for(|| slept().ok().filter(|&now| now > before + 1))?;
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )?;
    while take(&mut sums)? {}
    ensure!(sums == [41, 20, 20] && by == 41, "{sums:?}, by {by}");
    ensure!(child.wait()?.success());
    Ok(())
}

#[test]
fn a_screen_is_drawn_and_leaves_the_terminal_as_it_was() -> Result<()> {
    let (namespace, links) = namespace()?;
    let (screen, terminal) = terminal()?;
    let size = rustix::termios::Winsize {
        ws_row: 24,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(&terminal, size)?;
    let before = rustix::termios::tcgetattr(&terminal)?.local_modes;
    let mut command = Command::new(program::path());
    command
        .args(["--top", "wg0"])
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(Stdio::null());
    namespace.enter(&mut command)?;
    let mut child = command.spawn()?;
    let mut shown = String::new();
    let mut until = |words: &str| -> Result<()> {
        let mut bytes = [0; 4096];
        while !shown.contains(words) {
            let length = (&screen).read(&mut bytes)?;
            shown.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
        shown.clear();
        Ok(())
    };
    until("ifmon by ")?;
    links.add("wg0", PAIR, None)?;
    until(" wg0 appeared")?;
    links.delete("wg0")?;
    until(" wg0 deleted")?;
    (&screen).write_all(b"q")?;
    until("\x1b[?1049l")?;
    ensure!(child.wait()?.success());
    let after = rustix::termios::tcgetattr(&terminal)?.local_modes;
    ensure!(after == before, "{before:?} became {after:?}");
    Ok(())
}

/// It has some room, and not enough: a write there would wait, and everything else with it.
#[test]
fn a_terminal_that_nobody_reads_holds_nothing_else_up() -> Result<()> {
    /// More than a terminal keeps.
    const CHANGES: u32 = 100;
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let folder = Scratch::new("unread-terminal")?;
    let path = folder.path().join("socket");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let (screen, terminal) = terminal()?;
    let mut child = ifmon(&namespace, &["wg0"])?
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "20000")
        .stdin(Stdio::null())
        .stdout(terminal)
        .stderr(Stdio::null())
        .spawn()?;
    while !receive(&socket)?.starts_with("READY=1") {}
    for _ in 0..CHANGES {
        links.rename("wg0", "other")?;
        links.rename("other", "wg0")?;
    }
    // There may be some of before.
    for _ in 0..100 {
        ensure!(receive(&socket)? == "WATCHDOG=1");
    }
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )?;
    ensure!(child.wait()?.success());
    drop(screen);
    Ok(())
}

#[test]
fn metrics_tell_what_happened() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.set_up("lo", true)?;
    links.add("wg0", PAIR, None)?;
    let address = free_address(&namespace, "[::1]:0")?;
    let ifmon = with_metrics(&namespace, address, &["wg0"])?;
    let watching = ifmon.expect("wg0", "watching")?;
    let up = |value: u32| {
        format!(
            r#"ifmon_up{{interface="wg0",netns="{}"}} {value}"#,
            watching["netns"]
        )
    };
    let deleted = |value: u32| {
        format!(
            r#"ifmon_events_total{{interface="wg0",netns="{}",event="deleted"}} {value}"#,
            watching["netns"]
        )
    };
    let backend = watching["backend"]
        .as_str()
        .context("no backend")?
        .to_owned();
    let get = |path: &str, accept: &str| request(&namespace, address, "GET", path, accept);

    let before = get("/metrics", "application/openmetrics-text")?;
    for line in [
        up(1),
        deleted(0),
        format!(r#"ifmon_backend_info{{backend="{backend}"}} 1"#),
        format!(
            r#"ifmon_build_info{{version="{}"}} 1"#,
            env!("CARGO_PKG_VERSION")
        ),
        "ifmon_resyncs_total 0".to_owned(),
        "# EOF".to_owned(),
        "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8".to_owned(),
    ] {
        ensure!(
            before.lines().any(|other| other == line),
            "{line} is not in {before}"
        );
    }
    links.delete("wg0")?;
    ifmon.expect("wg0", "deleted")?;
    let after = get("/metrics", "*/*")?;
    for line in [
        up(0),
        deleted(1),
        "content-type: text/plain; version=0.0.4; charset=utf-8".to_owned(),
    ] {
        ensure!(
            after.lines().any(|other| other == line),
            "{line} is not in {after}"
        );
    }
    ensure!(
        !after.contains("# EOF"),
        "that is of the other format: {after}"
    );

    let (got_head, got_body) = after.split_once("\r\n\r\n").context("no body")?;
    let head = request(&namespace, address, "HEAD", "/metrics", "*/*")?;
    let (head, body) = head.split_once("\r\n\r\n").context("no end of the head")?;
    let length = |head: &str| {
        let line = head
            .lines()
            .find(|line| line.starts_with("content-length:"));
        line.map(str::to_owned)
    };
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    ensure!(body.is_empty() && !got_body.is_empty(), "{body}");
    ensure!(length(head).is_some() && length(head) == length(got_head));
    ensure!(get("/", "*/*")?.starts_with("HTTP/1.1 404"));
    let refused = request(&namespace, address, "POST", "/metrics", "*/*")?;
    ensure!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET, HEAD"));
    ensure!(ifmon.stop()?.status.success());
    Ok(())
}

#[test]
fn connections_that_say_nothing_keep_no_scrape_out() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.set_up("lo", true)?;
    let address = free_address(&namespace, "127.0.0.1:0")?;
    let ifmon = with_metrics(&namespace, address, &["wg0"])?;
    ifmon.expect("wg0", "watching")?;
    let connect = |count: usize| -> Result<Vec<TcpStream>> {
        namespace.run(|| {
            let stream = || Ok(TcpStream::connect(address)?);
            (0..count).map(|_| stream()).collect()
        })?
    };
    // The answer comes while they are open: they were not waited for.
    let is_open = |stream: &mut TcpStream| -> Result<bool> {
        stream.set_nonblocking(true)?;
        let read = stream.read(&mut [0]);
        Ok(read.is_err_and(|error| error.kind() == ErrorKind::WouldBlock))
    };
    let mut few = connect(20)?;
    let answer = request(&namespace, address, "GET", "/metrics", "*/*")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for stream in &mut few {
        ensure!(is_open(stream)?, "one had to end first");
    }
    // So many that there is no room for all.
    let mut many = connect(200)?;
    let answer = request(&namespace, address, "GET", "/metrics", "*/*")?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let newest = many.last_mut().context("there is a last one")?;
    ensure!(is_open(newest)?, "the newest had to end first");
    ensure!(!is_open(&mut many[0])?, "the oldest was kept");
    ensure!(ifmon.stop()?.status.success());
    Ok(())
}

/// Needs Prometheus and its promtool; `cargo xtask test` installs them, or says that it left this
/// out.
#[test]
fn prometheus_sees_the_first_deletion() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.set_up("lo", true)?;
    links.add("wg0", PAIR, None)?;
    links.add("wg\u{fffd}\"", Kind::Veth { peer: "other" }, None)?;
    let address = free_address(&namespace, "127.0.0.1:0")?;
    let ifmon = with_metrics(&namespace, address, &["wg0", "wg\u{fffd}\""])?;
    ifmon.expect("wg0", "watching")?;
    check_with_promtool(&request(&namespace, address, "GET", "/metrics", "*/*")?)?;

    let prometheus = Prometheus::start(&namespace, address)?;
    let first = r#"ifmon_events_total{event="deleted",interface="wg0"} == 0"#;
    wait_for(|| {
        prometheus
            .query(first)
            .ok()
            .filter(|found| !found.is_empty())
    })?;
    links.delete("wg0")?;
    ifmon.expect("wg\u{fffd}\"", "watching")?;
    ifmon.expect("wg0", "deleted")?;
    let increase = r#"increase(ifmon_events_total{event="deleted",interface="wg0"}[1m]) > 0"#;
    wait_for(|| {
        prometheus
            .query(increase)
            .ok()
            .filter(|found| !found.is_empty())
    })?;
    // Nothing that was scraped was refused.
    let up = prometheus.query(r#"min_over_time(up{job="ifmon"}[1m]) == 1"#)?;
    ensure!(up.len() == 1, "a scrape failed: {up:?}");
    ensure!(ifmon.stop()?.status.success());
    Ok(())
}

#[test]
fn a_hook_restarts_what_lost_its_interface() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, None)?;
    let folder = Scratch::new("hook")?;
    let engine = folder.path().join("engine");
    let seen = folder.path().join("seen");
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
    // The one that was killed is nobody's child any more, and may stay a zombie where pid 1 is no
    // init.
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

/// The command ends while lines wait for whoever reads them; what happens after that is not its doing.
#[test]
fn a_deletion_while_nobody_reads_is_restarted_once_somebody_does() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, Some(100))?;
    let folder = Scratch::new("unread")?;
    let (mut reader, writer) = program::full_pipe()?;
    let mut command = ifmon(&namespace, &["--on-restart", "echo $$ >> runs", "wg0"])?;
    command
        .args(["--exec", "echo >> $IFMON_EVENT"])
        .current_dir(folder.path())
        .stdout(writer)
        .stderr(Stdio::null());
    let mut child = command.spawn()?;
    drop(command);
    let comes_to_rest = || {
        let place = format!("/proc/{}/wchan", child.id());
        wait_for(|| {
            fs::read_to_string(&place)
                .ok()
                .filter(|it| it.contains("poll"))
        })
    };
    let run = |number: usize| {
        wait_for(|| {
            let runs = fs::read_to_string(folder.path().join("runs")).ok()?;
            runs.lines().nth(number).map(str::to_owned)
        })
    };
    wait_for(|| folder.path().join("watching").exists().then_some(()))?;
    links.delete("wg0")?;
    let first = run(0)?;
    let first = Path::new("/proc").join(first);
    wait_for(|| (!first.exists()).then_some(()))?;
    comes_to_rest()?;
    links.add("wg0", PAIR, Some(101))?;
    links.delete("wg0")?;
    let unread = std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()));
    run(1)?;
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&child),
        rustix::process::Signal::TERM,
    )?;
    ensure!(child.wait()?.success());
    ensure!(unread.join().is_ok());
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

/// It cannot know which namespace is its own then; that is no fault of the arguments.
#[test]
fn without_proc_netlink_works() -> Result<()> {
    let (namespace, _) = namespace()?;
    let mut command = ifmon(&namespace, &["--backend", "netlink", "--wait", "lo"])?;
    let own_mounts = || -> io::Result<()> {
        use rustix::{
            mount::{MountPropagationFlags as Flags, UnmountFlags, mount_change, unmount},
            thread::{UnshareFlags, unshare_unsafe},
        };
        // SAFETY: this process has one thread, which shares nothing with others.
        unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
        // Where an initramfs is the root, it is no mount that could be shared.
        let _ = mount_change("/", Flags::REC | Flags::PRIVATE);
        unmount("/proc", UnmountFlags::DETACH)?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls and allocates nothing.
    unsafe { command.pre_exec(own_mounts) };
    let output = command.stdin(Stdio::null()).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && stderr.is_empty(),
        "ended with {}: {stderr}",
        output.status
    );
    Ok(())
}

#[test]
fn what_does_not_exist_yet_is_named_with_its_namespace() -> Result<()> {
    let (home, _) = namespace()?;
    let (other, _) = namespace()?;
    let path = other.path();
    let ifmon = Ifmon::start(
        &home,
        &["--backend", "netlink", "wg0", &format!("{path}/wg0")],
    )?;
    ifmon.expect("wg0", "watching")?;
    ifmon.expect("wg0", "watching")?;
    let stderr = ifmon.stop()?.stderr;
    let elsewhere = format!("wg0 in namespace {} does not exist yet", other.id()?);
    ensure!(
        stderr.contains(&elsewhere) && stderr.contains("ifmon: wg0 does not exist yet"),
        "on standard error: {stderr}"
    );
    Ok(())
}

#[test]
fn a_device_that_is_not_the_expected_one_is_told_at_the_start() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, Some(100))?;
    let ifmon = Ifmon::start(&namespace, &["wg0=99", "wg1=5"])?;
    let mut told = Vec::new();
    for _ in 0..4 {
        told.push(ifmon.next()?.context("it ended")?);
    }
    for (interface, event, ifindex, field, value) in [
        ("wg0", "recreated", 100, "old_ifindex", Value::from(99)),
        ("wg1", "deleted", 5, "restart", Value::from(true)),
    ] {
        let of_it: Vec<_> = told
            .iter()
            .filter(|line| line["interface"] == interface)
            .collect();
        let [first, second] = of_it.as_slice() else {
            bail!("of {interface}: {of_it:?}");
        };
        ensure!(first["event"] == "watching", "first: {first}");
        ensure!(
            second["event"] == event
                && second["ifindex"] == ifindex
                && second[field] == value
                && second["recovered"] == true,
            "{event} is wanted: {second}"
        );
    }
    let ifmon = Ifmon::start(&namespace, &["wg0", "--expect-ifindex", "100"])?;
    ifmon.expect("wg0", "watching")?;
    ensure!(ifmon.stop()?.lines.len() == 1, "it is the expected one");
    Ok(())
}

/// Killed or stopped, and the device replaced, deleted or left alone meanwhile.
#[test]
fn what_changed_while_ifmon_was_not_running_is_told_at_its_next_start() -> Result<()> {
    let (namespace, links) = namespace()?;
    let folder = Scratch::new("state")?;
    let state = folder.path().to_string_lossy();
    let start = || -> Result<Ifmon> { Ifmon::start(&namespace, &["--state", &state, "wg0"]) };
    let record = folder.path().join(format!("{}:wg0", namespace.id()?));
    let recorded = |ifindex: &str| {
        let wanted = format!("\"ifindex\":{ifindex},");
        wait_for(|| {
            fs::read_to_string(&record)
                .ok()?
                .contains(&wanted)
                .then_some(())
        })
        .with_context(|| format!("no record of {ifindex}"))
    };
    // Whatever was told, the next start tells nothing of it.
    let nothing_told = || -> Result<()> {
        let ifmon = start()?;
        ifmon.expect("wg0", "watching")?;
        let lines = ifmon.stop()?.lines;
        ensure!(lines.len() == 1, "told again: {lines:?}");
        Ok(())
    };

    links.add("wg0", PAIR, Some(100))?;
    let ifmon = start()?;
    ifmon.expect("wg0", "watching")?;
    recorded("100")?;
    ifmon.signal(rustix::process::Signal::KILL)?;
    drop(ifmon);
    nothing_told()?;

    links.delete("wg0")?;
    links.add("wg0", PAIR, Some(101))?;
    let ifmon = start()?;
    ifmon.expect("wg0", "watching")?;
    let recreated = ifmon.expect("wg0", "recreated")?;
    ensure!(
        recreated["old_ifindex"] == 100 && recreated["recovered"] == true,
        "told: {recreated}"
    );
    recorded("101")?;
    ifmon.signal(rustix::process::Signal::KILL)?;
    drop(ifmon);
    nothing_told()?;

    // Changed while it runs, told, and stopped at once.
    let ifmon = start()?;
    ifmon.expect("wg0", "watching")?;
    links.delete("wg0")?;
    ifmon.expect("wg0", "deleted")?;
    links.add("wg0", PAIR, Some(102))?;
    ifmon.expect("wg0", "recreated")?;
    ensure!(ifmon.stop()?.status.success());
    recorded("102")?;

    links.delete("wg0")?;
    let ifmon = start()?;
    ifmon.expect("wg0", "watching")?;
    let deleted = ifmon.expect("wg0", "deleted")?;
    ensure!(deleted["ifindex"] == 102, "told: {deleted}");

    // A second one with the same directory is refused.
    refuses_state(&namespace, &state, "another ifmon")?;
    ensure!(ifmon.stop()?.status.success());
    nothing_told()?;

    fs::write(&record, "{")?;
    let ifmon = start()?;
    ifmon.expect("wg0", "watching")?;
    let stderr = ifmon.stop()?.stderr;
    ensure!(stderr.contains("1 damaged"), "no warning: {stderr}");
    Ok(())
}

/// Root may write there until it gives up what it does not need.
#[test]
fn a_directory_in_which_nothing_can_be_kept_is_an_error_at_the_start() -> Result<()> {
    let (namespace, _links) = namespace()?;
    let folder = Scratch::new("foreign")?;
    std::os::unix::fs::chown(folder.path(), Some(12345), Some(12345))?;
    let state = folder.path().to_string_lossy();
    refuses_state(&namespace, &state, "cannot write in the directory")
}

/// It ends at the start, and says why.
fn refuses_state(namespace: &Namespace, directory: &str, why: &str) -> Result<()> {
    let output = self::ifmon(namespace, &["--state", directory, "wg0"])?.output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && stderr.contains(why),
        "ended with {}: {stderr}",
        output.status
    );
    Ok(())
}

/// A hook that was not run to its end has not told anybody.
#[test]
fn what_a_hook_was_not_told_is_told_at_the_next_start() -> Result<()> {
    let (namespace, links) = namespace()?;
    let folder = Scratch::new("unfinished")?;
    let state = folder.path().to_string_lossy();
    let record = folder.path().join(format!("{}:wg0", namespace.id()?));
    let hook = "[ $IFMON_EVENT = watching ] || sleep 100000";
    links.add("wg0", PAIR, Some(100))?;
    for option in ["--exec", "--on-restart"] {
        let ifmon = Ifmon::start(&namespace, &["--state", &state, option, hook, "wg0"])?;
        ifmon.expect("wg0", "watching")?;
        wait_for(|| record.exists().then_some(()))?;
        links.delete("wg0")?;
        let deleted = ifmon.expect("wg0", "deleted")?;
        ifmon.signal(rustix::process::Signal::TERM)?;
        ifmon.expect("wg0", "stopped")?;
        // It would wait for the command.
        ifmon.signal(rustix::process::Signal::TERM)?;
        ensure!(ifmon.finish()?.status.success());

        let ifmon = Ifmon::start(&namespace, &["--state", &state, "wg0"])?;
        ifmon.expect("wg0", "watching")?;
        let again = ifmon.expect("wg0", "deleted")?;
        ensure!(
            again["ifindex"] == deleted["ifindex"] && again["recovered"] == true,
            "with {option}: {again}"
        );
        links.add("wg0", PAIR, None)?;
        ensure!(ifmon.next()?.is_some(), "it is there again");
        ensure!(ifmon.stop()?.status.success());
    }
    Ok(())
}

/// The hook for the device that took the name is still under way when ifmon is killed.
#[test]
fn a_device_that_was_told_is_missed_at_the_next_start_whatever_its_hook_does() -> Result<()> {
    let (namespace, links) = namespace()?;
    let folder = Scratch::new("taken")?;
    let hold = folder.path().join("hold");
    fs::write(&hold, "")?;
    let state = folder.path().join("state");
    let record = state.join(format!("{}:wg0", namespace.id()?));
    let state = state.to_string_lossy();
    let recorded = |holder: &str| {
        wait_for(|| {
            let record = fs::read_to_string(&record).ok()?;
            record
                .contains(&format!("\"holder\":{holder}"))
                .then_some(())
        })
        .with_context(|| format!("no record of {holder}"))
    };
    let hook = format!(
        "case $IFMON_EVENT in recreated|appeared) while [ -e {} ]; do sleep 0.05; done; esac",
        hold.display()
    );
    let start = || Ifmon::start(&namespace, &["--state", &state, "--exec", &hook, "wg0"]);
    for (event, index) in [("appeared", 100), ("recreated", 102)] {
        let ifmon = start()?;
        ifmon.expect("wg0", "watching")?;
        recorded("null")?;
        if event == "recreated" {
            links.add("wg0", PAIR, Some(101))?;
            ifmon.expect("wg0", "appeared")?;
            recorded("{\"ifindex\":101,")?;
            links.delete("wg0")?;
            ifmon.expect("wg0", "deleted")?;
            fs::remove_file(&hold)?;
            recorded("null")?;
            fs::write(&hold, "")?;
        }
        links.add("wg0", PAIR, Some(index))?;
        ifmon.expect("wg0", event)?;
        recorded(&format!("{{\"ifindex\":{index},"))?;
        ifmon.signal(rustix::process::Signal::KILL)?;
        drop(ifmon);

        links.delete("wg0")?;
        let ifmon = start()?;
        ifmon.expect("wg0", "watching")?;
        let deleted = ifmon.expect("wg0", "deleted")?;
        ensure!(
            deleted["ifindex"] == index && deleted["recovered"] == true,
            "after {event}: {deleted}"
        );
        ensure!(ifmon.stop()?.status.success());
    }
    Ok(())
}

/// The end is asked for while the command runs, and is waited for: the command has done its work.
#[test]
fn what_a_command_has_done_by_the_end_is_not_done_again_at_the_next_start() -> Result<()> {
    let (namespace, links) = namespace()?;
    let folder = Scratch::new("finished")?;
    let state = folder.path().join("state");
    let record = state.join(format!("{}:wg0", namespace.id()?));
    let state = state.to_string_lossy();
    let command = r#"echo >> runs; until [ -e go ]; do sleep 0.05; done"#;
    links.add("wg0", PAIR, Some(100))?;
    let start = || -> Result<Ifmon> {
        let mut command_line = Command::new(program::path());
        command_line
            .args(["--json", "--state", &state, "--on-restart", command, "wg0"])
            .current_dir(folder.path());
        namespace.enter(&mut command_line)?;
        Ifmon::spawn(command_line)
    };
    let runs = || fs::read(folder.path().join("runs")).map_or(0, |runs| runs.len());
    let ifmon = start()?;
    ifmon.expect("wg0", "watching")?;
    wait_for(|| record.exists().then_some(()))?;
    links.delete("wg0")?;
    ifmon.expect("wg0", "deleted")?;
    wait_for(|| (runs() == 1).then_some(()))?;
    links.add("wg0", PAIR, Some(101))?;
    ifmon.expect("wg0", "recreated")?;
    ifmon.signal(rustix::process::Signal::TERM)?;
    ifmon.expect("wg0", "stopped")?;
    fs::write(folder.path().join("go"), "")?;
    ensure!(ifmon.finish()?.status.success());

    let ifmon = start()?;
    ifmon.expect("wg0", "watching")?;
    let outcome = ifmon.stop()?;
    let [stopped] = outcome.lines.as_slice() else {
        bail!("told again: {:?}", outcome.lines);
    };
    ensure!(stopped["event"] == "stopped", "{stopped}");
    ensure!(runs() == 1, "it ran {} times", runs());
    Ok(())
}

/// Of two commands for one event one hangs and is ended; the other has left an engine behind.
#[test]
fn what_a_command_has_left_behind_is_not_ended_with_another_one() -> Result<()> {
    let (namespace, links) = namespace()?;
    links.add("wg0", PAIR, Some(100))?;
    let folder = Scratch::new("left")?;
    // In a session of its own, and one that does not even know the event.
    let engine = "(setsid sh -c 'echo $$ > marked; exec sleep 100000' > /dev/null 2>&1 &)
        (env -i setsid sh -c 'echo $$ > unmarked; exec sleep 100000' > /dev/null 2>&1 &)
        until [ -s marked ] && [ -s unmarked ]; do sleep 0.05; done";
    let hook = "[ $IFMON_EVENT != deleted ] || sleep 100000";
    let mut command = Command::new(program::path());
    command
        .args(["--json", "--exec-timeout", "3", "--exec", hook])
        .args(["--on-restart", engine, "wg0"])
        .current_dir(folder.path());
    namespace.enter(&mut command)?;
    let ifmon = Ifmon::spawn(command)?;
    ifmon.expect("wg0", "watching")?;
    links.delete("wg0")?;
    ifmon.expect("wg0", "deleted")?;
    // The hook has been ended: the next one begins.
    links.add("wg0", PAIR, Some(101))?;
    ifmon.expect("wg0", "recreated")?;
    let outcome = ifmon.stop()?;
    ensure!(
        outcome.stderr.contains("the hook for deleted was ended"),
        "{outcome:?}"
    );
    for name in ["marked", "unmarked"] {
        let pid = fs::read_to_string(folder.path().join(name))?;
        let status = fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        let pid = rustix::process::Pid::from_raw(pid.trim().parse()?).context("a process")?;
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        ensure!(
            status.is_ok_and(|stat| stat.contains("(sleep)")),
            "{name} was ended"
        );
    }
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

/// It is no fault of the kernel's, and no `--check` would show it.
#[test]
fn a_limit_of_open_files_that_is_too_low_for_bpf_is_told_as_that() -> Result<()> {
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"ulimit -n 16; exec "$@""#, "sh"])
        .arg(program::path())
        .args(["--backend", "ebpf", "lo"]);
    let outcome = Ifmon::spawn(command)?.finish()?;
    ensure!(outcome.status.code() == Some(1), "{outcome:?}");
    ensure!(outcome.stderr.contains("LimitNOFILE="), "{outcome:?}");
    Ok(())
}

/// The example of both READMEs is the one in the documentation of the crate, which is compiled and
/// run.
#[test]
fn the_example_in_the_readmes_runs() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let crate_docs = fs::read_to_string(root.join("ifmon/src/lib.rs"))?;
    let between = |text: &str, fence: &str| {
        let (_, after) = text.split_once(fence)?;
        Some(after.split_once("```")?.0.to_owned())
    };
    let docs: String = crate_docs
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        // Lines that the documentation does not show.
        .filter(|line| *line != "#" && !line.starts_with("# "))
        .flat_map(|line| [line, "\n"])
        .collect();
    let run = between(&docs, "```\n").context("no example in the documentation")?;
    for page in ["README.md", "ifmon/README.md"] {
        let text = fs::read_to_string(root.join(page))?;
        let shown = between(&text, "```rust\n").with_context(|| format!("no example in {page}"))?;
        ensure!(shown == run, "{page}:\n{shown}\ndocumentation:\n{run}");
    }
    Ok(())
}

/// What a person looks at, and the terminal that ifmon is given.
fn terminal() -> Result<(fs::File, fs::File)> {
    let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY)?;
    grantpt(&screen)?;
    unlockpt(&screen)?;
    let terminal = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(ptsname(&screen, Vec::new())?.to_str()?)?;
    Ok((screen.into(), terminal))
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

/// An address that is free: the namespace is ours alone, so that nobody takes it meanwhile.
fn free_address(namespace: &Namespace, any: &str) -> Result<net::SocketAddr> {
    Ok(namespace.run(|| TcpListener::bind(any)?.local_addr())??)
}

/// The program in a namespace, serving metrics there.
fn with_metrics(
    namespace: &Namespace,
    address: net::SocketAddr,
    interfaces: &[&str],
) -> Result<Ifmon> {
    let help = Command::new(program::path()).arg("--help").output()?;
    if !String::from_utf8_lossy(&help.stdout).contains("--metrics") {
        bail!("this ifmon was built without the feature `metrics`; `cargo xtask test` has it");
    }
    let address = address.to_string();
    Ifmon::start(namespace, &[&["--metrics", &address], interfaces].concat())
}

/// What a server in the namespace answers to a request.
fn request(
    namespace: &Namespace,
    address: net::SocketAddr,
    method: &str,
    path: &str,
    accept: &str,
) -> Result<String> {
    namespace.run(|| -> Result<String> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\
             Connection: close\r\n\r\n"
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })?
}

/// Has promtool look for what is wrong or against custom in an answer.
fn check_with_promtool(answer: &str) -> Result<()> {
    let (_, metrics) = answer.split_once("\r\n\r\n").context("no body")?;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run promtool, of the Debian package prometheus")?;
    let mut input = promtool.stdin.take().context("no standard input")?;
    input.write_all(metrics.as_bytes())?;
    drop(input);
    let output = promtool.wait_with_output()?;
    let said = [output.stdout, output.stderr].concat();
    ensure!(
        output.status.success() && said.is_empty(),
        "promtool says: {}",
        String::from_utf8_lossy(&said)
    );
    Ok(())
}

/// A Prometheus in a namespace, that scrapes one address several times a second.
struct Prometheus<'a> {
    namespace: &'a Namespace,
    address: net::SocketAddr,
    process: process::Child,
    _folder: Scratch,
}

impl<'a> Prometheus<'a> {
    fn start(namespace: &'a Namespace, target: net::SocketAddr) -> Result<Self> {
        let folder = Scratch::new("prometheus")?;
        let address = free_address(namespace, "127.0.0.1:0")?;
        fs::write(
            folder.path().join("prometheus.yml"),
            format!(
                "{{global: {{scrape_interval: 200ms, scrape_timeout: 200ms}}, \
                 scrape_configs: [{{job_name: ifmon, static_configs: [{{targets: ['{target}']}}]}}]}}"
            ),
        )?;
        let mut command = Command::new("prometheus");
        command
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg(format!("--web.listen-address={address}"))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        namespace.enter(&mut command)?;
        Ok(Self {
            namespace,
            address,
            process: command
                .spawn()
                .context("cannot run prometheus, of the Debian package of that name")?,
            _folder: folder,
        })
    }

    /// What a query gives now.
    fn query(&self, query: &str) -> Result<Vec<serde_json::Value>> {
        let query: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/api/v1/query?query={query}");
        let answer = request(self.namespace, self.address, "GET", &path, "*/*")?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        let mut answer: serde_json::Value = serde_json::from_str(body)?;
        serde_json::from_value(answer["data"]["result"].take()).context("no result")
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
