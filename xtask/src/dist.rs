//! Makes what is installed on other machines: packages for Debian and for those who use RPM, and a
//! tarball, all with the same static program.

mod check;
mod completions;
mod crates;
mod deb;
mod documents;
mod image;
mod rpm;

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    command,
    host::{self, Missing, Tool},
    scratch::ScratchDir,
    standalone::Standalone,
    workspace,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const TOOLS: &[Tool] = &[
    Tool {
        program: "cc",
        package: "gcc",
    },
    Tool {
        program: "dpkg-deb",
        package: "dpkg",
    },
    Tool {
        program: "gzip",
        package: "gzip",
    },
    Tool {
        program: "tar",
        package: "tar",
    },
];

/// Make a Debian package, an RPM package and a tarball for this processor, in target/dist
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Install and remove them too, in a directory of their own, and pack what crates.io would get
    #[arg(long)]
    test: bool,
}

/// A file of the package: where it goes, its mode, and what is in it.
struct Item {
    path: String,
    mode: u32,
    content: Vec<u8>,
}

/// Makes the Debian package and says where it is.
pub(crate) fn package() -> Result<PathBuf> {
    host::need(TOOLS)?;
    let dist = workspace::target_dir().join("dist");
    let scratch = ScratchDir::new(&dist)?;
    deb::build(&items()?, &scratch.path().join("deb"), &dist)
}

