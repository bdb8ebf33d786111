//! Follows all interfaces of a container, those included that it gets later.
//!
//! `cargo run --example container -- PID`, with the id of any process of the container (`docker
//! inspect -f '{{.State.Pid}}' NAME`), or a name of `ip netns`.
//!
//! ifmon watches names, and the names that a container will have are not known before. A container
//! has few interfaces, so this reads the list of them now and then; between two readings, ifmon
//! tells at once what becomes of each.

use std::{io, path::PathBuf, time::Duration};

use ifmon::{EventKind, InterfaceName, Monitor, Netns, Target};

const READ_AGAIN: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let container = std::env::args()
        .nth(1)
        .ok_or("say which container: the id of a process in it, or a name of `ip netns`")?;

    // Every container has a loopback interface, which keeps the monitor going when all others are
    // gone.
    let netns = Netns::find(&container)?;
    let id = netns.id();
    let mut monitor = Monitor::builder()
        .watch_in(netns.clone(), ["lo"])
        .start()
        .await?;
    let handle = monitor.handle();

    let mut readings = tokio::time::interval(READ_AGAIN);
    loop {
        tokio::select! {
            _ = readings.tick() => {
                for name in names(&container)? {
                    // Watching what is watched already changes nothing.
                    handle.watch(Target::from(name).in_netns(netns.clone())).await?;
                }
            }
            event = monitor.next() => {
                let Some(event) = event.transpose()? else {
                    return Ok(());
                };
                println!("{} {}", event.interface, event.kind.as_str());
                if let EventKind::Renamed { to, .. } = event.kind {
                    handle.unwatch(id, event.interface).await?;
                    handle.watch(Target::from(to).in_netns(netns.clone())).await?;
                }
            }
        }
    }
}

/// The interfaces of a namespace, as a process in it sees them: every line of `/proc/PID/net/dev`
/// but the two of the heading begins with a name and a colon.
fn names(container: &str) -> io::Result<Vec<InterfaceName>> {
    let list = match container.parse::<u32>() {
        Ok(pid) => std::fs::read(PathBuf::from(format!("/proc/{pid}/net/dev")))?,
        Err(_) => {
            let ip = std::process::Command::new("ip")
                .args(["netns", "exec", container, "cat", "/proc/self/net/dev"])
                .output()?;
            ip.stdout
        }
    };
    let name = |line: &[u8]| {
        let colon = line.iter().position(|&byte| byte == b':')?;
        InterfaceName::new(line.get(..colon)?.trim_ascii()).ok()
    };
    Ok(list
        .split(|&byte| byte == b'\n')
        .skip(2)
        .filter_map(name)
        .collect())
}
