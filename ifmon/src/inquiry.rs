//! Answers questions about the devices of one namespace, from outside: rtnetlink and sysfs.

use std::{collections::HashMap, ffi::OsString, io};

use crate::{
    Identity, InterfaceName, Netns, NetnsId,
    machine::{Answer, Census, Counted, LinkTable, Question},
    netlink::{query::Query, sysfs::Sysfs},
    tracker::Destination,
};

/// Whom to ask about a namespace. It keeps the namespace alive.
#[derive(Debug)]
pub(crate) struct Inquiry {
    netns: Netns,
    query: Query,
    /// Opened at the first question about an inode, or before the right to do so is given up.
    sysfs: Option<Sysfs>,
    /// The namespace that an id was found to stand for last, by the name of `ip netns`.
    named: Option<(i32, OsString)>,
    /// Where devices are, by their inodes: in this namespace, and in those for which `ip netns` has a
    /// name. There may be thousands that are looked for, one after the other.
    whereabouts: Option<HashMap<u64, Destination>>,
}

impl Inquiry {
    pub(crate) fn new(netns: &Netns) -> io::Result<Self> {
        Ok(Self {
            netns: netns.clone(),
            query: Query::new(netns)?,
            sysfs: None,
            named: None,
            whereabouts: None,
        })
    }

    /// Opens the socket anew. The sysfs is kept: the right to mount another one may have been given
    /// up since.
    pub(crate) fn open_again(&mut self) -> io::Result<()> {
        self.query = Query::new(&self.netns)?;
        Ok(())
    }

