//! Answers questions about the devices of one namespace, from outside: rtnetlink and sysfs.

use std::{ffi::OsString, io};

use crate::{
    Netns, NetnsId,
    machine::{Answer, Question},
    netlink::{query::Query, sysfs::Sysfs},
    tracker::Place,
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
}

impl Inquiry {
    pub(crate) fn new(netns: &Netns) -> io::Result<Self> {
        Ok(Self {
            netns: netns.clone(),
            query: Query::new(netns)?,
            sysfs: None,
            named: None,
        })
    }

    /// Opens the socket anew. The sysfs is kept: the right to mount another one may have been given
    /// up since.
    pub(crate) fn open_again(&mut self) -> io::Result<()> {
        self.query = Query::new(&self.netns)?;
        Ok(())
    }

    /// Gets ready for questions about inodes.
    pub(crate) fn open_sysfs(&mut self) -> &Sysfs {
        let Self {
            netns,
            query,
            sysfs,
            named: _,
        } = self;
        sysfs.get_or_insert_with(|| Sysfs::new(netns, query))
    }

    pub(crate) fn netns(&self) -> &Netns {
        &self.netns
    }

    pub(crate) fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::IndexOf(name) => Answer::Index(self.query.by_name(&name)),
            Question::NameOf(ifindex) => Answer::Name(self.query.by_index(ifindex)),
            Question::InodeOf(name) => Answer::Inode(self.open_sysfs().inode_of(&name)),
            Question::IdentityOf(name) => Answer::Identity(self.open_sysfs().identity_of(&name)),
            Question::NetnsOf(nsid) => Answer::Netns(self.netns_of(nsid)),
            Question::WhereIs(inode) => Answer::Place(self.find(inode)),
            Question::Table => {
                // Questions about inodes follow, and the right to mount one may be given up by
                // then.
                self.open_sysfs();
                Answer::Table(self.query.table())
            }
            Question::Barrier => Answer::Waited(self.query.wait_for_changes()),
        }
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
    fn find(&mut self, inode: u64) -> Option<Place> {
        self.find_here(inode).or_else(|| {
            Netns::names().find_map(|(name, _)| {
                let netns = Netns::named(&name).ok()?;
                Self::new(&netns).ok()?.find_here(inode)
            })
        })
    }

    fn find_here(&mut self, inode: u64) -> Option<Place> {
        let name = self.open_sysfs().find(inode)?;
        Some(Place {
            netns: Some(self.netns.id()),
            ifindex: self.query.by_name(&name).ok().flatten(),
            name: Some(name),
        })
    }
}
