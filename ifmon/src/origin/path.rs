//! What the path of a cgroup says. Pure: nothing is looked up.
//!
//! Every runtime has its own way to name a cgroup, and another one for each of the two cgroup
//! drivers. The table in the tests has them all, each with the source file that makes it.

use super::{Container, Origin};

/// The first word of a name, where the rest is the id of a container.
const RUNTIMES: [(&str, &str); 6] = [
    ("docker", "docker"),
    ("cri-containerd", "containerd"),
    ("nerdctl", "containerd"),
    ("crio", "cri-o"),
    ("libpod", "podman"),
    // `--cgroups=split`, which quadlets use: beside it is `runtime`, with what looks after the
    // container.
    ("libpod-payload", "podman"),
];

pub(super) fn origin(path: &str) -> Origin {
    let mut origin = Origin {
        cgroup_path: Some(path.to_owned()),
        ..Origin::default()
    };
    let components: Vec<&str> = path.split('/').filter(|word| !word.is_empty()).collect();
    // The innermost of each: containers, pods and service managers are nested in one another.
    for (at, &component) in components.iter().enumerate() {
        let place = Component {
            above: &components[..at],
            component,
            below: components.get(at + 1).copied(),
        };
        if let Some(pod) = place.pod() {
            origin.pod = Some(pod);
        }
        if let Some(container) = place.container() {
            origin.container = Some(container);
        } else if is_unit(component) {
            origin.unit = Some(component.to_owned());
        }
    }
    origin
}

/// A component of a path, with what is around it.
#[derive(Clone, Copy)]
struct Component<'a> {
    above: &'a [&'a str],
    component: &'a str,
    below: Option<&'a str>,
}

impl Component<'_> {
    fn container(self) -> Option<Container> {
        by_name(self.component)
            .or_else(|| self.lxc())
            .or_else(|| self.nspawn())
            .or_else(|| self.bare_id())
    }

    /// `lxc.payload.NAME`, and `lxc/NAME` of a pattern. What looks after the container is
    /// `lxc.monitor.NAME` or `lxc/NAME/monitor`.
    fn lxc(self) -> Option<Container> {
        let name = match (self.component.strip_prefix("lxc."), self.above) {
            (Some(name), _) => name.strip_prefix("payload.")?,
            (None, [.., "lxc"]) if self.below != Some("monitor") => self.component,
            (None, _) => return None,
        };
        container("lxc", name)
    }

    /// `payload` below the unit that systemd-nspawn runs in, or below the scope that it makes for
    /// itself.
    fn nspawn(self) -> Option<Container> {
        let ([.., unit], "payload") = (self.above, self.component) else {
            return None;
        };
        let service = unit
            .strip_prefix("systemd-nspawn@")
            .and_then(|unit| unit.strip_suffix(".service"));
        let scope = unit
            .strip_prefix("machine-")
            .and_then(|unit| unit.strip_suffix(".scope"));
        container("systemd-nspawn", &unescape(service.or(scope)?))
    }

    /// An id that is the whole name, below a parent that says whose it is.
    fn bare_id(self) -> Option<Container> {
        let (&parent, above) = self.above.split_last()?;
        let runtime = match parent {
            "docker" => Some("docker"),
            // The namespaces of containerd that `ctr`, `nerdctl` and Kubernetes use.
            "default" | "k8s.io" => Some("containerd"),
            component => {
                let parent = Component {
                    above,
                    component,
                    below: Some(self.component),
                };
                parent.pod()?;
                None
            }
        };
        is_id(self.component).then(|| Container {
            runtime,
            id: self.component.to_owned(),
        })
    }

    /// The uid of a pod: `podUID` below `kubepods` or one of its classes of service, or the slice
    /// that systemd makes of these three. Such a slice has the dashes of the uid as underscores.
    fn pod(self) -> Option<String> {
        let slice = self.component.split_once(".slice").map(|(slice, _)| slice);
        let uid = match (slice, self.above) {
            (Some(slice), _) => {
                let (above, pod) = slice.rsplit_once('-')?;
                let is_kubernetes = above.split('-').any(|word| word == "kubepods");
                pod.strip_prefix("pod").filter(|_| is_kubernetes)?
            }
            (None, [.., "kubepods"] | [.., "kubepods", "burstable" | "besteffort"]) => {
                self.component.strip_prefix("pod")?
            }
            (None, _) => return None,
        };
        let uid = if slice.is_some() {
            uid.replace('_', "-")
        } else {
            uid.to_owned()
        };
        (!uid.is_empty()).then_some(uid)
    }
}

/// By the name of the cgroup alone: `RUNTIME-ID.scope` where systemd makes the cgroup, `RUNTIME-ID`
/// where the runtime does, and `PARENT:RUNTIME:ID` where it was not told that systemd should.
fn by_name(component: &str) -> Option<Container> {
    let scope = component.strip_suffix(".scope");
    // By hand, without another program that names the cgroup, and so with ids that a person chose.
    for runtime in ["runc", "crun"] {
        let id = scope
            .and_then(|name| name.strip_prefix(runtime))
            .and_then(|name| name.strip_prefix('-'));
        if let Some(id) = id {
            return container(runtime, id);
        }
    }
    let name = scope.unwrap_or(component);
    let (prefix, id) = match name.rsplit_once(':') {
        Some((before, id)) => (before.rsplit(':').next()?, id),
        // `crio-conmon-ID` and `libpod-conmon-ID` are what looks after the container, not the
        // container.
        None => name.rsplit_once('-')?,
    };
    let (_, runtime) = RUNTIMES.into_iter().find(|&(known, _)| known == prefix)?;
    is_id(id).then(|| Container {
        runtime: Some(runtime),
        id: id.to_owned(),
    })
}

/// A container whose id a person chose.
fn container(runtime: &'static str, id: &str) -> Option<Container> {
    (!id.is_empty()).then(|| Container {
        runtime: Some(runtime),
        id: id.to_owned(),
    })
}

/// The ids of the runtimes that are told by a prefix or a parent are 64 hexadecimal digits.
fn is_id(word: &str) -> bool {
    word.len() == 64
        && word
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_unit(component: &str) -> bool {
    [".service", ".scope"].iter().any(|kind| {
        component
            .strip_suffix(kind)
            .is_some_and(|name| !name.is_empty())
    })
}

/// Takes back what systemd does to characters that may not stand in the name of a unit: `\x2d` is a
/// dash.
fn unescape(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some(at) = rest.find("\\x") {
        bytes.extend(&rest.as_bytes()[..at]);
        rest = &rest[at + 2..];
        match rest.get(..2).map(|digits| u8::from_str_radix(digits, 16)) {
            Some(Ok(byte)) => {
                bytes.push(byte);
                rest = &rest[2..];
            }
            Some(Err(_)) | None => bytes.extend(b"\\x"),
        }
    }
    bytes.extend(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}
