use std::{
    cell::Cell,
    ffi::OsStr,
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use super::{
    Budget, CgroupMemory, Origin, REMEMBERED,
    hierarchy::{Hierarchy, Tree},
};

const A: &str = "6f0a1d2c3b4e5f60718293a4b5c6d7e8f9000102030405060708090a0b0c0d0e";
const Z: &str = "f9ab8e7d4c5f6aa9827364b5a4d7c6f9e8aaabacadaeafa0a1a2a3abacadaeaf";
const UID: &str = "8f1e3c5a-6b7d-4e2f-9a0b-1c2d3e4f5a6b";

/// A path with `A` and `Z` in place of ids, `UID` and `U_I_D` in that of a pod's uid; then what it
/// says.
struct Row {
    path: &'static str,
    /// Its runtime and its id.
    container: Option<(Option<&'static str>, &'static str)>,
    unit: Option<&'static str>,
    is_in_pod: bool,
}

const fn row(
    path: &'static str,
    container: Option<(Option<&'static str>, &'static str)>,
    unit: Option<&'static str>,
) -> Row {
    Row {
        path,
        container,
        unit,
        is_in_pod: false,
    }
}

const fn pod(
    path: &'static str,
    container: Option<(Option<&'static str>, &'static str)>,
    unit: Option<&'static str>,
) -> Row {
    let row = row(path, container, unit);
    Row {
        is_in_pod: true,
        ..row
    }
}

const DOCKER: Option<&str> = Some("docker");
const CONTAINERD: Option<&str> = Some("containerd");
const CRIO: Option<&str> = Some("cri-o");
const PODMAN: Option<&str> = Some("podman");
const LXC: Option<&str> = Some("lxc");
const NSPAWN: Option<&str> = Some("systemd-nspawn");

/// Before each group, the source file that makes such names.
const PATHS: &[Row] = &[
    // systemd, src/basic/unit-name.c and src/basic/special.h: no containers.
    row("/", None, None),
    row("/system.slice/ssh.service", None, Some("ssh.service")),
    row(
        "/user.slice/user-1000.slice/session-3.scope",
        None,
        Some("session-3.scope"),
    ),
    row(
        "/user.slice/user-1000.slice/user@1000.service/app.slice/agent.service",
        None,
        Some("agent.service"),
    ),
    row("/.service", None, None),
    row("/builds/A", None, None),
    // moby, daemon/oci_linux.go, withCgroups: the driver systemd (also rootless), and cgroupfs.
    row("/system.slice/docker-A.scope", Some((DOCKER, "A")), None),
    row(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/docker-A.scope",
        Some((DOCKER, "A")),
        Some("user@1000.service"),
    ),
    row("/docker/A", Some((DOCKER, "A")), None),
    row("/docker/A/init", Some((DOCKER, "A")), None),
    row("/system.slice/docker.service", None, Some("docker.service")),
    row(
        "/system.slice/docker-short.scope",
        None,
        Some("docker-short.scope"),
    ),
    row(
        "/system.slice/docker-A.scope/system.slice/web.service",
        Some((DOCKER, "A")),
        Some("web.service"),
    ),
    // containerd, pkg/oci/spec.go, populateDefaultUnixSpec: /NAMESPACE/ID.
    row("/default/A", Some((CONTAINERD, "A")), None),
    row("/k8s.io/A", Some((CONTAINERD, "A")), None),
    // nerdctl, pkg/cmd/container/run_cgroup_linux.go, generateCgroupPath.
    row(
        "/system.slice/nerdctl-A.scope",
        Some((CONTAINERD, "A")),
        None,
    ),
    // containerd, internal/cri/server/helpers.go, getCgroupsPath: systemd, cgroupfs, and the slice
    // of the one with a runtime set to the other. Pods: kubernetes,
    // pkg/kubelet/cm/pod_container_manager_linux.go and cgroup_manager_linux.go.
    pod(
        "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_I_D.slice/cri-containerd-A.scope",
        Some((CONTAINERD, "A")),
        None,
    ),
    pod(
        "/kubepods.slice/kubepods-podU_I_D.slice/cri-containerd-A.scope",
        Some((CONTAINERD, "A")),
        None,
    ),
    pod("/kubepods/besteffort/podUID/A", Some((None, "A")), None),
    pod("/kubepods/podUID/A", Some((None, "A")), None),
    pod("/kubepods/burstable/podUID", None, None),
    row("/kubepods/burstable/A", None, None),
    row("/builds/podUID/A", None, None),
    row("/kubepods.slice/builds-podU_I_D.slice", None, None),
    pod(
        "/system.slice/containerd.service/kubepods-besteffort-podU_I_D.slice:cri-containerd:A",
        Some((CONTAINERD, "A")),
        Some("containerd.service"),
    ),
    // cri-o, internal/config/cgmgr/systemd_linux.go and cgroupfs_linux.go; with crun, `container`
    // is below.
    pod(
        "/kubepods.slice/kubepods-podU_I_D.slice/crio-A.scope",
        Some((CRIO, "A")),
        None,
    ),
    pod(
        "/kubepods.slice/kubepods-podU_I_D.slice/crio-A.scope/container",
        Some((CRIO, "A")),
        None,
    ),
    pod("/kubepods/podUID/crio-A", Some((CRIO, "A")), None),
    pod(
        "/kubepods.slice/kubepods-podU_I_D.slice/crio-conmon-A.scope",
        None,
        Some("crio-conmon-A.scope"),
    ),
    pod("/kubepods/podUID/crio-conmon-A", None, None),
    // cri-dockerd, core/docker_service.go, GenerateExpectedCgroupParent: docker names them, in the
    // pod.
    pod(
        "/kubepods.slice/kubepods-podU_I_D.slice/docker-A.scope",
        Some((DOCKER, "A")),
        None,
    ),
    // podman, libpod/container_internal_linux.go, getOCICgroupPath; crun,
    // src/libcrun/cgroup-systemd.c, find_systemd_subgroup; conmon: libpod/oci_conmon_linux.go;
    // pods: libpod/pod_internal_linux.go.
    row(
        "/machine.slice/libpod-A.scope/container",
        Some((PODMAN, "A")),
        None,
    ),
    row(
        "/machine.slice/libpod-conmon-A.scope",
        None,
        Some("libpod-conmon-A.scope"),
    ),
    row(
        "/machine.slice/machine-libpod_pod_Z.slice/libpod-A.scope",
        Some((PODMAN, "A")),
        None,
    ),
    row("/libpod_parent/libpod-A", Some((PODMAN, "A")), None),
    row("/libpod_parent/Z/libpod-A", Some((PODMAN, "A")), None),
    row("/libpod_parent/Z", None, None),
    row(
        "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-A.scope/container",
        Some((PODMAN, "A")),
        Some("user@1000.service"),
    ),
    row(
        "/system.slice/web.service/libpod-payload-A",
        Some((PODMAN, "A")),
        Some("web.service"),
    ),
    row(
        "/system.slice/web.service/runtime",
        None,
        Some("web.service"),
    ),
    // runc, libcontainer/specconv/spec_linux.go, and crun, src/libcrun/cgroup-systemd.c: without a
    // path of the caller's.
    row(
        "/system.slice/runc-web.scope",
        Some((Some("runc"), "web")),
        None,
    ),
    row(
        "/system.slice/crun-web.scope",
        Some((Some("crun"), "web")),
        None,
    ),
    row("/system.slice/runc-.scope", None, Some("runc-.scope")),
    row("/system.slice/run-r1.scope", None, Some("run-r1.scope")),
    // lxc, src/lxc/cgroups/cgroup.h and cgfsng.c: its own names, and those of a pattern. LXD and
    // Incus have lxc name them; incus, internal/server/project/project.go, puts the project before
    // the name.
    row("/lxc.payload.web", Some((LXC, "web")), None),
    row(
        "/lxc.payload.web/init.scope",
        Some((LXC, "web")),
        Some("init.scope"),
    ),
    row("/lxc.payload.shop_web", Some((LXC, "shop_web")), None),
    row("/lxc.payload.", None, None),
    row("/lxc.monitor.web", None, None),
    row("/lxc/web", Some((LXC, "web")), None),
    row("/lxc/web/payload", Some((LXC, "web")), None),
    row("/lxc/web/monitor", None, None),
    row("/lxc/lxc.payload.web", Some((LXC, "web")), None),
    row("/lxc/lxc.monitor.web", None, None),
    row("/lxc/lxc.pivot", None, None),
    // pve-container, src/PVE/LXC.pm: lxc.cgroup.dir.container.inner.
    row(
        "/lxc/101/ns/system.slice/ssh.service",
        Some((LXC, "101")),
        Some("ssh.service"),
    ),
    row("/lxc.monitor/101", None, None),
    // systemd, units/systemd-nspawn@.service.in; src/nspawn/nspawn-cgroup.c, create_subcgroup;
    // src/machine/machine.c, machine_start_scope: a unit that there is already, and a scope of its
    // own.
    row(
        "/machine.slice/systemd-nspawn@web.service/payload/system.slice/ssh.service",
        Some((NSPAWN, "web")),
        Some("ssh.service"),
    ),
    row(
        "/machine.slice/systemd-nspawn@web.service/supervisor",
        None,
        Some("systemd-nspawn@web.service"),
    ),
    row(
        r"/machine.slice/machine-web\x2d1.scope/payload",
        Some((NSPAWN, "web-1")),
        Some(r"machine-web\x2d1.scope"),
    ),
    row(
        r"/machine.slice/machine-\xqq\x.scope/payload",
        Some((NSPAWN, r"\xqq\x")),
        Some(r"machine-\xqq\x.scope"),
    ),
    row(
        "/system.slice/web.service/payload",
        None,
        Some("web.service"),
    ),
    // libvirt, src/util/virsystemd.c: a virtual machine.
    row(
        r"/machine.slice/machine-qemu\x2d1\x2dweb.scope/libvirt/emulator",
        None,
        Some(r"machine-qemu\x2d1\x2dweb.scope"),
    ),
    // One in another: docker in docker, with either driver on both sides.
    row(
        "/system.slice/docker-Z.scope/docker/A",
        Some((DOCKER, "A")),
        None,
    ),
    row(
        "/docker/Z/system.slice/docker-A.scope",
        Some((DOCKER, "A")),
        None,
    ),
    row("/docker/Z/docker/A", Some((DOCKER, "A")), None),
    row("/docker/A/docker/A", Some((DOCKER, "A")), None),
    row("/docker/Z/default/A", Some((CONTAINERD, "A")), None),
    row("/lxc.payload.web/docker/A", Some((DOCKER, "A")), None),
    row("/lxc/101/ns/docker/A", Some((DOCKER, "A")), None),
    row(
        "/lxc.payload.web/system.slice/docker-A.scope",
        Some((DOCKER, "A")),
        None,
    ),
    row(
        "/lxc.payload.web/lxc.payload.mail",
        Some((LXC, "mail")),
        None,
    ),
    row(
        "/lxc.payload.web/lxc.monitor.mail",
        Some((LXC, "web")),
        None,
    ),
    row("/docker/Z/lxc/web", Some((LXC, "web")), None),
    row(
        "/machine.slice/systemd-nspawn@web.service/payload/machine.slice/libpod-A.scope/container",
        Some((PODMAN, "A")),
        Some("systemd-nspawn@web.service"),
    ),
    pod(
        "/kubepods/burstable/podUID/Z/docker/A",
        Some((DOCKER, "A")),
        None,
    ),
    // kind, images/base/files/kind/bin/create-kubelet-cgroup-v2.sh; k3d has k3s, whose driver is
    // cgroupfs, in docker.
    pod(
        "/system.slice/docker-Z.scope/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-podU_I_D.slice/cri-containerd-A.scope",
        Some((CONTAINERD, "A")),
        None,
    ),
    pod(
        "/docker/Z/kubelet/kubepods/besteffort/podUID/A",
        Some((None, "A")),
        None,
    ),
    pod(
        "/system.slice/docker-Z.scope/kubepods/podUID/A",
        Some((None, "A")),
        None,
    ),
];

#[test]
fn paths_tell_of_containers_units_and_pods() {
    let fill = |text: &str| {
        text.replace("U_I_D", &UID.replace('-', "_"))
            .replace("UID", UID)
            // Only where it is a word of its own, or ends a name.
            .split('/')
            .map(|word| match word.find(['A', 'Z']) {
                Some(at) => word.replace(&word[at..=at], if &word[at..=at] == "A" { A } else { Z }),
                None => word.to_owned(),
            })
            .collect::<Vec<_>>()
            .join("/")
    };
    for row in PATHS {
        let path = fill(row.path);
        let origin = Origin::from_cgroup_path(&path);
        let container = origin
            .container
            .as_ref()
            .map(|container| (container.runtime, container.id.as_str()));
        let expected = row.container.map(|(runtime, id)| (runtime, fill(id)));
        let expected = expected
            .as_ref()
            .map(|(runtime, id)| (*runtime, id.as_str()));
        assert_eq!(container, expected, "{path}");
        assert_eq!(origin.unit, row.unit.map(fill), "{path}");
        assert_eq!(
            origin.pod.as_deref(),
            row.is_in_pod.then_some(UID),
            "{path}"
        );
        assert_eq!(origin.cgroup_path.as_deref(), Some(path.as_str()));
    }
}

#[test]
fn static_pods_have_a_uid_without_dashes() {
    let origin = Origin::from_cgroup_path("/kubepods.slice/kubepods-pod0123456789abcdef.slice");
    assert_eq!(origin.pod.as_deref(), Some("0123456789abcdef"));
}

const MOUNTS: &str = "\
24 1 0:22 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw
25 1 0:22 /system.slice /my\\040cgroups rw - cgroup2 cgroup2 rw
26 1 0:22 /../.. /host rw master:1 propagate_from:2 - cgroup2 cgroup2 rw
27 1 0:23 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
28 1 0:24 / /cgroup2 rw - tmpfs cgroup2 rw
";

#[test]
fn mounts_show_the_hierarchy_or_a_part_of_it() {
    let mounts = Hierarchy::mounted(MOUNTS.as_bytes());
    let [whole, part, host] = mounts.as_slice() else {
        panic!("three mounts, and not {mounts:?}");
    };
    // A path of `/proc/PID/cgroup`, below which mount, and what it is called then.
    for (path, mount, name) in [
        ("/", whole, Some("/")),
        (
            "/system.slice/a.service",
            whole,
            Some("/system.slice/a.service"),
        ),
        ("/../..", whole, None),
        ("/../other", whole, None),
        ("/system.slice", part, Some("/system.slice")),
        (
            "/system.slice/a.service",
            part,
            Some("/system.slice/a.service"),
        ),
        ("/user.slice", part, None),
        ("/system.slices", part, None),
        ("/../..", host, Some("/")),
        ("/../../system.slice", host, Some("/system.slice")),
        ("/../../../system.slice", host, None),
        // What is below the namespace of this process cannot be found from above it without its
        // name.
        ("/", host, None),
        ("/../other", host, None),
    ] {
        let found = mount.below(OsStr::new(path)).map(|below| mount.name(below));
        assert_eq!(found.as_deref(), name, "{path} in {mount:?}");
    }
    assert!(format!("{part:?}").contains("/my cgroups"), "{part:?}");
}

/// A directory that is deleted when dropped.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("ifmon-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory can be made");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_directory_is_found_by_its_inode_number() {
    let folder = Folder::new("origin-tree");
    let root = folder.0.as_path();
    let below = root.join("a/b/c.service");
    fs::create_dir_all(&below).expect("directories can be made");
    fs::create_dir_all(root.join("d")).expect("directories can be made");
    fs::write(root.join("a/file"), "").expect("a file can be made");
    let inode = |path: &Path| fs::metadata(path).expect("it exists").ino();
    for (name, prefix) in [("/", ""), ("/system.slice", "/system.slice")] {
        let tree = Tree::read(root, name.to_owned());
        let path = |path: &Path| tree.path(inode(path));
        assert_eq!(path(&below), Some(format!("{prefix}/a/b/c.service")));
        assert_eq!(path(&root.join("d")), Some(format!("{prefix}/d")));
        assert_eq!(path(root).as_deref(), Some(name));
        assert_eq!(path(&root.join("a/file")), None);
        assert_eq!(tree.path(0), None);
    }
    assert_eq!(
        Tree::read(&root.join("nowhere"), "/".to_owned()).path(0),
        None
    );
}

