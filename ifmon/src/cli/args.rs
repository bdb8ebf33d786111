//! The command line, defined once: `--help`, the man page and the shell completions come from here.

use std::{
    ffi::OsString,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, ValueEnum, error::ErrorKind};
use ifmon::{BackendChoice, BackendKind, LinkKind};

use super::{
    Exit, complain,
    mine::Mine,
    service::Rule,
    target::{self, Selection, WatchArgument},
};

/// Say at once, and for certain, when a network interface is deleted, recreated, renamed or moved.
#[derive(Debug, Parser)]
#[command(name = "ifmon", version, max_term_width = 100, after_help = AFTER_HELP)]
#[command(group = clap::ArgGroup::new("commands").multiple(true))]
pub(crate) struct Args {
    /// Interfaces to watch: NAME, NETNS/NAME for one of another network namespace, NAME=IFINDEX
    /// for the device that was set up: if the name does not belong to it at the start, that is
    /// told; or a PATTERN, with `*`, `?` and `[…]` as in a shell, for all whose names match. A
    /// backslash takes the next character as it is
    #[arg(required_unless_present_any = NO_INTERFACE, value_name = "INTERFACE")]
    words: Vec<OsString>,

    /// Take each character of a NAME as it is: `=`, `*`, `?`, `[` and the backslash have no meaning
    #[arg(long)]
    literal: bool,

    /// Of what matches a PATTERN, the interfaces of this kind alone (veth, wireguard, bridge, …, as in
    /// `ip link add type`); without a PATTERN, all of this kind. Several are separated by commas
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    kind: Vec<LinkKind>,

    /// The same as NAME=IFINDEX, where one interface is watched
    #[arg(long, value_name = "IFINDEX", value_parser = target::ifindex)]
    expect_ifindex: Option<u32>,

    /// The interfaces, taken apart
    #[arg(skip)]
    pub(crate) interfaces: Vec<WatchArgument>,

    /// How to hear of changes
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub(crate) backend: BackendArg,

    /// Where the agent listens, if it is not at /run/ifmon/io.ifmon
    #[arg(long, value_name = "PATH")]
    pub(crate) agent: Option<PathBuf>,

    /// Stop after the first event that calls for a restart, or after `appeared`
    #[arg(long)]
    pub(crate) once: bool,

    /// End with exit code 3 when an interface does not exist at the start
    #[arg(long)]
    pub(crate) must_exist: bool,

    /// Write one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,