pub(crate) fn run(Options { test }: Options) -> Result<ExitCode> {
    host::need(TOOLS)?;
    let items = items()?;
    let dist = workspace::target_dir().join("dist");
    let scratch = ScratchDir::new(&dist)?;
    // The Dockerfile takes it from here.
    let program = items.first().context("the program comes first")?;
    write(&dist.join("ifmon"), program.mode, &program.content)?;

    let package = deb::build(&items, &scratch.path().join("deb"), &dist)?;
    let tarball = tarball(&items, scratch.path(), &dist)?;
    let rpm_items = rpm::items(&items)?;
    let rpm = rpm::build(&rpm_items, &scratch.path().join("rpm"), &dist);
    let rpm = unless_missing("the RPM package", rpm)?;
    for file in [&package, &tarball].into_iter().chain(&rpm) {
        let size = fs::metadata(file)?.len() / 1024;
        println!("{} ({size} KiB)", file.display());
    }
    if test {
        check::package(&package, &items, &scratch.path().join("root"))?;
        check::tarball(&tarball, &scratch.path().join("unpacked"))?;
        if let Some(rpm) = rpm {
            rpm::test(&rpm, &rpm_items, &scratch.path().join("rpm-root"))?;
        }
        crates::check()?;
        let image = image::test(&dist, &scratch.path().join("image"));
        unless_missing("the container image", image)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what was left out for want of a tool.
fn unless_missing<T>(what: &str, result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(made) => Ok(Some(made)),
        Err(error) => {
            let Missing(why) = error.downcast()?;
            println!("left out: {what}: {why}");
            Ok(None)
        }
    }
}

/// Everything that is installed, the program first.
fn items() -> Result<Vec<Item>> {
    let program = build(true)?;
    let generator = build(false)?;
    let generate = |what| command::bytes(Command::new(&generator).args(["--generate", what]));
    let file = |name: &str| {
        let path = workspace::root().join(name);
        fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let item = |path: &str, content| Item {
        path: path.to_owned(),
        mode: 0o644,
        content,
    };
    let mut items = vec![
        Item {
            path: "usr/bin/ifmon".to_owned(),
            mode: 0o755,
            content: fs::read(program)?,
        },
        item(
            "usr/lib/systemd/system/ifmon@.service",
            file("ifmon/packaging/ifmon@.service")?,
        ),
        item(
            "usr/lib/systemd/system/ifmon.socket",
            file("ifmon/packaging/ifmon.socket")?,
        ),
        item(
            "usr/lib/systemd/system/ifmon.service",
            file("ifmon/packaging/ifmon.service")?,
        ),
        item(
            "usr/lib/systemd/system/ifmon-record.service",
            file("ifmon/packaging/ifmon-record.service")?,
        ),
        item("usr/share/man/man1/ifmon.1.gz", gzip(&generate("man")?)?),
        item(
            "usr/share/man/man5/ifmon.varlink.5.gz",
            gzip(&generate("man-varlink")?)?,
        ),
        item(
            "usr/share/bash-completion/completions/ifmon",
            generate("bash")?,
        ),
        item("usr/share/zsh/vendor-completions/_ifmon", generate("zsh")?),
        item(
            "usr/share/fish/vendor_completions.d/ifmon.fish",
            generate("fish")?,
        ),
        item(
            "usr/share/doc/ifmon/changelog.gz",
            gzip(&file("CHANGELOG.md")?)?,
        ),
        item("usr/share/doc/ifmon/copyright", deb::copyright()?),
    ];
    items.extend(documents::items()?);
    Ok(items)
}

/// Builds the program, static: for release, or the one that writes the man page and the
/// completions. That one has the options of the released one, and beside them one that would only
/// make the released one larger.
fn build(release: bool) -> Result<PathBuf> {
    let standalone = Standalone::host()?;
    let (features, profile) = if release {
        ("metrics", "release")
    } else {
        ("metrics,generate", "debug")
    };
    let mut cargo = standalone.cargo("build");
    cargo.args(["--package", "ifmon-watch", "--bin", "ifmon"]);
    cargo.args(["--features", features]);
    if release {
        // Outweighs the profile, and makes a larger program.
        cargo.arg("--release").env_remove("CARGO_INCREMENTAL");
    }
    command::run(&mut cargo).context("cannot build ifmon")?;
    Ok(standalone.program(profile, "ifmon"))
}

/// The tarball: what the package has, flat, with the licences.
fn tarball(items: &[Item], scratch: &Path, dist: &Path) -> Result<PathBuf> {
    let name = format!("ifmon-{VERSION}-{}-linux", env::consts::ARCH);
    let tree = scratch.join(&name);
    for item in items {
        let file_name = Path::new(&item.path)
            .file_name()
            .context("a file has a name")?;
        let document = Path::new(&item.path).strip_prefix(documents::FOLDER).ok();
        let folder = match document.and_then(Path::parent) {
            Some(folder) => tree.join(folder),
            None if item.path.contains("completion") => tree.join("completions"),
            None => tree.clone(),
        };
        // The two completions of the same name: bash's needs one of its own.
        let file_name = match item.path.as_str() {
            "usr/share/bash-completion/completions/ifmon" => "ifmon.bash".as_ref(),
            _ => file_name,
        };
        write(&folder.join(file_name), item.mode, &item.content)?;
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        fs::copy(workspace::root().join(licence), tree.join(licence))?;
    }
    let tarball = dist.join(format!("{name}.tar.gz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=0", "--group=0"])
        .args(["--numeric-owner", "--mode=u+rw,go=rX"])
        .arg("--use-compress-program=gzip --no-name")
        .arg(format!("--directory={}", scratch.display()));
    if let Some(time) = source_time() {
        tar.arg(format!("--mtime=@{time}"));
    }
    command::output(tar.arg("--file").arg(&tarball).arg(&name))?;
    Ok(tarball)
}

/// The time of the last commit, so that the same sources make the same files. `None` outside a
/// checkout.
fn source_time() -> Option<String> {
    let mut git = Command::new("git");
    git.current_dir(workspace::root())
        .args(["log", "-1", "--format=%ct"]);
    command::output(&mut git)
        .ok()
        .map(|time| time.trim().to_owned())
}

/// Compressed as well as can be, with neither name nor time in it.
fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    use std::{io::Write as _, process::Stdio, thread};
    let mut gzip = Command::new("gzip")
        .args(["--best", "--no-name"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run gzip")?;
    let mut input = gzip.stdin.take().context("no standard input")?;
    let output = thread::scope(|scope| {
        scope.spawn(move || input.write_all(content));
        gzip.wait_with_output()
    })?;
    Ok(output.stdout)
}

/// Writes a file, with the directories above it.
fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}
