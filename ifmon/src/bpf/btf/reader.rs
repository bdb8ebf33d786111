//! A BTF walker that keeps next to nothing in memory.
//!
//! The vmlinux BTF is some 5 MB, of which we need a few hundred bytes. So nothing is kept: the
//! string section is read once, to learn the string offsets of the names that are wanted; the type
//! section is read once, to note the types of these names, and where every [`STRIDE`]th type
//! begins. From then on a type is found by its id with a short read or two. Names are compared by
//! string offset only.
//!
//! The format is described in the kernel's Documentation/bpf/btf.rst and include/uapi/linux/btf.h.
//! What kernel/bpf/btf.c refuses to load is refused here too, where our types are concerned:
//! members out of order or out of bounds say that the file is not what it seems, and a wrong offset
//! is worse than none.

use std::ops::Range;

use super::{
    BtfError,
    format::{HEAD, KINDS, Trailer, kind, kind_of, length, read_header, read_trailers, vlen_of},
    names::WantedNames,
    window::{BtfSource, Window, words},
};

/// A type, without what follows its first 12 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    pub(super) id: u32,
    pub(super) kind: u8,
    /// The number of members, enumerators or parameters.
    pub(super) vlen: u32,
    /// In bytes, or for the kinds that have none: the id of the type referred to.
    pub(super) size_or_type: u32,
    name: u32,
    /// Members have a bitfield width in the upper 8 bits of their offset.
    kind_flag: bool,
    /// Where the members etc. begin in the file, and where they end.
    trailer: (u64, u64),
}

impl Type {
    fn has_members(&self) -> bool {
        matches!(self.kind, kind::STRUCT | kind::UNION)
    }
}

/// A member of a struct: where it begins in the struct, and what it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    /// In bits.
    pub(super) offset: u64,
    /// In bits; 0 if this is no bitfield.
    pub(super) width: u32,
    pub(super) type_id: u32,
    name: u32,
}

/// The size of a pointer, of which BTF says nothing. There are 64-bit kernels only, as far as we
/// are concerned.
pub(super) const POINTER: u32 = 8;

/// What an array consists of.
pub(super) struct Array {
    pub(super) element: u32,
    pub(super) len: u32,
}

/// Every how many types the position of one is kept: some 5 KB for a kernel, and 4 KB to read to
/// find a type.
const STRIDE: usize = 128;
/// Members within members, types that refer to types: the kernel's own limit (MAX_RESOLVE_DEPTH) is
/// 32 as well.
const DEPTH: u32 = 32;
/// Members and types that may be looked at after the first pass. A kernel needs some 1,300; a
/// hostile file without circles could still ask for 2^32.
const WORK: u32 = 1 << 18;
/// Types of wanted names that are kept. A kernel has some ten.
const NAMED: usize = 1024;

/// An open BTF file.
pub(super) struct Reader<S> {
    window: Window<S>,
    trailers: [Option<Trailer>; KINDS],
    types: Range<u64>,
    count: u32,
    /// The positions of the types 1, 1 + [`STRIDE`], ….
    milestones: Vec<u64>,
    /// The wanted names that the file has.
    names: WantedNames,
    /// All types that have one of these names.
    named: Vec<Type>,
    work: u32,
}

