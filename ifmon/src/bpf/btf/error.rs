//! Why the kernel's BTF could not be used.

use std::{io, path::PathBuf};

/// Why no offsets could be read from the kernel's BTF.
///
/// Every variant is one sentence for a person. A program reads through these offsets inside the
/// kernel, so whatever is not certain is an error: never a guess.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum BtfError {
    /// No BTF file: `CONFIG_DEBUG_INFO_BTF` is off, or `/sys` is not mounted here.
    #[error("cannot open the kernel's BTF at {}: {source}", path.display())]
    Open {
        /// The file that was tried.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is there and could not be read.
    #[error("cannot read the kernel's BTF: {0}")]
    Read(#[source] io::Error),
    /// The file ends before its header says so.
    #[error("the BTF is cut short: nothing to read at byte {at}")]
    Truncated {
        /// Where bytes were wanted.
        at: u64,
    },
    /// The first two bytes are not BTF's.
    #[error("not BTF: the file begins with {0:#06x}, not with 0xeb9f")]
    Magic(u16),
    /// BTF of a machine of the other byte order.
    #[error("the BTF is big-endian, and only little-endian is supported")]
    BigEndian,
    /// A header that this reader does not know how to read.
    #[error("the BTF header is not understood: {0}")]
    Header(&'static str),
    /// The string section is not a list of NUL-terminated strings.
    #[error("the BTF string section does not begin and end with a NUL byte")]
    Strings,
    /// The same string is there twice, so comparing string offsets would not find every use of the
    /// name.
    #[error("the BTF holds the string \"{0}\" more than once")]
    DuplicateString(&'static str),
    /// A kind of type of unknown length: nothing after it can be found.
    #[error("the BTF has a type of kind {kind}, and does not say how long that is")]
    UnknownKind {
        /// `BTF_KIND_*`.
        kind: u8,
    },
    /// The file describes a kind that we know otherwise than we know it.
    #[error("the BTF says that types of kind {kind} have another length than the one known")]
    KindLength {
        /// `BTF_KIND_*`.
        kind: u8,
    },
    /// A type record that goes on behind the end of the type section.
    #[error("BTF type {id} does not end within the type section")]
    Overrun {
        /// The type's id.
        id: u32,
    },
    /// A reference to a type that is not there.
    #[error("the BTF refers to type {id}, which it does not have")]
    NoSuchId {
        /// The id that was looked up.
        id: u32,
    },
    /// Types that contain or refer to each other without an end.
    #[error("BTF type {id} is nested too deeply, or in a circle")]
    TooDeep {
        /// The type at which the reader gave up.
        id: u32,
    },
    /// A struct with impossible members; the kernel would refuse it as well.
    #[error("a member of BTF type {id} lies outside of it, or before the member in front of it")]
    Misplaced {
        /// The id of the struct or union.
        id: u32,
    },
    /// The struct, union or enum is not there (or only declared).
    #[error("the kernel's BTF has no {what} {name}")]
    NoType {
        /// `struct` or `enum`.
        what: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The struct has no such field.
    #[error("the kernel's BTF has no field {field}")]
    NoField {
        /// Struct and path, as in `net_device.nd_net.net`.
        field: String,
    },
    /// The enum has no such value.
    #[error("the kernel's BTF has no {name} in enum {of}")]
    NoEnumerator {
        /// The value's name.
        name: &'static str,
        /// The enum's name.
        of: &'static str,
    },
    /// The field is there and is not what the BPF program takes it for.
    #[error("the kernel's BTF has {field}, but it is not {wanted}")]
    WrongType {
        /// Struct and path.
        field: String,
        /// What was expected of it.
        wanted: &'static str,
    },
    /// More than one thing of that name, and no telling which is meant.
    #[error("the kernel's BTF is ambiguous: {what}")]
    Ambiguous {
        /// What there is more than one of.
        what: String,
    },
}
