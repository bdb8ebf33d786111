//! What the watched network namespaces are called.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fs::File,
};

use ifmon::{Netns, NetnsId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::output::stderr::printable;

/// The names, looked up once, when the watches begin: a name can be taken away later. Where all
/// namespaces are watched, there are others by then.
#[derive(Debug)]
pub(crate) struct Namespaces {
    own: Option<NetnsId>,
    /// All names of `ip netns`.
    named: Vec<(OsString, NetnsId)>,
    /// Those of the namespaces that are watched.
    names: BTreeMap<NetnsId, OsString>,
    /// Where all are watched: the table of mounts, which says when it has changed.
    mounts: Option<File>,
}

impl Namespaces {
    pub(crate) fn new() -> Self {
        Self {
            own: Netns::current().ok().map(|netns| netns.id()),
            named: Netns::names().collect(),
            names: BTreeMap::new(),
            mounts: None,
        }
    }

    /// All namespaces are watched, those to come as well.
    pub(crate) fn learn_all(&mut self) {
        self.names = Netns::names().map(|(name, id)| (id, name)).collect();
        self.mounts = File::open("/proc/self/mountinfo").ok();
    }

    /// Something was told of a namespace. A name comes and goes with a mount, and with the number of one
    /// that has ended comes another: so names are as they are now.
    pub(crate) fn look_again(&mut self) {
        let Some(mounts) = &self.mounts else {
            return;
        };
        let mut changes = [PollFd::new(mounts, PollFlags::PRI)];
        if poll(&mut changes, Some(&Timespec::default())).is_ok_and(|changed| changed > 0) {
            self.names = Netns::names().map(|(name, id)| (id, name)).collect();
        }
    }

    /// A namespace is watched; the name that it was asked for by is preferred.
    pub(crate) fn add(&mut self, netns: NetnsId, asked: Option<&OsStr>) {
        let mut names = self.named.iter().filter(|(_, id)| *id == netns);
        let first = names.clone().next();
        let name = names.find(|(name, _)| asked == Some(name)).or(first);
        if let Some((name, _)) = name {
            self.names.insert(netns, name.clone());
        }
    }

    /// All watched ones are known.
    pub(crate) fn complete(&mut self) {
        self.named = Vec::new();
    }

    /// The name of a watched one, where it has one.
    pub(crate) fn name(&self, netns: NetnsId) -> Option<&OsStr> {
        self.names.get(&netns).map(OsString::as_os_str)
    }

    /// What comes after an interface's name in a sentence: nothing for the namespace of ifmon.
    pub(crate) fn whereabouts(&self, netns: NetnsId) -> String {
        if self.own == Some(netns) {
            String::new()
        } else if netns == NetnsId::ALL {
            " in all network namespaces".to_owned()
        } else {
            format!(" in {}", self.describe(netns, self.name(netns)))
        }
    }

    /// Names a namespace for a person.
    pub(crate) fn describe(&self, netns: NetnsId, name: Option<&OsStr>) -> String {
        match name {
            Some(name) => format!("namespace {}", printable(&name.to_string_lossy())),
            None if self.own == Some(netns) => "the namespace of ifmon".to_owned(),
            None => format!("namespace {netns}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_that_was_asked_for_is_preferred_and_nothing_reaches_a_terminal() {
        let name = OsString::from;
        let mut namespaces = Namespaces {
            own: Some(NetnsId(1)),
            named: vec![
                (name("first"), NetnsId(2)),
                (name("second"), NetnsId(2)),
                (name("\u{1b}[31mred"), NetnsId(3)),
            ],
            names: BTreeMap::new(),
            mounts: None,
        };
        namespaces.add(NetnsId(1), None);
        namespaces.add(NetnsId(2), None);
        assert_eq!(namespaces.name(NetnsId(2)), Some(OsStr::new("first")));
        namespaces.add(NetnsId(2), Some(OsStr::new("second")));
        assert_eq!(namespaces.name(NetnsId(2)), Some(OsStr::new("second")));
        namespaces.add(NetnsId(2), Some(OsStr::new("/proc/1/ns/net")));
        assert_eq!(namespaces.name(NetnsId(2)), Some(OsStr::new("first")));
        namespaces.add(NetnsId(3), None);
        for (netns, shown) in [
            (1, ""),
            (2, " in namespace first"),
            (3, " in namespace \\u{1b}[31mred"),
            (4, " in namespace 4"),
            (0, " in all network namespaces"),
        ] {
            assert_eq!(namespaces.whereabouts(NetnsId(netns)), shown);
        }
    }
}
