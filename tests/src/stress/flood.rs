//! Many changes: of others with ours in their midst, and more than the queue holds.

use anyhow::{Result, ensure};
use rustix::process::Signal;

use super::{
    Random, Settings,
    follow::{ALIAS, Followed, MARK, WATCHED, begin},
};
use crate::{
    backend::{counts_losses, knows_new_devices},
    links::{Kind, Links},
    namespace::Namespace,
    program::Ifmon,
};

/// 100,000 changes of others, 1,000 cycles of ours, and every one of ours is told once and in
/// order.
pub(super) fn storm(settings: &Settings) -> Result<String> {
    flood(settings, &[], 100_000, 1_000)
}

/// The same with a queue that holds next to nothing, and a process that is stopped (SIGSTOP) half
/// of the time.
pub(super) fn overflow(settings: &Settings) -> Result<String> {
    flood(settings, &["--receive-buffer", "4096"], 100_000, 1_000)
}

fn flood(settings: &Settings, more: &[&str], others: u32, cycles: u32) -> Result<String> {
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    let mut random = Random(settings.seed);
    let (others, cycles) = (settings.scaled(others), settings.scaled(cycles));
    let other = links.add("other0", Kind::Veth { peer: "other1" }, None)?;
    let mut args = vec!["--backend", settings.backend.as_str(), WATCHED, MARK];
    args.extend(more);
    let ifmon = Ifmon::start(&namespace, &args)?;
    let mut followed = begin(&ifmon)?;
    let mut happened = Vec::new();
    let mut made = 0;
    let mut disturb = |until: u32| -> Result<()> {
        while made < until {
            made += 1;
            if made % 50 == 0 {
                links.add_quick("pass0", Kind::Veth { peer: "pass1" })?;
                links.delete("pass0")?;
            } else {
                links.rename_index(other, if made % 2 == 0 { "wg00" } else { "other0" })?;
            }
        }
        Ok(())
    };
    let is_short = !more.is_empty();
    let mut is_stopped = false;
    for cycle in 0..cycles {
        // First for so long that any queue is full.
        if is_short && (cycle == 0 || cycle >= 20 && random.below(3) == 0) {
            is_stopped = !is_stopped;
            ifmon.signal(if is_stopped {
                Signal::STOP
            } else {
                Signal::CONT
            })?;
        }
        // The others go on between any two of ours.
        let until = others / cycles * (cycle + 1);
        let mut some = |random: &mut Random| -> Result<()> {
            disturb(until.saturating_sub(random.below(u64::from(others / cycles)) as u32))
        };
        some(&mut random)?;
        // Half of them with an index that was used before.
        let index = (random.below(2) == 0).then_some(5000);
        let ours = links.add(WATCHED, Kind::Veth { peer: "peer0" }, index)?;
        let mut happens = |event| happened.push((event, u64::from(ours)));
        happens(if cycle == 0 { "appeared" } else { "recreated" });
        for _ in 0..random.below(4) {
            links.rename_index(ours, ALIAS)?;
            if random.below(2) == 0 {
                some(&mut random)?;
            }
            links.rename_index(ours, WATCHED)?;
            happens("renamed");
            happens("returned");
        }
        if random.below(2) == 0 {
            links.rename_index(ours, ALIAS)?;
            links.delete(ALIAS)?;
            happens("renamed");
        } else {
            links.delete(WATCHED)?;
            happens("deleted");
        }
        disturb(until)?;
    }
    let ends_present = random.below(2) == 0;
    if ends_present {
        let ours = links.add(WATCHED, Kind::Veth { peer: "peer0" }, None)?;
        happened.push(("recreated", u64::from(ours)));
    }
    ifmon.signal(Signal::CONT)?;
    followed.until_mark(&ifmon, &links)?;
    followed.expect(&links)?;
    if is_short {
        ensure!(followed.resyncs > 0, "nothing was lost");
    } else if knows_new_devices(settings.backend) {
        // Which has to learn the index of each new device, and may look at what that does
        // meanwhile.
        ensure!(followed.resyncs == 0, "{} losses", followed.resyncs);
    }
    // With netlink, nobody can tell where in the lines the losses of an overflow are.
    if counts_losses(settings.backend) || !is_short {
        followed.explain(&happened, !knows_new_devices(settings.backend))?;
    }
    let Followed {
        told,
        resyncs,
        lost,
        recovered,
        ..
    } = followed;
    ifmon.stop()?;
    let lost = lost.map_or("an unknown number".to_owned(), |lost| lost.to_string());
    Ok(format!(
        "{others} changes of others, {} of ours in {cycles} cycles, {} lines, {resyncs} losses of {lost} events, \
         {recovered} verdicts recovered",
        happened.len(),
        told.len()
    ))
}

