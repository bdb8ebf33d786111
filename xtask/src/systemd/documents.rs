//! What the documents have people type where systemd runs.

use std::{fmt::Write as _, fs};

use anyhow::{Context as _, Error, Result, ensure};

use crate::workspace;

#[expect(
    unreachable_pub,
    reason = "shared with the tests, which try the other commands"
)]
#[path = "../../../tests/src/documents.rs"]
mod blocks;

const PAGES: &[&str] = &[
    "README.md",
    "docs/acting.md",
    "docs/agent.md",
    "docs/certain.md",
    "docs/container-host.md",
    "docs/who.md",
    "docs/kubernetes.md",
    "docs/patterns.md",
    "docs/service.md",
    "docs/tunnel-engine.md",
];

/// The part that tries them.
pub(super) fn script() -> Result<String> {
    let mut script = "install_package\n".to_owned();
    let mut count = 0;
    for page in PAGES {
        let path = workspace::root().join(page);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for block in blocks::blocks(&text).map_err(Error::msg)? {
            let (blocks::Trial::Systemd(_), Some(trial)) = (&block.trial, block.script()) else {
                continue;
            };
            count += 1;
            let line = block.line;
            writeln!(script, "trial_{count}() {{\n{trial}}}")?;
            writeln!(
                script,
                "check 'commands of {page}, line {line}' trial_{count}"
            )?;
        }
    }
    ensure!(count > 0, "no page has a command for it");
    Ok(script)
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_left_to_systemd_becomes_a_script_that_bash_can_read() {
        let script = super::script().expect("the pages can be read");
        let read = std::process::Command::new("bash")
            .args(["-n", "-c", &script])
            .output()
            .expect("there is a bash");
        assert!(read.status.success(), "{read:?}: {script}");
        assert!(script.contains("systemctl enable --now ifmon.socket\n"));
    }
}
