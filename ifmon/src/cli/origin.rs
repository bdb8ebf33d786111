//! Where a change came from: the container or the unit of the process that made it, told by its cgroup.

use std::{
    fs,
    os::unix::fs::{DirEntryExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use ifmon::Actor;
use serde::Serialize;

/// Directories that are looked at for a cgroup whose process has ended. A host with more is told less.
const DIRECTORIES: usize = 20_000;

/// What is known of the place that an actor comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Origin {
    /// Path of the cgroup, below the mount point of version 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cgroup_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) container: Option<Container>,
    /// The unit of systemd, a service or a scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unit: Option<String>,
}

/// A container, as the name of its cgroup shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Container {
    /// Null where the path does not show it: below `kubepods`, some runtimes write the id alone.
    pub(crate) runtime: Option<&'static str>,
    pub(crate) id: String,
}

impl Origin {
    fn at(path: &str) -> Self {
        let mut origin = Self {
            cgroup_path: Some(path.to_owned()),
            ..Self::default()
        };
        // The innermost of each: containers and service managers are nested in one another.
        for component in path.split('/') {
            if let Some(container) = container(component) {
                origin.container = Some(container);
            } else if let Some(container) = by_parent(path, component) {
                origin.container = Some(container);
            } else if is_unit(component) {
                origin.unit = Some(component.to_owned());
            }
        }
        origin
    }
}

/// Looks origins up, and remembers the last: mostly it is one and the same program that makes the changes of a host.
///
/// That can be remembered because a cgroup of version 2 cannot be renamed or moved, and its id is not used again.
#[derive(Debug)]
pub(crate) struct Origins {
    root: Option<PathBuf>,
    last: Option<(u64, Origin)>,
}

impl Default for Origins {
    fn default() -> Self {
        Self {
            root: mount_point(),
            last: None,
        }
    }
}

impl Origins {
    /// Where an actor comes from. The process may have ended by now, its cgroup mostly not.
    pub(crate) fn of(&mut self, actor: &Actor) -> Origin {
        // A kernel thread acts for somebody else, and its cgroup says nothing about who that is.
        if actor.kthread {
            return Origin::default();
        }
        if let Some((cgroup, origin)) = &self.last
            && *cgroup == actor.cgroup
        {
            return origin.clone();
        }
        let Some(path) = self.path_of(actor) else {
            return Origin::default();
        };
        let origin = Origin::at(&path);
        self.last = Some((actor.cgroup, origin.clone()));
        origin
    }

    /// The path of an actor's cgroup.
    fn path_of(&self, actor: &Actor) -> Option<String> {
        let root = self.root.as_deref()?;
        // The process id can be somebody else's by now, or that of another pid namespace: the inode number tells.
        let is_it = |path: &str| {
            fs::metadata(root.join(path.trim_start_matches('/')))
                .is_ok_and(|directory| directory.ino() == actor.cgroup)
        };
        let of_process = fs::read_to_string(format!("/proc/{}/cgroup", actor.pid)).ok();
        of_process
            .as_deref()
            .and_then(|cgroups| cgroups.lines().find_map(|line| line.strip_prefix("0::")))
            .filter(|path| is_it(path))
            .map(str::to_owned)
            .or_else(|| search(root, actor.cgroup))
    }
}

/// Where version 2 of cgroups is mounted: alone, or beside version 1.
fn mount_point() -> Option<PathBuf> {
    /// `CGROUP2_SUPER_MAGIC` of `include/uapi/linux/magic.h`.
    const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| {
            rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == CGROUP2_SUPER_MAGIC)
        })
}

/// Finds a directory by its inode number, the nearest to the root first.
fn search(root: &Path, inode: u64) -> Option<String> {
    if fs::metadata(root).is_ok_and(|root| root.ino() == inode) {
        return Some("/".to_owned());
    }
    let mut level = vec![root.to_owned()];
    let mut looked_at = 0;
    while !level.is_empty() {
        let mut next = Vec::new();
        for directory in level {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    continue;
                }
                let path = entry.path();
                if entry.ino() == inode {
                    let path = path.strip_prefix(root).ok()?;
                    return Some(format!("/{}", path.to_string_lossy()));
                }
                looked_at += 1;
                if looked_at == DIRECTORIES {
                    return None;
                }
                next.push(path);
            }
        }
        level = next;
    }
    None
}

/// A container by the name of its cgroup alone: `RUNTIME-ID.scope` where systemd makes the cgroup, `RUNTIME-ID` or
/// `PARENT:RUNTIME:ID` where the runtime does.
fn container(component: &str) -> Option<Container> {
    const RUNTIMES: [(&str, &str); 5] = [
        ("docker", "docker"),
        ("cri-containerd", "containerd"),
        ("nerdctl", "containerd"),
        ("crio", "cri-o"),
        ("libpod", "podman"),
    ];
    if let Some(name) = component.strip_prefix("lxc.payload.") {
        return Some(Container {
            runtime: Some("lxc"),
            id: name.to_owned(),
        });
    }
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let (runtime, id) = match name.rsplit_once(':') {
        Some((before, id)) => (before.rsplit(':').next()?, id),
        // `crio-conmon-ID` and `libpod-conmon-ID` are what looks after the container, not the container.
        None => name.rsplit_once('-')?,
    };
    let (_, runtime) = RUNTIMES
        .into_iter()
        .find(|&(prefix, _)| prefix == runtime)?;
    is_id(id).then(|| Container {
        runtime: Some(runtime),
        id: id.to_owned(),
    })
}

