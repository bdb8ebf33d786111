//! The library itself: watches that come and go while events are read.

use anyhow::{Context as _, Result, ensure};
use ifmon::{BackendChoice, EventKind, Handle, InterfaceName, Monitor, Netns, Target};
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};

use super::{Scenario, veth};
use crate::{program::PATIENCE, room::Room, stage::Stage};

pub(super) const TABLE: &[Scenario] = &[veth("watches that come and go", come_and_go)];

/// A monitor that is used as an engine with many tunnels would use it.
struct Engine<'a> {
    home: &'a Room,
    runtime: Runtime,
    monitor: Monitor,
    handle: Handle,
}

impl<'a> Engine<'a> {
    fn start(stage: &'a Stage, name: &str) -> Result<Self> {
        let home = &stage.home;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let builder = Monitor::builder()
            .backend(BackendChoice::Only(stage.backend))
            .watch_in(Netns::find(home.path())?, [name]);
        let monitor = runtime.block_on(builder.start())?;
        Ok(Self {
            home,
            handle: monitor.handle(),
            runtime,
            monitor,
        })
    }

    fn watch(&mut self, name: &str, ifindex: Option<u32>) -> Result<()> {
        let netns = Netns::find(self.home.path())?;
        let watch = self.handle.watch(Target::new(name)?.in_netns(netns));
        self.runtime.block_on(watch)?;
        self.see(name, EventKind::Watching { ifindex })
    }

    /// Whether there was such a watch.
    fn unwatch(&mut self, name: &str) -> Result<bool> {
        let netns = Netns::find(self.home.path())?.id();
        let unwatch = self.handle.unwatch(netns, InterfaceName::new(name)?);
        Ok(self.runtime.block_on(unwatch)?)
    }

    fn see(&mut self, name: &str, kind: EventKind) -> Result<()> {
        let Self {
            runtime, monitor, ..
        } = self;
        let event = runtime.block_on(async { timeout(PATIENCE, monitor.next()).await });
        let event = event
            .with_context(|| format!("no event, instead of {kind:?} of {name}"))?
            .context("the monitor ended")??;
        ensure!(
            event.interface.as_bytes() == name.as_bytes() && event.kind == kind && !event.recovered,
            "wanted {kind:?} of {name}, got {event:?}"
        );
        Ok(())
    }
}

fn come_and_go(stage: &mut Stage) -> Result<()> {
    let home = &stage.home;
    let renamed = |to| {
        InterfaceName::new(to)
            .map(|to| EventKind::Renamed { ifindex: 100, to })
            .context("a name")
    };
    let appeared = EventKind::Appeared { ifindex: 100 };
    let returned = EventKind::Returned { ifindex: 100 };
    home.add("wg0", 100)?;
    let mut engine = Engine::start(stage, "wg0")?;
    let watching = EventKind::Watching { ifindex: Some(100) };
    engine.see("wg0", watching)?;
    engine.watch("wg1", None)?;
    home.rename(100, "wg1")?;
    engine.see("wg0", renamed("wg1")?)?;
    engine.see("wg1", appeared.clone())?;

    // A watch that has ended says nothing.
    ensure!(engine.unwatch("wg0")?);
    ensure!(!engine.unwatch("wg0")?);
    home.rename(100, "wg0")?;
    engine.see("wg1", renamed("wg0")?)?;

    // The device is known by the other watch, which another device then takes over.
    engine.watch("wg0", Some(100))?;
    home.add("wg1", 101)?;
    let recreated = EventKind::Recreated {
        ifindex: 101,
        old_ifindex: 100,
    };
    engine.see("wg1", recreated)?;
    home.rename(100, "old0")?;
    engine.see("wg0", renamed("old0")?)?;
    home.rename(100, "wg0")?;
    engine.see("wg0", returned.clone())?;

    // Again and again, with and without something in between.
    for round in 0..20 {
        ensure!(engine.unwatch("wg0")?);
        if round % 2 == 0 {
            home.rename(100, "old0")?;
            engine.watch("wg0", None)?;
            home.rename(100, "wg0")?;
            engine.see("wg0", appeared.clone())?;
        } else {
            engine.watch("wg0", Some(100))?;
            home.rename(100, "old0")?;
            engine.see("wg0", renamed("old0")?)?;
            home.rename(100, "wg0")?;
            engine.see("wg0", returned.clone())?;
        }
    }
    ensure!(engine.unwatch("wg1")?);
    home.delete(101)?;
    home.delete(100)?;
    engine.see("wg0", EventKind::Deleted { ifindex: 100 })?;
    let counters = engine.runtime.block_on(engine.handle.counters())?;
    ensure!(counters.lost == Some(0), "{counters:?}");
    Ok(())
}
