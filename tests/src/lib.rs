//! What every scenario needs: a host to change, and a running ifmon to listen to.

pub mod links;
pub mod namespace;
pub mod program;