    /// In place of a line for each event, say every so many seconds how many interfaces were made and
    /// deleted, by whom and where
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) summary: Option<Duration>,

    /// The same on a screen that is drawn every second, with the newest events
    #[arg(long, conflicts_with_all = ["json", "summary"])]
    pub(crate) top: bool,

    /// Colour the lines for a person
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorArg::Auto)]
    pub(crate) color: ColorArg,

    /// Run CMD through sh for each event, one at a time and in order, with IFMON_EVENT,
    /// IFMON_INTERFACE, … set
    #[arg(long, value_name = "CMD", group = "commands")]
    pub(crate) exec: Option<OsString>,

    /// End a CMD that runs longer than this many seconds, with all that it started
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds, requires = "commands")]
    pub(crate) exec_timeout: Duration,

    /// Run CMD through sh when an interface is no longer the one that was set up, to set it up
    /// again. What happens to the interface while CMD runs is CMD's own doing. Another run
    /// follows after 1 s at the earliest, and after up to 60 s while there is no quiet
    #[arg(long, value_name = "CMD", group = "commands")]
    pub(crate) on_restart: Option<OsString>,

    /// A change by this unit of systemd, or from this cgroup, is the engine's own and calls for no
    /// restart; with BPF only; can be repeated
    #[arg(long, value_name = "UNIT|CGROUP", value_parser = Mine::parse)]
    pub(crate) mine: Vec<Mine>,

    /// End with exit code 0 as soon as every interface exists, or with `absent` none does; with 4
    /// when stopped before
    #[arg(long, value_enum, value_name = "STATE", num_args = 0..=1, require_equals = true, default_missing_value = "present")]
    pub(crate) wait: Option<WaitArg>,

    /// End with exit code 4 when --wait has waited in vain for this many seconds; 0 is to look and not to wait
    #[arg(long, value_name = "SECONDS", value_parser = seconds_or_none, requires = "wait")]
    pub(crate) timeout: Option<Duration>,

    /// Keep what is known of each watch in DIR, and tell at the start what changed while ifmon was
    /// not running
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,

    /// Watch in this network namespace: a name of `ip netns`, a path, or the id of a process in
    /// it; can be repeated. '*' is all namespaces, those to come as well (by fentry or kprobe)
    #[arg(long, value_name = "NAME|PATH|PID|*")]
    pub(crate) netns: Vec<OsString>,

    /// Show what this host allows, which backend that gives and why no better one, and end
    #[arg(long, conflicts_with = "agent")]
    pub(crate) check: bool,

    /// Watch for any number of clients that need no privileges: they call on a unix socket
    /// (varlink, io.ifmon), at PATH if none was handed over by a service manager
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "/run/ifmon/io.ifmon",
          conflicts_with_all = NOT_FOR_CLIENTS)]
    pub(crate) serve: Option<std::path::PathBuf>,

    /// Who may ask the agent what, as RULE[,RULE...]: `watch=` is who may watch and list the
    /// interfaces of the own network namespace (all), `who=` who in the agent's own is told who
    /// made a change (group), `netns=` who may ask for any namespace (root); each with `root`,
    /// with `group`, which is root and the group that owns the socket, or, but for netns, with
    /// `all`
    #[arg(long, value_name = "RULES", value_delimiter = ',', value_parser = Rule::parse, requires = "serve")]
    pub(crate) policy: Vec<Rule>,

    /// Serve metrics for Prometheus at this address; a port alone is one of the loopback address
    #[cfg(feature = "metrics")]
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = listening_address, conflicts_with = "serve")]
    pub(crate) metrics: Option<std::net::SocketAddr>,

    /// Write the man page or the completions of a shell, and end
    #[cfg(feature = "generate")]
    #[arg(long, value_enum, value_name = "WHAT", hide = true)]
    pub(crate) generate: Option<super::generate::What>,

    /// Bytes of the queue between the kernel and ifmon
    #[arg(long, value_name = "BYTES", hide = true)]
    pub(crate) receive_buffer: Option<u32>,

    /// Let the BPF program send every change of every interface
    #[arg(long, hide = true)]
    pub(crate) open_filter: bool,

    /// Say more on standard error; twice for messages from the kernel side too
    #[arg(short, long, action = clap::ArgAction::Count, conflicts_with = "quiet")]
    pub(crate) verbose: u8,

    /// Say nothing on standard error but errors
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// What does something else than watching, or says itself what to watch.
const NO_INTERFACE: &[&str] = if cfg!(feature = "generate") {
    &["check", "kind", "serve", "generate"]
} else {
    &["check", "kind", "serve"]
};

/// What each client of an agent decides for itself, or what an agent has no use for.
const NOT_FOR_CLIENTS: &[&str] = &[
    "words",
    "agent",
    "check",
    "commands",
    "expect_ifindex",
    "json",
    "kind",
    "literal",
    "mine",
    "must_exist",
    "netns",
    "once",
    "open_filter",
    "state",
    "summary",
    "top",
    "wait",
];

const AFTER_HELP: &str = "\
Events: watching, deleted, renamed, moved, appeared, recreated, returned, resynced, stopped.
Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong usage, 3 an interface does not exist (--must-exist),
4 what --wait waits for has not come.";

/// The values of `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    /// The best that works, in the order fentry, kprobe, netlink-ebpf, agent, netlink,
    /// netlink-unfiltered
    Auto,
    /// fentry, kprobe or netlink-ebpf
    Ebpf,
    /// A BPF program at a function's entry
    Fentry,
    /// A BPF program on a kprobe
    Kprobe,
    /// A BPF program as the filter of a netlink subscription
    NetlinkEbpf,
    /// The agent of the host (--serve), and netlink while it is away
    Agent,
    /// A netlink subscription with a filter of classic BPF in the kernel
    Netlink,
    /// A netlink subscription that is woken for every link
    NetlinkUnfiltered,
}

impl From<BackendArg> for BackendChoice {
    fn from(arg: BackendArg) -> Self {
        match arg {
            BackendArg::Auto => Self::Auto,
            BackendArg::Ebpf => Self::Ebpf,
            BackendArg::Fentry => Self::Only(BackendKind::Fentry),
            BackendArg::Kprobe => Self::Only(BackendKind::Kprobe),
            BackendArg::NetlinkEbpf => Self::Only(BackendKind::NetlinkEbpf),
            BackendArg::Agent => Self::Only(BackendKind::Agent),
            BackendArg::Netlink => Self::Only(BackendKind::Netlink),
            BackendArg::NetlinkUnfiltered => Self::Only(BackendKind::NetlinkUnfiltered),
        }
    }
}

