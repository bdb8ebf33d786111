//! What a BTF file is made of: the kernel's Documentation/bpf/btf.rst and include/uapi/linux/btf.h
//! in Rust.

use std::ops::Range;

use super::{
    BtfError,
    window::{BtfSource, Window},
};

/// `BTF_KIND_*`, as far as the reader has to know them apart.
pub(super) mod kind {
    pub(in super::super) const INT: u8 = 1;
    pub(in super::super) const PTR: u8 = 2;
    pub(in super::super) const ARRAY: u8 = 3;
    pub(in super::super) const STRUCT: u8 = 4;
    pub(in super::super) const UNION: u8 = 5;
    pub(in super::super) const ENUM: u8 = 6;
    pub(in super::super) const FWD: u8 = 7;
    pub(in super::super) const TYPEDEF: u8 = 8;
    pub(in super::super) const VOLATILE: u8 = 9;
    pub(in super::super) const CONST: u8 = 10;
    pub(in super::super) const RESTRICT: u8 = 11;
    pub(in super::super) const FUNC: u8 = 12;
    pub(in super::super) const FUNC_PROTO: u8 = 13;
    pub(in super::super) const TYPE_TAG: u8 = 18;
    pub(in super::super) const ENUM64: u8 = 19;
}

/// The bytes that all types begin with: `struct btf_type`.
pub(super) const HEAD: usize = 12;

/// How many bytes follow the [`HEAD`].
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Trailer {
    /// Once.
    pub(super) fixed: u8,
    /// For each of `vlen` elements.
    pub(super) each: u8,
}

/// The trailers of the kinds 1 to 19. Of a later kind, only the file itself can say (see
/// [`read_trailers`]).
const TRAILERS: [Trailer; 19] = {
    const fn trailer(fixed: u8, each: u8) -> Trailer {
        Trailer { fixed, each }
    }
    [
        trailer(4, 0),  // INT: encoding
        trailer(0, 0),  // PTR
        trailer(12, 0), // ARRAY: element type, index type, number
        trailer(0, 12), // STRUCT: name, type, offset of each member
        trailer(0, 12), // UNION
        trailer(0, 8),  // ENUM: name and value
        trailer(0, 0),  // FWD
        trailer(0, 0),  // TYPEDEF
        trailer(0, 0),  // VOLATILE
        trailer(0, 0),  // CONST
        trailer(0, 0),  // RESTRICT
        trailer(0, 0),  // FUNC: its vlen is the linkage
        trailer(0, 8),  // FUNC_PROTO: name and type of each parameter
        trailer(4, 0),  // VAR: linkage
        trailer(0, 12), // DATASEC: type, offset, size
        trailer(0, 0),  // FLOAT
        trailer(4, 0),  // DECL_TAG: component
        trailer(0, 0),  // TYPE_TAG
        trailer(0, 12), // ENUM64: name, low and high half of the value
    ]
};

/// `info` has seven bits for the kind. There were five at first, and the other two had to be zero.
pub(super) const KINDS: usize = 1 << 7;

/// Which kind of type has this `info`.
pub(super) fn kind_of(info: u32) -> u8 {
    (info >> 24) as u8 & 0x7f
}

/// Of how many members or the like.
pub(super) fn vlen_of(info: u32) -> u32 {
    // 24 bits. There were 16 at first, and the other 8 had to be zero.
    info & 0x00ff_ffff
}

/// How many bytes a type takes that has this `info`.
#[inline(always)]
pub(super) fn length(info: u32, trailers: &[Option<Trailer>; KINDS]) -> Result<u64, BtfError> {
    let kind = kind_of(info);
    let Some(Trailer { fixed, each }) = trailers[usize::from(kind)] else {
        return Err(BtfError::UnknownKind { kind });
    };
    Ok(HEAD as u64 + u64::from(fixed) + u64::from(each) * u64::from(vlen_of(info)))
}

/// Where in the file the sections are.
pub(super) struct Header {
    pub(super) types: Range<u64>,
    pub(super) strings: Range<u64>,
    pub(super) layout: Range<u64>,
}

pub(super) fn read_header<S: BtfSource>(window: &mut Window<S>) -> Result<Header, BtfError> {
    let [start, length, type_off, type_len, str_off, str_len] = window.words(0)?;
    let (magic, version, flags) = (start as u16, start >> 16 & 0xff, start >> 24);
    match magic {
        0xeb9f => {}
        0x9feb => return Err(BtfError::BigEndian),
        _ => return Err(BtfError::Magic(magic)),
    }
    if version != 1 {
        return Err(BtfError::Header("its version is not 1"));
    }
    if flags != 0 {
        return Err(BtfError::Header(
            "it has flags, which version 1 does not define",
        ));
    }
    if length < 24 {
        return Err(BtfError::Header("it is shorter than 24 bytes"));
    }
    // Fields are only ever added to the header. The sections are found from its end, whatever it
    // holds.
    let section = |offset: u32, len: u32| {
        let start = u64::from(length) + u64::from(offset);
        start..start + u64::from(len)
    };
    let layout = if length < 32 {
        section(0, 0)
    } else {
        let [layout_off, layout_len] = window.words(24)?;
        section(layout_off, layout_len)
    };
    let (types, strings) = (section(type_off, type_len), section(str_off, str_len));
    let apart = |a: &Range<u64>, b: &Range<u64>| {
        a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
    };
    if !(apart(&types, &strings) && apart(&types, &layout) && apart(&strings, &layout)) {
        return Err(BtfError::Header("its sections overlap"));
    }
    if !type_off.is_multiple_of(4) {
        return Err(BtfError::Header("its type section is not aligned"));
    }
    Ok(Header {
        types,
        strings,
        layout,
    })
}

/// The layout section, which headers of 32 bytes know: a `struct btf_layout` for each kind from 0
/// on (`info_sz`, `elem_sz`, and 16 bits of flags that mean nothing as yet). It lets us step over
/// kinds that are newer than we are. It must not contradict what we know: then we would not know
/// what we read.
pub(super) fn read_trailers<S: BtfSource>(
    window: &mut Window<S>,
    layout: Range<u64>,
) -> Result<[Option<Trailer>; KINDS], BtfError> {
    let mut trailers = [None; KINDS];
    for (slot, known) in trailers.iter_mut().skip(1).zip(TRAILERS) {
        *slot = Some(known);
    }
    for (kind, at) in layout.clone().step_by(4).enumerate().take(KINDS).skip(1) {
        if layout.end - at < 4 {
            return Err(BtfError::Header("its layout section ends within an entry"));
        }
        let [entry] = window.words(at)?;
        let said = Trailer {
            fixed: entry as u8,
            each: (entry >> 8) as u8,
        };
        if trailers[kind]
            .replace(said)
            .is_some_and(|known| known != said)
        {
            return Err(BtfError::KindLength { kind: kind as u8 });
        }
    }
    Ok(trailers)
}
