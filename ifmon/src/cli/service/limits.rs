//! How much the agent does for its clients. Each limit bounds memory, so that nothing that a client
//! sends can grow the agent.

/// Bytes of a call. 1,024 names with their expected devices fit.
pub(super) const CALL_BYTES: usize = 64 << 10;

/// Events that wait for a client to read, beside what is in the kernel's buffer of its socket.
pub(super) const QUEUED_EVENTS: usize = if cfg!(test) { 4 } else { 256 };

/// Bytes of these events. Clients that watch the same name share them.
pub(super) const QUEUED_BYTES: usize = if cfg!(test) { 800 } else { 128 << 10 };

/// Names that a client watches.
pub(super) const WATCHES_OF_CLIENT: usize = 1024;

/// Names of one reply of `List`.
pub(super) const LISTED: usize = 256;

/// Whose room a client takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// The host's. Root of a container is a user like any other.
    Root,
    User(u32),
}

/// How many there may be of something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limit {
    /// What it is, in words for a person.
    pub(super) what: &'static str,
    /// Of all users. A quarter of it is kept for root.
    pub(super) all: usize,
    /// Of one user.
    pub(super) user: usize,
}

pub(super) const CLIENTS: Limit = Limit {
    what: "clients",
    all: 4096,
    user: 1536,
};

/// A name that a client watches, counted for each client.
pub(super) const WATCHES: Limit = Limit {
    what: "watches",
    all: 64 << 10,
    user: 16 << 10,
};

/// A name that is watched, however many clients ask for it.
pub(super) const NAMES: Limit = Limit {
    what: "different names",
    all: 8192,
    user: 2048,
};

/// A network namespace in which something is watched. Each takes a descriptor, and a socket with
/// its filter unless the backend hears of all namespaces at once.
pub(super) const NAMESPACES: Limit = Limit {
    what: "network namespaces",
    all: 1024,
    user: 256,
};

impl Limit {
    /// Is there room for so many more, where there are so many in all and of this owner? Who asks for
    /// nothing more does not need any, however much root has.
    pub(super) fn has_room(self, owner: Owner, more: usize, all: usize, of_owner: usize) -> bool {
        match owner {
            Owner::Root => all + more <= self.all,
            Owner::User(_) => {
                (more == 0 || all + more <= self.all / 4 * 3) && of_owner + more <= self.user
            }
        }
    }
}
