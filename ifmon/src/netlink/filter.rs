//! Builds the filter that the kernel runs on every link message before it reaches the socket:
//! classic BPF, which any user may attach, even where every other BPF is refused.
//!
//! It lets through what [`Interest::concerns`] says concerns a watch: a link message of no
//! particular address family, about a watched index or with a watched name. Where patterns are narrowed
//! to kinds, the kind in the message is compared as well. What it drops wakes
//! nobody and is never charged to the socket's buffer. Where the watches are too many for a program
//! of 4,096 instructions, which a few hundred are, it grows coarser and lets through more. A filter
//! with a map has no such limit, and that is `netlink-ebpf`; what matters to the device table is
//! sorted out there in any case.

mod program;

use std::collections::BTreeSet;

pub(crate) use self::program::Instruction;
use self::program::*;
use super::message::{
    HEADER, IFINFO, LinkMessage,
    uapi::{AF_UNSPEC, IFLA_IFNAME, IFLA_INFO_KIND, IFLA_LINKINFO, RTM_DELLINK, RTM_NEWLINK},
};
use crate::{InterfaceName, LinkKind, pattern::Mask};

/// What a filter lets through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) names: BTreeSet<InterfaceName>,
    pub(crate) indexes: BTreeSet<u32>,
    /// What names that match a pattern have in common.
    pub(crate) masks: Vec<Mask>,
    /// A device with such a name matters if it is of one of these kinds; of any where there is none.
    pub(crate) kinds: BTreeSet<LinkKind>,
}

impl Interest {
    /// Does a message concern a watch? The filter in the kernel must never drop what this accepts.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the specification of the filter")
    )]
    pub(crate) fn concerns(&self, message: &LinkMessage) -> bool {
        let is_of_kind = || {
            let kind = message.kind();
            self.kinds.is_empty() || kind.is_some_and(|kind| self.kinds.contains(&kind))
        };
        let name = message.name();
        self.indexes.contains(&message.ifindex())
            || self.names.contains(&name)
            || self.masks.iter().any(|mask| mask.passes(&name)) && is_of_kind()
    }
}

/// How exact a filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Precision {
    /// What it lets through concerns a watch.
    Exact,
    /// Compares names whole, and indexes by ranges: those of links that were made one after the
    /// other lie close.
    Ranges,
    /// Compares ranges of the first four bytes of names, and of indexes.
    Coarsest,
}

impl Precision {
    pub(crate) const ALL: [Self; 3] = [Self::Exact, Self::Ranges, Self::Coarsest];
}

/// Masks are compared one after the other; patterns beyond so many share the last one.
pub(crate) const MAX_MASKS: usize = 32;
/// Ranges of a coarse filter: enough to keep most gaps, few enough to be quick.
const MAX_RANGES: usize = 256;
/// `SKF_AD_OFF + SKF_AD_NLATTR`: the offset of the first attribute of type X at or after offset A,
/// or 0.
const NLATTR: u32 = (-0x1000_i32 + 12) as u32;
/// `SKF_AD_OFF + SKF_AD_NLATTR_NEST`: the same within the attribute at offset A.
const NLATTR_NEST: u32 = (-0x1000_i32 + 16) as u32;

