//! Restarts the engine behind a tunnel whenever the tunnel's interface is no longer the one that the engine set up.
//!
//! `cargo run --example restart_engine -- wg0`, and in another terminal `ip link delete wg0`.

use std::time::Duration;

use ifmon::{Error, Monitor};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let interface = std::env::args().nth(1).unwrap_or_else(|| "wg0".to_owned());
    loop {
        // Watch first: what happens while the engine starts is not missed.
        let mut monitor = Monitor::builder().watch(&interface).start().await?;
        let engine = tokio::spawn(engine(interface.clone()));

        let event = monitor.changed().await?;
        match event.error() {
            Some(why) => println!("restarting: {why}"),
            None => println!("restarting: {interface} is another device now"),
        }
        // Aborting is this example's way to stop. An engine that set the interface up should know that it is gone.
        engine.abort();
        // An engine that makes its interface anew deletes the old one: that is no reason to run in circles.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Stands for what would make the interface and send packets through it.
async fn engine(interface: String) {
    println!("the engine of {interface} runs");
    std::future::pending().await
}
