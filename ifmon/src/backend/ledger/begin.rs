//! Begins watches, without a moment in which a change could be missed.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use ifmon_ebpf::{DeviceState, Link, Place as WirePlace, Seed};

use super::{Known, Ledger, Program, holder, key_of};
use crate::{
    Error, InterfaceName, NetnsId, packed,
    tracker::{Device, Watch},
};

/// Answers about the links of one namespace.
pub(crate) trait Lookup {
    /// The index of the device that has this name now.
    fn by_name(&mut self, name: &InterfaceName) -> io::Result<Option<u32>>;
    /// Returns once every change that had begun before has ended; false where that cannot be known.
    fn wait_for_changes(&mut self) -> bool;
}

/// Generations from userspace have this bit, those from the kernel side do not.
const SEEDED: u64 = 1 << 63;
/// Names that are looked up at a stretch. Where nothing changes meanwhile, each is looked up once: on a host where much
/// happens that is the likelier the fewer they are.
const STRETCH: usize = if cfg!(test) { 1 } else { 128 };

impl<P: Program> Ledger<P> {
    /// Begins to watch names of a namespace, and says who holds each.
    pub(crate) fn watch(
        &mut self,
        netns: NetnsId,
        names: &[InterfaceName],
        lookup: &mut impl Lookup,
    ) -> Result<Vec<Option<Device>>, Error> {
        self.make_sure_of_room(names.len()).map_err(Error::Filter)?;
        let inserted = self.program.insert_namespace(netns.0);
        inserted.map_err(Error::Filter)?;
        let mut holders = Vec::with_capacity(names.len());
        let mut begun = Vec::with_capacity(names.len());
        for names in names.chunks(STRETCH) {
            for (watch, count, holder) in self.watch_stretch(netns, names, lookup)? {
                let generation = holder.map_or(0, |device| device.generation);
                begun.push((watch, Known { count, generation }));
                holders.push(holder);
            }
        }
        packed::extend(&mut self.watches, begun);
        Ok(holders)
    }

