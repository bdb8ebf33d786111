//! The man page and the shell completions, from the one definition of the command line. Built for
//! packages only.

use std::io::{self, Write};

use clap::{CommandFactory as _, ValueEnum};
use clap_complete::{Shell, generate};

use super::args::Args;

/// What to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum What {
    Man,
    Bash,
    Zsh,
    Fish,
}

impl What {
    pub(crate) fn write(self, out: &mut impl Write) -> io::Result<()> {
        let mut command = Args::command();
        let shell = match self {
            Self::Man => return man(command, out),
            Self::Bash => Shell::Bash,
            Self::Zsh => Shell::Zsh,
            Self::Fish => Shell::Fish,
        };
        let name = command.get_name().to_owned();
        generate(shell, &mut command, name, out);
        Ok(())
    }
}

/// What is told by `--help`, and beside it what only a man page has room for.
fn man(command: clap::Command, out: &mut impl Write) -> io::Result<()> {
    let man = clap_mangen::Man::new(command).manual("User Commands");
    man.render_title(out)?;
    man.render_name_section(out)?;
    man.render_synopsis_section(out)?;
    man.render_description_section(out)?;
    man.render_options_section(out)?;
    out.write_all(MORE.as_bytes())?;
    man.render_version_section(out)
}

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
The time of \fB\-\-wait\fR is over.
.SH RESTARTING SOMETHING
The command of \fB\-\-on\-restart\fR runs when an event with a star says that an interface is no longer the one that was
set up. What happens to that interface while the command runs is the command's own doing, and starts no other. What is
there when it has ended is what later changes are compared with, so one deletion leads to one restart, also with a
command that fails or returns early. The next restart follows a second after the end of the last one at the earliest;
that wait doubles up to a minute while changes come that fast, and falls back once it has been quiet for as long.
.SH SIGNALS
SIGTERM, SIGINT and SIGHUP end ifmon once the commands that run and wait have ended; a second SIGTERM or SIGINT ends them
at once. Where SIGHUP is ignored as ifmon starts, as with
.BR nohup (1),
it stays ignored.
.SH FILES
In the directory of \fB\-\-state\fR there is a file for each watch, called \fINETNS\fR:\fINAME\fR, which says what device
had the name when all that was known until then had been told, and \fIlock\fR, which keeps a second process out. Files of
another boot say nothing. When ifmon is killed after it has told a change and before the file was replaced, the change
is told again at the next start.
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
ifmon wg0 \-\-on\-restart 'systemctl restart wg\-quick@wg0'
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
Watch an interface of another network namespace:
.nf
ifmon web/eth0
.fi
.SH SEE ALSO
.BR ip\-link (8),
.BR ip\-monitor (8),
.BR ip\-netns (8)
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_can_be_written() {
        for what in What::value_variants() {
            let mut text = Vec::new();
            what.write(&mut text).expect("memory can be written");
            let text = String::from_utf8(text).expect("text");
            assert!(
                text.contains("must") && text.contains("exist"),
                "{what:?}: {text}"
            );
        }
    }

    #[test]
    fn the_man_page_names_every_event() {
        let mut text = Vec::new();
        What::Man.write(&mut text).expect("memory can be written");
        let text = String::from_utf8(text).expect("text");
        for event in [
            "watching",
            "deleted",
            "renamed",
            "moved",
            "appeared",
            "recreated",
            "returned",
            "resynced",
            "stopped",
        ] {
            assert!(text.contains(&format!("\\fB{event}\\fR")), "{event}");
        }
    }
}
