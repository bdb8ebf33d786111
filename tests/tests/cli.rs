//! What ifmon makes of bad arguments, and of an output that ends. Needs no privileges.

use std::{
    ffi::OsStr,
    fs::OpenOptions,
    io::{BufRead as _, BufReader},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt as _,
            net::{UnixDatagram, UnixListener, UnixStream},
            process::CommandExt as _,
        },
    },
    process::{Command, Output, Stdio},
};

use rustix::process::Signal;
use tests::{
    program::{self, Ifmon},
    scratch::Scratch,
};

/// Every namespace has it.
const LOOPBACK: &str = "lo";

fn ifmon(args: &[&OsStr]) -> Command {
    let mut command = Command::new(program::path());
    command.args(args).stdin(Stdio::null());
    command
}

fn words(args: &[&'static str]) -> Command {
    let args: Vec<_> = args.iter().map(|&arg| OsStr::new(arg)).collect();
    ifmon(&args)
}

fn output(mut command: Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("cannot run ifmon: {error}; is it built?"))
}

/// Ends with this code after one line on standard error, which has these words in it; returns that
/// line.
#[track_caller]
fn fails(command: Command, code: i32, says: &[&str]) {
    let shown = format!("{command:?}");
    let Output {
        status,
        stdout,
        stderr,
    } = output(command);
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(code), "{shown}: {stderr}");
    assert!(stdout.is_empty(), "{shown}: {stdout:?}");
    assert_eq!(stderr.lines().count(), 1, "{shown}: {stderr}");
    assert!(stderr.starts_with("ifmon: "), "{shown}: {stderr}");
    for word in says {
        assert!(stderr.contains(word), "{shown}: no {word} in {stderr}");
    }
}

#[test]
fn bad_names_are_wrong_usage() {
    let bad: [(&[u8], &str); 16] = [
        (b"", "empty"),
        (b"0123456789012345", "15 bytes"),
        (b"a b", "white space"),
        (b"a\n", "white space"),
        (b" ", "white space"),
        (b"a:b", "\":\""),
        (b".", "\".\""),
        (b"..", "\"..\""),
        (b"wg%d", "\"%\""),
        (b"wg*=7", "a pattern has no index"),
        (b"wg[01", "there is no ] to its ["),
        (b"wg0=", "the index of the device is wanted"),
        (b"wg0=0", "the index of the device is wanted"),
        (b"a=b=7", "\\="),
        (b"wg0\\", "backslash"),
        (b"\xff\xffnot UTF-8", "white space"),
    ];
    for (name, says) in bad {
        fails(ifmon(&[OsStr::from_bytes(name)]), 2, &[says]);
        // Beside a good one as well.
        fails(
            ifmon(&[OsStr::new(LOOPBACK), OsStr::from_bytes(name)]),
            2,
            &[says],
        );
    }
}

#[test]
fn a_name_is_one_device() {
    fails(words(&["lo=7", "lo=9"]), 2, &["lo", "device 7", "device 9"]);
    // It may be named without its device, too, before or after.
    for again in [&["lo", "lo=9"], &["lo=9", "lo"]] {
        let mut command = words(&["--json", "--backend", "netlink", "--once"]);
        let Output { status, stdout, .. } = output({
            command.args(again);
            command
        });
        let told = String::from_utf8_lossy(&stdout);
        assert!(status.success(), "{again:?}: {told}");
        assert!(told.contains(r#""event":"recreated""#), "{again:?}: {told}");
    }
}

#[test]
fn a_pattern_that_nothing_matches_is_told_with_its_kinds() {
    for (kinds, said) in [
        ("nosuch", "no interface of kind nosuch matches *"),
        ("nosuch,other", "of the kinds nosuch, other matches *"),
    ] {
        let args = ["--backend", "netlink", "--must-exist", "--kind", kinds];
        let Output { status, stderr, .. } = output(words(&args));
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(3), "{stderr}");
        assert!(stderr.contains(said), "{stderr}");
    }
}

#[test]
fn missing_namespaces_are_wrong_usage() {
    fails(
        words(&["no-such-netns/wg0"]),
        2,
        &[
            "no-such-netns: there is none",
            "`ip netns` lists those that there are\n",
        ],
    );
    fails(
        words(&["--netns", "no-such-netns", "wg0"]),
        2,
        &["no-such-netns"],
    );
    fails(
        words(&["--netns", "/no/such/file", "wg0"]),
        2,
        // The reason is said once, at the end.
        &["/no/such/file: No such file or directory (os error 2)\n"],
    );
    fails(
        words(&["--netns", "4294967295", "wg0"]),
        2,
        &[
            "4294967295/ns/net: there is no such process",
            "`ps -e` lists those that there are\n",
        ],
    );
    fails(
        words(&["--netns", "/dev/null", "wg0"]),
        2,
        &["no network namespace"],
    );
}

/// Opening a pipe waits for somebody at its other end.
#[test]
fn a_pipe_is_no_namespace() {
    let path = std::env::temp_dir().join(format!("ifmon-cli-pipe-{}", std::process::id()));
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0)
        .expect("a pipe can be made");
    let args = [OsStr::new("--netns"), path.as_os_str(), OsStr::new("wg0")];
    fails(ifmon(&args), 2, &["no network namespace"]);
    std::fs::remove_file(&path).expect("it is there");
}