/// A container by an id that is the whole name, below a parent that tells of the runtime.
fn by_parent(path: &str, component: &str) -> Option<Container> {
    if !is_id(component) {
        return None;
    }
    let (before, _) = path.split_once(component)?;
    let mut parents = before.split('/').filter(|parent| !parent.is_empty());
    let runtime = match parents.next()? {
        "docker" => Some("docker"),
        // The namespaces of containerd that `ctr`, `nerdctl` and Kubernetes use.
        "default" | "k8s.io" => Some("containerd"),
        "libpod_parent" => Some("podman"),
        first
            if std::iter::once(first)
                .chain(parents)
                .any(|parent| parent.starts_with("kubepods")) =>
        {
            None
        }
        _ => return None,
    };
    Some(Container {
        runtime,
        id: component.to_owned(),
    })
}

/// The ids of all these runtimes are 64 hexadecimal digits.
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

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "6f0a1d2c3b4e5f60718293a4b5c6d7e8f9000102030405060708090a0b0c0d0e";

    #[test]
    fn paths_tell_of_containers_and_units() {
        // A path with `ID` in place of the id; runtime of the container; unit.
        type Row = (
            &'static str,
            Option<Option<&'static str>>,
            Option<&'static str>,
        );
        let table: &[Row] = &[
            ("/", None, None),
            ("/system.slice/ssh.service", None, Some("ssh.service")),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                None,
                Some("session-3.scope"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/agent.service",
                None,
                Some("agent.service"),
            ),
            ("/system.slice/docker-ID.scope", Some(Some("docker")), None),
            ("/docker/ID", Some(Some("docker")), None),
            ("/docker/ID/init", Some(Some("docker")), None),
            (
                "/system.slice/nerdctl-ID.scope",
                Some(Some("containerd")),
                None,
            ),
            ("/default/ID", Some(Some("containerd")), None),
            (
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-ID.scope",
                Some(Some("containerd")),
                None,
            ),
            (
                "/system.slice/containerd.service/kubepods-besteffort-pod1_2.slice:cri-containerd:ID",
                Some(Some("containerd")),
                Some("containerd.service"),
            ),
            (
                "/kubepods.slice/kubepods-pod1_2.slice/crio-ID.scope",
                Some(Some("cri-o")),
                None,
            ),
            (
                "/kubepods.slice/kubepods-pod1_2.slice/crio-conmon-ID.scope",
                None,
                Some("crio-conmon-ID.scope"),
            ),
            ("/kubepods/besteffort/pod1-2/ID", Some(None), None),
            (
                "/machine.slice/libpod-ID.scope/container",
                Some(Some("podman")),
                None,
            ),
            (
                "/machine.slice/libpod-conmon-ID.scope",
                None,
                Some("libpod-conmon-ID.scope"),
            ),
            ("/libpod_parent/libpod-ID", Some(Some("podman")), None),
            (
                "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope",
                Some(Some("podman")),
                Some("user@1000.service"),
            ),
            (
                "/system.slice/docker-ID.scope/system.slice/web.service",
                Some(Some("docker")),
                Some("web.service"),
            ),
            ("/system.slice/docker.service", None, Some("docker.service")),
            (
                "/system.slice/docker-short.scope",
                None,
                Some("docker-short.scope"),
            ),
            ("/builds/ID", None, None),
            ("/.service", None, None),
        ];
        for &(path, runtime, unit) in table {
            let path = path.replace("ID", ID);
            let container = runtime.map(|runtime| Container {
                runtime,
                id: ID.to_owned(),
            });
            let expected = Origin {
                cgroup_path: Some(path.clone()),
                container,
                unit: unit.map(|unit| unit.replace("ID", ID)),
            };
            assert_eq!(Origin::at(&path), expected);
        }
        let lxc = Origin::at("/lxc.payload.web/init.scope")
            .container
            .expect("a container");
        assert_eq!((lxc.runtime, lxc.id.as_str()), (Some("lxc"), "web"));
    }

    #[test]
    fn a_directory_is_found_by_its_inode_number() {
        let root = std::env::temp_dir().join(format!("ifmon-origin-{}", std::process::id()));
        let below = root.join("a/b.service");
        fs::create_dir_all(&below).expect("a temporary directory can be made");
        let inode = |path: &Path| fs::metadata(path).expect("it exists").ino();
        assert_eq!(
            search(&root, inode(&below)).as_deref(),
            Some("/a/b.service")
        );
        assert_eq!(search(&root, inode(&root)).as_deref(), Some("/"));
        assert_eq!(search(&root, 0), None);
        fs::remove_dir_all(&root).expect("it can be removed");
    }
}
