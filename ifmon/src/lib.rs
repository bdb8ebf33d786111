//! Know at once, and for certain, that a network interface is gone, new, renamed or moved.

mod backend;
mod error;
mod event;
#[doc(hidden)]
pub mod kernel;
mod monitor;
mod name;
mod netlink;
mod netns;
#[doc(hidden)]
pub mod tracker;

pub use backend::Counters;
pub use error::Error;
pub use event::{Actor, BackendKind, Event, EventKind};
pub use kernel::Unavailable;
pub use monitor::{BackendChoice, Builder, Handle, Monitor};
pub use name::{InterfaceName, InvalidName};
pub use netns::{Netns, NetnsId};
