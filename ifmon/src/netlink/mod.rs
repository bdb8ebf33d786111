//! rtnetlink, as far as ifmon needs it: one message to read, one question to ask, one filter to build.

pub(crate) mod filter;
pub(crate) mod generation;
pub(crate) mod message;
pub(crate) mod query;
pub(crate) mod socket;
