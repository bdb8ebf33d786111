//! The command line, defined once: `--help`, the man page and the shell completions come from here.

use std::{
    ffi::{OsStr, OsString},
    io::{IsTerminal as _, Write as _},
    os::unix::ffi::OsStrExt as _,
    time::Duration,
};

use clap::{
    CommandFactory as _, FromArgMatches as _, Parser, ValueEnum, builder::TypedValueParser,
};
use ifmon::{BackendChoice, BackendKind, InterfaceName};

use super::{Exit, complain};

/// Say at once, and for certain, when a network interface is deleted, recreated, renamed or moved.
#[derive(Debug, Parser)]
#[command(name = "ifmon", version, max_term_width = 100, after_help = AFTER_HELP)]
pub(crate) struct Args {
    /// Interfaces to watch: NAME, or NETNS/NAME for one of another network namespace
    #[arg(required_unless_present_any = NO_INTERFACE, value_name = "INTERFACE", value_parser = TargetParser)]
    pub(crate) interfaces: Vec<Target>,

    /// How to hear of changes
    #[arg(long, value_enum, default_value_t = BackendArg::Auto)]
    pub(crate) backend: BackendArg,

    /// Stop after the first event that calls for a restart, or after `appeared`
    #[arg(long)]
    pub(crate) once: bool,

    /// End with exit code 3 when an interface does not exist at the start
    #[arg(long)]
    pub(crate) must_exist: bool,

    /// Write one JSON object a line
    #[arg(long)]
    pub(crate) json: bool,

    /// Colour the lines for a person
    #[arg(long, value_enum, value_name = "WHEN", default_value_t = ColorArg::Auto)]
    pub(crate) color: ColorArg,

    /// Run CMD through sh for each event, one at a time and in order, with IFMON_EVENT, IFMON_INTERFACE, … set
    #[arg(long, value_name = "CMD")]
    pub(crate) exec: Option<OsString>,

    /// End a CMD that runs longer than this many seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds, requires = "exec")]
    pub(crate) exec_timeout: Duration,

    /// Watch in this network namespace: a name of `ip netns`, a path, or the id of a process in it; can be repeated
    #[arg(long, value_name = "NAME|PATH|PID")]
    pub(crate) netns: Vec<String>,

    /// Show what this host allows, which backend that gives and why no better one, and end
    #[arg(long)]
    pub(crate) check: bool,

    /// Serve metrics for Prometheus at this address; a port alone is one of the loopback address
    #[cfg(feature = "metrics")]
    #[arg(long, value_name = "[ADDR:]PORT", value_parser = listening_address)]
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

/// What does something else than watching.
const NO_INTERFACE: &[&str] = if cfg!(feature = "generate") {
    &["check", "generate"]
} else {
    &["check"]
};

const AFTER_HELP: &str = "\
Events: watching, deleted, renamed, moved, appeared, recreated, returned, resynced, stopped.
Exit codes: 0 stopped as asked, 1 failed while running, 2 wrong usage, 3 an interface does not exist (--must-exist).";

/// The values of `--backend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BackendArg {
    /// The best that works, in the order fentry, kprobe, netlink, netlink-unfiltered
    Auto,
    /// fentry or kprobe
    Ebpf,
    /// A BPF program at a function's entry
    Fentry,
    /// A BPF program on a kprobe
    Kprobe,
    /// A netlink subscription with a filter in the kernel
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
            BackendArg::Netlink => Self::Only(BackendKind::Netlink),
            BackendArg::NetlinkUnfiltered => Self::Only(BackendKind::NetlinkUnfiltered),
        }
    }
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

/// An interface to watch, where it was named with its namespace: `NETNS/NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) netns: Option<String>,
    pub(crate) name: InterfaceName,
}

/// A name need not be UTF-8, so the parsers for strings will not do.
#[derive(Clone)]
struct TargetParser;

impl TypedValueParser for TargetParser {
    type Value = Target;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Target, clap::Error> {
        let bytes = value.as_bytes();
        // No interface name has a slash in it, so the last one ends the namespace.
        let (netns, name) = match bytes.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (
                Some(String::from_utf8_lossy(&bytes[..slash]).into_owned()),
                &bytes[slash + 1..],
            ),
            None => (None, bytes),
        };
        let name = InterfaceName::new(name).map_err(|error| {
            let message = format!("{:?} is no interface: {error}", value.to_string_lossy());
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, message).with_cmd(command)
        })?;
        Ok(Target { netns, name })
    }
}

fn seconds(value: &str) -> Result<Duration, String> {
    value
        .parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| !time.is_zero())
        .ok_or_else(|| "a number of seconds is wanted".to_owned())
}

#[cfg(feature = "metrics")]
fn listening_address(value: &str) -> Result<std::net::SocketAddr, String> {
    use std::net::{Ipv4Addr, SocketAddr};
    value
        .parse::<u16>()
        .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .or_else(|_| value.parse())
        .map_err(|_| {
            "an address with a port is wanted, such as 127.0.0.1:9101, or a port".to_owned()
        })
}

impl Args {
    /// Parses the command line. What is wrong with it is said in one line, as any other error.
    pub(crate) fn parse() -> Result<Self, Exit> {
        let parsed = Self::command()
            .try_get_matches()
            .and_then(|mut matches| Self::from_arg_matches_mut(&mut matches));
        parsed.map_err(|error| {
            if !error.use_stderr() {
                // --help and --version.
                let shown = write!(anstream::stdout(), "{}", error.render().ansi());
                return shown.map_or(Exit::Failed, |()| Exit::Stopped);
            }
            let rendered = error.render().to_string();
            let lines: Vec<&str> = rendered
                .lines()
                .map(str::trim)
                .filter(|line| !line.is_empty())
                .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"))
                .collect();
            let message = lines.join(" ");
            let message = message.strip_prefix("error: ").unwrap_or(&message);
            complain(&format!("{message}; see ifmon --help"));
            Exit::Usage
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_last_slash_ends_the_namespace() {
        let parse = |word| Args::try_parse_from(["ifmon", word]).map(|args| args.interfaces);
        let target = |netns: Option<&str>, name: &str| Target {
            netns: netns.map(str::to_owned),
            name: InterfaceName::new(name).expect("a good name"),
        };
        assert_eq!(parse("wg0").expect("a name"), [target(None, "wg0")]);
        assert_eq!(
            parse("web/wg0").expect("a name"),
            [target(Some("web"), "wg0")]
        );
        assert_eq!(
            parse("/proc/1/ns/net/wg0").expect("a name"),
            [target(Some("/proc/1/ns/net"), "wg0")]
        );
        assert!(parse("web/").is_err());
        assert!(parse("").is_err());
    }

    #[cfg(feature = "metrics")]
    #[test]
    fn a_port_alone_is_one_of_the_loopback_address() {
        for (value, address) in [
            ("9101", Some("127.0.0.1:9101")),
            ("0.0.0.0:80", Some("0.0.0.0:80")),
            ("[::1]:80", Some("[::1]:80")),
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
