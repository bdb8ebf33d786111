//! The watches: from the arguments to the library's builder, and what is remembered of each until
//! its last line.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::OsStr,
    num::NonZeroU32,
};

use anyhow::Context as _;
use ifmon::{
    Builder, Event, EventKind, Identity, InterfaceName, Monitor, Netns, NetnsId, Pattern, Peers,
};

use super::{
    Misused,
    args::Args,
    namespaces::Namespaces,
    state::Directory,
    target::{EVERYWHERE, Selection, WatchArgument},
};

/// A name in a namespace.
pub(crate) type WatchKey = (NetnsId, InterfaceName);

/// What is remembered of a watch for its last line. There may be thousands, so it is kept small: its
/// namespace is not in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Account {
    pub(crate) name: InterfaceName,
    /// Its place among the watches that have begun, from 1.
    began: Option<NonZeroU32>,
    ifindex: Option<NonZeroU32>,
    pub(crate) delivered: u64,
}

impl Account {
    /// The index of the device that has the name.
    pub(crate) fn holder(&self) -> Option<u32> {
        self.ifindex.map(NonZeroU32::get)
    }
}

/// The same of a pattern.
#[derive(Clone, Debug)]
pub(crate) struct PatternAccount {
    pub(crate) netns: NetnsId,
    pub(crate) pattern: Pattern,
    /// Its place among the watches that have begun, from 1; 0 until then.
    began: u32,
    /// How many devices match.
    pub(crate) matches: u32,
    pub(crate) delivered: u64,
}

/// All watches.
#[derive(Debug)]
pub(crate) struct Watches {
    /// Of each namespace, sorted.
    accounts: BTreeMap<NetnsId, Box<[Account]>>,
    /// How many there are in all.
    names: usize,
    patterns: Vec<PatternAccount>,
    /// How many have begun.
    begun: u32,
}

impl Watches {
    fn new(mut watches: Vec<WatchKey>, mut patterns: Vec<(NetnsId, Pattern)>) -> Self {
        watches.sort_unstable();
        watches.dedup();
        patterns.sort_unstable();
        patterns.dedup();
        let account = |&(_, name): &WatchKey| Account {
            name,
            began: None,
            ifindex: None,
            delivered: 0,
        };
        let in_each = watches.chunk_by(|(one, _), (next, _)| one == next);
        let accounts = in_each.map(|here| (here[0].0, here.iter().map(account).collect()));
        Self {
            accounts: accounts.collect(),
            names: watches.len(),
            patterns: patterns
                .into_iter()
                .map(|(netns, pattern)| PatternAccount {
                    netns,
                    pattern,
                    began: 0,
                    matches: 0,
                    delivered: 0,
                })
                .collect(),
            begun: 0,
        }
    }

    /// What is remembered of a watch.
    pub(crate) fn account(&self, (netns, name): WatchKey) -> Option<&Account> {
        let here = self.accounts.get(&netns)?;
        here.get(find(here, name)?)
    }

    fn account_mut(&mut self, (netns, name): WatchKey) -> Option<&mut Account> {
        let here = self.accounts.get_mut(&netns)?;
        here.get_mut(find(here, name)?)
    }

    /// Counts an event. True when it was the first of the last watch to begin.
    pub(crate) fn event(&mut self, event: &Event) -> bool {
        if let Some(pattern) = &event.pattern {
            return self.event_of(pattern, event);
        }
        let place = self.begun + 1;
        let Some(account) = self.account_mut((event.netns, event.interface)) else {
            return false;
        };
        account.delivered += 1;
        account.ifindex = event.kind.holder().and_then(NonZeroU32::new);
        if !matches!(event.kind, EventKind::Watching { .. }) || account.began.is_some() {
            return false;
        }
        account.began = NonZeroU32::new(place);
        self.begun = place;
        self.have_all_begun()
    }

    fn event_of(&mut self, pattern: &Pattern, event: &Event) -> bool {
        let is_it = |account: &&mut PatternAccount| {
            let is_there = [event.netns, NetnsId::ALL].contains(&account.netns);
            is_there && account.pattern == *pattern
        };
        let Some(account) = self.patterns.iter_mut().find(is_it) else {
            return false;
        };
        let is_everywhere = account.netns == NetnsId::ALL;
        account.delivered += 1;
        account.matches = match event.kind {
            // It tells how many match in one of the namespaces.
            EventKind::Resynced { .. } if is_everywhere => account.matches,
            EventKind::Watching { .. } | EventKind::Resynced { .. } => {
                event.matches.unwrap_or(account.matches)
            }
            // Counted already in the line before.
            _ if event.recovered && !is_everywhere => account.matches,
            EventKind::Appeared { .. } => account.matches + 1,
            EventKind::Renamed { to, .. } if pattern.matches(&to) => account.matches,
            _ => account.matches.saturating_sub(1),
        };
        let is_first = matches!(event.kind, EventKind::Watching { .. }) && account.began == 0;
        if is_first {
            self.begun += 1;
            account.began = self.begun;
        }
        is_first && self.have_all_begun()
    }