#[test]
fn bad_options_are_wrong_usage() {
    fails(words(&[]), 2, &["INTERFACE"]);
    fails(words(&["--backend", "magic", LOOPBACK]), 2, &["magic"]);
    fails(words(&["--backend"]), 2, &["--backend"]);
    fails(
        words(&["--no-such-option", LOOPBACK]),
        2,
        &["--no-such-option"],
    );
    fails(words(&["-v", "-q", LOOPBACK]), 2, &["--quiet"]);
    fails(words(&["--timeout", "1", LOOPBACK]), 2, &["--wait"]);
    fails(words(&["--wait=gone", LOOPBACK]), 2, &["gone"]);
    fails(words(&["--mine", "", LOOPBACK]), 2, &["--mine"]);
    for (kinds, says) in [
        ("", "empty"),
        ("veth,", "empty"),
        ("sixteen-bytes-xx", "15 bytes at most"),
        ("veth*", "letters, digits"),
    ] {
        fails(words(&["--kind", kinds, "*"]), 2, &["--kind", says]);
    }
    fails(words(&["--kind"]), 2, &["--kind"]);
    fails(words(&["--summary", "0", LOOPBACK]), 2, &["--summary"]);
    fails(words(&["--top", "--json", LOOPBACK]), 2, &["--json"]);
    fails(words(&["--top", LOOPBACK]), 2, &["terminal", "--summary"]);
    fails(
        words(&["--expect-ifindex", "7", "wg0", "wg1"]),
        2,
        &["for one interface"],
    );
    fails(
        words(&["--exec-timeout", "0", "--exec", "true", LOOPBACK]),
        2,
        &["0"],
    );
}

#[test]
fn an_interface_that_must_exist_is_missed() {
    let args = ["--backend", "netlink", "--must-exist", "no-such-link"];
    fails(words(&args), 3, &["no-such-link does not exist"]);
}

#[test]
fn help_and_version_are_no_errors() {
    for option in ["--help", "-h", "--version", "-V"] {
        let Output {
            status,
            stdout,
            stderr,
        } = output(words(&[option]));
        assert!(status.success(), "{option}");
        assert!(
            stdout.starts_with(b"ifmon") || !stdout.is_empty(),
            "{option}"
        );
        assert!(stderr.is_empty(), "{option}");
    }
}

/// As with `| head -1`: it ends when its reader does, and not at the next event, which may never
/// come.
#[test]
fn a_reader_that_goes_is_the_end() {
    for format in [&["--json"][..], &[]] {
        let mut command = words(&["--backend", "netlink", LOOPBACK]);
        let mut child = command
            .args(format)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ifmon starts");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("it is text");
        assert!(line.contains("watching"), "{line}");
        drop(stdout);
        let Output { status, stderr, .. } = child.wait_with_output().expect("it ends");
        assert!(status.success(), "{status}");
        assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    }
}

#[test]
fn a_reader_that_never_was_is_the_end() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = words(&["--backend", "netlink", LOOPBACK]);
    let Output { status, stderr, .. } = command
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .expect("it ends");
    assert!(status.success(), "{status}");
    assert!(stderr.is_empty(), "{}", String::from_utf8_lossy(&stderr));
}

/// What comes together is written together, and never a part of a line: a message of this socket is
/// what one write(2) wrote.
#[test]
fn lines_that_come_together_are_written_together() {
    const WATCHES: usize = 1000;
    let (reader, writer) = UnixDatagram::pair().expect("a pair of sockets");
    let names = (0..WATCHES).map(|number| format!("no-such-{number}"));
    let mut child = words(&["--json", "--backend", "netlink"])
        .args(names)
        .stdout(OwnedFd::from(writer))
        .stderr(Stdio::null())
        .spawn()
        .expect("ifmon starts");
    let (mut lines, mut writes) = (0, 0);
    let mut message = [0; 8192];
    let mut read = |until: usize| {
        while lines < until {
            let length = reader.recv(&mut message).expect("a message");
            let message = &message[..length];
            assert!(length <= 4096, "{length} bytes can wait for a reader");
            assert!(message.ends_with(b"\n"), "half a line");
            lines += message.iter().filter(|&&byte| byte == b'\n').count();
            writes += 1;
        }
        assert!(writes * 10 < lines, "{writes} writes for {lines} lines");
    };
    read(WATCHES);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    // The last lines.
    read(2 * WATCHES);
    assert!(child.wait().expect("it ends").success());
}