    /// Gets ready for questions about inodes; an error where that is worth another attempt.
    pub(crate) fn open_sysfs(&mut self) -> io::Result<&Sysfs> {
        let Self {
            netns,
            query,
            sysfs,
            named: _,
            whereabouts: _,
        } = self;
        Ok(match sysfs {
            Some(sysfs) => sysfs,
            None => sysfs.insert(Sysfs::new(netns, query)?),
        })
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    pub(crate) fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::IndexOf(name) => Answer::Index(self.query.by_name(&name)),
            Question::NameOf(ifindex) => Answer::Name(self.query.by_index(ifindex)),
            Question::InodeOf(name) => Answer::Inode(self.inode_of(&name)),
            Question::IdentityOf(name) => Answer::Identity(self.identity_of(&name)),
            Question::NetnsOf(nsid) => Answer::Netns(self.netns_of(nsid)),
            Question::WhereIs(inode) => Answer::Place(self.find(inode)),
            Question::Table => {
                // Questions about inodes follow, and the right to mount one may be given up by
                // then.
                let is_open = self.open_sysfs().map(|_| ());
                Answer::Table(is_open.and_then(|()| self.table(usize::MAX)))
            }
            Question::Census(most) => Answer::Census(self.census(most)),
            Question::Barrier => Answer::Waited(self.query.wait_for_changes()),
        }
    }

    fn inode_of(&mut self, name: &InterfaceName) -> io::Result<Option<u64>> {
        self.open_sysfs()?.inode_of(name)
    }

    fn identity_of(&mut self, name: &InterfaceName) -> io::Result<Option<Identity>> {
        let Ok(found) = self.open_sysfs()?.identity_of(name) else {
            // That takes descriptors. This does not, and is about one device, too, if it has the name
            // before and after.
            let before = self.inode_of(name)?;
            let ifindex = self.query.by_name(name)?;
            let inode = self.inode_of(name)?.filter(|inode| before == Some(*inode));
            let found = ifindex.zip(inode);
            return Ok(found.map(|(it, inode)| Identity::of_ifindex(it).with_inode(inode)));
        };
        Ok(found)
    }

    /// All devices, or more than these.
    fn table(&mut self, most: usize) -> io::Result<LinkTable> {
        let table = self.query.table(most);
        // What is still to come of the answer goes with the socket.
        let has_more = |table: &LinkTable| table.links.len() > most;
        let opened = if table.as_ref().map_or(true, has_more) {
            self.open_again()
        } else {
            Ok(())
        };
        let table = table?;
        opened.map(|()| table)
    }

    /// Who has which name, where that are no more devices than these.
    fn census(&mut self, most: usize) -> io::Result<Option<Census>> {
        // The list is bounded first: it costs the least.
        let Some(inodes) = self.open_sysfs()?.virtual_devices(most)? else {
            return Ok(None);
        };
        let inodes: HashMap<_, _> = inodes.into_iter().collect();
        let table = self.table(most)?;
        if table.links.len() > most || table.is_interrupted {
            return Ok(None);
        }
        let sysfs = self.open_sysfs()?;
        let lines = table.links.into_iter().map(|(ifindex, named)| {
            let name = named.name;
            let inode = match inodes.get(&name) {
                Some(&inode) => Some(inode),
                None => sysfs.inode_of(&name)?,
            };
            Ok(Counted {
                name,
                ifindex,
                inode,
            })
        });
        Ok(Some(Census::new(lines.collect::<io::Result<_>>()?)))
    }

    /// The namespace that has this id in the numbering of the one asked, if `ip netns` has a name
    /// for it.
    fn netns_of(&mut self, nsid: i32) -> Option<NetnsId> {
        // The kernel gives an id again when its namespace has ended, so the last answer is no more
        // than the first to be tried.
        let last = self.named.take().filter(|(known, _)| *known == nsid);
        let last = last.map(|(_, name)| name);
        for name in last.into_iter().chain(Netns::names().map(|(name, _)| name)) {
            let Ok(netns) = Netns::named(&name) else {
                continue;
            };
            if let Ok(Some(found)) = self.query.nsid_of(&netns)
                && found == nsid
            {
                self.named = Some((nsid, name));
                return Some(netns.id());
            }
        }
        None
    }

    /// Where the device with this inode is: in this namespace, or in one for which `ip netns` has a
    /// name.
    fn find(&mut self, inode: u64) -> Option<Destination> {
        if self.whereabouts.is_none() {
            let mut all = HashMap::new();
            let mut surveyed = self.survey(&mut all);
            for (name, netns) in Netns::names() {
                if netns != self.netns.id()
                    // It may have ended since.
                    && let Ok(netns) = Netns::named(&name)
                {
                    let other = Self::new(&netns);
                    surveyed = surveyed.and(other.and_then(|mut other| other.survey(&mut all)));
                }
            }
            // Those that it has no right to enter it never searches.
            if let Err(error) = surveyed
                && error.kind() != io::ErrorKind::PermissionDenied
            {
                log::warn!(
                    "not all network namespaces with a name are searched for a device: {error}; \
                     one that went there is told as deleted"
                );
            }
            self.whereabouts = Some(all);
        }
        self.whereabouts.as_ref()?.get(&inode).copied()
    }

    /// Enters the devices of this namespace.
    fn survey(&mut self, all: &mut HashMap<u64, Destination>) -> io::Result<()> {
        let netns = self.netns.id();
        let table = self.table(usize::MAX);
        let indexes = table.iter().flat_map(|table| &table.links);
        let indexes: HashMap<_, _> = indexes.map(|&(ifindex, it)| (it.name, ifindex)).collect();
        for (name, inode) in self.open_sysfs()?.devices() {
            all.entry(inode).or_insert(Destination {
                netns: Some(netns),
                ifindex: indexes.get(&name).copied(),
                name: Some(name),
            });
        }
        table.map(|_| ())
    }

    /// All that were looked for were found, or not.
    pub(crate) fn has_found(&mut self) {
        self.whereabouts = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_census_says_what_questions_say() {
        let netns = Netns::current().expect("it can be opened");
        let mut inquiry = Inquiry::new(&netns).expect("it can be asked");
        let links = inquiry.query.table(usize::MAX).expect("it is answered");
        let names: Vec<_> = links.links.iter().map(|(_, named)| named.name).collect();
        // Other tests make none here, and others than tests may.
        let counted = (0..100).find_map(|_| inquiry.census(names.len()).expect("it is answered"));
        let census = counted.expect("links do not come and go all the time");
        for name in names {
            let line = census.by_name(name).expect("it is counted");
            let ifindex = inquiry.query.by_name(&name).expect("it is answered");
            assert_eq!(ifindex, Some(line.ifindex), "{name}");
            let inode = inquiry.inode_of(&name);
            assert_eq!(inode.expect("it is answered"), line.inode, "{name}");
        }
    }
}
