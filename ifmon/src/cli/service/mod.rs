//! `--serve`: one agent for the host, and any number of clients that need no privileges.
//!
//! Clients speak varlink on a unix socket; `io.ifmon.varlink` says what they can ask. A client's
//! `Connection` puts calls to the `Hub`, which decides and has the `Agent` ask the library.

mod agent;
pub(crate) mod call;
mod connection;
pub(crate) mod event_reply;
mod holding;
pub(crate) mod hub;
pub(crate) mod limits;
mod peer;
mod policy;
mod socket;

pub(crate) use self::{agent::serve, policy::Rule, socket::take_handed_over};
use super::output::json;
