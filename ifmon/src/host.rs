//! What is known of the running kernel, in one place.

pub(crate) mod facts;
pub(crate) mod mount;
pub(crate) mod mountinfo;
mod unavailable;

pub use facts::{Facts, Lockdown};
pub use unavailable::Unavailable;
