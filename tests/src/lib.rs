//! What every scenario needs: a host to change, and a running ifmon to listen to. And the scenarios
//! themselves.

pub mod agent;
pub mod backend;
pub mod bench;
pub mod calls;
pub mod cgroup;
pub mod documents;
pub mod format;
pub mod holder;
pub mod links;
pub mod namespace;
pub mod obstacle;
pub mod open_files;
pub mod program;
pub mod requests;
pub mod room;
pub mod scratch;
pub mod stage;
pub mod stress;
pub mod table;
pub mod want;
