//! Where the running kernel keeps the fields that the BPF programs read.
//!
//! C programs learn that through CO-RE relocations, which rustc does not emit. So the offsets are
//! read here, from the kernel's own description of its types, and handed to the programs as
//! constants.
//!
//! This file says *what* is wanted; `btf/reader.rs` knows how to find it.
//!
//! Why not a library: `aya-obj` keeps the members of its types private, and the others parse the
//! whole file into memory to get at these dozen numbers. This takes about 13 million instructions
//! and 100 KB for 4 MB of BTF.

#[cfg(test)]
mod build;
#[cfg(test)]
mod cutout;
mod error;
mod format;
mod names;
mod reader;
mod synth;
#[cfg(test)]
mod tests;
mod window;

use std::{fs::File, path::Path};

pub(crate) use self::error::BtfError;
pub(crate) use self::synth::btf_with_func;
use self::{
    format::kind,
    reader::{Member, POINTER, Reader},
    window::BtfSource,
};

/// Where the kernel shows its BTF.
pub(crate) const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// What the kernel's BTF says about all that the BPF programs touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Where the fields are.
    pub(crate) offsets: Offsets,
    /// The numbers of the notifier events.
    pub(crate) events: NetdevEvents,
    /// The functions to attach to.
    pub(crate) funcs: FuncIds,
}

/// Offsets in bytes of the fields that the BPF programs read, each within the struct that its name
/// begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offsets {
    /// `net_device.name`, a `char[16]`.
    pub(crate) dev_name: u32,
    /// `net_device.ifindex`, an `int`.
    pub(crate) dev_ifindex: u32,
    /// `net_device.nd_net.net`, a `struct net *`.
    pub(crate) dev_net: u32,
    /// `net_device.reg_state`: a bitfield in Linux 5.10 and 6.1, a byte in 6.12 and later.
    pub(crate) dev_reg_state: Bits,
    /// `net.ns.inum`, an `unsigned int`.
    pub(crate) net_inum: u32,
    /// Where the kind of a device is, which patterns alone need.
    pub(crate) kind: Option<KindOffsets>,
    /// `task_struct.flags`, an `unsigned int`.
    pub(crate) task_flags: u32,
    /// `task_struct.tgid`, a `pid_t`; the programs can do without it.
    pub(crate) task_tgid: Option<u32>,
    /// `netdev_notifier_info.dev`, a `struct net_device *`.
    pub(crate) notifier_info_dev: u32,
}

/// How to come from a device to its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KindOffsets {
    /// `net_device.rtnl_link_ops`, a `struct rtnl_link_ops *`; null for a device without a kind.
    pub(crate) dev_link_ops: u32,
    /// `rtnl_link_ops.kind`, a `char *`.
    pub(crate) link_ops_kind: u32,
}

/// An unsigned number that need not fill the bytes that it is in: `(load(offset, size) >> shift) &
/// mask`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bits {
    /// The offset in bytes of what to load.
    pub(crate) offset: u32,
    /// How many bytes to load: 1, 2 or 4.
    pub(crate) size: u32,
    /// By how many bits to shift it to the right.
    pub(crate) shift: u32,
    /// Which bits to keep after that.
    pub(crate) mask: u32,
}

/// The values of `enum netdev_cmd` that stand for what we watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NetdevEvents {
    /// `NETDEV_REGISTER`
    pub(crate) register: u32,
    /// `NETDEV_UNREGISTER`
    pub(crate) unregister: u32,
    /// `NETDEV_CHANGENAME`
    pub(crate) change_name: u32,
}

/// BTF ids of functions. None if the kernel's BTF does not have the function, if it is not what we
/// know under that name, or if there are several: then fentry cannot be used for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FuncIds {
    /// `int rtnetlink_event(struct notifier_block *, unsigned long, void *)`
    pub(crate) rtnetlink_event: Option<u32>,
}

/// Reads the layout from a BTF file, [`VMLINUX`] as a rule.
///
/// # Errors
///
/// Whenever one of the offsets or event numbers is not certain. Only a function may be missing.
pub(crate) fn read_layout(path: impl AsRef<Path>) -> Result<Layout, BtfError> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|source| BtfError::Open {
        path: path.to_owned(),
        source,
    })?;
    layout(file)
}

/// For fuzzing: the same from bytes.
#[cfg(any(test, feature = "internals"))]
pub(crate) fn fuzz_btf(data: &[u8]) -> Result<Layout, BtfError> {
    layout(data)
}