/// Nobody reads, and the time is over.
#[test]
fn the_time_of_wait_ends_where_nobody_reads_too() {
    let (reader, writer) = program::full_pipe().expect("a pipe");
    let args = ["--backend", "netlink", "--wait", "--timeout", "1", LOOPBACK];
    let mut command = words(&args);
    command.stdout(writer);
    let Output { status, stderr, .. } = output(command);
    let stderr = String::from_utf8_lossy(&stderr);
    assert_eq!(status.code(), Some(4), "{stderr}");
    assert!(stderr.contains("nobody has read"), "{stderr}");
    drop(reader);
}

/// A script that goes on after a wait does not go on when that is interrupted.
#[test]
fn a_wait_that_is_stopped_has_not_come_to_its_end() {
    for (wait, name) in [("--wait", "no-such-link"), ("--wait=absent", LOOPBACK)] {
        let command = words(&["--json", "--backend", "netlink", wait, name]);
        let ifmon = Ifmon::spawn(command).expect("ifmon starts");
        ifmon.expect(name, "watching").expect("it begins");
        ifmon.signal(Signal::INT).expect("it runs");
        let outcome = ifmon.finish().expect("it ends");
        assert_eq!(outcome.status.code(), Some(4), "{outcome:?}");

        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = words(&["--backend", "netlink", wait, name]);
        let status = command.stdout(writer).status().expect("it ends");
        assert_eq!(status.code(), Some(4), "{wait}, and nobody reads");
    }
}

#[test]
fn a_wait_tells_of_the_device_that_was_expected() {
    let command = words(&["--json", "--backend", "netlink", "--wait", "lo=4711"]);
    let outcome = Ifmon::spawn(command).and_then(Ifmon::finish);
    let outcome = outcome.expect("it ends");
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
    let events: Vec<_> = outcome.lines.iter().map(|line| &line["event"]).collect();
    assert_eq!(events, ["watching", "recreated", "stopped"], "{outcome:?}");
}

/// It takes the call, and that is all.
#[test]
fn an_agent_that_does_not_answer_holds_no_end_up() {
    let folder = Scratch::new("silent-agent").expect("a folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    let command = |more: &[&'static str]| {
        let mut command = words(&["--backend", "agent", "--agent"]);
        command.arg(&path).args(more).arg("no-such-link");
        command
    };
    fails(
        command(&["--wait", "--timeout", "1"]),
        4,
        &["no watch has begun"],
    );

    let mut child = command(&[]).stdout(Stdio::null()).spawn().expect("it runs");
    let pid = rustix::process::Pid::from_child(&child);
    // Those of the one before come first.
    let is_its = |call: &UnixStream| {
        rustix::net::sockopt::socket_peercred(call).is_ok_and(|peer| peer.pid == pid)
    };
    let call = loop {
        let (call, _) = listener.accept().expect("a call");
        if is_its(&call) {
            break call;
        }
    };
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    assert!(child.wait().expect("it ends").success());
    drop(call);
}

/// Whoever hands over a socket may have closed it, or opened something else in its place.
#[test]
fn a_socket_that_was_not_handed_over_is_an_error_and_no_panic() {
    for redirection in ["3<&-", "3</dev/null"] {
        let script = format!(
            "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --serve --backend netlink {redirection}"
        );
        let mut command = Command::new("sh");
        command
            .args(["-c", &script])
            .arg(program::path())
            .stdin(Stdio::null());
        fails(command, 1, &["descriptor 3", "no listening unix socket"]);
    }
}

#[test]
fn a_full_disk_is_an_error() {
    for format in [&["--json"][..], &[]] {
        let full = OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .expect("every Linux has it");
        let mut command = words(&["--backend", "netlink", LOOPBACK]);
        command.args(format).stdout(full);
        let Output { status, stderr, .. } = output(command);
        let stderr = String::from_utf8_lossy(&stderr);
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("No space left"), "{stderr}");
    }
}