/// The process is stopped while things happen: what did not fit is made good, and what was undone
/// is not told.
pub(super) fn stopped(settings: &Settings) -> Result<String> {
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    let ours = links.add(WATCHED, Kind::Veth { peer: "peer0" }, None)?;
    let args = [
        "--backend",
        settings.backend.as_str(),
        "--receive-buffer",
        "4096",
        WATCHED,
        MARK,
    ];
    let ifmon = Ifmon::start(&namespace, &args)?;
    let mut followed = begin(&ifmon)?;
    let changes = 200;

    // Renamed and back, over and over.
    ifmon.signal(Signal::STOP)?;
    for _ in 0..changes / 2 {
        links.rename_index(ours, ALIAS)?;
        links.rename_index(ours, WATCHED)?;
    }
    ifmon.signal(Signal::CONT)?;
    followed.until_mark(&ifmon, &links)?;
    followed.expect(&links)?;
    ensure!(
        followed.resyncs > 0,
        "{changes} changes fit into 4096 bytes"
    );
    let told = followed.told.len() as u64 - 1 - followed.resyncs - followed.recovered;
    let lost = followed.lost;
    if counts_losses(settings.backend) {
        ensure!(
            lost.is_some_and(|lost| told + lost == changes),
            "{told} told and {lost:?} lost are not {changes}"
        );
    }
    // An odd number was told before the loss where the last of them was a renaming; else nothing is
    // to be said.
    ensure!(
        followed.recovered == told % 2,
        "{told} told, and {} recovered of what was undone",
        followed.recovered
    );
    ensure!(
        !followed.any(0, "recreated"),
        "the same device is taken for another"
    );

    // Changes go on while the full queue is read: a gap can be in its midst.
    if counts_losses(settings.backend) {
        let mut gaps = Followed::after(&followed);
        let mut happened = Vec::new();
        let mut churn = || -> Result<()> {
            for _ in 0..changes / 4 {
                links.rename_index(ours, ALIAS)?;
                links.rename_index(ours, WATCHED)?;
                let ours = u64::from(ours);
                happened.extend([("renamed", ours), ("returned", ours)]);
            }
            Ok(())
        };
        for _ in 0..10 {
            ifmon.signal(Signal::STOP)?;
            churn()?;
            ifmon.signal(Signal::CONT)?;
            churn()?;
            gaps.until_mark(&ifmon, &links)?;
        }
        gaps.explain(&happened, false)?;
        gaps.expect(&links)?;
        followed = Followed::after(&gaps);
    }

    // Renamed and told; then back, in the midst of a loss. With BPF nothing is lost: other names
    // concern nobody.
    links.rename_index(ours, ALIAS)?;
    followed.until_mark(&ifmon, &links)?;
    let before = (followed.told.len(), followed.resyncs);
    ifmon.signal(Signal::STOP)?;
    for _ in 0..changes / 2 {
        links.rename_index(ours, "tmp1")?;
        links.rename_index(ours, ALIAS)?;
    }
    links.rename_index(ours, WATCHED)?;
    ifmon.signal(Signal::CONT)?;
    followed.until_mark(&ifmon, &links)?;
    followed.expect(&links)?;
    let is_lost = !settings.backend.is_ebpf();
    ensure!(
        (followed.resyncs > before.1) == is_lost
            && followed
                .told
                .last()
                .is_some_and(|told| told.event == "returned" && told.recovered == is_lost),
        "the device that came back is not told to be that: {:?}",
        followed.told.get(before.0..)
    );

    // Another device with the same index, in the midst of a loss.
    let before = (followed.told.len(), followed.resyncs);
    ifmon.signal(Signal::STOP)?;
    for _ in 0..changes / 2 {
        links.rename_index(ours, ALIAS)?;
        links.rename_index(ours, WATCHED)?;
    }
    links.delete(WATCHED)?;
    links.add(WATCHED, Kind::Veth { peer: "peer0" }, Some(ours))?;
    ifmon.signal(Signal::CONT)?;
    followed.until_mark(&ifmon, &links)?;
    followed.expect(&links)?;
    ensure!(
        followed.resyncs > before.1,
        "nothing was lost the second time"
    );
    ensure!(
        followed.any(before.0, "recreated"),
        "a device with the index of the one before was taken for it"
    );
    ifmon.stop()?;
    Ok(format!(
        "of {changes} changes {told} told and {} lost; the second time a new device with the same index was found",
        lost.map_or("an unknown number".to_owned(), |lost| lost.to_string())
    ))
}