/// What a field has to be for the programs to be able to read it.
#[derive(Clone, Copy)]
enum Shape {
    /// An array of so many one-byte integers.
    Chars(u32),
    /// An integer of four bytes.
    Word,
    /// A pointer to this struct.
    Pointer(&'static str),
    /// A pointer to one-byte integers.
    Text,
    /// An integer or enum of at most four bytes, or a bitfield within one byte.
    Small,
}

impl Shape {
    fn wanted(self) -> &'static str {
        match self {
            Self::Chars(_) => "an array of 16 characters",
            Self::Word => "a whole integer of 4 bytes",
            Self::Pointer(_) => "a pointer to the struct that it should point to",
            Self::Text => "a pointer to characters",
            Self::Small => "an integer of at most 4 bytes or a bitfield within one byte",
        }
    }
}

/// A struct, the path of a field in it, and what the field has to be.
struct Field {
    of: &'static str,
    path: &'static [&'static str],
    shape: Shape,
}

const fn field(of: &'static str, path: &'static [&'static str], shape: Shape) -> Field {
    Field { of, path, shape }
}

/// `IFNAMSIZ`
const NAME_LEN: u32 = 16;

const DEV_NAME: Field = field("net_device", &["name"], Shape::Chars(NAME_LEN));
const DEV_IFINDEX: Field = field("net_device", &["ifindex"], Shape::Word);
const DEV_NET: Field = field("net_device", &["nd_net", "net"], Shape::Pointer("net"));
const DEV_REG_STATE: Field = field("net_device", &["reg_state"], Shape::Small);
const DEV_LINK_OPS: Field = field(
    "net_device",
    &["rtnl_link_ops"],
    Shape::Pointer("rtnl_link_ops"),
);
const LINK_OPS_KIND: Field = field("rtnl_link_ops", &["kind"], Shape::Text);
const NET_INUM: Field = field("net", &["ns", "inum"], Shape::Word);
const TASK_FLAGS: Field = field("task_struct", &["flags"], Shape::Word);
const TASK_TGID: Field = field("task_struct", &["tgid"], Shape::Word);
const NOTIFIER_INFO_DEV: Field = field(
    "netdev_notifier_info",
    &["dev"],
    Shape::Pointer("net_device"),
);
const FIELDS: [Field; 10] = [
    DEV_NAME,
    DEV_IFINDEX,
    DEV_NET,
    DEV_REG_STATE,
    DEV_LINK_OPS,
    LINK_OPS_KIND,
    NET_INUM,
    TASK_FLAGS,
    TASK_TGID,
    NOTIFIER_INFO_DEV,
];

const EVENTS: &str = "netdev_cmd";
const REGISTER: &str = "NETDEV_REGISTER";
const UNREGISTER: &str = "NETDEV_UNREGISTER";
const CHANGE_NAME: &str = "NETDEV_CHANGENAME";

const RTNETLINK_EVENT: &str = "rtnetlink_event";

/// All names that have to be looked for in the string section.
fn names() -> Vec<&'static str> {
    let mut names = vec![EVENTS, REGISTER, UNREGISTER, CHANGE_NAME, RTNETLINK_EVENT];
    names.extend(
        FIELDS
            .iter()
            .flat_map(|field| std::iter::once(field.of).chain(field.path.iter().copied())),
    );
    names.sort_unstable();
    names.dedup();
    names
}

fn layout(source: impl BtfSource) -> Result<Layout, BtfError> {
    let mut btf = Reader::open(source, &names())?;
    let mut offset = |field: &Field| locate(&mut btf, field).map(|bits| bits.offset);
    let offsets = Offsets {
        dev_name: offset(&DEV_NAME)?,
        dev_ifindex: offset(&DEV_IFINDEX)?,
        dev_net: offset(&DEV_NET)?,
        net_inum: offset(&NET_INUM)?,
        kind: offset(&DEV_LINK_OPS)
            .and_then(|dev_link_ops| {
                let link_ops_kind = offset(&LINK_OPS_KIND)?;
                Ok(KindOffsets {
                    dev_link_ops,
                    link_ops_kind,
                })
            })
            .ok(),
        task_flags: offset(&TASK_FLAGS)?,
        task_tgid: offset(&TASK_TGID).ok(),
        notifier_info_dev: offset(&NOTIFIER_INFO_DEV)?,
        dev_reg_state: locate(&mut btf, &DEV_REG_STATE)?,
    };
    let events = NetdevEvents {
        register: event(&mut btf, REGISTER)?,
        unregister: event(&mut btf, UNREGISTER)?,
        change_name: event(&mut btf, CHANGE_NAME)?,
    };
    let funcs = FuncIds {
        rtnetlink_event: func(&mut btf, RTNETLINK_EVENT, 3)?,
    };
    Ok(Layout {
        offsets,
        events,
        funcs,
    })
}

