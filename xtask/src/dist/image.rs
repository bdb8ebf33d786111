//! The container image, built and run as people do, and what Kubernetes is told to run in it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::VERSION;
use crate::{
    command,
    host::{self, Tool},
    workspace,
};

const TOOLS: &[Tool] = &[
    Tool {
        program: "buildah",
        package: "buildah",
    },
    host::IP,
    host::UNSHARE,
];

/// Builds it from what is in `dist`, and keeps nothing.
pub(super) fn test(dist: &Path, scratch: &Path) -> Result<()> {
    host::need(TOOLS)?;
    fs::create_dir_all(scratch)?;
    let buildah = |subcommand: &str| {
        let mut buildah = Command::new("buildah");
        buildah
            .args(["--storage-driver", "vfs", "--root"])
            .arg(scratch.join("storage"))
            .arg("--runroot")
            .arg(scratch.join("run"))
            .arg(subcommand)
            // Runs in a container, too.
            .env("BUILDAH_ISOLATION", "chroot");
        buildah
    };
    let dockerfile = workspace::root().join("ifmon/packaging/Dockerfile");
    let mut build = buildah("build");
    build.args(["--quiet", "--tag", "ifmon", "--file"]);
    command::output(build.arg(dockerfile).arg(dist)).context("cannot build the image")?;

    let container = command::output(buildah("from").arg("--pull-never").arg("ifmon"))?;
    let container = container.trim();
    // Without a program buildah looks for a shell: the entry point is given as it is in the image.
    let entry = command::output(buildah("inspect").args([
        "--format",
        "{{index .OCIv1.Config.Entrypoint 0}}",
        container,
    ]))?;
    let entry = entry.trim();
    ensure!(entry == "/ifmon", "the entry point is {entry}");
    let run = |args: &[&str]| {
        let mut run = buildah("run");
        run.args([container, "--", entry]).args(args);
        run
    };
    let version = command::output(&mut run(&["--version"]))?;
    ensure!(
        version.trim() == format!("ifmon {VERSION}"),
        "the version is {version}"
    );
    // Nothing to run commands with, as docs/kubernetes.md says.
    let hook = ["--backend=netlink", "--wait", "lo", "--exec", "true"];
    // A file: of a pipe, buildah was seen to end before it had handed on what came.
    let said = scratch.join("said");
    let status = run(&hook)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&said)?)
        .status()?;
    let said = fs::read_to_string(said)?;
    ensure!(
        said.contains("could not be started"),
        "nothing is said of the missing shell, with {status}: {said}"
    );
    command::output(buildah("rm").arg(container))?;
    command::output(buildah("rmi").arg("ifmon"))?;
    println!("the image can be built and run");
    daemonset(&dist.join("ifmon"))
}

/// Does the program take what Kubernetes gives it, on a node that has an address of IPv6 only?
fn daemonset(ifmon: &Path) -> Result<()> {
    let path = workspace::root().join("ifmon/packaging/daemonset.yaml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let args: Vec<String> = text
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "args:")
        .skip(1)
        .take_while(|line| line.starts_with("- ") || line.starts_with('#'))
        .filter_map(|line| line.strip_prefix("- "))
        .map(|arg| arg.replace("$(NODE_ADDRESS)", "::1"))
        .collect();
    ensure!(args.len() > 1, "{} has no arguments", path.display());
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && exec \"$@\"", "sh"])
        .arg(ifmon)
        .args(&args)
        // So that it comes to an end: there is no wg0.
        .arg("--wait=absent")
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "ifmon {} ended with {}: {said}",
            args.join(" "),
            output.status
        );
    }
    println!("the arguments in the DaemonSet are good");
    Ok(())
}