impl<S: BtfSource> Reader<S> {
    /// Reads the file once from end to end, looking out for these names.
    pub(super) fn open(source: S, wanted: &[&'static str]) -> Result<Self, BtfError> {
        let mut window = Window::new(source);
        let header = read_header(&mut window)?;
        let trailers = read_trailers(&mut window, header.layout)?;
        let names = WantedNames::find(&mut window, header.strings, wanted)?;
        let mut reader = Self {
            window,
            trailers,
            types: header.types,
            count: 0,
            milestones: Vec::new(),
            names,
            named: Vec::new(),
            work: WORK,
        };
        reader.walk()?;
        Ok(reader)
    }

    fn walk(&mut self) -> Result<(), BtfError> {
        let mut named = Vec::new();
        let mut at = self.types.start;
        while at < self.types.end {
            at = self.walk_held(at, &mut named)?;
        }
        for (at, id) in named {
            let ty = self.type_at(at, id)?;
            self.named.push(ty);
        }
        Ok(())
    }

    /// Steps over the types that are in memory, of which there are a hundred thousand in all, and
    /// notes which have a wanted name. A function of its own, so that the loop gets all the registers.
    #[inline(never)]
    fn walk_held(&mut self, mut at: u64, named: &mut Vec<(u64, u32)>) -> Result<u64, BtfError> {
        let end = self.types.end;
        if end - at < HEAD as u64 {
            return Err(BtfError::Overrun { id: self.count + 1 });
        }
        let mut held = self.window.get(at, HEAD)?;
        loop {
            if (self.count as usize).is_multiple_of(STRIDE) {
                self.milestones.push(at);
            }
            // No overflow: a type takes 12 bytes, and the length of the section has 32 bits.
            self.count += 1;
            let id = self.count;
            let [name, info] = words(held);
            if self.names.has(name) {
                if named.len() == NAMED {
                    let what =
                        format!("there are more than {NAMED} types of the names that matter");
                    return Err(BtfError::Ambiguous { what });
                }
                named.push((at, id));
            }
            let length = length(info, &self.trailers)?;
            at += length;
            if at > end {
                return Err(BtfError::Overrun { id });
            }
            held = match held.get(length as usize..) {
                Some(rest) if rest.len() >= HEAD && end - at >= HEAD as u64 => rest,
                _ => return Ok(at),
            };
        }
    }

    fn type_at(&mut self, at: u64, id: u32) -> Result<Type, BtfError> {
        if self.types.end - at < HEAD as u64 {
            return Err(BtfError::Overrun { id });
        }
        let [name, info, size_or_type] = self.window.words(at)?;
        let end = at + length(info, &self.trailers)?;
        if end > self.types.end {
            return Err(BtfError::Overrun { id });
        }
        Ok(Type {
            id,
            kind: kind_of(info),
            vlen: vlen_of(info),
            size_or_type,
            name,
            kind_flag: info >> 31 != 0,
            trailer: (at + HEAD as u64, end),
        })
    }

    fn work(&mut self, id: u32) -> Result<(), BtfError> {
        self.work = self.work.checked_sub(1).ok_or(BtfError::TooDeep { id })?;
        Ok(())
    }

    fn type_by_id(&mut self, id: u32) -> Result<Type, BtfError> {
        self.work(id)?;
        if id == 0 || id > self.count {
            return Err(BtfError::NoSuchId { id });
        }
        let milestone = (id - 1) as usize / STRIDE;
        let mut at = self.milestones[milestone];
        for before in (milestone * STRIDE + 1) as u32..id {
            at = self.type_at(at, before)?.trailer.1;
        }
        self.type_at(at, id)
    }

    /// The types of this name and one of these kinds.
    pub(super) fn named(&self, name: &str, kinds: &[u8]) -> Vec<Type> {
        let Some(name) = self.names.offset(name) else {
            return Vec::new();
        };
        self.named
            .iter()
            .filter(|ty| ty.name == name && kinds.contains(&ty.kind))
            .copied()
            .collect()
    }

    pub(super) fn is_named(&self, ty: &Type, name: &str) -> bool {
        self.names.offset(name) == Some(ty.name)
    }

    /// The type behind typedefs and qualifiers.
    pub(super) fn resolve(&mut self, id: u32) -> Result<Type, BtfError> {
        let mut next = id;
        for _ in 0..DEPTH {
            let ty = self.type_by_id(next)?;
            match ty.kind {
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    next = ty.size_or_type;
                }
                _ => return Ok(ty),
            }
        }
        Err(BtfError::TooDeep { id })
    }

    /// In bytes. Functions have no size, and neither have the kinds that we do not know.
    fn size(&mut self, id: u32) -> Result<Option<u64>, BtfError> {
        let mut times = 1_u64;
        let mut next = id;
        for _ in 0..DEPTH {
            let ty = self.resolve(next)?;
            let size = match ty.kind {
                kind::INT | kind::STRUCT | kind::UNION | kind::ENUM | kind::ENUM64 => {
                    u64::from(ty.size_or_type)
                }
                kind::PTR => u64::from(POINTER),
                kind::ARRAY => {
                    let array = self.array(&ty)?;
                    times = times.saturating_mul(array.len.into());
                    next = array.element;
                    continue;
                }
                _ => return Ok(None),
            };
            return Ok(Some(size.saturating_mul(times)));
        }
        Err(BtfError::TooDeep { id })
    }

    /// Takes a [`kind::ARRAY`] apart.
    pub(super) fn array(&mut self, ty: &Type) -> Result<Array, BtfError> {
        let [element, _index, len] = self.window.words(ty.trailer.0)?;
        Ok(Array { element, len })
    }

