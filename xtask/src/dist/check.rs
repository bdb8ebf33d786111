//! Installs what was made, tries it, and removes it again, all in a directory of its own.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Item, VERSION, completions, write};
use crate::{
    command,
    host::{self, Missing},
};

const DATABASE: &str = "var/lib/dpkg";
/// Where systemd keeps the states of units without a user of their own.
const STATE: &str = "var/lib/private/ifmon";

pub(super) fn package(package: &Path, items: &[Item], root: &Path) -> Result<()> {
    if !host::is_root() {
        return Err(
            Missing("installing a package takes root, even into a directory".into()).into(),
        );
    }
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(root.join(DATABASE).join(folder))?;
    }
    fs::write(root.join(DATABASE).join("status"), "")?;
    lintian(package)?;

    dpkg(root, &["--install".as_ref(), package.as_os_str()])?;
    installed(items, root)?;
    println!("installed {} files", items.len());
    program(&root.join("usr/bin/ifmon"))?;
    unit(root)?;
    completions::check(root)?;
    man_pages(root)?;

    enable(root)?;
    dpkg(root, &["--purge".as_ref(), "ifmon".as_ref()])?;
    nothing_left(root)?;
    println!("removed, and nothing was left behind");
    Ok(())
}

/// Leaves what `systemctl enable` makes for each unit, and what systemd keeps for one that ran.
fn enable(root: &Path) -> Result<()> {
    let units = Path::new("usr/lib/systemd/system");
    for (target, link, unit) in [
        ("multi-user", "ifmon@wg0.service", "ifmon@.service"),
        ("multi-user", "ifmon.service", "ifmon.service"),
        ("multi-user", "ifmon-record.service", "ifmon-record.service"),
        ("sockets", "ifmon.socket", "ifmon.socket"),
    ] {
        let folder = root.join(format!("etc/systemd/system/{target}.target.wants"));
        fs::create_dir_all(&folder)?;
        symlink(Path::new("/").join(units).join(unit), folder.join(link))?;
    }
    write(&root.join(STATE).join("wg0.d/1:wg0"), 0o600, b"{}")?;
    Ok(())
}

/// Is each item there, as it was packed?
pub(super) fn installed(items: &[Item], root: &Path) -> Result<()> {
    for item in items {
        let path = root.join(&item.path);
        let content =
            fs::read(&path).with_context(|| format!("{} was not installed", item.path))?;
        ensure!(
            content == item.content,
            "{} is not what was packed",
            item.path
        );
        let mode = fs::metadata(&path)?.permissions().mode() & 0o7777;
        ensure!(mode == item.mode, "{} has the mode {mode:o}", item.path);
    }
    Ok(())
}

/// Has a package manager removed all but its own records?
pub(super) fn nothing_left(root: &Path) -> Result<()> {
    let is_record =
        |path: &Path| path.starts_with(root.join("var")) && !path.starts_with(root.join(STATE));
    let left = files(root)?.into_iter().find(|path| !is_record(path));
    if let Some(left) = left {
        bail!("{} was left behind", left.display());
    }
    Ok(())
}

pub(super) fn tarball(tarball: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    command::output(
        Command::new("tar")
            .args(["--extract", "--strip-components=1", "--file"])
            .arg(tarball)
            .arg("--directory")
            .arg(folder),
    )?;
    program(&folder.join("ifmon"))
}

/// `dpkg` on another root directory. Its scripts run outside of that, and are told of it.
fn dpkg(root: &Path, args: &[&std::ffi::OsStr]) -> Result<()> {
    command::output(
        Command::new("dpkg")
            .arg(format!("--root={}", root.display()))
            .args(["--force-script-chrootless", "--log=/dev/null"])
            .args(args),
    )
    .map(drop)
}

/// Runs, says the right version, is small, and needs no shared library.
fn program(path: &Path) -> Result<()> {
    // Each kind of backend has a monitor of its own kind, which is what makes most of it.
    const LARGEST: u64 = 5 << 20;
    let version = command::output(Command::new(path).arg("--version"))?;
    ensure!(
        version.trim() == format!("ifmon {VERSION}"),
        "the version is {version}"
    );
    let size = fs::metadata(path)?.len();
    ensure!(size <= LARGEST, "the program has {size} bytes");
    // `ldd` fails for what is not dynamic, in some versions.
    let ldd = Command::new("ldd").arg(path).output()?;
    let said = [ldd.stdout, ldd.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    ensure!(
        said.contains("statically linked") || said.contains("not a dynamic executable"),
        "the program is not static: {said}"
    );
    println!("{}: static, {} KiB", version.trim(), size / 1024);
    Ok(())
}

/// Debian's own review of packages. What is argued stands in the package's overrides.
fn lintian(package: &Path) -> Result<()> {
    if !host::is_program("lintian") {
        println!("left out: lintian is not there to review the package");
        return Ok(());
    }
    command::run(
        Command::new("lintian")
            .args(["--allow-root", "--fail-on", "error,warning"])
            .arg(package),
    )
    .context("the package has faults")?;
    println!("lintian has nothing to say but what is argued");
    Ok(())
}

fn unit(root: &Path) -> Result<()> {
    if !host::is_program("systemd-analyze") {
        println!("left out: systemd-analyze is not there to verify the unit");
        return Ok(());
    }
    // The unit names paths that exist in `root` only. An instance is what can be verified.
    let unit = fs::read_to_string(root.join("usr/lib/systemd/system/ifmon@.service"))?;
    let folder = root.join("var/verify");
    fs::create_dir_all(&folder)?;
    let program = root.join("usr/bin/ifmon");
    let unit = unit
        .replace("/usr/bin/ifmon", &program.to_string_lossy())
        .replace("Documentation=man:ifmon(1)\n", "");
    let path = folder.join("ifmon@.service");
    fs::write(&path, unit)?;
    let verified = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(folder.join("ifmon@wg0.service"))
        .output()?;
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_us: Vec<_> = said.lines().filter(|line| line.contains("ifmon")).collect();
    ensure!(
        verified.status.success() && about_us.is_empty(),
        "systemd-analyze verify: {said}"
    );
    println!("the unit is valid");
    Ok(())
}

fn man_pages(root: &Path) -> Result<()> {
    if !host::is_program("man") {
        println!("left out: man is not there to show the man page");
        return Ok(());
    }
    for page in ["man1/ifmon.1.gz", "man5/ifmon.varlink.5.gz"] {
        let shown = Command::new("man")
            .args(["--warnings", "--local-file"])
            .arg(root.join("usr/share/man").join(page))
            // As wide as the definition of the service is.
            .env("MANWIDTH", "110")
            .env("LC_ALL", "C.UTF-8")
            .env_remove("PAGER")
            .output()?;
        let said = String::from_utf8_lossy(&shown.stderr);
        ensure!(shown.status.success() && said.is_empty(), "man: {said}");
    }
    println!("the man pages can be shown");
    Ok(())
}

/// Every file below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(self::files(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    Ok(files)
}
