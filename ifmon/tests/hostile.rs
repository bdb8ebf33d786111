//! Messages that the kernel did not send, and a socket that dies.
//!
//! Needs the right to make a network namespace, and `ip`; says so where it has not.

mod common;

use std::{
    fs,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
};

use ifmon::{BackendChoice, BackendKind, Event, EventKind, Monitor, Netns};
use rustix::net::{
    AddressFamily, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink, sendto,
    socket_with,
};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

async fn next(monitor: &mut Monitor) -> Event {
    monitor
        .next()
        .await
        .expect("the watch goes on")
        .expect("no error")
}

/// The sockets of the calling thread's namespace that hear of links: port and inode number.
fn subscriptions() -> Vec<(u32, u64)> {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").expect("/proc is mounted");
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let [_, protocol, port, groups, .., inode] = fields.as_slice() else {
                return None;
            };
            // The kernel's own socket has port 0.
            (*protocol == "0" && *groups == "00000001" && *port != "0")
                .then(|| Some((port.parse().ok()?, inode.parse().ok()?)))
                .flatten()
        })
        .collect()
}

#[test]
fn a_message_from_a_process_is_ignored() {
    let Some(namespace) = common::Namespace::enter_new() else {
        return;
    };
    for backend in [BackendKind::Netlink, BackendKind::NetlinkUnfiltered] {
        block_on(async {
            let mut monitor = Monitor::builder()
                .backend(BackendChoice::Only(backend))
                .watch("lo")
                .watch("wg0")
                .start()
                .await
                .expect("netlink works for everybody");
            next(&mut monitor).await;
            next(&mut monitor).await;
            let ports = subscriptions();
            assert_eq!(ports.len(), 1, "one subscription in a namespace of its own");

            // RTM_DELLINK of lo, as the kernel would write it.
            let mut message = vec![40, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            message.extend([0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            message.extend(b"\x07\0\x03\0lo\0\0");
            let socket = socket_with(
                AddressFamily::NETLINK,
                SocketType::RAW,
                SocketFlags::CLOEXEC,
                None,
            )
            .expect("a netlink socket");
            let send = |to| sendto(&socket, &message, SendFlags::empty(), &to);
            for (port, _) in ports {
                let refused = send(SocketAddrNetlink::new(port, 0));
                assert_eq!(refused, Err(rustix::io::Errno::CONNREFUSED));
            }
            // Whoever listens to the group hears root.
            let sent = send(SocketAddrNetlink::new(0, 1));
            assert_eq!(sent.expect("root may send to a group"), message.len());

            namespace
                .ip("link add wg0 type veth peer name wg1\nlink del wg0\n")
                .join()
                .expect("ip makes its changes");
            let event = next(&mut monitor).await;
            assert_eq!(event.interface.as_bytes(), b"wg0", "{event:?}");
        });
    }
}

#[test]
fn a_socket_that_dies_is_opened_again() {
    for backend in [BackendKind::Netlink, BackendKind::NetlinkUnfiltered] {
        let Some(one) = common::Namespace::enter_new() else {
            return;
        };
        one.ip("link add wg0 type veth peer name wg1\n")
            .join()
            .expect("ip makes its change");
        let first = Netns::current().expect("a namespace");
        let Some(other) = common::Namespace::enter_new() else {
            return;
        };
        let second = Netns::current().expect("a namespace");
        block_on(async {
            let mut monitor = Monitor::builder()
                .backend(BackendChoice::Only(backend))
                .watch_in(first, ["wg0"])
                .watch_in(second, ["wg0"])
                .start()
                .await
                .expect("netlink works for everybody");
            next(&mut monitor).await;
            next(&mut monitor).await;

            // Something else takes the place of the socket, and what happens now is heard by
            // nobody.
            one.enter();
            let (_, inode) = subscriptions()[0];
            other.enter();
            let null = fs::File::open("/dev/null").expect("/dev is there");
            let socket = fs::read_dir("/proc/self/fd")
                .expect("/proc is mounted")
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
                .find(|fd| {
                    fs::metadata(format!("/proc/self/fd/{fd}"))
                        .is_ok_and(|file| file.ino() == inode)
                })
                .expect("the socket is ours");
            // SAFETY: the descriptor stays open, and whoever owns it will close it.
            assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), socket) }, socket);
            one.ip("link del wg0\n")
                .join()
                .expect("ip makes its change");

            // Nobody is told that the socket is gone; whoever wants to hear of all that has
            // happened makes the monitor look.
            let handle = monitor.handle();
            tokio::spawn(async move { handle.sync().await });
            let mut resynced = false;
            loop {
                let event = next(&mut monitor).await;
                match event.kind {
                    EventKind::Resynced { changed, .. } => {
                        assert!(changed);
                        resynced = true;
                    }
                    EventKind::Deleted { .. } => {
                        assert!(resynced && event.recovered, "{event:?}");
                        break;
                    }
                    _ => panic!("{event:?}"),
                }
            }
            // And it hears again.
            one.ip("link add wg0 type veth peer name wg1\n")
                .join()
                .expect("ip makes its change");
            let event = next(&mut monitor).await;
            assert!(
                matches!(event.kind, EventKind::Recreated { .. }) && !event.recovered,
                "{event:?}"
            );
        });
    }
}
