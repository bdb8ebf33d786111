//! BPF: programs in the kernel that wake this process for nothing but what concerns a watch.
//!
//! Two hooks and a socket filter run the same filter over the same maps (`ifmon-ebpf`): `fentry`
//! and `kprobe` on the function that announces every change of a device, and `netlink-ebpf`, which
//! sees the link messages of a namespace before they are queued. [`core`] keeps account of
//! what they tell, without I/O; [`shell`] has the programs and their maps.

pub(crate) mod begin;
pub(crate) mod btf;
pub(crate) mod core;
mod everywhere;
mod forgetting;
pub(crate) mod identities;
mod layout;
pub(crate) mod load;
pub(crate) mod maps;
mod open;
pub(crate) mod patterns;
mod recognition;
pub(crate) mod selftest;
mod shared;
pub(crate) mod shell;

pub(crate) use self::open::{HAS_OBJECT, Loader, Running, read_layout};

use std::io;

use ifmon_ebpf::{
    Counters, DeviceState, Link, Match, NameKey, NameState, PatternSet, PatternState, Place, Record,
};

use crate::{
    NetnsId,
    machine::{Answer, Question},
};

/// What the deciding part asks of the one that has the programs and their maps.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Request {
    /// Get ready to ask about a namespace; with the socket filter, subscribe to its link messages
    /// as well: [`Reply::Done`].
    Enter(NetnsId),
    /// Let go of it: [`Reply::Done`].
    Leave(NetnsId),
    /// The next record, without waiting: [`Reply::Record`].
    Record,
    /// What the socket of a namespace says, on which nothing is ever queued: [`Reply::Overflowed`].
    Overflowed(NetnsId),
    /// What all processors have counted: [`Reply::Counters`].
    Counters,
    /// Who holds a watched name, perhaps half written: [`Reply::Name`].
    Name(NameKey),
    /// Watch names from now on, in place of earlier watches of them: [`Reply::Done`]. After an error,
    /// some of them may be there.
    InsertNames(Vec<(NameKey, NameState)>),
    /// [`Reply::Done`], also when there is none.
    RemoveName(NameKey),
    /// The id of the device with this index: [`Reply::Link`].
    Link(Link),
    /// Unless there is one already: [`Reply::Inserted`].
    InsertLink(Link, u64),
    /// [`Reply::Done`], also when there is none.
    RemoveLink(Link),
    /// Where a device is, perhaps half written: [`Reply::Device`].
    Device(u64),
    /// All of them: [`Reply::Devices`].
    Devices,
    /// Devices with new ids: [`Reply::Done`]. After an error, some of them may be there.
    InsertDevices(Vec<(u64, Place)>),
    /// [`Reply::Done`], also when there is none.
    RemoveDevice(u64),
    /// The epoch of a watched namespace, which the program strikes off when it ends:
    /// [`Reply::Namespace`].
    Namespace(NetnsId),
    /// [`Reply::Done`].
    InsertNamespace(NetnsId, u32),
    /// [`Reply::Done`], also when there is none.
    RemoveNamespace(NetnsId),
    /// Let through what may concern patterns of a namespace, in place of those before:
    /// [`Reply::Done`].
    InsertPatterns(NetnsId, Box<PatternSet>),
    /// [`Reply::Done`], also when there are none.
    RemovePatterns(NetnsId),
    /// How much there was of it: [`Reply::PatternState`].
    PatternState(NetnsId),
    /// The same of all namespaces: [`Reply::PatternStates`].
    PatternStates,
    /// Count from 0, with this epoch: [`Reply::Done`].
    InsertPatternState(NetnsId, u32),
    /// The same, unless it is done already: [`Reply::Inserted`].
    AddPatternState(NetnsId, u32),
    /// [`Reply::Done`], also when there is none.
    RemovePatternState(NetnsId),
    /// The devices of a namespace that may match, and how much there was of it: [`Reply::Matching`].
    Matching(NetnsId),
    /// A device may match, whatever it is called: [`Reply::Done`].
    InsertMatching(Link),
    /// No device of the namespace, or of any for [`NetnsId::ALL`], may match: [`Reply::Done`].
    RemoveMatching(NetnsId),
    /// None that may match is between two namespaces: [`Reply::Done`].
    RemoveLeaving,
    /// Which namespaces are there? [`Reply::Namespaces`].
    Namespaces,
    /// [`Reply::Answer`].
    Ask(NetnsId, Question),
}

/// The devices of a namespace that may match, by index.
#[derive(Debug)]
pub(crate) struct Matching {
    pub(crate) devices: Vec<(u32, Match)>,
    /// Read after them: whether there was room for all is told by what was counted by then.
    pub(crate) state: Option<PatternState>,
}

/// The answer to a [`Request`].
#[derive(Debug)]
pub(crate) enum Reply {
    Done(io::Result<()>),
    Inserted(io::Result<bool>),
    Record(Option<Record>),
    /// True when the kernel could not even show a message to the program.
    Overflowed(io::Result<bool>),
    Counters(io::Result<Counters>),
    Name(io::Result<Option<NameState>>),
    Link(io::Result<Option<u64>>),
    Device(io::Result<Option<DeviceState>>),
    Devices(io::Result<Vec<(u64, DeviceState)>>),
    Namespace(io::Result<Option<u32>>),
    PatternState(io::Result<Option<PatternState>>),
    PatternStates(io::Result<Vec<(NetnsId, PatternState)>>),
    Matching(io::Result<Matching>),
    /// Those that can be entered.
    Namespaces(io::Result<Vec<NetnsId>>),
    Answer(Answer),
}
