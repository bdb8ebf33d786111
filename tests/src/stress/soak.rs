//! A long life.

use anyhow::{Context as _, Result, ensure};

use super::{
    Settings,
    blocked::resident,
    follow::{ALIAS, MARK, WATCHED, begin},
};
use crate::{
    backend::TRACING,
    links::{Kind, Links},
    namespace::Namespace,
    program::Ifmon,
};

/// A million changes (200,000 with tracing, which is emulated), half of them ours, and the memory
/// of the first thousand.
pub(super) fn soak(settings: &Settings) -> Result<String> {
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    let total = settings.scaled(if TRACING.contains(&settings.backend) {
        200_000
    } else {
        1_000_000
    });
    let ours = links.add(WATCHED, Kind::Veth { peer: "peer0" }, None)?;
    let other = links.add("other0", Kind::Veth { peer: "other1" }, None)?;
    let ifmon = Ifmon::start(
        &namespace,
        &["--backend", settings.backend.as_str(), WATCHED, MARK],
    )?;
    let mut followed = begin(&ifmon)?;
    let mut first = None;
    for made in (4..=total).step_by(4) {
        links.rename_index(other, "wg00")?;
        links.rename_index(ours, ALIAS)?;
        links.rename_index(other, "other0")?;
        links.rename_index(ours, WATCHED)?;
        // Few enough for any queue, and enough to be read at a stretch.
        while made % 200 == 0 && followed.told.len() as u32 <= made / 2 && followed.resyncs == 0 {
            followed.line(&ifmon.next()?.context("ended early")?)?;
        }
        if made == 1000 {
            first = Some(resident(ifmon.pid())?);
        }
    }
    followed.until_mark(&ifmon, &links)?;
    followed.expect(&links)?;
    let first = first.context("less than a thousand events")?;
    let last = resident(ifmon.pid())?;
    ensure!(
        last <= first + 256,
        "{first} KiB after 1000 events, {last} KiB after {total}"
    );
    ifmon.stop()?;
    Ok(format!(
        "{first} KiB after 1,000 events, {last} KiB after {total}; {} lines, {} losses",
        followed.told.len(),
        followed.resyncs
    ))
}