/// The values of `--wait`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WaitArg {
    Present,
    Absent,
}

/// The values of `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ColorArg {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl ColorArg {
    /// Shall standard output be coloured?
    pub(crate) fn wanted(self) -> bool {
        match self {
            Self::Auto => {
                std::io::stdout().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            }
            Self::Always => true,
            Self::Never => false,
        }
    }
}

/// Makes one word of `--wait present` and `--wait absent`. Any other word after `--wait` is an
/// interface.
fn join_wait(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut joined: Vec<OsString> = Vec::new();
    let mut is_option = true;
    for word in words {
        is_option &= word != "--";
        match joined.last_mut() {
            Some(last)
                if is_option && last == "--wait" && (word == "present" || word == "absent") =>
            {
                last.push("=");
                last.push(word);
            }
            Some(_) | None => joined.push(word),
        }
    }
    joined
}

/// `10`, and `10s` as many write it.
fn seconds(value: &str) -> Result<Duration, String> {
    match seconds_or_none(value)? {
        Duration::ZERO => Err("a number of seconds is wanted, more than none".to_owned()),
        time => Ok(time),
    }
}

/// 0 is to look and not to wait.
fn seconds_or_none(value: &str) -> Result<Duration, String> {
    value
        .strip_suffix('s')
        .unwrap_or(value)
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        // No clock goes further.
        .filter(|time| time.as_secs() <= u32::MAX.into())
        .ok_or_else(|| "a number of seconds is wanted".to_owned())
}

