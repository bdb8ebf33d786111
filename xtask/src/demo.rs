//! Shows ifmon at work: one of each change, in a network namespace of its own, with each command
//! before its effect.

mod picture;
mod stage;
mod top;

use std::{
    env, fs,
    io::{self, IsTerminal as _, Write as _, stdout},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::{Context as _, Error, Result, ensure};

use self::stage::Stage;
use crate::{
    command,
    host::{self, Tool},
    run::build,
    standalone::Standalone,
    vm::{Arch, Kernel, Machine},
    workspace,
};

/// Show ifmon at work in a network namespace of its own; needs no preparation and leaves nothing
/// behind
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Write the picture of the README, ifmon/assets/demo.svg, instead; in an emulated x86_64
    /// machine, and on such a host
    #[arg(long)]
    record: bool,

    /// Write the picture of the screen of `ifmon --top`, ifmon/assets/top.svg, instead; as root, on
    /// this host
    #[arg(long, conflicts_with = "record")]
    top: bool,

    /// That screen, inside the namespaces that were made for it, with this program
    #[arg(long, hide = true, value_name = "PROGRAM")]
    inside_top: Option<PathBuf>,

    /// The demo itself, inside the namespaces that were made for it, with this program
    #[arg(long, hide = true, value_name = "PROGRAM")]
    inside: Option<PathBuf>,

    /// Colours, although standard output is no terminal
    #[arg(long, hide = true)]
    color: bool,
}

const TOOLS: &[Tool] = &[
    host::IP,
    host::UNSHARE,
    Tool {
        program: "mount",
        package: "mount",
    },
];

pub(crate) fn run(options: Options) -> Result<ExitCode> {
    let Options {
        record,
        top,
        inside_top,
        inside,
        color,
    } = options;
    if let Some(program) = inside_top {
        top::perform(&program)?;
        return Ok(ExitCode::SUCCESS);
    }
    if top {
        top::record()?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(program) = inside {
        perform(&program, color)?;
        return Ok(ExitCode::SUCCESS);
    }
    if record {
        record_picture()?;
        return Ok(ExitCode::SUCCESS);
    }
    host::need(TOOLS)?;
    let program = build()?;
    let color =
        stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut command = unshared()?;
    command.arg("--inside").arg(program);
    if color {
        command.arg("--color");
    }
    Err(Error::new(command.exec()).context("cannot run unshare"))
}

/// This program again, in network and mount namespaces that end with it. An ordinary user gets a
/// user namespace too, and is root there.
fn unshared() -> Result<Command> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount"]);
    if !host::is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command
        .arg("--")
        .arg(env::current_exe().context("cannot tell where xtask is")?)
        .arg("demo");
    Ok(command)
}

/// Records the demo in an emulated machine, so that the picture does not depend on what this host
/// allows: BPF works there, and WireGuard is there.
fn record_picture() -> Result<()> {
    let kernel: Kernel = "bookworm".parse().map_err(Error::msg)?;
    let mut machine = Machine::new(&kernel, Arch::X86_64)?;
    machine.files.push(static_xtask()?);
    machine.timeout = Some(Duration::from_secs(300));
    let mut text = Vec::new();
    let code = machine.run(
        &["/xtask", "demo", "--inside", "ifmon", "--color"],
        &mut text,
        &mut io::stderr(),
    )?;
    ensure!(code == 0, "the demo ended with exit status {code}");
    let text = String::from_utf8(text).context("the demo printed no text")?;
    let path = workspace::root().join("ifmon/assets/demo.svg");
    fs::create_dir_all(path.with_file_name(""))?;
    fs::write(&path, picture::svg("cargo xtask demo", &text))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("wrote ifmon/assets/demo.svg");
    Ok(())
}

/// This program without shared libraries, of which the machine has none.
fn static_xtask() -> Result<PathBuf> {
    let standalone = Standalone::new(Arch::X86_64)?;
    command::run(standalone.cargo("build").args(["--package", "xtask"]))?;
    Ok(standalone.program("debug", "xtask"))
}

fn perform(program: &Path, color: bool) -> Result<()> {
    // Names of namespaces of our own, that nobody else sees.
    command::output(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/run"]))?;
    ip(&format!("netns attach host {}", std::process::id()))?;
    ip("netns add elsewhere")?;
    let wireguard = ip("link add wg0 type wireguard").is_ok();
    let add = if wireguard {
        ip("link delete wg0")?;
        "link add wg0 type wireguard"
    } else {
        "link add wg0 type veth peer name peer0"
    };

    let stage = Stage::open(program, color)?;
    stage.say("ifmon wg0")?;
    stage.expect("watching")?;
    for (change, event) in [
        (add, "appeared"),
        ("link delete wg0", "deleted"),
        (add, "recreated"),
        ("link set wg0 name wg-old", "renamed"),
        ("link set wg-old name wg0", "returned"),
        ("link set wg0 netns elsewhere", "moved"),
        ("-n elsewhere link set wg0 netns host", "returned"),
        ("link set wg0 name wg-old", "renamed"),
    ] {
        stage.change(change, event)?;
    }
    // Another device takes the name: its coming is no event, the taking is.
    stage.say("ip link add wg-new type veth peer name wg-peer")?;
    ip("link add wg-new type veth peer name wg-peer")?;
    stage.change("link set wg-new name wg0", "recreated")?;
    let others = stage.close()?;
    let mut out = stdout().lock();
    writeln!(
        out,
        "\nMeanwhile {others} other interfaces were made and deleted beside wg0."
    )?;
    Ok(())
}

/// Runs `ip` with these words.
fn ip(words: &str) -> Result<String> {
    command::output(Command::new("ip").args(words.split(' ')))
}