/// A clock that stands still but while a search takes its time.
struct Host<'a> {
    folder: &'a Path,
    now: Cell<Instant>,
    searches: Cell<u32>,
    search_takes: Duration,
}

impl<'a> Host<'a> {
    fn new(folder: &'a Folder, search_takes: Duration) -> Self {
        Self {
            folder: &folder.0,
            now: Cell::new(Instant::now()),
            searches: Cell::new(0),
            search_takes,
        }
    }

    /// Asks for a cgroup whose process has ended.
    fn ask(&self, memory: &mut CgroupMemory, cgroup: u64) -> Option<String> {
        let search = || {
            self.searches.set(self.searches.get() + 1);
            self.now.set(self.now.get() + self.search_takes);
            Tree::read(self.folder, "/".to_owned())
        };
        memory
            .origin(cgroup, || self.now.get(), || None, search)
            .cgroup_path
    }

    fn make(&self, name: &str) -> u64 {
        let path = self.folder.join(name);
        fs::create_dir_all(&path).expect("a directory can be made");
        fs::metadata(&path).expect("it exists").ino()
    }
}

#[test]
fn a_cgroup_that_is_gone_costs_one_search() {
    let folder = Folder::new("origin-gone");
    let host = Host::new(&folder, Duration::ZERO);
    let mut memory = CgroupMemory::default();
    for _ in 0..100 {
        assert_eq!(host.ask(&mut memory, u64::MAX), None);
    }
    assert_eq!(host.searches.get(), 1);
    // Others in between push it out only in the end.
    for other in 1..REMEMBERED as u64 {
        host.ask(&mut memory, u64::MAX - other);
    }
    let before = host.searches.get();
    host.ask(&mut memory, u64::MAX);
    assert_eq!(host.searches.get(), before);
    assert_eq!(memory.origins.len(), REMEMBERED);
    host.ask(&mut memory, u64::MAX - REMEMBERED as u64);
    assert_eq!(memory.origins.len(), REMEMBERED);
}

