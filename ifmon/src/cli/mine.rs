//! `--mine`: who is meant when the engine's own changes are told from those of others.

use std::fs;

/// Can it be told whose a change is? Where no hierarchy of cgroups is mounted, as in the mount namespace of
/// `ip netns exec`, they have no paths.
pub(crate) fn can_be_told() -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    mounts.lines().any(|line| line.contains(" - cgroup2 "))
}

/// Where cgroups are directories: a path may be given as it is there.
const MOUNT_POINT: &str = "/sys/fs/cgroup";

/// A unit of systemd, or a cgroup with all that is below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mine {
    Unit(String),
    Cgroup(String),
}

impl Mine {
    /// A word with a slash first is the path of a cgroup. A unit without a suffix is a service, as
    /// for `systemctl`.
    pub(crate) fn parse(word: &str) -> Result<Self, String> {
        if word.is_empty() {
            return Err("a unit or the path of a cgroup is wanted".to_owned());
        }
        if word.starts_with('/') {
            let below = word.strip_prefix(MOUNT_POINT);
            let below = below.filter(|below| below.is_empty() || below.starts_with('/'));
            let path = below.unwrap_or(word);
            return Ok(Self::Cgroup(path.trim_end_matches('/').to_owned()));
        }
        if word.contains('/') {
            return Err("the path of a cgroup begins with a slash".to_owned());
        }
        let has_suffix = [".service", ".scope", ".slice"]
            .iter()
            .any(|suffix| word.ends_with(suffix));
        let suffix = if has_suffix { "" } else { ".service" };
        Ok(Self::Unit(format!("{word}{suffix}")))
    }

    /// Is it behind a change that was made from this cgroup?
    ///
    /// A unit is one of the host's own manager: above it there are slices only. A container can
    /// call its cgroups what it likes.
    pub(crate) fn owns(&self, cgroup: &str) -> bool {
        match self {
            Self::Cgroup(path) => cgroup
                .strip_prefix(path.as_str())
                .is_some_and(|below| below.is_empty() || below.starts_with('/')),
            Self::Unit(unit) => {
                for component in cgroup.split('/').filter(|component| !component.is_empty()) {
                    if component == unit {
                        return true;
                    }
                    if !component.ends_with(".slice") {
                        return false;
                    }
                }
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mine;

    #[test]
    fn units_and_cgroups_are_told_apart_and_found() {
        for (word, cgroup, owns) in [
            (
                "wg-quick@wg0",
                "/system.slice/system-wg\\x2dquick.slice/wg-quick@wg0.service",
                true,
            ),
            (
                "wg-quick@wg0.service",
                "/system.slice/wg-quick@wg0.service/payload",
                true,
            ),
            ("wg-quick@wg0", "/system.slice/wg-quick@wg00.service", false),
            (
                "wg-quick@wg0",
                "/system.slice/docker-1.scope/system.slice/wg-quick@wg0.service",
                false,
            ),
            ("tunnels.slice", "/tunnels.slice/a.service", true),
            ("/tunnels", "/tunnels", true),
            ("/tunnels/", "/tunnels/a", true),
            ("/tunnels", "/tunnels2", false),
            ("/tunnels", "/a/tunnels", false),
            ("/", "/anything", true),
            ("/sys/fs/cgroup/tunnels", "/tunnels/a", true),
            ("/sys/fs/cgroup/tunnels", "/tunnels2", false),
            ("/sys/fs/cgroup/", "/anything", true),
            ("/sys/fs/cgroups", "/anything", false),
        ] {
            let mine = Mine::parse(word).expect("a good word");
            assert_eq!(mine.owns(cgroup), owns, "{word} {cgroup}");
        }
        assert!(Mine::parse("").is_err());
        assert!(Mine::parse("system.slice/a").is_err());
    }
}
