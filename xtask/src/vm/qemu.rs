//! Runs the emulator, passes on what the command inside prints, and finds out how it ended.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::arch::Arch;
use crate::scratch::ScratchDir;

/// How long the kernel may take until it says that it is ready; many times what it needs on a busy
/// machine.
const BOOT_TIME: Duration = Duration::from_secs(180);
/// The same for one that goes on to a system of its own before it does.
const SYSTEM_BOOT_TIME: Duration = Duration::from_secs(900);
/// How often the files that the emulator writes are looked at.
const POLL: Duration = Duration::from_millis(10);

/// Files that the emulator writes. Files, because nothing is lost in them when the machine is
/// switched off at once after it wrote, and because the emulator never has to wait for a reader.
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";
const STATUS: &str = "status";
const CONSOLE: &str = "console";
const EMULATOR: &str = "emulator";

/// All that the emulator has to be told.
pub(super) struct Boot<'a> {
    pub(super) arch: Arch,
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Does it go on to a system of its own?
    pub(super) has_system: bool,
    pub(super) cmdline: &'a str,
    pub(super) memory: u32,
    pub(super) cpus: u32,
    pub(super) counts_instructions: bool,
    pub(super) timeout: Option<Duration>,
}

/// Boots, and returns the exit status of the command. `dir` takes the emulator's files.
pub(super) fn run(
    boot: &Boot<'_>,
    dir: &ScratchDir,
    stdout: &mut dyn Write,
    stderr: &mut dyn Write,
) -> Result<u8> {
    let dir = dir.path();
    for name in [STDOUT, STDERR, STATUS, CONSOLE] {
        File::create(dir.join(name))?;
    }
    let mut stdout = Tail::new(&dir.join(STDOUT), stdout)?;
    let mut stderr = Tail::new(&dir.join(STDERR), stderr)?;
    let mut emulator = Emulator::start(boot, dir)?;

    let begin = Instant::now();
    let boot_time = if boot.has_system {
        SYSTEM_BOOT_TIME
    } else {
        BOOT_TIME
    };
    let mut is_ready = false;
    loop {
        let Emulator(child) = &mut emulator;
        let ended = child.try_wait()?;
        stdout.pass_on()?;
        stderr.pass_on()?;
        if ended.is_some() {
            break;
        }
        let elapsed = begin.elapsed();
        is_ready = is_ready || fs::metadata(dir.join(STATUS))?.len() > 0;
        if !is_ready && elapsed > boot_time {
            bail!(
                "the machine did not start within {} s{}",
                boot_time.as_secs(),
                console(dir)
            );
        }
        if let Some(timeout) = boot.timeout
            && elapsed > timeout
        {
            bail!("the command was not done after {} s", timeout.as_secs());
        }
        thread::sleep(POLL);
    }

    let status = fs::read_to_string(dir.join(STATUS))?;
    match status.lines().find_map(|line| line.strip_prefix("exit ")) {
        Some(code) => code.parse().context("the machine ended without a status"),
        None => {
            let said = fs::read(dir.join(EMULATOR)).unwrap_or_default();
            if said.is_empty() {
                bail!("the machine broke down{}", console(dir));
            }
            bail!(
                "the emulator failed: {}",
                String::from_utf8_lossy(&said).trim_end()
            );
        }
    }
}

/// The running emulator; it does not outlive this.
struct Emulator(Child);

impl Emulator {
    fn start(boot: &Boot<'_>, dir: &Path) -> Result<Self> {
        let Boot {
            arch,
            kernel,
            initramfs,
            has_system: _,
            cmdline,
            memory,
            cpus,
            counts_instructions,
            timeout: _,
        } = boot;
        // A panic ends the machine at once: it reboots, which `-no-reboot` makes the end. `quiet`
        // keeps all but errors from the console, which costs time. Code that has been
        // translated is found again only at the address where it was (seen with 7.2):
        // programs that always begin at the same one start in a tenth of the time.
        let cmdline = format!(
            "console={} quiet panic=-1 norandmaps {cmdline}",
            arch.console()
        );
        let program = arch.emulator().program;
        // When xtask (or the thread that waits here) is killed, the emulator goes as well, and does
        // not run on unseen.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", program])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            // With a thread for each processor, one may go on to run code that another has just patched: two processors hang
            // or jump to 0 within a few hundred hooks (seen with 10.0 and nothing but a kprobe of tracefs that is switched
            // on and off; <https://bugzilla.redhat.com/show_bug.cgi?id=2216496> is about the same in general).
            .args(["-accel", "tcg,thread=single"])
            .args(arch.machine())
            .args(["-m", &memory.to_string(), "-smp", &cpus.to_string()])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &cmdline])
            .args(["-serial", &format!("file:{CONSOLE}")])
            .args(["-device", "virtio-serial-pci"]);
        if *counts_instructions {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        for (number, name) in [(1, STDOUT), (2, STDERR), (3, STATUS)] {
            command
                .args(["-chardev", &format!("file,id={name},path={name}")])
                .args([
                    "-device",
                    &format!("virtserialport,nr={number},chardev={name},name={name}"),
                ]);
        }
        let child = command
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(dir.join(EMULATOR))?)
            .spawn()
            .with_context(|| format!("cannot run {program}"))?;
        Ok(Self(child))
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let Self(child) = self;
        // Both fail only when it has ended already.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Copies a file to a writer while it grows.
struct Tail<'a> {
    file: File,
    to: &'a mut dyn Write,
}

impl<'a> Tail<'a> {
    fn new(path: &Path, to: &'a mut dyn Write) -> io::Result<Self> {
        let file = File::open(path)?;
        Ok(Self { file, to })
    }

    fn pass_on(&mut self) -> Result<()> {
        let Self { file, to } = self;
        let mut buffer = [0; 16384];
        loop {
            let count = file.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            to.write_all(&buffer[..count])
                .and_then(|()| to.flush())
                .context("cannot pass on the output")?;
        }
    }
}

/// What the kernel said about its end, ready to follow a sentence.
fn console(dir: &Path) -> String {
    const LINES: usize = 30;
    let console = fs::read(dir.join(CONSOLE)).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    let lines: Vec<_> = console
        .lines()
        .map(str::trim_end)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        return "; its console is empty".to_owned();
    }
    let panic = lines.iter().position(|line| line.contains("Kernel panic"));
    let begin = panic.unwrap_or_else(|| lines.len().saturating_sub(LINES));
    format!("; its console:\n  {}", lines[begin..].join("\n  "))
}
