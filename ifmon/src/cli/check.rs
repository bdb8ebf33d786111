//! `--check`: what this host allows, which backend that gives, and why no better one.

use std::fmt::Write as _;

use ifmon::{BackendKind, Check, Facts, Lockdown};
use serde_json::{Value, json};

/// A table for a person.
pub(crate) fn text(check: &Check) -> String {
    let Check {
        facts,
        backends,
        who,
        ..
    } = check;
    let mut text = format!(
        "ifmon {} on Linux {} ({})\n\n",
        env!("CARGO_PKG_VERSION"),
        facts.release,
        std::env::consts::ARCH
    );
    for (name, value, note) in rows(facts) {
        let _ = writeln!(text, "  {name:<28}{value:<18}{note}");
    }
    text.push('\n');
    let best = check.best();
    for (kind, result) in backends {
        let (verdict, why) = match result {
            Ok(()) => ("works", remark(*kind, best, who)),
            Err(reason) => ("does not work", reason.to_string()),
        };
        let _ = writeln!(text, "  {kind:<28}{verdict:<18}{why}");
    }
    text.lines().fold(String::new(), |mut text, line| {
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// What there is to say of a backend that works.
fn remark(kind: BackendKind, best: Option<BackendKind>, who: &[&str]) -> String {
    let mut remarks = Vec::new();
    if Some(kind) == best {
        remarks.push("this is what you get".to_owned());
    }
    if kind == BackendKind::NetlinkEbpf {
        remarks.push(if who.is_empty() {
            "does not tell who makes a change".to_owned()
        } else {
            format!("tells of who makes a change: {}", who.join(", "))
        });
    }
    remarks.join("; ")
}

/// The same as one JSON object.
pub(crate) fn json(check: &Check) -> Value {
    let Check {
        facts,
        backends,
        who,
        ..
    } = check;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": facts.release,
        "architecture": std::env::consts::ARCH,
        "backend": check.best().map(BackendKind::as_str),
        "backends": backends.iter().map(|(kind, result)| json!({
            "backend": kind.as_str(),
            "works": result.is_ok(),
            "reason": result.as_ref().err().map(ToString::to_string),
        })).collect::<Vec<_>>(),
        "who": who,
        "facts": {
            "bpf_object": facts.has_object,
            "lockdown": facts.lockdown.map(lockdown),
            "cap_bpf": facts.cap_bpf,
            "cap_perfmon": facts.cap_perfmon,
            "cap_sys_admin": facts.cap_sys_admin,
            "initial_user_namespace": facts.initial_user_namespace,
            "btf": facts.btf().is_ok(),
            "btf_error": facts.btf().err(),
            "function": facts.has_function,
            "kprobes": facts.has_kprobes,
            "perf_event_paranoid": facts.perf_event_paranoid,
            "unprivileged_bpf_disabled": facts.unprivileged_bpf_disabled,
            "memlock_limit": facts.memlock_limit,
            "rmem_max": facts.rmem_max,
        },
    })
}

fn rows(facts: &Facts) -> Vec<(&'static str, String, &'static str)> {
    let number = |value: Option<i32>| value.map_or_else(unknown, |value| value.to_string());
    vec![
        (
            "lockdown",
            facts
                .lockdown
                .map_or_else(unknown, |mode| lockdown(mode).to_owned()),
            "confidentiality refuses BPF tracing",
        ),
        (
            "capabilities",
            capabilities(facts),
            "fentry and kprobe need CAP_BPF and CAP_PERFMON, netlink-ebpf CAP_BPF, or CAP_SYS_ADMIN",
        ),
        (
            "initial user namespace",
            yes(facts.initial_user_namespace),
            "in another one capabilities do not count for BPF",
        ),
        (
            "BTF",
            yes(Some(facts.btf().is_ok())),
            "tells the BPF program where the kernel keeps its fields",
        ),
        (
            "function rtnetlink_event",
            yes(facts.has_function),
            "where the BPF program is attached",
        ),
        ("kprobes", yes(facts.has_kprobes), "for the kprobe backend"),
        (
            "perf_event_paranoid",
            number(facts.perf_event_paranoid),
            "above 1, kprobe needs CAP_SYS_ADMIN",
        ),
        (
            "limit on locked memory",
            facts.memlock_limit.map_or_else(
                || "does not apply".to_owned(),
                |bytes| format!("{bytes} bytes"),
            ),
            "counts BPF maps before 5.11",
        ),
        (
            "largest receive buffer",
            facts
                .rmem_max
                .map_or_else(unknown, |bytes| format!("{bytes} bytes")),
            "for netlink without CAP_NET_ADMIN",
        ),
    ]
}

fn unknown() -> String {
    "unknown".to_owned()
}

fn yes(value: Option<bool>) -> String {
    value.map_or_else(unknown, |value| if value { "yes" } else { "no" }.to_owned())
}

fn lockdown(mode: Lockdown) -> &'static str {
    let words = [
        (Lockdown::None, "none"),
        (Lockdown::Integrity, "integrity"),
        (Lockdown::Confidentiality, "confidentiality"),
    ];
    let word = words.into_iter().find(|&(known, _)| known == mode);
    word.map_or("unknown", |(_, word)| word)
}

fn capabilities(facts: &Facts) -> String {
    if facts.cap_sys_admin {
        return "CAP_SYS_ADMIN".to_owned();
    }
    match (facts.cap_bpf, facts.cap_perfmon) {
        (true, true) => "both",
        (true, false) => "CAP_BPF only",
        (false, true) => "CAP_PERFMON only",
        (false, false) => "none",
    }
    .to_owned()
}