/// Builds a filter; `None` when this many watches do not fit at this precision.
pub(crate) fn build(interest: &Interest, precision: Precision) -> Option<Vec<Instruction>> {
    let mut program = Program::default();
    let mut names = program.verdict(false);
    if !interest.masks.is_empty() {
        let hit = kinds(&mut program, &interest.kinds);
        for mask in &interest.masks {
            names = masked(&mut program, mask, hit, names);
        }
    }
    // First the names, of which the kind does not matter.
    let names = self::names(&mut program, &interest.names, precision, names);
    // The value of the attribute is found once; then its words are loaded relative to it.
    let names = program.emit(TAX, 0, names);
    let names = find(&mut program, IFLA_IFNAME, names);

    let ranges = match precision {
        Precision::Exact => interest
            .indexes
            .iter()
            .map(|&index| (index, index))
            .collect(),
        _ => ranges(interest.indexes.iter().copied(), MAX_RANGES),
    };
    // Loads are big-endian, the message is in the host's order; ranges are of the values as they
    // are loaded.
    let mut ranges: Vec<(u32, u32)> = ranges;
    let indexes = if precision == Precision::Exact {
        for (low, high) in &mut ranges {
            (*low, *high) = (big(*low), big(*high));
        }
        ranges.sort_unstable();
        program.search(&ranges, names, Program::pass)
    } else if cfg!(target_endian = "big") {
        program.search(&ranges, names, Program::pass)
    } else {
        // A range of numbers is no range of swapped numbers: swap them in the program.
        let search = program.search(&ranges, names, Program::pass);
        swapped_index(&mut program, search)
    };
    let indexes = if precision == Precision::Exact || cfg!(target_endian = "big") {
        program.emit(LD_W_ABS, HEADER as u32 + 4, indexes)
    } else {
        indexes
    };

    let drop = program.verdict(false);
    let kind = program.branch(JEQ, u32::from(RTM_DELLINK.to_be()), indexes, drop);
    let kind = program.branch(JEQ, u32::from(RTM_NEWLINK.to_be()), indexes, kind);
    let kind = program.emit(LD_H_ABS, 4, kind);
    let drop = program.verdict(false);
    let family = program.branch(JEQ, u32::from(AF_UNSPEC), kind, drop);
    program.emit(LD_B_ABS, HEADER as u32, family);
    let program = program.finish();
    (program.len() <= MAX_INSTRUCTIONS).then_some(program)
}

/// The value that a load gives for a number in the host's order.
const fn big(value: u32) -> u32 {
    u32::from_be_bytes(value.to_ne_bytes())
}

/// Covers sorted values with at most so many ranges, by closing the smallest gaps.
fn ranges(values: impl Iterator<Item = u32>, most: usize) -> Vec<(u32, u32)> {
    let values: Vec<u32> = values.collect();
    let mut gaps: Vec<u32> = values.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let closed = gaps.get(most - 1).copied().unwrap_or(1);
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for value in values {
        match ranges.last_mut() {
            Some((_, high)) if value - *high <= closed => *high = value,
            _ => ranges.push((value, value)),
        }
    }
    ranges
}

/// Loads the index byte by byte, so that A is the number itself on a little-endian host.
fn swapped_index(program: &mut Program, next: Label) -> Label {
    let at = HEADER as u32 + 4;
    // A = b3; for b in [b2, b1, b0]: M[0] = A << 8; A = b; X = M[0]; A |= X
    let mut next = next;
    for byte in 0..3 {
        next = program.emit(OR_X, 0, next);
        next = program.emit(LDX_MEM, 0, next);
        next = program.emit(LD_B_ABS, at + byte, next);
        next = program.emit(ST, 0, next);
        next = program.emit(LSH, 8, next);
    }
    program.emit(LD_B_ABS, at + 3, next)
}

/// Finds the first attribute of a kind; without one the message is dropped.
fn find(program: &mut Program, kind: u16, found: Label) -> Label {
    let drop = program.verdict(false);
    let next = program.branch(JEQ, 0, drop, found);
    let next = program.emit(LD_W_ABS, NLATTR, next);
    let next = program.emit(LDX_IMM, u32::from(kind), next);
    program.emit(LD_IMM, (HEADER + IFINFO) as u32, next)
}

