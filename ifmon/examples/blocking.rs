//! Follows an interface from code that is not asynchronous: a thread runs the monitor, a channel
//! carries the events.
//!
//! `cargo run --example blocking -- lo`

use std::{sync::mpsc, thread};

use ifmon::{Error, Event, Monitor};

fn main() -> Result<(), Error> {
    let interface = std::env::args().nth(1).unwrap_or_else(|| "lo".to_owned());
    for event in follow(interface) {
        let event = event?;
        println!("{} {}", event.interface, event.kind.as_str());
    }
    Ok(())
}

/// The events of an interface. Dropping the receiver ends the watch with the next event.
fn follow(interface: String) -> mpsc::Receiver<Result<Event, Error>> {
    // Room for one event: when the reader is slow, events wait in the monitor, and no memory fills
    // up.
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let runtime = match tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
        {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = sender.send(Err(Error::Subscribe(error)));
                return;
            }
        };
        runtime.block_on(async {
            match Monitor::builder().watch(interface).start().await {
                Ok(mut monitor) => {
                    while let Some(event) = monitor.next().await {
                        if sender.send(event).is_err() {
                            return;
                        }
                    }
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            }
        });
    });
    receiver
}
