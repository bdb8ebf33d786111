//! Forgets devices that nobody needs any more.
//!
//! A device that took a watched name is remembered until it is deleted: so the programs know it when
//! it comes back. Where there are many they forget those that can be missed, some with each change
//! (`forget` in `ifmon-ebpf/src/filter.rs`). A program on a socket does so in the namespace of the
//! change, and does not hear of devices in one that was left: those are forgotten here.
//!
//! Here, too, what is known of a namespace is found out anew where a watch that is to begin finds no room,
//! or nothing changes and so nothing is forgotten. A program on a function hears of every device, and can
//! have found one right before it is forgotten from outside: what becomes of that one would be lost.

use std::{collections::BTreeMap, io};

use ifmon_ebpf::{DeviceState, Link};

use super::{
    Reply, Request,
    begin::count_own,
    core::{Bpf, Hook},
};
use crate::{Error, NetnsId};

/// How much may be remembered that nobody needs.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// How many names have ceased to be watched since it was looked whose devices are remembered.
    pub(super) unwatched: usize,
    /// There is no room for a watch that is to begin.
    wants_room: bool,
    /// It was tried to make some for it.
    has_made_room: bool,
}

/// How far forgetting is.
#[derive(Debug)]
pub(super) enum Tidy {
    /// What is remembered? So many may be that nobody needs.
    Devices(usize),
    Forget(Forgetting),
}

impl Tidy {
    /// What to ask for next, if there is anything.
    pub(super) fn request(&self) -> Option<Request> {
        match self {
            Self::Devices(_) => Some(Request::Devices),
            Self::Forget(forgetting) => forgetting.request(),
        }
    }
}

/// Devices that are forgotten, one after the other: first nobody finds it any more, then it is gone.
#[derive(Debug)]
pub(super) struct Forgetting {
    devices: Vec<(Link, u64)>,
    /// The last of them is not found any more.
    is_link_gone: bool,
}

impl Forgetting {
    pub(super) const fn new(devices: Vec<(Link, u64)>) -> Self {
        Self {
            devices,
            is_link_gone: false,
        }
    }

    /// What is to be done next, if anything is left.
    pub(super) fn request(&self) -> Option<Request> {
        let (link, id) = *self.devices.last()?;
        Some(if self.is_link_gone {
            Request::RemoveDevice(id)
        } else {
            Request::RemoveLink(link)
        })
    }

    /// That is done.
    pub(super) fn done(mut self) -> Self {
        if self.is_link_gone {
            self.devices.pop();
        }
        self.is_link_gone = !self.is_link_gone;
        self
    }
}

impl Bpf {
    /// What is to be looked for, when there is nothing else to do.
    pub(super) fn next_tidying(&mut self) -> Option<Tidy> {
        if !self.is_untidy() {
            return None;
        }
        let Leftovers {
            unwatched,
            wants_room,
            ..
        } = &mut self.leftovers;
        *unwatched = 0;
        let spare = if std::mem::take(wants_room) {
            0
        } else {
            self.room / 2
        };
        Some(Tidy::Devices(spare))
    }

    fn is_untidy(&self) -> bool {
        let Leftovers {
            unwatched,
            wants_room,
            ..
        } = self.leftovers;
        self.hook == Hook::Socket && (wants_room || unwatched > self.room / 8)
    }

    /// Has a watch of so many names to wait until room was made for it?
    pub(super) fn waits_for_room(&mut self, names: usize) -> bool {
        let is_crowded = self.hook == Hook::Socket && self.devices + names > self.room;
        let leftovers = &mut self.leftovers;
        if is_crowded && !std::mem::replace(&mut leftovers.has_made_room, true) {
            leftovers.wants_room = true;
        }
        // Namespaces that are looked at anew are what makes the room.
        let is_making = self.leftovers.has_made_room && !self.missed.is_empty();
        let waits = self.is_untidy() || is_making;
        self.leftovers.has_made_room &= waits;
        waits
    }

    /// Goes on with the answer to what was asked.
    pub(super) fn tidied(&mut self, tidy: Tidy, reply: Reply) -> Option<Tidy> {
        match (tidy, reply) {
            (Tidy::Devices(spare), Reply::Devices(Ok(devices))) => {
                let is_heard_of = |(_, device): &(u64, DeviceState)| {
                    let netns = NetnsId(device.place.netns);
                    self.namespaces.contains_key(&netns)
                };
                let (here, left): (Vec<_>, Vec<_>) = devices.into_iter().partition(is_heard_of);
                self.devices = count_own(&here);
                self.make_room(&here, spare);
                let left = left.iter();
                let left = left.map(|(id, device)| (Link::of(&device.place), *id));
                Some(Tidy::Forget(Forgetting::new(left.collect())))
            }
            // It can be looked for when other names have ceased to be watched.
            (Tidy::Devices(_), _) => None,
            (Tidy::Forget(forgetting), _) => Some(Tidy::Forget(forgetting.done())),
        }
    }

    /// In a namespace that is watched still, a device counts as the last holder of a name also when that
    /// name is not watched any more, until it is deleted; where such devices take too much room, what is
    /// known of their namespaces is found out anew.
    fn make_room(&mut self, devices: &[(u64, DeviceState)], spare: usize) {
        if devices.len() <= self.watches.len() + spare {
            return;
        }
        let mut here: BTreeMap<NetnsId, usize> = BTreeMap::new();
        for (_, device) in devices {
            *here.entry(NetnsId(device.place.netns)).or_default() += 1;
        }
        let mean = devices.len() / here.len().max(1);
        let many = here.into_iter().filter(|&(_, count)| count >= mean);
        self.missed.extend(many.map(|(netns, _)| netns));
        self.has_missed = true;
    }

    /// There was no room for a device that took a watched name: the maps are wrong about who has it.
    pub(super) fn had_no_room(&mut self) {
        self.has_missed = true;
        match self.hook {
            Hook::Socket => self.missed.extend(self.namespaces.keys()),
            Hook::Function => {
                self.failed = Some(Error::Ended(io::Error::other(
                    "so many interfaces are remembered that had watched names before that a change was \
                     lost; Builder::capacity makes more room",
                )));
            }
        }
    }
}