#[cfg(feature = "metrics")]
fn listening_address(value: &str) -> Result<std::net::SocketAddr, String> {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    if let Ok(port) = value.parse() {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    // An IPv6 address without brackets is what Kubernetes puts in the place of $(NODE_ADDRESS).
    let without_brackets = || {
        let (address, port) = value.rsplit_once(':')?;
        let address: IpAddr = address.parse().ok()?;
        Some(SocketAddr::from((address, port.parse().ok()?)))
    };
    value.parse().ok().or_else(without_brackets).ok_or_else(|| {
        "an address with a port is wanted, such as 127.0.0.1:9101 or [::1]:9101, or a port"
            .to_owned()
    })
}

fn in_one_line(error: &clap::Error) -> String {
    let rendered = error.render().to_string();
    let lines: Vec<&str> = rendered
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
        .collect();
    let message = lines.join(" ").replace(" tip: ", "; ");
    message
        .strip_prefix("error: ")
        .map_or(message.clone(), str::to_owned)
}

impl Args {
    /// Parses the command line. What is wrong with it is said in one line, as any other error.
    pub(crate) fn parse() -> Result<Self, Exit> {
        Self::parse_from(std::env::args_os()).map_err(|error| {
            if !error.use_stderr() {
                // --help and --version.
                let shown = write!(anstream::stdout(), "{}", error.render().ansi());
                return shown.map_or(Exit::Failed, |()| Exit::Stopped);
            }
            complain(&format!("{}; see ifmon --help", in_one_line(&error)));
            Exit::Usage
        })
    }

    fn parse_from(words: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut matches = Self::command().try_get_matches_from(join_wait(words))?;
        let mut args = Self::from_arg_matches_mut(&mut matches)?;
        let refuse = |message: String| clap::Error::raw(ErrorKind::ValueValidation, message);
        let is_terminal = || std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        if args.top && !is_terminal() {
            return Err(refuse(
                "--top needs a terminal; --summary tells the same numbers to any reader".to_owned(),
            ));
        }
        // There may be thousands: the words are taken out.
        for word in std::mem::take(&mut args.words) {
            let target = WatchArgument::parse(&word, args.literal).map_err(|error| {
                refuse(format!(
                    "{:?} is no interface: {error}",
                    word.to_string_lossy()
                ))
            })?;
            args.interfaces.push(target);
        }
        if !args.kind.is_empty() {
            let narrowed = target::narrow(&mut args.interfaces, &args.kind);
            narrowed.map_err(|error| refuse(error.to_string()))?;
        }
        let is_all = args.netns.iter().any(|netns| netns == target::EVERYWHERE);
        if is_all && args.netns.len() > 1 {
            let what = "--netns '*' is all network namespaces, beside which no other is named";
            return Err(refuse(what.to_owned()));
        }
        let spread = target::spread(&mut args.interfaces, is_all);
        spread.map_err(|error| refuse(error.to_string()))?;
        if let Some(path) = &args.serve
            && path.parent() == Some(Path::new(""))
        {
            let name = path.display();
            return Err(refuse(format!(
                "--serve takes the path of a socket, and clients say what is watched; \
                 write ./{name} if {name} is to be that socket"
            )));
        }
        let is_pattern = |target: &WatchArgument| matches!(target.what, Selection::Pattern(_));
        if args.interfaces.iter().any(is_pattern) {
            for (option, is_given) in [
                ("--on-restart", args.on_restart.is_some()),
                ("--state", args.state.is_some()),
                ("--expect-ifindex", args.expect_ifindex.is_some()),
            ] {
                if is_given {
                    let what = "is for interfaces that are named, not for patterns";
                    return Err(refuse(format!("{option} {what}")));
                }
            }
        }
        if let Some(ifindex) = args.expect_ifindex {
            let [
                WatchArgument {
                    expected: expected @ None,
                    ..
                },
            ] = args.interfaces.as_mut_slice()
            else {
                let what = "--expect-ifindex is for one interface without =IFINDEX; write NAME=IFINDEX for each of several";
                return Err(refuse(what.to_owned()));
            };
            *expected = Some(ifindex);
        }
        Ok(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Args::command().debug_assert();
    }

    fn parse(words: &[&str]) -> Result<Args, clap::Error> {
        Args::parse_from(["ifmon"].iter().chain(words).map(OsString::from))
    }

    #[test]
    fn a_word_after_wait_may_be_an_interface() {
        use WaitArg::{Absent, Present};
        for (words, wait, count) in [
            (&["--wait", "wg0"][..], Present, 1),
            (&["wg0", "--wait"], Present, 1),
            (&["--wait", "present", "wg0"], Present, 1),
            (&["--wait", "absent", "wg0"], Absent, 1),
            (&["--wait=absent", "wg0"], Absent, 1),
            (&["--wait=absent", "present"], Absent, 1),
            (&["--wait", "--", "absent"], Present, 1),
            (&["--wait", "wg0", "absent"], Present, 2),
        ] {
            let args = parse(words).expect("good arguments");
            assert_eq!(
                (args.wait, args.interfaces.len()),
                (Some(wait), count),
                "{words:?}"
            );
        }
        assert!(parse(&["--wait=gone", "wg0"]).is_err());
        assert!(parse(&["--timeout", "1", "wg0"]).is_err());
        assert!(parse(&["--wait", "--timeout", "0", "wg0"]).is_ok());
        assert!(parse(&["--wait", "--timeout", "-1", "wg0"]).is_err());
        assert!(parse(&["--wait", "--timeout", "1e19", "wg0"]).is_err());
        assert!(parse(&["--summary", "1e19", "wg0"]).is_err());
    }

    #[test]
    fn both_kinds_of_commands_go_together_and_have_a_time_limit() {
        for words in [
            &["wg0", "--exec", "a", "--on-restart", "b"][..],
            &["wg0", "--exec", "a", "--exec-timeout", "1"],
            &["wg0", "--on-restart", "b", "--exec-timeout", "1"],
        ] {
            assert!(parse(words).is_ok(), "{words:?}");
        }
        assert!(parse(&["wg0", "--exec-timeout", "1"]).is_err());
        assert!(parse(&["wg0", "--exec", "a", "--exec-timeout", "0"]).is_err());
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        let said = in_one_line(&parse(&["--onrestart", "wg0"]).expect_err("there is none"));
        assert_eq!(
            said,
            "unexpected argument '--onrestart' found; a similar argument exists: '--on-restart'"
        );
    }

    #[test]
    fn an_agent_is_told_by_its_clients_what_to_watch() {
        for (words, path) in [
            (&["--serve"][..], "/run/ifmon/io.ifmon"),
            (&["--serve", "/tmp/a", "--backend", "netlink"], "/tmp/a"),
            (&["--serve", "./a"], "./a"),
        ] {
            let serve = parse(words).expect("good arguments").serve;
            assert_eq!(serve.as_deref(), Some(std::path::Path::new(path)));
        }
        for words in [
            &["--serve", "/tmp/a", "wg0"][..],
            &["--serve", "wg0"],
            &["--serve", "--once"],
            &["--serve", "--json"],
            &["--serve", "--exec", "true"],
            &["--serve", "--netns", "web"],
            &["--serve", "--check"],
            // It asks the one that listens where agents do.
            &["--check", "--agent", "/tmp/a"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn an_expected_index_is_for_one_interface() {
        let expected = |words: &[&str]| {
            parse(words).map(|args| {
                args.interfaces
                    .iter()
                    .map(|target| target.expected)
                    .collect()
            })
        };
        for (words, indexes) in [
            (&["wg0", "--expect-ifindex", "7"][..], vec![Some(7)]),
            (&["wg0=7", "wg1", "wg2=8"], vec![Some(7), None, Some(8)]),
            (&["--literal", "wg0=7"], vec![None]),
            (
                &["--literal", "wg0=7", "--expect-ifindex", "7"],
                vec![Some(7)],
            ),
        ] {
            let found: Vec<_> = expected(words).expect("good arguments");
            assert_eq!(found, indexes, "{words:?}");
        }
        for words in [
            &["wg0", "wg1", "--expect-ifindex", "7"][..],
            &["wg0=7", "--expect-ifindex", "7"],
            &["wg0", "--expect-ifindex", "0"],
            &["--check", "--expect-ifindex", "7"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn what_needs_a_name_takes_no_pattern() {
        assert!(parse(&["veth*", "wg0", "--once"]).is_ok());
        for words in [
            &["veth*", "--on-restart", "true"][..],
            &["wg0", "veth?", "--state", "/tmp"],
            &["*", "--expect-ifindex", "7"],
        ] {
            assert!(parse(words).is_err(), "{words:?}");
        }
    }

    #[test]
    fn kinds_are_for_patterns() {
        for (words, count) in [
            (&["--kind", "veth"][..], 1),
            (&["--kind", "veth,bridge", "--kind=vlan", "wg0"], 2),
            (&["--kind", "veth", "wg*", "wg0"], 2),
            (&["--kind", "veth", "--literal", "wg*"], 2),
        ] {
            let args = parse(words).expect("good arguments");
            assert_eq!(args.interfaces.len(), count, "{words:?}");
        }
        for (words, why) in [
            (&["--kind="][..], "cannot be empty"),
            (&["--kind", "veth,,bridge"], "cannot be empty"),
            (
                &["--kind", "sixteen-bytes-xx"],
                "15 bytes at most, this one has 16",
            ),
            (&["--kind", "veth*"], "letters, digits"),
            (
                &["--kind", "veth", "--on-restart", "true"],
                "not for patterns",
            ),
            (
                &["--kind", "veth", "wg0", "--state", "/tmp"],
                "not for patterns",
            ),
            (&["--serve", "--kind", "veth"], "cannot be used with"),
        ] {
            let said = in_one_line(&parse(words).expect_err("wrong usage"));
            assert!(said.contains(why), "{words:?}: {said}");
        }
    }

    #[test]
    fn all_namespaces_stand_alone_and_are_for_patterns() {
        for (words, count) in [
            (&["--netns", "*", "wg0", "veth*"][..], 2),
            (&["--netns=*", "--kind", "veth"], 1),
            (&["*/wg0", "wg0=7", "--once"], 2),
        ] {
            let args = parse(words).expect("good arguments");
            let everywhere = args
                .interfaces
                .iter()
                .filter(|target| target.is_everywhere());
            let expected = if args.netns.is_empty() { 1 } else { count };
            assert_eq!(
                (everywhere.count(), args.interfaces.len()),
                (expected, count),
                "{words:?}"
            );
        }
        for (words, why) in [
            (
                &["--netns", "*", "--netns", "web", "wg0"][..],
                "beside which no other",
            ),
            (&["--netns", "*", "wg0=7"], "of a single network namespace"),
            (&["*/wg0=7"], "of a single network namespace"),
            (
                &["--netns", "*", "wg0", "--expect-ifindex", "7"],
                "not for patterns",
            ),
            (
                &["--netns", "*", "wg0", "--on-restart", "true"],
                "not for patterns",
            ),
            (&["*/wg0", "--state", "/tmp"], "not for patterns"),
            (&["--netns", "*"], "not provided"),
        ] {
            let said = in_one_line(&parse(words).expect_err("wrong usage"));
            assert!(said.contains(why), "{words:?}: {said}");
        }
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn a_port_alone_is_one_of_the_loopback_address() {
        for (value, address) in [
            ("9101", Some("127.0.0.1:9101")),
            ("0.0.0.0:80", Some("0.0.0.0:80")),
            ("[::1]:80", Some("[::1]:80")),
            ("::1:80", Some("[::1]:80")),
            ("fd00::1:9101", Some("[fd00::1]:9101")),
            ("[::1]", None),
            ("::1", None),
            ("fd00::1", None),
            ("1:2:3:4:5:6:7:8", None),
            ("localhost:80", None),
            ("70000", None),
        ] {
            let parsed = listening_address(value)
                .ok()
                .map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), address, "{value}");
        }
    }
}