#[test]
fn signals_end_it_cleanly() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut command = words(&["--json", "--backend", "netlink", LOOPBACK]);
        command.env("NO_COLOR", "1");
        // Whoever runs the tests may have it ignored, as nohup(1) does, and it would stay so.
        // SAFETY: between fork and exec, and signal(2) may be called there.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_DFL);
                Ok(())
            });
        }
        let ifmon = Ifmon::spawn(command).expect("ifmon starts");
        ifmon.expect(LOOPBACK, "watching").expect("it is there");
        ifmon.signal(signal).expect("it runs");
        let outcome = ifmon.finish().expect("it ends");
        assert!(outcome.status.success(), "{signal:?}: {}", outcome.status);
        assert_eq!(outcome.stderr, "", "{signal:?}");
        let [stopped] = outcome.lines.as_slice() else {
            panic!("{signal:?}: {:?}", outcome.lines);
        };
        assert_eq!(stopped["event"], "stopped");
        assert_eq!(stopped["reason"], "signal");
        assert_eq!(stopped["delivered"], 1);
    }
}

/// Whoever runs it may have blocked what it waits for.
#[test]
fn signals_that_are_blocked_are_heard() {
    let mut command = words(&["--json", "--backend", "netlink", LOOPBACK]);
    command.args(["--exec", "true", "--exec-timeout", "100000"]);
    // SAFETY: between fork and exec, and both may be called there.
    unsafe {
        command.pre_exec(|| {
            let mut all: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, std::ptr::null_mut());
            Ok(())
        });
    }
    let ifmon = Ifmon::spawn(command).expect("ifmon starts");
    ifmon.expect(LOOPBACK, "watching").expect("it is there");
    // It waits for its hooks.
    ifmon.signal(Signal::TERM).expect("it runs");
    let outcome = ifmon.finish().expect("it ends");
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(outcome.lines.len(), 1, "{outcome:?}");
}

#[test]
fn standard_error_that_is_closed_is_no_reason_to_fail() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = words(&["--must-exist", "--backend", "netlink", "no-such-link"]);
    let status = command.stderr(writer).status().expect("it ends");
    assert_eq!(status.code(), Some(3));
}

/// Neither the watch nor the end waits for somebody to read what is said beside it.
#[test]
fn standard_error_that_nobody_reads_holds_nothing_up() {
    let (reader, writer) = program::full_pipe().expect("a pipe");
    let args = ["--json", "--backend", "netlink", "-v", "no-such-link"];
    let mut child = words(&args)
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .expect("ifmon starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("it is text");
    assert!(line.contains("watching"), "{line}");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, Signal::TERM).expect("it runs");
    let status = child.wait().expect("it ends");
    assert!(status.success(), "{status}");
    drop(reader);
}

/// A namespace takes some descriptors, and hosts have hundreds. What a command is given stays as it
/// was: it may use `select(2)`.
#[test]
fn the_limit_of_open_files_is_raised_and_not_for_commands() {
    const LIMIT: &str = "77";
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"ulimit -Sn "$1"; shift; exec "$@""#, "sh", LIMIT])
        .arg(program::path())
        .args(["--json", "--exec", "echo limit $(ulimit -Sn)", LOOPBACK]);
    let ifmon = Ifmon::spawn(command).expect("ifmon starts");
    ifmon.expect(LOOPBACK, "watching").expect("it watches");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", ifmon.pid())).expect("limits");
    let of_files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let mut words = of_files.expect("a limit").split_whitespace().skip(3);
    let (soft, hard) = (words.next(), words.next());
    assert_eq!(soft, hard, "{limits}");
    let outcome = ifmon.stop().expect("it stops");
    let said = format!("limit {LIMIT}\n");
    assert!(outcome.stderr.contains(&said), "{}", outcome.stderr);
}

#[test]
fn too_few_descriptors_are_an_error_and_no_panic() {
    for limit in ["4", "7", "12"] {
        let mut command = Command::new("sh");
        command
            .args(["-c", r#"ulimit -n "$1"; shift; exec "$@""#, "sh", limit])
            .arg(program::path())
            .args(["--backend", "netlink", "--json", LOOPBACK])
            .stdin(Stdio::null());
        fails(command, 1, &[limit, "raise the limit"]);
    }
}

#[test]
fn a_wait_of_no_time_is_a_look() {
    for (name, code) in [(LOOPBACK, 0), ("no-such-link", 4)] {
        let mut command = words(&[
            "--backend",
            "netlink",
            "--quiet",
            "--wait",
            "--timeout",
            "0",
        ]);
        command.arg(name);
        assert_eq!(output(command).status.code(), Some(code), "{name}");
    }
}
