//! Starts in the midst of changes.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::Result;

use super::{
    Settings,
    follow::{ALIAS, MARK, WATCHED, begin},
};
use crate::{
    links::{Kind, Links},
    namespace::Namespace,
    program::Ifmon,
};

/// The interface is made, renamed and deleted as fast as the kernel can, and each time `watching`
/// and the lines that follow add up to what is.
pub(super) fn race(settings: &Settings) -> Result<String> {
    let starts = settings.scaled(1_000);
    let namespace = Namespace::new()?;
    let links = Links::new(&namespace)?;
    let churning = Links::new(&namespace)?;
    // Held by whoever may change the host.
    let turn = Mutex::new(());
    let done = AtomicBool::new(false);
    let (mut lines, mut present) = (0, 0);
    let changes = thread::scope(|scope| -> Result<u64> {
        let churn = scope.spawn(|| -> Result<u64> {
            let mut changes = 0;
            loop {
                let steps: [&dyn Fn() -> Result<()>; 5] = [
                    &|| churning.add_quick(WATCHED, Kind::Veth { peer: "peer0" }),
                    &|| churning.rename(WATCHED, ALIAS),
                    &|| churning.rename(ALIAS, WATCHED),
                    &|| churning.rename(WATCHED, ALIAS),
                    &|| churning.delete(ALIAS),
                ];
                for step in steps {
                    if done.load(Ordering::Relaxed) {
                        return Ok(changes);
                    }
                    let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
                    step()?;
                    changes += 1;
                }
            }
        });
        let mut start = || -> Result<()> {
            let args = [
                "--quiet",
                "--backend",
                settings.backend.as_str(),
                WATCHED,
                MARK,
            ];
            let ifmon = Ifmon::start(&namespace, &args)?;
            let mut followed = begin(&ifmon)?;
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            followed.until_mark(&ifmon, &links)?;
            followed.until_truth(&ifmon, &links)?;
            lines += followed.told.len();
            present += u32::from(followed.holder.0.is_some());
            Ok(())
        };
        let result = (1..=starts).try_for_each(|number| {
            start()?;
            if number % 100 == 0 {
                // Half an hour on an emulated kernel.
                eprintln!("        {number} of {starts} starts");
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let changes = churn
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        result.map(|()| changes)
    })?;
    Ok(format!(
        "{starts} starts during {changes} changes, {lines} lines, {present} times the interface was there in the end"
    ))
}
