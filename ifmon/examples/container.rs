//! Follows all interfaces of a container, those included that it gets later.
//!
//! `cargo run --example container -- PID`, with the id of any process of the container (`docker
//! inspect -f '{{.State.Pid}}' NAME`), or a name of `ip netns`.

use ifmon::{Monitor, Netns, Target};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let container = std::env::args()
        .nth(1)
        .ok_or("say which container: the id of a process in it, or a name of `ip netns`")?;

    let all = Target::pattern("*")?.in_netns(Netns::find(container)?);
    let mut monitor = Monitor::builder().watch(all).start().await?;
    while let Some(event) = monitor.next().await {
        let event = event?;
        // What is said of the pattern as a whole has no interface.
        println!("{} {}", event.interface, event.kind.as_str());
    }
    Ok(())
}
