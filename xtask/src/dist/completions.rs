//! What each shell offers for the words that somebody has typed so far.

use std::{
    fs, io,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Result, ensure};

use crate::{
    command,
    host::{self, Tool},
    scratch::ScratchDir,
};

const TOOLS: &[Tool] = &[
    Tool {
        program: "bash",
        package: "bash",
    },
    Tool {
        program: "zsh",
        package: "zsh",
    },
    Tool {
        program: "fish",
        package: "fish",
    },
];

/// What has been typed, what is to be offered then, and what is not.
const OFFERS: [(&str, &str, &str); 4] = [
    ("ifmon --json l", "lo", "--json"),
    ("ifmon --", "--json", "lo"),
    // This one is hidden.
    ("ifmon --o", "--once", "--open-filter"),
    ("ifmon --backend ", "netlink-ebpf", "lo"),
];

type Shell = fn(completions: &Path, typed: &str) -> Result<String>;

/// Has every shell complete with the file that is for it, below the root of a system.
pub(super) fn check(root: &Path) -> Result<()> {
    host::need(TOOLS)?;
    let shells: [(&str, &str, Shell); 3] = [
        ("bash", "usr/share/bash-completion/completions/ifmon", bash),
        ("zsh", "usr/share/zsh/vendor-completions/_ifmon", zsh),
        (
            "fish",
            "usr/share/fish/vendor_completions.d/ifmon.fish",
            fish,
        ),
    ];
    for (shell, path, offer) in shells {
        for (typed, offered, not_offered) in OFFERS {
            let said = offer(&root.join(path), typed)?;
            ensure!(
                said.lines().any(|line| line == offered)
                    && said.lines().all(|line| line != not_offered),
                "after {typed:?} {shell} offers {said:?}"
            );
        }
        println!("{shell} completes");
    }
    Ok(())
}

fn bash(completions: &Path, typed: &str) -> Result<String> {
    const SCRIPT: &str = r#". "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _ifmon_with_names "$1" "${!#}" "${COMP_WORDS[COMP_CWORD - 1]}"; printf '%s\n' "${COMPREPLY[@]}""#;
    command::output(
        Command::new("bash")
            .args(["-c", SCRIPT])
            .arg(completions)
            .args(typed.split(' ')),
    )
}

fn fish(completions: &Path, typed: &str) -> Result<String> {
    const SCRIPT: &str = "source $argv[1]; complete -C $argv[2] | string split -f 1 \\t";
    command::output(
        Command::new("fish")
            .args(["--no-config", "-c", SCRIPT])
            .arg(completions)
            .arg(typed),
    )
}

/// zsh completes at a terminal alone, so a zsh at one of its own types a tabulator, with a `compadd`
/// that writes down what it is given. It ends itself when it has completed.
fn zsh(completions: &Path, typed: &str) -> Result<String> {
    const SCRIPT: &str = r#"
        zmodload zsh/zpty
        zpty inner zsh -f -i
        zpty -w inner "fpath=(${(q)1:h} \$fpath); autoload -U compinit; compinit -D -u"
        zpty -w inner "compadd() { local -a offered; [[ \${@[1,(i)(-|--)]} == *-[OAD]* ]] || \
            { builtin compadd -O offered \"\$@\"; print -l -- \$offered >> ${(q)2} }; builtin compadd \"\$@\" }"
        zpty -w inner "leave() { kill -KILL \$\$ }; comppostfuncs=(leave)"
        zpty -w -n inner "$3"$'\t'
        while zpty -r inner; do :; done"#;
    let scratch = ScratchDir::new(&std::env::temp_dir())?;
    let offered = scratch.path().join("offered");
    let status = Command::new("timeout")
        .args(["20", "zsh", "-f", "-c", SCRIPT, "zsh"])
        .arg(completions)
        .arg(&offered)
        .arg(typed)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    ensure!(status.success(), "zsh ended with {status}");
    match fs::read_to_string(&offered) {
        Ok(text) => Ok(text),
        // Nothing was.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error.into()),
    }
}
