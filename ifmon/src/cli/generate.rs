//! The man pages and the shell completions, from the one definition of the command line and that of
//! the service. Built for packages only.

use std::io::{self, Write};

use clap::{Arg, ArgAction, Command, CommandFactory as _, ValueEnum, builder::Resettable};
use clap_complete::{Shell, generate};

use super::args::Args;

/// What the service is asked and answers.
const VARLINK: &str = include_str!("../../io.ifmon.varlink");

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Generated {
    /// ifmon(1)
    Man,
    /// ifmon.varlink(5)
    ManVarlink,
    Bash,
    Zsh,
    Fish,
}

impl Generated {
    pub(crate) fn write(self, out: &mut impl Write) -> io::Result<()> {
        let text = match self {
            Self::Man => return man(Args::command(), out),
            Self::ManVarlink => man_varlink(),
            Self::Bash => completions(Shell::Bash) + &names_for_bash(),
            Self::Zsh => with_names_for_zsh(&completions(Shell::Zsh)),
            Self::Fish => with_names_for_fish(&completions(Shell::Fish)),
        };
        out.write_all(text.as_bytes())
    }
}

/// What clap makes of the options. It would offer the hidden ones, too, so they are left out.
fn completions(shell: Shell) -> String {
    let mut all = Args::command();
    all.build();
    // What an argument says of others may be about a hidden one, and no completion asks for it.
    let alone = |arg: &Arg| {
        arg.clone()
            .conflicts_with(Resettable::Reset)
            .requires(Resettable::Reset)
            .required_unless_present(Resettable::Reset)
            .group(Resettable::Reset)
    };
    let shown = all.get_arguments().filter(|arg| !arg.is_hide_set());
    let mut shown = Command::new("ifmon")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(shown.map(alone));
    let mut text = Vec::new();
    generate(shell, &mut shown, "ifmon", &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Kinds of interfaces that many have.
const KINDS: &str =
    "bond bridge dummy geneve gre ipvlan macvlan netkit tun veth vlan vrf vxlan wireguard xfrm";

/// Names of interfaces and namespaces, where clap knows none.
const BASH_NAMES: &str = r#"
_ifmon_with_names() {
    local names=/sys/class/net/*/ name option=$3
    COMPREPLY=()
    # `=` is a word of its own, and what follows it is a value.
    if [[ $3 == = || ${COMP_WORDS[COMP_CWORD]} == = ]]; then
        [[ $3 != = ]] || option=${COMP_WORDS[COMP_CWORD - 2]}
        [[ $option == -* ]] || return
        names=
    fi
    case $option in
        --netns) names=/run/netns/*; [[ -n $2 ]] || COMPREPLY=('\*') ;;
        --kind) names='@KINDS@' ;;
        @WITH_VALUE@) names= ;;
    esac
    if [[ $2 == -* || -z $names ]]; then
        _ifmon "$1" "$2" "$option"
        return
    fi
    for name in $names; do
        name=${name%/}
        name=${name##*/}
        [[ $name != "$2"* || $name == "*" ]] || COMPREPLY+=("$(printf %q "$name")")
    done
}
complete -F _ifmon_with_names -o nosort -o bashdefault -o default ifmon
"#;

fn names_for_bash() -> String {
    let command = Args::command();
    let with_value: Vec<_> = command
        .get_arguments()
        .filter(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
        .filter(|arg| !arg.is_hide_set())
        .filter_map(|arg| Some(format!("--{}", arg.get_long()?)))
        .collect();
    BASH_NAMES
        .replace("@WITH_VALUE@", &with_value.join(" | "))
        .replace("@KINDS@", KINDS)
}

/// The same for fish.
const FISH_NAMES: &str = "
complete -c ifmon -f -a '(path filter -d /sys/class/net/* | path basename)' -d Interface
complete -c ifmon -l netns -f -r -a '(path basename /run/netns/*) \\*' -d Namespace
complete -c ifmon -l kind -f -r -a '@KINDS@'
";

fn with_names_for_fish(text: &str) -> String {
    let lines = text.lines().map(|line| {
        if line.contains(" -l wait ") {
            // Its value follows a `=`; the next word is an interface.
            format!("{}\n", line.replacen(" -r ", " ", 1))
        } else {
            format!("{line}\n")
        }
    });
    lines.collect::<String>() + &FISH_NAMES.replace("@KINDS@", KINDS)
}

/// The same for zsh, which knows interfaces by itself.
fn with_names_for_zsh(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let action = if line.contains("::words") {
            ":_net_interfaces"
        } else if line.contains("--netns=") {
            ":_files -W /run/netns"
        } else if line.contains("--kind=") {
            return format!("{}\n", line.replace(":_default", &format!(":({KINDS})")));
        } else {
            return format!("{line}\n");
        };
        format!("{}\n", line.replace(":_default", action))
    });
    lines.collect()
}

