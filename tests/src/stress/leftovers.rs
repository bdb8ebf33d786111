//! Watches that end while the devices that had their names stay.

use anyhow::{Context as _, Result, ensure};
use ifmon::{BackendChoice, EventKind, InterfaceName, Monitor, Netns, Target};
use tokio::{runtime::Builder, time::timeout};

use super::Settings;
use crate::{
    program::PATIENCE,
    room::{Device, Room},
};

/// More devices than the maps have room for, however often they are looked through.
const BATCHES: u32 = 10;
/// So many names are watched at a time.
const BATCH: u32 = 256;
const VICTIM: &str = "victim0";
const CHANGES: u32 = 20;

/// Of a device that had a watched name nothing tells the kernel that it is not needed any more, so
/// they are looked for. Else there is no room for one that takes a watched name, and what becomes of
/// that one is not heard.
pub(super) fn leftovers(settings: &Settings) -> Result<String> {
    let home = Room::new(Device::Veth)?;
    let netns = Netns::find(home.path())?;
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let builder = Monitor::builder()
        .backend(BackendChoice::Only(settings.backend))
        .watch_in(netns.clone(), [VICTIM]);
    let mut monitor = runtime.block_on(builder.start())?;
    let handle = monitor.handle();
    // Above those that the kernel gives to the other ends.
    let mut index = 100_000;
    for _ in 0..BATCHES {
        let names: Vec<_> = (index..index + BATCH)
            .map(|at| format!("had{at}"))
            .collect();
        let targets = names.iter().map(|name| {
            let target = Target::new(name)?;
            Ok::<_, ifmon::Error>(target.in_netns(netns.clone()))
        });
        let targets = targets.collect::<Result<Vec<_>, _>>()?;
        runtime.block_on(handle.watch_all(targets))?;
        for name in &names {
            home.add(name, index)?;
            index += 1;
        }
        runtime.block_on(take(&mut monitor, BATCH, |kind| {
            matches!(kind, EventKind::Appeared { .. })
        }))?;
        for name in &names {
            let name = InterfaceName::new(name)?;
            runtime.block_on(handle.unwatch(netns.id(), name))?;
        }
    }
    for at in index..index + CHANGES {
        home.add(VICTIM, at)?;
        home.delete(at)?;
    }
    runtime.block_on(take(&mut monitor, CHANGES, |kind| {
        matches!(kind, EventKind::Deleted { .. })
    }))?;
    let counters = runtime.block_on(handle.counters())?;
    ensure!(counters.lost.is_none_or(|lost| lost == 0), "{counters:?}");
    Ok(format!(
        "{} devices had names that were watched; {CHANGES} changes after that were told",
        BATCHES * BATCH
    ))
}

/// Waits for so many events of a kind.
async fn take(
    monitor: &mut Monitor,
    mut count: u32,
    is_it: impl Fn(&EventKind) -> bool,
) -> Result<()> {
    while count > 0 {
        let event = timeout(PATIENCE, monitor.next()).await;
        let event = event
            .with_context(|| format!("{count} events are missing"))?
            .context("the monitor ended")??;
        count -= u32::from(is_it(&event.kind));
    }
    Ok(())
}