    fn have_all_begun(&self) -> bool {
        self.begun as usize == self.names + self.patterns.len()
    }

    /// How many have begun.
    pub(crate) const fn begun(&self) -> u32 {
        self.begun
    }

    /// Have all begun, and does each name exist, or none?
    pub(crate) fn are_all(&self, present: bool) -> bool {
        self.accounts
            .values()
            .flatten()
            .all(|account| account.began.is_some() && account.holder().is_some() == present)
            && self
                .patterns
                .iter()
                .all(|account| account.began > 0 && (account.matches > 0) == present)
    }

    /// The patterns that have begun, in the order in which they did.
    pub(crate) fn patterns(&self) -> Vec<PatternAccount> {
        let begun = self.patterns.iter().filter(|account| account.began > 0);
        let mut begun: Vec<_> = begun.cloned().collect();
        begun.sort_unstable_by_key(|account| account.began);
        begun
    }

    /// Those that have begun, each with its namespace, in the order in which they did.
    pub(crate) fn in_order(&self) -> Vec<(NetnsId, Account)> {
        let in_each = self.accounts.iter();
        let all = in_each.flat_map(|(&netns, here)| here.iter().map(move |&it| (netns, it)));
        let mut begun: Vec<_> = all.filter(|(_, account)| account.began.is_some()).collect();
        begun.sort_unstable_by_key(|(_, account)| account.began);
        begun
    }
}

fn find(here: &[Account], name: InterfaceName) -> Option<usize> {
    here.binary_search_by_key(&name, |account| account.name)
        .ok()
}

/// Says to the library what is to be watched, and which devices are expected: those that were
/// named, else those of which the state is kept.
///
/// There may be thousands of interfaces: they are taken out of the arguments, and a namespace is
/// looked for once.
pub(crate) fn builder(
    args: &mut Args,
    mut state: Option<&mut Directory>,
) -> anyhow::Result<(Builder, Watches, (Namespaces, Peers))> {
    let mut watches = Vec::new();
    let mut patterns = Vec::new();
    let mut namespaces = Namespaces::new();
    let mut peers = Peers::new();
    let mut builder = Monitor::builder()
        .backend(args.backend.into())
        .open_filter(args.open_filter);
    if let Some(bytes) = args.receive_buffer {
        builder = builder.receive_buffer(bytes);
    }
    if let Some(path) = args.agent.take() {
        builder = builder.agent(path);
    }
    let mut targets = Vec::new();
    // The devices that were named, each of one watch: it may be named again without.
    let mut named: HashMap<WatchKey, u32> = HashMap::new();
    let mut place =
        |netns: &Netns, asked: Option<&OsStr>, wanted: &[WatchArgument]| -> Result<(), Misused> {
            namespaces.add(netns.id(), asked);
            if let Some(state) = &mut state {
                state.enter(netns);
            }
            let has_pattern = |target: &WatchArgument| matches!(target.what, Selection::Pattern(_));
            if wanted.iter().any(has_pattern)
                && let Err(error) = peers.enter(netns)
            {
                log::debug!("no peers are told of namespace {}: {error}", netns.id());
            }
            for target in wanted {
                let name = match &target.what {
                    Selection::Name(name) => *name,
                    Selection::Pattern(pattern) => {
                        patterns.push((netns.id(), pattern.clone()));
                        let target = ifmon::Target::from(pattern.clone()).in_netns(netns.clone());
                        targets.push((target, None));
                        continue;
                    }
                };
                let watch = (netns.id(), name);
                watches.push(watch);
                if let Some(ifindex) = target.expected
                    && let Some(other) = named.insert(watch, ifindex)
                    && other != ifindex
                {
                    return Err(Misused::TwoDevices(name, other, ifindex));
                }
                let target = ifmon::Target::from(name).in_netns(netns.clone());
                targets.push((target, Some((netns.clone(), watch))));
            }
            Ok(())
        };
    let find = |netns: &OsStr| Netns::find(netns).map_err(Misused::from);
    let interfaces = std::mem::take(&mut args.interfaces);
    let (mut unplaced, mut everywhere) = (Vec::new(), Vec::new());
    for wanted in interfaces.chunk_by(|one, next| one.netns == next.netns) {
        match wanted.first().and_then(|target| target.netns.as_deref()) {
            Some(netns) if netns == EVERYWHERE => everywhere.extend_from_slice(wanted),
            Some(netns) => place(&find(netns)?, Some(netns), wanted)?,
            None => unplaced.extend_from_slice(wanted),
        }
    }
    for netns in args.netns.iter().filter(|netns| *netns != EVERYWHERE) {
        place(&find(netns)?, Some(netns), &unplaced)?;
    }
    if args.netns.is_empty() && !unplaced.is_empty() {
        let own = Netns::current().context("the network namespace of ifmon itself is unknown")?;
        place(&own, None, &unplaced)?;
    }
    if !everywhere.is_empty() {
        namespaces.learn_all();
        // What others have as the other end is told of this one, and no other is kept alive for that.
        if let Ok(own) = Netns::current()
            && let Err(error) = peers.enter(&own)
        {
            log::debug!("no peers are told: {error}");
        }
    }
    for target in everywhere {
        let Selection::Pattern(pattern) = target.what else {
            continue;
        };
        patterns.push((NetnsId::ALL, pattern.clone()));
        targets.push((ifmon::Target::from(pattern).in_all_netns(), None));
    }
    namespaces.complete();
    let targets = targets.into_iter().map(|(target, name)| {
        let expected = name.and_then(|(netns, watch)| match named.get(&watch) {
            Some(ifindex) => Some(Identity::of_ifindex(*ifindex)),
            None => state.as_mut()?.expected(&netns, watch),
        });
        match expected {
            Some(identity) => target.expect(identity),
            None => target,
        }
    });
    Ok((
        builder.watch_all(targets),
        Watches::new(watches, patterns),
        (namespaces, peers),
    ))
}