/// The value that all of `values` have.
///
/// There may be several types of one name: deduplication in pahole is not perfect, and a driver can
/// have a private struct of the same name. If they agree on what we want to know, then it does not
/// matter which of them is meant.
fn agreed<T: PartialEq>(
    values: impl Iterator<Item = Result<Option<T>, BtfError>>,
    what: impl Fn() -> String,
) -> Result<Option<T>, BtfError> {
    let mut agreed = None;
    for value in values {
        match (value?, &agreed) {
            (Some(value), Some(other)) if value != *other => {
                return Err(BtfError::Ambiguous {
                    what: format!("there are several {}, and they differ", what()),
                });
            }
            (Some(value), _) => agreed = Some(value),
            (None, _) => {}
        }
    }
    Ok(agreed)
}

fn locate<S: BtfSource>(btf: &mut Reader<S>, field: &Field) -> Result<Bits, BtfError> {
    let Field { of, path, shape } = field;
    let name = || format!("{of}.{}", path.join("."));
    let structs = btf.named(of, &[kind::STRUCT]);
    if structs.is_empty() {
        return Err(BtfError::NoType {
            what: "struct",
            name: of,
        });
    }
    let places = structs.iter().map(|ty| {
        let Some(member) = btf.field(ty, path)? else {
            return Ok(None);
        };
        let bits = bits(btf, member, *shape)?;
        bits.ok_or_else(|| BtfError::WrongType {
            field: name(),
            wanted: shape.wanted(),
        })
        .map(Some)
    });
    agreed(places, name)?.ok_or_else(|| BtfError::NoField { field: name() })
}

/// How to load the member, provided that it has this shape. (For what is no number, only the offset
/// means anything.)
fn bits<S: BtfSource>(
    btf: &mut Reader<S>,
    member: Member,
    shape: Shape,
) -> Result<Option<Bits>, BtfError> {
    let ty = btf.resolve(member.type_id)?;
    let whole = match ty.kind {
        kind::INT => btf.is_whole(&ty)?,
        _ => true,
    };
    let size = match (shape, ty.kind) {
        (Shape::Word, kind::INT) if ty.size_or_type == 4 => 4,
        (Shape::Small, kind::INT | kind::ENUM) if matches!(ty.size_or_type, 1 | 2 | 4) => {
            ty.size_or_type
        }
        (Shape::Pointer(to), kind::PTR) => {
            let to_type = btf.resolve(ty.size_or_type)?;
            if !matches!(to_type.kind, kind::STRUCT | kind::FWD) || !btf.is_named(&to_type, to) {
                return Ok(None);
            }
            POINTER
        }
        (Shape::Text, kind::PTR) => {
            let to = btf.resolve(ty.size_or_type)?;
            if to.kind != kind::INT || to.size_or_type != 1 {
                return Ok(None);
            }
            POINTER
        }
        (Shape::Chars(len), kind::ARRAY) => {
            let array = btf.array(&ty)?;
            let element = btf.resolve(array.element)?;
            if array.len != len || element.kind != kind::INT || element.size_or_type != 1 {
                return Ok(None);
            }
            len
        }
        _ => return Ok(None),
    };
    let (byte, shift) = (member.offset / 8, (member.offset % 8) as u32);
    let Ok(offset) = u32::try_from(byte) else {
        return Ok(None);
    };
    // None of these structs is packed.
    let aligned = shift == 0 && (ty.kind == kind::ARRAY || offset.is_multiple_of(size));
    Ok(match member.width {
        _ if !whole => None,
        0 if !aligned => None,
        0 => Some(Bits {
            offset,
            size,
            shift: 0,
            mask: u32::MAX >> (32 - 8 * size.min(4)),
        }),
        width if matches!(shape, Shape::Small) && shift + width <= 8 => Some(Bits {
            offset,
            size: 1,
            shift,
            mask: (1 << width) - 1,
        }),
        _ => None,
    })
}

fn event<S: BtfSource>(btf: &mut Reader<S>, name: &'static str) -> Result<u32, BtfError> {
    let enums = btf.named(EVENTS, &[kind::ENUM, kind::ENUM64]);
    if enums.is_empty() {
        return Err(BtfError::NoType {
            what: "enum",
            name: EVENTS,
        });
    }
    agreed(enums.iter().map(|ty| btf.enumerator(ty, name)), || {
        format!("{name} in enum {EVENTS}")
    })?
    .ok_or(BtfError::NoEnumerator { name, of: EVENTS })
}

/// The id of the function of this name, if there is one only, and it has that many parameters.
fn func<S: BtfSource>(
    btf: &mut Reader<S>,
    name: &str,
    params: u32,
) -> Result<Option<u32>, BtfError> {
    let funcs = btf.named(name, &[kind::FUNC]);
    let [func] = funcs.as_slice() else {
        return Ok(None);
    };
    let known = btf
        .prototype(func)?
        .is_some_and(|prototype| prototype.vlen == params);
    Ok(known.then_some(func.id))
}
