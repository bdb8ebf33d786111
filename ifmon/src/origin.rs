//! Where a change came from: the container, the pod and the unit of the process that made it, read
//! from the path of its cgroup.

mod hierarchy;
mod path;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, time::Instant};

use self::hierarchy::{Hierarchy, Tree};
use crate::{Actor, budget::Budget};

/// Cgroups that are remembered, those included that were looked for in vain.
const REMEMBERED: usize = 512;

/// Where an actor comes from, as far as the path of its cgroup shows it.
///
/// The names of cgroups are a convention among those who make them. Whoever may make a cgroup may
/// give it any name, so a process with that right can pass for a container that it is not in. Use
/// this to tell people, not to decide what somebody may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Origin {
    /// Path of the cgroup in the hierarchy of version 2, as this process sees it. What is not
    /// UTF-8 is U+FFFD.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub cgroup_path: Option<String>,
    /// The innermost container.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub container: Option<Container>,
    /// The innermost service or scope of systemd that is no container itself. It can lie around
    /// the container (podman's quadlets) or inside (a container that runs systemd).
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub unit: Option<String>,
    /// The uid of the innermost pod of Kubernetes.
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "Option::is_none"))]
    pub pod: Option<String>,
}

/// A container, as the name of its cgroup shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Container {
    /// `docker`, `containerd`, `cri-o`, `podman`, `lxc` (which LXD and Incus use too),
    /// `systemd-nspawn`, `runc` or `crun`. `None` where the path does not show it: in a pod, some
    /// runtimes write the id alone.
    pub runtime: Option<&'static str>,
    /// The id that the runtime gave it; with `lxc` and `systemd-nspawn` this is its name.
    pub id: String,
}

impl Origin {
    /// What the path of a cgroup says, such as `/system.slice/ssh.service`. Looks nothing up.
    pub fn from_cgroup_path(path: &str) -> Self {
        path::origin(path)
    }
}

/// Finds out where actors come from.
///
/// ```
/// # fn show(event: &ifmon::Event, origins: &mut ifmon::Origins) {
/// if let Some(actor) = &event.by {
///     match origins.of(actor).container {
///         Some(container) => println!("{:?} in container {}", actor.comm, container.id),
///         None => println!("{:?}", actor.comm),
///     }
/// }
/// # }
/// # let _ = show;
/// ```
///
/// It reads `/proc/PID/cgroup`, or searches the hierarchy of cgroups when the process has ended;
/// both block, for microseconds mostly. What was found is remembered, and so is what was not. That
/// can be done because a cgroup of version 2 is never renamed or moved, and its id is not used
/// again.
#[derive(Debug)]
pub struct Origins {
    hierarchy: Option<Hierarchy>,
    memory: CgroupMemory,
}

impl Origins {
    /// Looks where cgroups of version 2 are mounted. Where they are not, nothing is found.
    pub fn new() -> Self {
        Self {
            hierarchy: Hierarchy::find(),
            memory: CgroupMemory::default(),
        }
    }

    /// Where an actor comes from. Its process may have ended by now, its cgroup mostly not.
    pub fn of(&mut self, actor: &Actor) -> Origin {
        let Self { hierarchy, memory } = self;
        // A kernel thread acts for somebody else, and its cgroup says nothing about who that is.
        let (Some(hierarchy), Some(cgroup)) = (hierarchy, actor.cgroup) else {
            return Origin::default();
        };
        if actor.kthread == Some(true) {
            return Origin::default();
        }
        memory.origin(
            cgroup,
            Instant::now,
            || hierarchy.path_of_process(actor.pid?, cgroup),
            || hierarchy.tree(),
        )
    }
}

impl Default for Origins {
    fn default() -> Self {
        Self::new()
    }
}

/// What is known of cgroups. Does no I/O itself: it is handed what does.
#[derive(Debug, Default)]
struct CgroupMemory {
    /// The one that was asked for last is at the end. An empty origin is one that was looked for
    /// in vain.
    origins: VecDeque<(u64, Origin)>,
    /// Every cgroup of the last search: one search serves all that have been made before it.
    tree: Tree,
    /// A host where many short-lived cgroups change interfaces would cost a search for each of
    /// them, which are gone before they can be found.
    budget: Budget<20>,
}

impl CgroupMemory {
    fn origin(
        &mut self,
        cgroup: u64,
        now: impl Fn() -> Instant,
        path_of_process: impl FnOnce() -> Option<String>,
        search: impl FnOnce() -> Tree,
    ) -> Origin {
        let known = self.origins.iter().rposition(|(id, _)| *id == cgroup);
        let origin = if let Some((_, origin)) = known.and_then(|at| self.origins.remove(at)) {
            origin
        } else if let Some(path) = path_of_process().or_else(|| self.tree.path(cgroup)) {
            path::origin(&path)
        } else {
            let begin = now();
            if !self.budget.allows(begin) {
                return Origin::default();
            }
            self.tree = search();
            self.budget.spend(now().saturating_duration_since(begin));
            self.tree
                .path(cgroup)
                .map_or_else(Origin::default, |path| path::origin(&path))
        };
        if self.origins.len() == REMEMBERED {
            self.origins.pop_front();
        }
        self.origins.push_back((cgroup, origin.clone()));
        origin
    }
}