    /// Whether an [`kind::INT`] uses all of its bits. (The others are bitfields as they were before
    /// `kind_flag`.)
    pub(super) fn is_whole(&mut self, ty: &Type) -> Result<bool, BtfError> {
        let [encoding] = self.window.words(ty.trailer.0)?;
        let (offset, bits) = (encoding >> 16 & 0xff, encoding & 0xff);
        Ok(offset == 0 && u64::from(bits) == u64::from(ty.size_or_type) * 8)
    }

    /// Follows a path of member names. Anonymous structs and unions on the way are passed through,
    /// as in C.
    pub(super) fn field(&mut self, of: &Type, path: &[&str]) -> Result<Option<Member>, BtfError> {
        let mut outer = *of;
        let mut offset = 0;
        for (depth, name) in path.iter().enumerate() {
            let Some(name) = self.names.offset(name) else {
                return Ok(None);
            };
            let Some(mut member) = self.member(&outer, name, DEPTH)? else {
                return Ok(None);
            };
            offset += member.offset;
            if depth + 1 == path.len() {
                member.offset = offset;
                return Ok(Some(member));
            }
            outer = self.resolve(member.type_id)?;
            if !outer.has_members() || member.width != 0 {
                break;
            }
        }
        Ok(None)
    }

    fn member(&mut self, outer: &Type, name: u32, depth: u32) -> Result<Option<Member>, BtfError> {
        let depth = depth
            .checked_sub(1)
            .ok_or(BtfError::TooDeep { id: outer.id })?;
        let misplaced = || BtfError::Misplaced { id: outer.id };
        let mut found = None;
        let mut last = 0;
        // No early end: a second member of that name, or one out of order, tells that something is
        // wrong.
        for index in 0..outer.vlen {
            let member = self.nth_member(outer, index)?;
            if member.offset < last || outer.kind == kind::UNION && member.offset != 0 {
                return Err(misplaced());
            }
            last = member.offset;
            let hit = if member.name == name {
                Some(member)
            } else if member.name == 0 && member.width == 0 {
                let inner = self.resolve(member.type_id)?;
                let within = if inner.has_members() {
                    self.member(&inner, name, depth)?
                } else {
                    None
                };
                within.map(|within| Member {
                    offset: member.offset + within.offset,
                    ..within
                })
            } else {
                None
            };
            if let Some(hit) = hit {
                let bits = match (member.width, self.size(member.type_id)?) {
                    (0, Some(size)) => size.saturating_mul(8),
                    (width, Some(_)) => width.into(),
                    (_, None) => return Err(misplaced()),
                };
                if member.offset.saturating_add(bits) > u64::from(outer.size_or_type) * 8 {
                    return Err(misplaced());
                }
                if found.replace(hit).is_some() {
                    let what = format!("type {} has two members of the same name", outer.id);
                    return Err(BtfError::Ambiguous { what });
                }
            }
        }
        Ok(found)
    }

    fn nth_member(&mut self, of: &Type, index: u32) -> Result<Member, BtfError> {
        self.work(of.id)?;
        let [name, type_id, offset] = self.window.words(of.trailer.0 + 12 * u64::from(index))?;
        let (offset, width) = if of.kind_flag {
            (offset & 0x00ff_ffff, offset >> 24)
        } else {
            (offset, 0)
        };
        Ok(Member {
            offset: offset.into(),
            width,
            type_id,
            name,
        })
    }

    /// The value of an enumerator, which negative ones do not have.
    pub(super) fn enumerator(&mut self, of: &Type, name: &str) -> Result<Option<u32>, BtfError> {
        let Some(wanted) = self.names.offset(name) else {
            return Ok(None);
        };
        let mut found = None;
        for index in 0..u64::from(of.vlen) {
            self.work(of.id)?;
            let [here, value, high] = match of.kind {
                kind::ENUM64 => self.window.words(of.trailer.0 + 12 * index)?,
                _ => {
                    let [here, value] = self.window.words(of.trailer.0 + 8 * index)?;
                    [here, value, value >> 31]
                }
            };
            if here == wanted && found.replace((high == 0).then_some(value)).is_some() {
                return Err(BtfError::Ambiguous {
                    what: format!("type {} has {name} twice", of.id),
                });
            }
        }
        Ok(found.flatten())
    }

    /// The prototype of a [`kind::FUNC`].
    pub(super) fn prototype(&mut self, func: &Type) -> Result<Option<Type>, BtfError> {
        let ty = self.type_by_id(func.size_or_type)?;
        Ok((ty.kind == kind::FUNC_PROTO).then_some(ty))
    }
}