#[test]
fn one_search_serves_all_cgroups_that_there_are() {
    let folder = Folder::new("origin-all");
    let host = Host::new(&folder, Duration::ZERO);
    let mut memory = CgroupMemory::default();
    let cgroups: Vec<_> = (0..100)
        .map(|each| host.make(&format!("{each}.service")))
        .collect();
    for (each, &cgroup) in cgroups.iter().enumerate() {
        let found = host.ask(&mut memory, cgroup);
        assert_eq!(found, Some(format!("/{each}.service")));
    }
    assert_eq!(host.searches.get(), 1);
    let new = host.make("new.service");
    assert_eq!(host.ask(&mut memory, new).as_deref(), Some("/new.service"));
    assert_eq!(host.searches.get(), 2);
}

#[test]
fn searches_take_a_small_part_of_the_time() {
    let folder = Folder::new("origin-budget");
    let host = Host::new(&folder, Budget::<20>::BURST / 2);
    let mut memory = CgroupMemory::default();
    let late = host.make("late.service");
    for gone in 0..100 {
        host.ask(&mut memory, u64::MAX - gone);
    }
    assert_eq!(
        host.searches.get(),
        3,
        "the last one is what goes beyond the burst"
    );
    // It is in the tree of the last search.
    assert!(host.ask(&mut memory, late).is_some());
    let later = host.make("later.service");
    assert_eq!(host.ask(&mut memory, later), None);
    // What was not looked for is not taken for gone.
    host.now.set(host.now.get() + Budget::<20>::BURST * 20);
    assert_eq!(
        host.ask(&mut memory, later).as_deref(),
        Some("/later.service")
    );
}
