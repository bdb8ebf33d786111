//! Cuts the few types that matter out of a kernel's BTF, to have real BTF as test data that is
//! small.
//!
//! Run it with `IFMON_BTF_IN=<file> IFMON_BTF_OUT=<file> cargo test -p ifmon-watch cut_out -- --ignored`;
//! the input is a BTF file, or anything that holds one unpacked (a vmlinux, an arm64 Image).
//! testdata/btf/README.md says where the ones in use come from.

use std::collections::HashMap;

use super::{build::BtfBuilder, format::kind, names};

/// Also keep every so-manieth type, whatever it is.
const NOISE: usize = 997;

/// A type, taken apart into words.
struct Raw {
    name: u32,
    info: u32,
    size_or_type: u32,
    trailer: Vec<u32>,
}

impl Raw {
    fn kind(&self) -> u8 {
        (self.info >> 24) as u8 & 0x1f
    }
}

struct Full {
    types: Vec<Raw>,
    strings: Vec<u8>,
}

/// The words in which a trailer repeats (0: it is there once), and which of them are a name or a
/// type.
fn shape(kind: u8) -> (usize, usize, &'static [usize], &'static [usize]) {
    match kind {
        1 | 14 | 17 => (1, 0, &[], &[]),
        3 => (3, 0, &[], &[0, 1]),
        4 | 5 => (0, 3, &[0], &[1]),
        6 => (0, 2, &[0], &[]),
        13 => (0, 2, &[0], &[1]),
        15 => (0, 3, &[], &[0]),
        19 => (0, 3, &[0], &[]),
        2 | 7..=12 | 16 | 18 => (0, 0, &[], &[]),
        _ => panic!("kind {kind} is not known to the cutter"),
    }
}

impl Full {
    /// Finds the BTF in the file, by its header.
    fn find(file: &[u8]) -> Self {
        let word = |at: usize| {
            file.get(at..at + 4)
                .map(|word| u32::from_le_bytes(word.try_into().unwrap()) as usize)
        };
        let at = (0..file.len())
            .find(|at| {
                word(*at) == Some(0x0001_eb9f)
                    && matches!(word(at + 4), Some(24 | 32))
                    && word(at + 12).is_some_and(|len| len > 100_000)
                    && word(at + 12) == word(at + 16)
            })
            .expect("there is no BTF in this file");
        let [header, types_len, strings_at, strings_len] =
            [4, 12, 16, 20].map(|field| word(at + field).unwrap());
        let types = at + header;
        let strings = types + strings_at;
        Self {
            types: Self::split(&file[types..types + types_len]),
            strings: file[strings..strings + strings_len].to_vec(),
        }
    }

    fn split(section: &[u8]) -> Vec<Raw> {
        let words: Vec<u32> = section
            .as_chunks()
            .0
            .iter()
            .map(|word| u32::from_le_bytes(*word))
            .collect();
        let mut rest = words.as_slice();
        let mut types = Vec::new();
        while let [name, info, size_or_type, after @ ..] = rest {
            let mut ty = Raw {
                name: *name,
                info: *info,
                size_or_type: *size_or_type,
                trailer: Vec::new(),
            };
            let (fixed, each, ..) = shape(ty.kind());
            let (trailer, next) = after.split_at(fixed + each * (info & 0xffff) as usize);
            ty.trailer = trailer.to_vec();
            types.push(ty);
            rest = next;
        }
        types
    }

    fn get(&self, id: u32) -> &Raw {
        &self.types[id as usize - 1]
    }

    fn string(&self, at: u32) -> &str {
        let string = &self.strings[at as usize..];
        let end = string.iter().position(|byte| *byte == 0).unwrap();
        str::from_utf8(&string[..end]).unwrap()
    }
}

/// What is kept: everything that a type consists of, but not what it points to. Where a pointer
/// leads is kept as a forward declaration, or as `void` if it has no name.
struct Cutter {
    full: Full,
    kept: Vec<u32>,
    ids: HashMap<u32, u32>,
}

