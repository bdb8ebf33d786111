//! Know at once, and for certain, that a network interface is gone, new, renamed or moved.
//!
//! A watch is a name in a network namespace. A [`Monitor`] follows any number of them and is a
//! stream of [`Event`]s:
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), ifmon::Error> {
//! use ifmon::{EventKind, Monitor};
//!
//! let mut monitor = Monitor::builder().watch("lo").start().await?;
//! while let Some(event) = monitor.next().await {
//!     let event = event?;
//!     println!("{} {}", event.interface, event.kind.as_str());
//!     match event.kind {
//!         // First, once for each watch: from here on nothing is missed.
//!         EventKind::Watching { ifindex } => assert_eq!(ifindex, Some(1)),
//!         // Deleted, renamed, moved or recreated: no longer the interface that was set up.
//!         _ if event.should_restart() => break,
//!         _ => {}
//!     }
//! #   break;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Two worlds feed the same decisions. A BPF program in the kernel drops everything that does not
//! concern a watch, so that the process sleeps however many other interfaces come and go; where BPF
//! is not to be had, the agent of the host (`ifmon --serve`) or a netlink subscription gives the
//! same verdicts. [`BackendChoice`] says which may be taken, [`Check`] which work on a host, and why
//! others do not.
//!
//! After an event the watch goes on. When events are lost on the way (the kernel's queue
//! overflowed), the state is read again, [`EventKind::Resynced`] says so, and only what has changed
//! becomes an event. Dropping the monitor ends it. Watches are added and removed through a
//! [`Handle`]. [`Origins`] says in which container or unit an [`Actor`] is, [`Peers`] in which one the
//! other end of a veth is. Everything runs on the caller's tokio runtime.
//!
//! One monitor serves a whole process: it takes as many descriptors as one for each tunnel would take
//! each time (five with netlink, fourteen with netlink-ebpf), and with these four more for each other
//! network namespace. What a backend needs ([`Check`] says what is missing) it needs for [`Builder::start`]. A
//! process that gives up its rights afterwards, or changes its root directory, goes on being told of all
//! that it watches, and can add names in its own namespace; in others that it watches already with the
//! netlink backends (`netlink-ebpf` too), since `fentry` and `kprobe` keep nothing of them open.
//!
//! `examples/` has an engine that restarts with its tunnel, the interfaces of a container, and use
//! from blocking code.

#![cfg_attr(
    not(all(feature = "ebpf", any(target_arch = "x86_64", target_arch = "aarch64"))),
    expect(
        dead_code,
        reason = "some of what all backends share serves the BPF ones alone"
    )
)]

#[cfg(feature = "agent")]
mod agent;
mod backend;
#[cfg(all(feature = "ebpf", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod bpf;
#[cfg(not(all(feature = "ebpf", any(target_arch = "x86_64", target_arch = "aarch64"))))]
#[path = "without_bpf.rs"]
mod bpf;
mod budget;
#[cfg(all(test, feature = "cli"))]
mod cli;
mod driver;
mod engine;
mod error;
mod event;
mod host;
mod inquiry;
mod inspector;
#[doc(hidden)]
#[cfg(feature = "internals")]
pub mod internals;
mod kind;
mod machine;
mod monitor;
mod name;
mod netlink;
mod netns;
mod origin;
mod outbox;
mod packed;
mod pattern;
mod peer;
mod readiness;
mod retry;
mod signal;
#[cfg(all(
    test,
    feature = "ebpf",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod sim;
mod target;
mod tracker;

// The program is tested here, where the simulator can have clients for what it serves.
#[cfg(all(test, feature = "cli"))]
extern crate self as ifmon;
#[cfg(all(test, feature = "cli"))]
const _: fn() -> std::process::ExitCode = cli::main;

pub use backend::Check;
pub use error::Error;
pub use event::{Actor, BackendKind, Event, EventKind, Field};
pub use host::{Facts, Lockdown, Unavailable};
pub use inspector::Inspector;
pub use kind::{InvalidKind, LinkKind};
pub use monitor::{BackendChoice, Builder, Handle, Monitor};
pub use name::{InterfaceName, InvalidName};
pub use netns::{Netns, NetnsId};
pub use origin::{Container, Origin, Origins};
pub use pattern::{InvalidPattern, Pattern};
pub use peer::{Peer, Peers};
pub use signal::Counters;
pub use target::{Identity, Target};