/// What is told by `--help`, and beside it what only a man page has room for.
fn man(mut command: Command, out: &mut impl Write) -> io::Result<()> {
    command.build();
    let synopsis = synopsis(&command);
    let man = clap_mangen::Man::new(command).manual("User Commands");
    man.render_title(out)?;
    man.render_name_section(out)?;
    out.write_all(synopsis.as_bytes())?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    out.write_all(MORE.as_bytes())?;
    man.render_version_section(out)
}

/// Each option with its value, which clap leaves out.
fn synopsis(command: &Command) -> String {
    let mut text = ".SH SYNOPSIS\n\\fBifmon\\fR\n".to_owned();
    let options = command
        .get_arguments()
        .filter(|arg| !arg.is_positional() && !arg.is_hide_set());
    for arg in options.chain(command.get_positionals()) {
        let long = arg.get_long().map(|long| format!("\\fB\\-\\-{long}\\fR"));
        let short = arg.get_short().map(|short| format!("\\fB\\-{short}\\fR|"));
        let value = match arg.get_value_names() {
            Some([value, ..]) if arg.get_action().takes_values() => format!("\\fI{value}\\fR"),
            _ => String::new(),
        };
        let has_optional_value = arg
            .get_num_args()
            .is_some_and(|range| range.takes_values() && range.min_values() == 0);
        let shown = match long {
            None => value,
            Some(long) => {
                let name = format!("{}{long}", short.unwrap_or_default());
                match value.as_str() {
                    "" => format!("[{name}]"),
                    _ if arg.is_require_equals_set() => format!("[{name}[={value}]]"),
                    _ if has_optional_value => format!("[{name} [{value}]]"),
                    _ => format!("[{name} {value}]"),
                }
            }
        };
        let more = match arg.get_action() {
            ArgAction::Append | ArgAction::Count => "...",
            _ => "",
        };
        text.push_str(&format!("{shown}{more}\n"));
    }
    text
}

/// The service's definition as it stands, which says all that there is to say of it.
fn man_varlink() -> String {
    let verbatim = |line: &str| {
        let line = line.replace('\\', "\\e").replace('-', "\\-");
        // What begins with a dot or a quote would be a request.
        format!("\\&{line}\n")
    };
    let title = format!(
        ".TH ifmon.varlink 5 \"\" \"ifmon {}\" \"File Formats\"\n",
        env!("CARGO_PKG_VERSION")
    );
    let definition: String = VARLINK.lines().map(verbatim).collect();
    [&title, VARLINK_BEGIN, &definition, VARLINK_END].concat()
}

