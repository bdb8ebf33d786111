//! Restarts the engine behind a tunnel whenever the tunnel's interface is no longer the one that
//! the engine set up.
//!
//! `cargo run --example restart_engine -- wg0`, and in another terminal `ip link delete wg0`.
//! Ctrl-C stops it.

use std::time::Duration;

use ifmon::{Error, EventKind, Identity, Inspector, InterfaceName, Monitor, Netns, Target};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "wg0".to_owned());
    let name = InterfaceName::new(name)?;
    loop {
        let why = match run(name).await {
            Ok(why) => why,
            Err(Error::Stopped) => return Ok(()),
            // It was asked for something that cannot be: starting again would not help.
            Err(error) if !error.should_restart() => return Err(error),
            // Gone since it was set up, or not watched any more: it may be another one by now.
            Err(error) => error.to_string(),
        };
        println!("restarting: {why}");
        // Should it come to this again at once, the host has time for other things.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Runs the engine until it has to start again, and says why.
async fn run(name: InterfaceName) -> Result<String, Error> {
    let mine = set_up(name)?;
    // What became of the interface since it was set up is told as well.
    let target = Target::from(name).expect(mine);
    let mut monitor = Monitor::builder().watch(target).start().await?;
    tokio::select! {
        () = engine(mine) => Err(Error::Stopped),
        event = monitor.changed() => {
            let event = event?;
            Ok(match (event.error(), event.kind) {
                // Deleted, renamed or moved.
                (Some(error), _) => error.to_string(),
                (None, EventKind::Recreated { ifindex, .. }) => {
                    format!("{name} is another device now, with ifindex {ifindex}")
                }
                (None, kind) => format!("{name}: {}", kind.as_str()),
            })
        }
    }
}

/// Stands for what makes the interface; says which device it is.
fn set_up(name: InterfaceName) -> Result<Identity, Error> {
    let identity = Inspector::new(&Netns::current()?)?.identity(name)?;
    identity.ok_or(Error::Deleted { interface: name })
}

/// Stands for what sends packets through it, until somebody stops it.
async fn engine(device: Identity) {
    println!(
        "the engine runs on the device with ifindex {}",
        device.ifindex
    );
    // Without a terminal to press Ctrl-C in, it runs for ever.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending().await
    }
}
