//! Begins watches, without a moment in which a change could be missed.

use std::collections::HashMap;

use ifmon_ebpf::{DeviceState, Link, Name, NameKey, NameState, Place as WirePlace, Seed};

use super::{Ebpf, filter_error, holder};
use crate::{
    Error, InterfaceName, Netns, NetnsId,
    netlink::query::Query,
    packed,
    tracker::{Device, Watch},
};

/// Generations from userspace have this bit, those from the kernel side do not.
const SEEDED: u64 = 1 << 63;
/// Names that are looked up at a stretch. Where nothing changes meanwhile, each is looked up once: on a host where much
/// happens that is the likelier the fewer they are.
const STRETCH: usize = 128;

/// Who was found to hold a name.
#[derive(Clone, Copy)]
struct Look {
    link: Option<Link>,
    /// What the program was told to call the device.
    generation: u64,
}

impl Look {
    /// The holder, if this is still true. A device that was met before keeps the generation that it has.
    fn holder(&self, met: &HashMap<Link, u64>) -> Option<Device> {
        self.link.map(|link| Device {
            ifindex: link.ifindex,
            generation: met.get(&link).copied().unwrap_or(self.generation),
        })
    }
}

impl Ebpf {
    pub(crate) fn watch(
        &mut self,
        netns: &Netns,
        names: &[InterfaceName],
    ) -> Result<Vec<Option<Device>>, Error> {
        let mut query = Query::new(netns).map_err(Error::Recheck)?;
        let id = netns.id().0;
        self.namespaces.insert(id, id, 0).map_err(filter_error)?;
        let met = self.met_before();
        let mut holders = Vec::with_capacity(names.len());
        let mut counts = Vec::with_capacity(names.len());
        for names in names.chunks(STRETCH) {
            for (watch, count, holder) in self.watch_stretch(id, names, &mut query, &met)? {
                counts.push((watch, count));
                holders.push(holder);
            }
        }
        packed::extend(&mut self.counts, counts);
        Ok(holders)
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
        netns: u32,
        names: &[InterfaceName],
        query: &mut Query,
        met: &HashMap<Link, u64>,
    ) -> Result<Vec<(Watch, u64, Option<Device>)>, Error> {
        let before = self.kernel_counters().seen;
        let keys = names.iter().map(|name| NameKey {
            name: Name::from_bytes(name.padded()),
            netns,
            zero: 0,
        });
        for key in keys.clone() {
            self.names
                .insert(key, NameState::default(), 0)
                .map_err(filter_error)?;
        }
        let has_waited = query.wait_for_changes();
        let mut looks = Vec::with_capacity(names.len());
        for (name, key) in names.iter().zip(keys) {
            looks.push((name, key, self.look(&key, name, query)?));
        }
        let has_waited = query.wait_for_changes() && has_waited;
        let is_quiet = has_waited && self.kernel_counters().seen == before;
        looks
            .into_iter()
            .map(|(&name, key, look)| {
                let (count, holder) = if is_quiet {
                    (0, look.holder(met))
                } else {
                    self.settle(&key, &name, look, query, met)?
                };
                let netns = NetnsId(netns);
                Ok((Watch { netns, name }, count, holder))
            })
            .collect()
    }

    /// Finds out who holds a name, and tells the program.
    fn look(
        &mut self,
        key: &NameKey,
        name: &InterfaceName,
        query: &mut Query,
    ) -> Result<Look, Error> {
        let found = query.by_name(name).map_err(Error::Recheck)?;
        self.generations += 1;
        let look = Look {
            link: found.map(|ifindex| Link {
                netns: key.netns,
                ifindex,
            }),
            generation: self.generations | SEEDED,
        };
        if let Some(link) = look.link {
            // From here on the program knows the device by its index, so a rename cannot escape it …
            let seed = Seed {
                generation: look.generation,
                home: *key,
            };
            self.seeds.insert(link, seed, 0).map_err(filter_error)?;
        }
        Ok(look)
    }

    /// Looks a name up again until nothing has changed in between; says how many changes of it are known of.
    fn settle(
        &mut self,
        key: &NameKey,
        name: &InterfaceName,
        mut look: Look,
        query: &mut Query,
        met: &HashMap<Link, u64>,
    ) -> Result<(u64, Option<Device>), Error> {
        loop {
            // … if it still had the name then.
            let still = query.by_name(name).map_err(Error::Recheck)?;
            let is_same = still == look.link.map(|link| link.ifindex);
            if !is_same && let Some(link) = look.link {
                // The program may have used the seed up. That was before `watching`, and counts in the state below.
                let _ = self.seeds.remove(&link);
            }
            // What both answers saw of a change that had not ended yet has ended, and counts there too.
            query.wait_for_changes();
            let state = self.state(key).map_err(Error::Filter)?;
            if state.opened != 0 {
                // It has seen the name change since it was told: then it knows better than any answer.
                if let Some(link) = look.link {
                    let _ = self.seeds.remove(&link);
                }
                return Ok((state.opened, holder(&state)));
            }
            if is_same {
                return Ok((0, look.holder(met)));
            }
            look = self.look(key, name, query)?;
        }
    }

    /// The generations of devices that the program has notes about, because they held other watched names before.
    fn met_before(&self) -> HashMap<Link, u64> {
        if self.counts.is_empty() {
            return HashMap::new();
        }
        self.devices
            .iter()
            .filter_map(Result::ok)
            .map(
                |(
                    _,
                    DeviceState {
                        generation, place, ..
                    },
                )| {
                    let WirePlace { netns, ifindex, .. } = place;
                    (Link { netns, ifindex }, generation)
                },
            )
            .collect()
    }
}