/// Passes a message about a device of one of these kinds, and drops any other.
fn kinds(program: &mut Program, kinds: &BTreeSet<LinkKind>) -> Label {
    if kinds.is_empty() {
        return program.verdict(true);
    }
    let kinds: Vec<[u32; 4]> = kinds.iter().map(|kind| as_words(kind.padded())).collect();
    let drop = program.verdict(false);
    let next = words(program, &kinds, 0, drop);
    let next = program.emit(TAX, 0, next);
    let drop = program.verdict(false);
    let next = program.branch(JEQ, 0, drop, next);
    let next = program.emit(LD_W_ABS, NLATTR_NEST, next);
    let next = program.emit(LDX_IMM, u32::from(IFLA_INFO_KIND), next);
    find(program, IFLA_LINKINFO, next)
}

/// As they are loaded.
fn as_words(bytes: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|word| {
        u32::from_be_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte]))
    })
}

/// Compares the name in the attribute at X.
fn names(
    program: &mut Program,
    names: &BTreeSet<InterfaceName>,
    precision: Precision,
    miss: Label,
) -> Label {
    if names.is_empty() {
        return miss;
    }
    let names: Vec<[u32; 4]> = names.iter().map(|name| as_words(name.padded())).collect();
    if precision == Precision::Coarsest {
        let ranges = ranges(names.iter().map(|words| words[0]), MAX_RANGES);
        let search = program.search(&ranges, miss, Program::pass);
        return program.emit(LD_W_IND, 4, search);
    }
    words(program, &names, 0, miss)
}

/// Compares the name in the attribute at X with a mask: byte by byte as far as all are given, since
/// a name that ends before that may be the end of the message, and nothing beyond it can be loaded.
fn masked(program: &mut Program, mask: &Mask, hit: Label, other: Label) -> Label {
    let words = mask.bytes.chunks_exact(4).zip(mask.mask.chunks_exact(4));
    let words: Vec<(u32, u32)> = words
        .map(|(bytes, mask)| {
            let word = |bytes: &[u8]| u32::from_be_bytes(std::array::from_fn(|at| bytes[at]));
            (word(bytes), word(mask))
        })
        .collect();
    let ends = |&(bytes, mask): &(u32, u32)| mask != u32::MAX || bytes.to_be_bytes().contains(&0);
    let last = words.iter().position(ends).unwrap_or(words.len() - 1);
    let mut next = hit;
    for (at, &(bytes, mask)) in words.iter().enumerate().take(last + 1).rev() {
        if mask == 0 {
            continue;
        }
        next = program.branch(JEQ, bytes, next, other);
        if mask != u32::MAX {
            next = program.emit(AND, mask, next);
        }
        next = program.emit(LD_W_IND, 4 + 4 * at as u32, next);
    }
    next
}

/// A search by this word, then by the next one, and so on. `names` are sorted and alike up to this
/// word.
fn words(program: &mut Program, names: &[[u32; 4]], word: usize, miss: Label) -> Label {
    let groups: Vec<&[[u32; 4]]> = names.chunk_by(|a, b| a[word] == b[word]).collect();
    let search = groups_of(program, &groups, word, miss);
    // The attribute's header is 4 bytes.
    program.emit(LD_W_IND, 4 + 4 * word as u32, search)
}

fn groups_of(program: &mut Program, groups: &[&[[u32; 4]]], word: usize, miss: Label) -> Label {
    let Some(group) = groups.get(groups.len() / 2) else {
        // Nothing to find here; keep the target within reach.
        return program.near(miss);
    };
    let (left, right) = groups.split_at(groups.len() / 2);
    let right = groups_of(program, right.get(1..).unwrap_or_default(), word, miss);
    let left = groups_of(program, left, word, miss);
    let value = group[0][word];
    // A NUL ends the name (and the attribute is padded with NULs), so nothing follows that could
    // differ.
    let ends = value.to_be_bytes().contains(&0);
    let hit = if ends {
        program.verdict(true)
    } else {
        words(program, group, word + 1, miss)
    };
    let other = program.branch(JGT, value, right, left);
    program.branch(JEQ, value, hit, other)
}

#[cfg(test)]
mod tests;
