//! Where a change came from, in cgroups as container runtimes make them.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Scenario, only, veth};
use crate::{
    backend::{self, EBPF},
    cgroup::Cgroup,
    stage::{Stage, left_out},
    want::{Want, renamed, returned},
};

pub(super) const TABLE: &[Scenario] = &[only(
    EBPF,
    veth("the innermost container is told", innermost_container),
)];

const A: &str = "6f0a1d2c3b4e5f60718293a4b5c6d7e8f9000102030405060708090a0b0c0d0e";
const Z: &str = "f9ab8e7d4c5f6aa9827364b5a4d7c6f9e8aaabacadaeafa0a1a2a3abacadaeaf";
const UID: &str = "8f1e3c5a-6b7d-4e2f-9a0b-1c2d3e4f5a6b";

fn innermost_container(stage: &mut Stage) -> Result<()> {
    if !backend::who(stage.backend)?.contains("cgroup") {
        return left_out("this kernel does not tell a socket filter the cgroup");
    }
    stage.home.add("wg0", 100)?;
    stage.watch(&[("wg0", Some(100))])?;
    let container = |runtime: &str, id: &str| json!({ "runtime": runtime, "id": id });
    let slice = format!("kubelet-kubepods-pod{}.slice", UID.replace('-', "_"));
    let places: [(String, Value, Value, Value); 5] = [
        (
            "/system.slice/ssh.service".to_owned(),
            Value::Null,
            json!("ssh.service"),
            Value::Null,
        ),
        (
            format!("/system.slice/web.service/libpod-payload-{A}"),
            container("podman", A),
            json!("web.service"),
            Value::Null,
        ),
        (
            format!("/system.slice/docker-{Z}.scope/docker/{A}"),
            container("docker", A),
            Value::Null,
            Value::Null,
        ),
        (
            format!("/lxc.payload.web/docker/{A}"),
            container("docker", A),
            Value::Null,
            Value::Null,
        ),
        (
            format!("/docker/{Z}/kubelet.slice/{slice}/cri-containerd-{A}.scope"),
            container("containerd", A),
            Value::Null,
            json!(UID),
        ),
    ];
    for (path, container, unit, pod) in places {
        let cgroup = Cgroup::new(&path)?;
        cgroup.enter()?;
        let told = |want: Want| {
            want.from("cgroup_path", json!(path))
                .from("container", container.clone())
                .from("unit", unit.clone())
                .from("pod", pod.clone())
        };
        stage.home.rename(100, "other0")?;
        stage.see("wg0", told(renamed(100, "other0")))?;
        drop(cgroup);
        stage.home.rename(100, "wg0")?;
        stage.see("wg0", returned(100).from("cgroup_path", json!("/")))?;
    }
    stage.nothing_more(&[])
}