    /// The program takes notes about every device that has held a watched name, until it is deleted. When it has many, it
    /// keeps to those that were the last ones, at most one for each name; so there must be room for these beside the notes
    /// that it has about others already.
    fn make_sure_of_room(&mut self, names: usize) -> io::Result<()> {
        let most = self.program.most_devices();
        let devices = self.program.devices();
        let watches = self.watches.len() + names;
        if devices.len() + watches <= most {
            return Ok(());
        }
        let Self {
            program,
            watches: known,
            ..
        } = self;
        let last = |watch| Some(program.name(&key_of(watch)).ok()?.last_device);
        let last: HashSet<u64> = known.keys().filter_map(last).collect();
        let others = devices
            .iter()
            .filter(|(address, _)| !last.contains(address))
            .count();
        if others + watches <= most {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "it remembers {others} interfaces that had watched names before, until they are deleted, and has room for {most}; \
             start ifmon again"
        )))
    }

    /// Tells the program of some names, then finds out who holds each, without a moment in which a change could be missed.
    /// Says how many changes of each are known of.
    ///
    /// An answer can be out of date by the time that the program is told of it. The program counts every change of a name
    /// or a namespace that it sees, so where the count stands still nothing became out of date:
    ///
    /// 1. The count is read, and the program told of the names.
    /// 2. Changes that have begun are waited for. Those in the first count are over now, and show in every answer.
    /// 3. Each name is looked up, and the program told who holds it.
    /// 4. Changes that have begun are waited for again, then the count is read again. A change since 2 either ended before
    ///    this wait, and is counted; or it began after it, and the program knew by then all that it was told.
    ///
    /// All this holds because changes are made under RTNL one after the other, and so are the waits. If the count has
    /// moved, or waiting was refused, each name is looked up again.
    fn watch_stretch(
        &mut self,
        netns: NetnsId,
        names: &[InterfaceName],
        lookup: &mut impl Lookup,
    ) -> Result<Vec<(Watch, u64, Option<Device>)>, Error> {
        let before = self.program.counters().seen;
        let watches = names.iter().map(|&name| Watch { netns, name });
        self.epoch = self.epoch.wrapping_add(1);
        for watch in watches.clone() {
            let inserted = self.program.insert_name(key_of(&watch), self.epoch);
            inserted.map_err(Error::Filter)?;
        }
        let has_waited = lookup.wait_for_changes();
        let met = self.met();
        let mut looks = Vec::with_capacity(names.len());
        for watch in watches {
            looks.push((watch, self.look(&watch, lookup, &met)?));
        }
        let has_waited = lookup.wait_for_changes() && has_waited;
        let is_quiet = has_waited && self.program.counters().seen == before;
        looks
            .into_iter()
            .map(|(watch, look)| {
                let (count, holder) = if is_quiet {
                    (0, look)
                } else {
                    self.settle(&watch, look, lookup, &met)?
                };
                Ok((watch, count, holder))
            })
            .collect()
    }

    /// Finds out who holds a name, and tells the program.
    fn look(
        &mut self,
        watch: &Watch,
        lookup: &mut impl Lookup,
        met: &HashMap<Link, u64>,
    ) -> Result<Option<Device>, Error> {
        let mut has_waited = false;
        loop {
            let Some(ifindex) = lookup.by_name(&watch.name).map_err(Error::Recheck)? else {
                return Ok(None);
            };
            let link = link(watch, ifindex);
            let generation = met.get(&link).copied().unwrap_or_else(|| {
                self.generations += 1;
                self.generations | SEEDED
            });
            // From here on the program knows the device by its index, so a rename cannot escape it …
            let seed = Seed {
                generation,
                home: key_of(watch),
                epoch: self.epoch,
                zero: 0,
            };
            if self.sow(link, seed, has_waited).map_err(Error::Filter)? {
                return Ok(Some(Device {
                    ifindex,
                    generation,
                }));
            }
            lookup.wait_for_changes();
            has_waited = true;
        }
    }

    /// Inserts a seed. False when the device is known by another name still, unless that is to be forgotten: then it is being
    /// renamed right now, and the program must learn of that first.
    fn sow(&mut self, link: Link, seed: Seed, at_any_price: bool) -> io::Result<bool> {
        if self.program.insert_seed(link, seed).is_ok() {
            return Ok(true);
        }
        match self.program.seed(&link) {
            Some(other) => {
                if other.home != seed.home && !at_any_price && self.is_of_use(&other) {
                    return Ok(false);
                }
                self.program.remove_seed(&link);
            }
            // There is no room. Those that nothing will come of any more were left until now.
            None => {
                for (link, seed) in self.program.seeds() {
                    if !self.is_of_use(&seed) {
                        self.program.remove_seed(&link);
                    }
                }
            }
        }
        self.program.insert_seed(link, seed).map(|()| true)
    }

    /// Is it about a watch that goes on, of a name that has not changed since?
    fn is_of_use(&mut self, seed: &Seed) -> bool {
        let state = self.program.name(&seed.home);
        state.is_ok_and(|state| state.opened == 0 && state.epoch == seed.epoch)
    }

    /// Looks a name up again until nothing has changed in between; says how many changes of it are known of.
    fn settle(
        &mut self,
        watch: &Watch,
        mut look: Option<Device>,
        lookup: &mut impl Lookup,
        met: &HashMap<Link, u64>,
    ) -> Result<(u64, Option<Device>), Error> {
        loop {
            // … if it still had the name then.
            let still = lookup.by_name(&watch.name).map_err(Error::Recheck)?;
            let is_same = still == look.map(|device| device.ifindex);
            if !is_same && let Some(device) = look {
                // The program may have used the seed up. That was before `watching`, and counts in the state below.
                self.program.remove_seed(&link(watch, device.ifindex));
            }
            // What both answers saw of a change that had not ended yet has ended, and counts there too.
            lookup.wait_for_changes();
            let state = self.state(&key_of(watch)).map_err(Error::Filter)?;
            if state.opened != 0 {
                // It has seen the name change since it was told: then it knows better than any answer.
                if let Some(device) = look {
                    self.program.remove_seed(&link(watch, device.ifindex));
                }
                return Ok((state.opened, holder(&state)));
            }
            if is_same {
                return Ok((0, look));
            }
            look = self.look(watch, lookup, met)?;
        }
    }

    /// The generations of the devices that the program has notes about: by these it knows them, whoever asks. They are read
    /// when it has been told of the names, so a change of one of them shows in its state.
    fn met(&mut self) -> HashMap<Link, u64> {
        let link = |(_, device): (u64, DeviceState)| {
            let WirePlace { netns, ifindex, .. } = device.place;
            (Link { netns, ifindex }, device.generation)
        };
        self.program.devices().into_iter().map(link).collect()
    }
}

fn link(watch: &Watch, ifindex: u32) -> Link {
    Link {
        netns: watch.netns.0,
        ifindex,
    }
}