#[cfg(test)]
pub(crate) mod tests {
    use ifmon::{BackendChoice, BackendKind};

    use super::*;

    /// Of a pattern: an event that a real monitor told of something else, changed.
    pub(crate) fn event(netns: NetnsId, pattern: &Pattern, kind: EventKind) -> Event {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let mut event = runtime.block_on(async {
            let mut monitor = Monitor::builder()
                .backend(BackendChoice::Only(BackendKind::Netlink))
                .watch("lo")
                .start()
                .await
                .expect("a monitor");
            monitor.next().await.expect("an event").expect("no error")
        });
        event.interface = InterfaceName::NONE;
        event.pattern = Some(pattern.clone());
        event.netns = netns;
        event.kind = kind;
        event
    }

    /// What a loss costs is told of one namespace, and how many match there says nothing of the others.
    #[test]
    fn what_matches_in_all_namespaces_is_counted_line_by_line() {
        let pattern = Pattern::new("wg*").expect("a good pattern");
        let to = |name| InterfaceName::new(name).expect("a good name");
        let other = Pattern::new("veth*").expect("a good pattern");
        let all = |pattern: &Pattern| (NetnsId::ALL, pattern.clone());
        let mut watches = Watches::new(Vec::new(), vec![all(&pattern), all(&other)]);
        let event = |netns, pattern: &Pattern, kind| event(NetnsId(netns), pattern, kind);
        let recovered = |mut event: Event| {
            event.recovered = true;
            event
        };
        let whole = |mut event: Event, matches| {
            event.matches = Some(matches);
            event
        };
        let ifindex = 7;
        let watching = |pattern| event(0, pattern, EventKind::Watching { ifindex: None });
        assert!(!watches.event(&whole(watching(&other), 3)));
        let resynced = EventKind::Resynced {
            lost: Some(5),
            changed: true,
            ifindex: None,
        };
        let appeared = EventKind::Appeared { ifindex };
        let deleted = EventKind::Deleted { ifindex };
        let renamed = |name| EventKind::Renamed {
            ifindex,
            to: to(name),
        };
        let moved = EventKind::Moved {
            ifindex,
            to_netns: None,
            to_ifindex: None,
        };
        for (delivered, (event, matches)) in (1..).zip([
            (whole(watching(&pattern), 2), 2),
            (event(1, &pattern, appeared.clone()), 3),
            (event(2, &pattern, appeared.clone()), 4),
            (event(2, &pattern, renamed("wg8")), 4),
            (event(2, &pattern, renamed("eth8")), 3),
            (event(1, &pattern, moved), 2),
            (whole(event(1, &pattern, resynced), 9), 2),
            (recovered(event(1, &pattern, appeared)), 3),
            (recovered(event(1, &pattern, deleted.clone())), 2),
            (event(3, &pattern, deleted), 1),
        ]) {
            assert_eq!(watches.event(&event), delivered == 1, "{event:?}");
            let found = watches.patterns();
            let account = found.iter().find(|account| account.pattern == pattern);
            let account = account.expect("it has begun");
            assert_eq!(
                (account.matches, account.delivered),
                (matches, delivered),
                "{event:?}"
            );
        }
        let found = watches.patterns();
        let other = found.iter().find(|account| account.pattern == other);
        assert_eq!(
            other.map(|account| (account.matches, account.delivered)),
            Some((3, 1))
        );
    }
}