impl Cutter {
    fn keep(&mut self, id: u32) {
        if id == 0 || self.ids.contains_key(&id) {
            return;
        }
        self.kept.push(id);
        self.ids.insert(id, self.kept.len() as u32);
        let ty = self.full.get(id);
        let (fixed, each, _, refs) = shape(ty.kind());
        let mut next = Vec::new();
        match ty.kind() {
            // Where it leads is decided in `write`.
            kind::PTR => {}
            8..=14 | 17 | 18 => next.push(ty.size_or_type),
            _ => {}
        }
        for element in ty.trailer.chunks_exact((fixed + each).max(1)) {
            next.extend(refs.iter().map(|at| element[*at]));
        }
        for id in next {
            self.keep(id);
        }
    }

    /// The new id of what a pointer leads to, perhaps one of those `declared`.
    fn pointee(&self, id: u32, declared: &mut Vec<(u32, bool)>) -> u32 {
        let mut id = id;
        while id != 0 {
            if let Some(kept) = self.ids.get(&id) {
                return *kept;
            }
            let ty = self.full.get(id);
            match ty.kind() {
                kind::STRUCT | kind::UNION if ty.name != 0 => {
                    let pointee = (ty.name, ty.kind() == kind::UNION);
                    let at = declared
                        .iter()
                        .position(|known| *known == pointee)
                        .unwrap_or_else(|| {
                            declared.push(pointee);
                            declared.len() - 1
                        });
                    return (self.kept.len() + at + 1) as u32;
                }
                kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                    id = ty.size_or_type
                }
                _ => break,
            }
        }
        0
    }

    fn write(&self) -> Vec<u8> {
        let mut out = BtfBuilder::default();
        // Ids of the forward declarations follow those of the types that are kept.
        let mut declared: Vec<(u32, bool)> = Vec::new();
        for id in &self.kept {
            let ty = self.full.get(*id);
            let (fixed, each, names, refs) = shape(ty.kind());
            let size_or_type = match ty.kind() {
                kind::PTR => self.pointee(ty.size_or_type, &mut declared),
                8..=14 | 17 | 18 => self.ids.get(&ty.size_or_type).copied().unwrap_or(0),
                _ => ty.size_or_type,
            };
            let mut trailer = ty.trailer.clone();
            for element in trailer.chunks_exact_mut((fixed + each).max(1)) {
                names
                    .iter()
                    .for_each(|at| element[*at] = out.string(self.full.string(element[*at])));
                refs.iter().for_each(|at| {
                    element[*at] = self.ids.get(&element[*at]).copied().unwrap_or(0)
                });
            }
            out.raw(self.full.string(ty.name), ty.info, size_or_type, &trailer);
        }
        for (name, union) in declared {
            out.raw(
                self.full.string(name),
                u32::from(union) << 31 | u32::from(kind::FWD) << 24,
                0,
                &[],
            );
        }
        out.bytes()
    }
}

pub(super) fn cut_out(file: &[u8]) -> Vec<u8> {
    let full = Full::find(file);
    let names = names();
    let wanted: Vec<u32> = (1..)
        .zip(&full.types)
        .filter(|(id, ty)| {
            (*id as usize).is_multiple_of(NOISE) || names.contains(&full.string(ty.name))
        })
        .map(|(id, _)| id)
        .collect();
    let mut cutter = Cutter {
        full,
        kept: Vec::new(),
        ids: HashMap::new(),
    };
    for id in wanted {
        cutter.keep(id);
    }
    cutter.write()
}

#[test]
#[ignore = "makes test data: needs IFMON_BTF_IN and IFMON_BTF_OUT"]
fn cut_out_of_a_kernel() {
    let [from, to] = ["IFMON_BTF_IN", "IFMON_BTF_OUT"].map(|name| std::env::var(name).expect(name));
    let file = std::fs::read(from).unwrap();
    std::fs::write(to, cut_out(&file)).unwrap();
}
