//! `cargo xtask vm`: a command on another kernel, in an emulated machine that needs no rights and
//! no preparation.

pub(crate) mod apt;
mod arch;
mod cpio;
mod image;
mod kernel;
mod modules;
mod qemu;
mod userland;

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Write},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

pub(crate) use self::{
    arch::Arch,
    image::packages,
    kernel::{Kernel, Suite},
};
use self::{cpio::Archive, image::Image, qemu::Boot};
use crate::{
    command,
    host::{self, Tool},
    scratch::ScratchDir,
    standalone::Standalone,
    workspace,
};

/// As `timeout(1)` and `docker run` do when it was not the command that failed.
const FAILED: u8 = 125;
/// For a kernel's command line. Most of the time of a change of a link is that of grace periods of
/// RCU.
pub(crate) const SHORT_GRACE_PERIODS: &str = "rcupdate.rcu_expedited=1";

/// Run a command as root on another kernel, in an emulated machine
///
/// The machine has ifmon, iproute2's ip and busybox on its PATH. What the command prints is passed
/// on, and its exit status is the exit status; 125 means that the machine itself failed. Kernels
/// are downloaded once; delete target/vm to have newer ones.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// bullseye (Linux 5.10), bookworm (6.1), trixie (6.12), sid (the newest), or the path of a
    /// kernel image or of a directory that has one and its modules
    #[arg(long, default_value = "bookworm")]
    kernel: Kernel,
    /// The processor to emulate
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// Copy this file to / of the machine, keeping its mode
    #[arg(long = "file", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Add to the kernel's command line
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    cmdline: String,
    /// Memory in MB
    #[arg(long, default_value_t = 512)]
    memory: u32,
    /// Number of processors
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Give up after so many seconds, those of booting included
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(options: Options) -> ExitCode {
    let code = command(options).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        FAILED
    });
    ExitCode::from(code)
}

fn command(options: Options) -> Result<u8> {
    let Options {
        kernel,
        arch,
        files,
        cmdline,
        memory,
        cpus,
        timeout,
        command,
    } = options;
    let machine = Machine {
        files,
        cmdline,
        memory,
        cpus,
        timeout: timeout.map(Duration::from_secs),
        ..Machine::new(&kernel, arch)?
    };
    machine.run(&command, &mut io::stdout(), &mut io::stderr())
}

/// An emulated machine. Each run of a command boots it anew.
pub(crate) struct Machine {
    arch: Arch,
    image: Image,
    /// The ifmon on its PATH.
    pub(crate) program: Option<PathBuf>,
    /// Copied to `/` with their modes.
    pub(crate) files: Vec<PathBuf>,
    /// A tarball of the system to go on to: the machine then runs its systemd, and the command is
    /// a service there, with the files in `/run/machine`. It is unpacked into memory, so each
    /// run begins with the same, and no clock that counts instructions runs ahead while a disk
    /// is waited for.
    pub(crate) system: Option<PathBuf>,
    /// Added to the kernel's command line.
    pub(crate) cmdline: String,
    /// In MB.
    pub(crate) memory: u32,
    pub(crate) cpus: u32,
    /// Makes the machine's clock count instructions, one a nanosecond, and skip the time in which
    /// it is idle: what is timed in it comes out the same on every host.
    pub(crate) counts_instructions: bool,
    pub(crate) timeout: Option<Duration>,
}

/// What a command did.
pub(crate) struct Output {
    /// 128 and the signal's number where a signal ended it.
    pub(crate) code: u8,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

/// Builds the program that the machine has, in the release profile.
fn build_ifmon(arch: Arch) -> Result<PathBuf> {
    let standalone = Standalone::new(arch)?;
    command::run(standalone.cargo("build").args([
        "--release",
        "--package",
        "ifmon-watch",
        "--bin",
        "ifmon",
    ]))
    .with_context(|| format!("cannot build ifmon for {arch}"))?;
    Ok(standalone.program("release", "ifmon"))
}

impl Machine {
    /// Gets everything that is needed, ifmon built from the tree included. An error that is a
    /// [`host::Missing`] says that this host cannot have it.
    pub(crate) fn new(kernel: &Kernel, arch: Arch) -> Result<Self> {
        let mut machine = Self::without_ifmon(kernel, arch)?;
        machine.program = Some(build_ifmon(arch)?);
        Ok(machine)
    }