const VARLINK_BEGIN: &str = r#".SH NAME
ifmon.varlink \- what the agent of ifmon is asked and answers
.SH SYNOPSIS
.I /run/ifmon/io.ifmon
.SH DESCRIPTION
.B ifmon \-\-serve
answers on this socket in the protocol varlink: JSON objects, each with a zero byte after it. Clients need no privileges. A
client watches the network namespace in which it made its socket.
.PP
.nf
varlinkctl call \-\-more /run/ifmon/io.ifmon io.ifmon.Watch '{"interfaces":["wg0"]}'
.fi
.SH DEFINITION
.nf
"#;
const VARLINK_END: &str = r#".fi
.SH SEE ALSO
.BR ifmon (1),
.BR varlinkctl (1)
"#;

/// Sections that the definition of the command line does not have.
const MORE: &str = r#".SH EVENTS
One line each. A star marks those that call for a restart of whatever was set up on the interface
(\fB"restart": true\fR in JSON).
.TP
\fBwatching\fR
Once for each interface, first: from now on nothing is missed.
.TP
\fBdeleted\fR *
The device is gone, also with its network namespace or the other end of its pair.
.TP
\fBrenamed\fR *
The device has another name now.
.TP
\fBmoved\fR *
The device went to another network namespace.
.TP
\fBappeared\fR
Nobody had the name since the watch began, and now a device has.
.TP
\fBrecreated\fR *
The name exists again, on another device.
.TP
\fBreturned\fR
The name exists again, on the device that had it before.
.TP
\fBresynced\fR
Events were lost on the way and the state was read again.
.TP
\fBstopped\fR
Last line of each watch.
.SH JSON
With \fB\-\-json\fR, each line is an object. What the kernel does not say is null.
.TP
.B time
When the kernel made the change, where the backend knows it, and when it was read otherwise; RFC 3339.
.TP
.B event
One of those above.
.TP
.BR interface ", " netns ", " netns_name
The name that is watched; the inode number of its network namespace; what
.BR ip\-netns (8)
calls that, where it has a name. With a pattern, the interface is the device that the line is about, and null where it
is about the pattern, as is the namespace where that is watched in all of them.
.TP
.B kind
With a pattern, the kind of a device that appeared or was deleted (\fBveth\fR, \fBwireguard\fR and so on), if it has one.
.TP
.BR pattern ", " matches
The pattern that is watched; how many interfaces match it (\fBwatching\fR, \fBresynced\fR).
.TP
.B ifindex
Of the device that has the name, or had it before the change; null while there is none.
.TP
.B restart
Is the interface no longer the one that was set up?
.TP
.B own
True for a change by what \fB\-\-mine\fR names.
.TP
.B recovered
True where the change was not heard of but found by reading the state again.
.TP
.B backend
How it was learnt.
.TP
.B by
Who made the change, with the BPF backends.
.BR pid ", " comm ", " uid
and
.B cgroup
(its id) are those of the task;
.B kthread
is true for a thread of the kernel, which acted for somebody else.
.BR cgroup_path ,
.BR unit
(of systemd),
.BR container
(with \fBruntime\fR and \fBid\fR) and
.B pod
(a uid of Kubernetes) are there where they can be found. Names are what processes and cgroups call themselves: decide
nothing by them that somebody could want to get around.
.TP
.B to
The new name (\fBrenamed\fR).
.TP
.BR to_netns ", " to_ifindex ", " to_netns_name
Where the device went (\fBmoved\fR), as far as that is known.
.TP
.B peer
The other end of a pair, in \fBappeared\fR of a pattern:
.B ifindex
in its namespace,
.BR netns ,
.B netns_name
where it has a name, and
.B container
(as in \fBby\fR) where a process in that namespace shows one. It says what was so when the event was read: one end is often
moved into a container only after that.
.TP
.B old_ifindex
Of the device that had the name before (\fBrecreated\fR).
.TP
.BR lost ", " changed
How many events were lost, null where nobody knows; whether the state was found changed (\fBresynced\fR).
.TP
.BR reason ", " seen ", " delivered ", " lost
Why the watch ended: \fBsignal\fR, \fBonce\fR, \fBtimeout\fR or \fBerror\fR; how many changes there were of all interfaces, how
many events of this one, and how many were lost (\fBstopped\fR).
.SH PATTERNS
An argument with a \fB*\fR, \fB?\fR or \fB[\fR in it watches all interfaces whose names match, as in a shell.
\fBappeared\fR says that one was made, renamed into the pattern, or moved here. \fB\-\-on\-restart\fR, \fB\-\-state\fR,
the agent and the metrics of interfaces take names alone. A pattern of one network namespace keeps it alive.
.PP
With \fB\-\-netns \(aq*\(aq\fR, or \fB\(aq*/veth*\(aq\fR, the namespaces that there are and those to come are watched, and none is kept
alive. That takes \fBfentry\fR or \fBkprobe\fR. A name is a pattern there that it alone matches, and patterns of single
namespaces do not stand beside it. A namespace that neither a process nor a mount shows at the start is watched from
the next change in it on. There is room for 8,192.
.PP
\fB\-\-kind\fR narrows all patterns to interfaces of some kinds, which are what \fBip link add type\fR takes. An interface that is
hardware has none, nor has \fBlo\fR. Names are not narrowed.
.SH EXIT STATUS
.TP
\fB0\fR
Stopped as asked: by a signal, or \fB\-\-once\fR or \fB\-\-wait\fR saw what it was to see.
.TP
\fB1\fR
Failed while running.
.TP
\fB2\fR
Wrong usage.
.TP
\fB3\fR
An interface does not exist, and \fB\-\-must\-exist\fR was given.
.TP
\fB4\fR
What \fB\-\-wait\fR waits for had not come when its time was over, or when it was stopped.
.SH RESTARTING SOMETHING
The command of \fB\-\-on\-restart\fR runs when an event with a star says that an interface is no longer the one that was
set up. What happens to that interface while the command runs is the command's own doing, and starts no other. What is
there when it has ended is what later changes are compared with, so one deletion leads to one restart, also with a
command that fails or returns early. But one that returns before it has replaced a device that has the name again already
is run for that, too, unless \fB\-\-mine\fR names who does it. The next restart follows a second after the end of the
last one at the earliest; that wait doubles up to a minute while changes come that fast, and falls back once it has been quiet for as long.
.SH SIGNALS
SIGTERM, SIGINT and SIGHUP end ifmon once what had happened before is told, and the commands that run and wait have
ended; a second SIGTERM or SIGINT ends them at once. Where SIGHUP is ignored as ifmon starts, as with
.BR nohup (1),
it stays ignored.
.SH UNITS
.TP
.I ifmon@NAME.service
Watches NAME, which may be escaped by
.BR systemd\-escape (1),
and writes JSON lines to the journal. It is ready when the watch is live. Where standard output is a stream to the journal,
each line has its fields there, named as in the environment of commands, and a level: notice for what calls for a restart,
warning for a loss. So
.B journalctl IFMON_INTERFACE=wg0 IFMON_EVENT=deleted
says when wg0 was deleted.
.TP
.I ifmon\-record.service
Records in the journal what happens to all interfaces of the host.
.TP
.IR ifmon.socket ", " ifmon.service
The agent: one process that watches for any number of programs; see
.BR ifmon.varlink (5).
.SH FILES
.TP
.IR /etc/default/ifmon ", " /etc/default/ifmon\-NAME
Options of all instances of the unit, and those of one in place of them, as \fBIFMON_OPTIONS=\-\-backend=netlink\-ebpf\fR.
.TP
.IR /etc/default/ifmon\-agent ", " /etc/default/ifmon\-record
The same for the agent and for the record.
.TP
.I /var/lib/ifmon
State directories of the units.
.TP
.I /run/ifmon/io.ifmon
The socket of the agent.
.TP
.I /run/netns
Names of network namespaces.
.PP
In the directory of \fB\-\-state\fR there is a file for each watch, called \fINETNS\fR:\fINAME\fR, which says what device
had the name when all that was known until then had been told, and \fIlock\fR, which keeps a second process out. Files of
another boot say nothing. When ifmon is killed after it has told a change and before the file was replaced, the change
is told again at the next start. A device that takes a name which nobody had is in the file as soon as its line is written.
.SH ENVIRONMENT
The commands of \fB\-\-exec\fR and \fB\-\-on\-restart\fR find every field of the JSON line in their environment, and no other
variable whose name begins with IFMON_:
.BR IFMON_EVENT ,
.BR IFMON_INTERFACE ,
.BR IFMON_IFINDEX ,
.BR IFMON_RESTART ,
.B IFMON_BY_PID
and so on.
.PP
.BR NO_COLOR ,
where it is set and not empty, keeps the lines from being coloured.
.B NOTIFY_SOCKET
and
.B WATCHDOG_USEC
are those of
.BR sd_notify (3).
.SH EXAMPLES
.TP
Restart a service when its tunnel is no longer the one that it set up:
.nf
ifmon wg0 \-\-on\-restart 'systemctl try\-restart wg\-quick@wg0'
.fi
.TP
Wait at most half a minute for an interface:
.nf
ifmon \-\-wait wg0 \-\-timeout 30
.fi
.TP
Wait until an interface changes:
.nf
ifmon \-\-once wg0
.fi
.TP
Watch all virtual Ethernet devices of containers:
.nf
ifmon 'veth*'
.fi
.TP
Watch all tunnels of WireGuard:
.nf
ifmon \-\-kind wireguard
.fi
.TP
Watch an interface of another network namespace:
.nf
ifmon web/eth0
.fi
.SH SEE ALSO
.BR ifmon.varlink (5),
.BR ip\-link (8),
.BR ip\-monitor (8),
.BR ip\-netns (8)
"#;

#[cfg(test)]
mod tests {
    use super::*;

    fn written(what: Generated) -> String {
        let mut text = Vec::new();
        what.write(&mut text).expect("memory can be written");
        String::from_utf8(text).expect("text")
    }

    #[test]
    fn options_are_offered_but_for_the_hidden_ones() {
        let command = Args::command();
        for shell in [Generated::Bash, Generated::Zsh, Generated::Fish] {
            let text = written(shell);
            for arg in command.get_arguments() {
                let Some(long) = arg.get_long() else { continue };
                let option = match shell {
                    Generated::Fish => format!("-l {long} "),
                    _ => format!("--{long}"),
                };
                let offered = text.contains(&option) || text.contains(option.trim_end());
                assert_eq!(offered, !arg.is_hide_set(), "{shell:?}: {long}");
            }
        }
    }

    #[test]
    fn names_are_offered() {
        for (shell, interfaces, namespaces) in [
            (Generated::Bash, "/sys/class/net", "/run/netns"),
            (Generated::Zsh, ":_net_interfaces", ":_files -W /run/netns"),
            (Generated::Fish, "/sys/class/net/*", "/run/netns/*"),
        ] {
            let text = written(shell);
            assert!(text.contains(interfaces), "{text}");
            assert!(text.contains(namespaces), "{text}");
            assert!(text.contains(KINDS), "{text}");
        }
    }

    /// What bash offers where these words are before the cursor. `=` is a word of its own there.
    fn offered_by_bash(words: &str) -> String {
        let script = r#"
            COMP_WORDS=(ifmon "$@") COMP_CWORD=$#
            word=${@: -1}
            _ifmon_with_names ifmon "${word#=}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "${COMPREPLY[*]}""#;
        let output = std::process::Command::new("bash")
            .args(["-c", &(written(Generated::Bash) + script), "bash"])
            .args(words.split(' '))
            .output()
            .expect("there is a bash");
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        String::from_utf8(output.stdout)
            .expect("text")
            .trim_end()
            .to_owned()
    }

    #[test]
    fn bash_offers_what_can_follow_also_after_an_equals_sign() {
        for (words, offered) in [
            ("l", "lo"),
            ("--wait l", "lo"),
            ("--wait =", "present absent"),
            ("--wait = a", "absent"),
            ("--backend = ke", ""),
            ("--backend = k", "kprobe"),
            ("--backend k", "kprobe"),
            ("--state = l", ""),
            ("lo =", ""),
            ("--kind wi", "wireguard"),
            ("--kind = vx", "vxlan"),
        ] {
            assert_eq!(offered_by_bash(words), offered, "{words}");
        }
    }

    #[test]
    fn bash_offers_all_namespaces() {
        for (words, is_offered) in [
            ("--netns ", true),
            ("--netns =", true),
            ("--netns x", false),
        ] {
            let offered = offered_by_bash(words);
            let has_all = offered.split(' ').any(|word| word == r"\*");
            assert_eq!(has_all, is_offered, "{words}: {offered}");
        }
    }

    #[test]
    fn fish_takes_no_word_for_the_state_to_wait_for() {
        let text = written(Generated::Fish);
        let line = text.lines().find(|line| line.contains("-l wait "));
        let line = line.expect("it is offered");
        assert!(!line.contains(" -r "), "{line}");
    }

    #[test]
    fn the_synopsis_has_the_values() {
        let text = written(Generated::Man);
        for shown in [
            "\n[\\fB\\-\\-backend\\fR \\fIBACKEND\\fR]\n",
            "\n[\\fB\\-\\-wait\\fR[=\\fISTATE\\fR]]\n",
            "\n[\\fB\\-\\-serve\\fR [\\fIPATH\\fR]]\n",
            "\n[\\fB\\-\\-netns\\fR \\fINAME|PATH|PID|*\\fR]...\n",
            "\n[\\fB\\-q\\fR|\\fB\\-\\-quiet\\fR]\n",
            "\n\\fIINTERFACE\\fR...\n",
        ] {
            assert!(text.contains(shown), "{shown} is not in {text}");
        }
        assert!(!text.contains("open-filter") && !text.contains("open\\-filter"));
    }

    /// The service tells what lines tell, and its definition is held against the code.
    #[test]
    fn the_man_page_names_every_event_and_every_field() {
        let text = written(Generated::Man);
        let (_, reply) = VARLINK.split_once("-> (").expect("it answers");
        let (reply, _) = reply.split_once("\n)").expect("it has an end");
        let (_, actor) = VARLINK.split_once("type Actor (").expect("there is one");
        let (actor, _) = actor.split_once("\n)").expect("it has an end");
        let fields = [reply, actor].map(|fields| {
            let fields = fields.lines().map(str::trim);
            fields.filter_map(|line| Some(line.split_once(": ")?.0))
        });
        let (_, events) = reply.split_once("event: (").expect("there are events");
        let (events, _) = events.split_once(')').expect("they have an end");
        let mut count = 0;
        for word in fields
            .into_iter()
            .flatten()
            .filter(|word| !word.starts_with('#'))
            // One of the service alone: an answer to `Sync`.
            .chain(events.split(", ").filter(|event| *event != "synced"))
            .chain(["stopped", "reason", "seen", "delivered", "own", "peer"])
        {
            let escaped = word.replace('-', "\\-");
            let named = text.lines().any(|line| {
                let bold = line.starts_with(".B ") || line.starts_with(".BR ");
                line.contains(&format!("\\fB{escaped}\\fR"))
                    || bold && line.split([' ', '"', ',']).any(|part| part == escaped)
            });
            assert!(named, "{word}");
            count += 1;
        }
        assert!(count > 30, "{count}");
    }

    #[test]
    fn the_service_is_described_by_its_definition() {
        let text = written(Generated::ManVarlink);
        for line in ["method List() ", "error TooMany ", "type Actor ("] {
            assert!(text.contains(&format!("\\&{line}")), "{text}");
        }
    }
}
