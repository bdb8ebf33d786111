//! The RPM package, of the files that the Debian one has, where Fedora and openSUSE look for them.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{Item, VERSION, check, source_time, write};
use crate::{
    command,
    host::{self, Tool},
    workspace,
};

/// Debian has the package manager of others in one package.
const TOOLS: &[Tool] = &[
    Tool {
        program: "rpmbuild",
        package: "rpm",
    },
    Tool {
        program: "rpm",
        package: "rpm",
    },
];

/// Said here, so that neither the distribution that builds it nor its user has a say.
const SETTINGS: [&str; 7] = [
    "debug_package %{nil}",
    // Neither stripping nor compressing: all is as it should be.
    "__os_install_post %{nil}",
    "_binary_payload w6.xzdio",
    "_buildhost localhost",
    "use_source_date_epoch_as_buildtime 1",
    "clamp_mtime_to_source_date_epoch 1",
    "_build_id_links none",
];

/// The items as this package has them.
pub(super) fn items(items: &[Item]) -> Result<Vec<Item>> {
    let mut items: Vec<Item> = items
        .iter()
        // Debian's way to say what the licences are.
        .filter(|item| !item.path.ends_with("/copyright"))
        .map(|item| Item {
            path: item.path.replace("zsh/vendor-completions", "zsh/site-functions"),
            mode: item.mode,
            content: item.content.clone(),
        })
        .collect();
    for (name, source) in [
        ("LICENSE-MIT", "LICENSE-MIT"),
        ("LICENSE-APACHE", "LICENSE-APACHE"),
        ("LICENSE-GPL2", "ifmon-ebpf/LICENSE-GPL2"),
    ] {
        items.push(Item {
            path: format!("usr/share/licenses/ifmon/{name}"),
            mode: 0o644,
            content: fs::read(workspace::root().join(source))
                .with_context(|| format!("cannot read {source}"))?,
        });
    }
    Ok(items)
}

/// Builds it in `scratch`.
pub(super) fn build(items: &[Item], scratch: &Path, dist: &Path) -> Result<PathBuf> {
    host::need(TOOLS)?;
    let root = scratch.join("root");
    let mut files = String::new();
    for item in items {
        write(&root.join(&item.path), item.mode, &item.content)?;
        let kind = match item.path.as_str() {
            path if path.contains("/licenses/") => "%license ",
            path if path.contains("/doc/") || path.contains("/man/") => "%doc ",
            _ => "",
        };
        files.push_str(&format!(
            "%attr({:o}, root, root) {kind}/{}\n",
            item.mode, item.path
        ));
    }
    let spec = workspace::root().join("ifmon/packaging/rpm/ifmon.spec");
    let spec = fs::read_to_string(&spec)
        .with_context(|| format!("cannot read {}", spec.display()))?
        .replace("@VERSION@", VERSION)
        .replace("@FILES@", &files);
    let path = scratch.join("ifmon.spec");
    fs::write(&path, spec)?;

    let mut rpmbuild = Command::new("rpmbuild");
    rpmbuild.args(["-bb", "--quiet", "--target", env::consts::ARCH]);
    rpmbuild.args(SETTINGS.iter().flat_map(|setting| ["--define", setting]));
    rpmbuild
        .args(["--define", &format!("_topdir {}", scratch.display())])
        .args(["--define", &format!("_rpmdir {}", dist.display())])
        .args([
            "--define",
            "_build_name_fmt %{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm",
        ])
        .arg("--buildroot")
        .arg(&root)
        .arg(&path);
    if let Some(time) = source_time() {
        rpmbuild.env("SOURCE_DATE_EPOCH", time);
    }
    command::output(&mut rpmbuild).context("cannot make the RPM package")?;
    Ok(dist.join(format!("ifmon-{VERSION}-1.{}.rpm", env::consts::ARCH)))
}

/// Installs it into a root of its own, looks at every file, and removes it again. Its scripts need
/// a system around them and do not run.
pub(super) fn test(package: &Path, items: &[Item], root: &Path) -> Result<()> {
    fs::create_dir_all(root)?;
    let rpm = |args: &[&str]| {
        let mut rpm = Command::new("rpm");
        rpm.arg("--root").arg(root);
        // Debian's rpm would keep it in a home directory.
        rpm.args(["--dbpath", "/var/lib/rpm"]).args(args);
        rpm
    };
    let without = ["--nodeps", "--noscripts", "--nosignature"];
    command::output(rpm(&["--install"]).args(without).arg(package))?;
    check::installed(items, root)?;
    let scripts = command::output(&mut rpm(&["--query", "--scripts", "ifmon"]))?;
    ensure!(
        scripts.contains("try-restart") && scripts.contains("systemctl stop"),
        "its scripts are missing: {scripts}"
    );
    command::output(rpm(&["--erase"]).args(["--nodeps", "--noscripts", "ifmon"]))?;
    check::nothing_left(root)?;
    println!(
        "the RPM package: {} files installed and removed",
        items.len()
    );
    Ok(())
}