    /// The same without ifmon, for whoever has built it already.
    pub(crate) fn without_ifmon(kernel: &Kernel, arch: Arch) -> Result<Self> {
        let setpriv = Tool {
            program: "setpriv",
            package: "util-linux",
        };
        host::need(&[arch.emulator(), setpriv])?;
        Ok(Self {
            arch,
            image: Image::prepare(kernel, arch)?,
            program: None,
            files: Vec::new(),
            system: None,
            cmdline: String::new(),
            memory: 512,
            cpus: 1,
            counts_instructions: false,
            timeout: None,
        })
    }

    /// Runs a command with its output passed on as it comes, and returns its exit status.
    pub(crate) fn run(
        &self,
        command: &[impl AsRef<OsStr>],
        stdout: &mut dyn Write,
        stderr: &mut dyn Write,
    ) -> Result<u8> {
        let scratch = ScratchDir::new(&workspace::target_dir().join("vm"))?;
        let initramfs = scratch.path().join("initramfs");
        let base = fs::read(&self.image.initramfs)
            .with_context(|| format!("cannot read {}", self.image.initramfs.display()))?;
        fs::write(&initramfs, [base, self.archive(command)?].concat())?;
        let boot = Boot {
            arch: self.arch,
            kernel: &self.image.kernel,
            initramfs: &initramfs,
            has_system: self.system.is_some(),
            cmdline: &self.cmdline,
            memory: self.memory,
            cpus: self.cpus,
            counts_instructions: self.counts_instructions,
            timeout: self.timeout,
        };
        qemu::run(&boot, &scratch, stdout, stderr)
    }

    /// Runs a command for its output.
    pub(crate) fn output(&self, command: &[impl AsRef<OsStr>]) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let code = self.run(command, &mut stdout, &mut stderr)?;
        Ok(Output {
            code,
            stdout,
            stderr,
        })
    }

    /// What differs from run to run; unpacked after the base, and over it.
    fn archive(&self, command: &[impl AsRef<OsStr>]) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        let folder = match &self.system {
            Some(system) => {
                add_file(&mut archive, system, "system.tar")?;
                "machine/"
            }
            None => "",
        };
        if let Some(program) = &self.program {
            add_file(&mut archive, program, "usr/local/bin/ifmon")?;
        }
        for file in &self.files {
            let name = file
                .file_name()
                .and_then(OsStr::to_str)
                .with_context(|| format!("{} has no name that a file can have", file.display()))?;
            add_file(&mut archive, file, &format!("{folder}{name}"))?;
        }
        archive.file(&format!("{folder}command"), 0o755, &script(command));
        Ok(archive.finish())
    }
}

fn add_file(archive: &mut Archive, file: &Path, path: &str) -> Result<()> {
    let context = || format!("cannot read {}", file.display());
    let metadata = fs::metadata(file).with_context(context)?;
    ensure!(metadata.is_file(), "{} is not a file", file.display());
    let content = fs::read(file).with_context(context)?;
    archive.file(path, metadata.permissions().mode(), &content);
    Ok(())
}

/// A shell script that becomes the command, with every argument as it is.
fn script(command: &[impl AsRef<OsStr>]) -> Vec<u8> {
    let mut script = b"exec".to_vec();
    for argument in command {
        script.extend_from_slice(b" '");
        for &byte in argument.as_ref().as_bytes() {
            match byte {
                // Nothing else has a meaning between single quotes.
                b'\'' => script.extend_from_slice(br"'\''"),
                byte => script.push(byte),
            }
        }
        script.push(b'\'');
    }
    script.push(b'\n');
    script
}

#[cfg(test)]
mod tests {
    use super::script;

    #[test]
    fn arguments_are_quoted() {
        assert_eq!(
            script(&["sh", "-c", "echo 'a  b'"]),
            b"exec 'sh' '-c' 'echo '\\''a  b'\\'''\n"
        );
        assert_eq!(script(&[""]), b"exec ''\n");
    }
}
