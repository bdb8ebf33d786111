//! Builds the filter that the kernel runs on every link message before it reaches the socket: classic BPF, which any user
//! may attach, even where every other BPF is refused.
//!
//! It lets through what [`Interest::concerns`] says concerns a watch: a link message of no particular address family,
//! about a watched index or with a watched name. What it drops wakes nobody and is never charged to the socket's buffer.
//! Where the watches are too many for a program of 4,096 instructions it grows coarser, and then lets through more;
//! the same test in Rust comes after it in any case.
//!
//! The program is made from its end to its start: classic BPF only jumps forward, so every target is known by then.

use std::collections::BTreeSet;

use super::message::{
    HEADER, IFINFO, LinkMessage,
    uapi::{AF_UNSPEC, IFLA_IFNAME, RTM_DELLINK, RTM_NEWLINK},
};
use crate::InterfaceName;

/// `struct sock_filter`
pub(crate) type Instruction = libc::sock_filter;

/// What a filter lets through.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interest {
    pub(crate) names: BTreeSet<InterfaceName>,
    pub(crate) indexes: BTreeSet<u32>,
}

impl Interest {
    /// Does a message concern a watch? The filter in the kernel must never drop what this accepts.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "the specification of the filter")
    )]
    pub(crate) fn concerns(&self, message: &LinkMessage) -> bool {
        let (LinkMessage::New { ifindex, name } | LinkMessage::Deleted { ifindex, name, .. }) =
            message;
        self.indexes.contains(ifindex) || self.names.contains(name)
    }
}

/// How exact a filter is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Precision {
    /// What it lets through concerns a watch.
    Exact,
    /// Compares names whole, and indexes by ranges: those of links that were made one after the other lie close.
    Ranges,
    /// Compares the first four bytes of names, and indexes by ranges.
    Coarse,
    /// Compares ranges of the first four bytes of names, and of indexes.
    Coarsest,
}

impl Precision {
    pub(crate) const ALL: [Self; 4] = [Self::Exact, Self::Ranges, Self::Coarse, Self::Coarsest];
}

/// `BPF_MAXINSNS` of `include/uapi/linux/bpf_common.h`.
const MAX_INSTRUCTIONS: usize = 4096;
/// Ranges of a coarse filter: enough to keep most gaps, few enough to be quick.
const MAX_RANGES: usize = 256;

// Instruction codes, `include/uapi/linux/bpf_common.h` and `filter.h`.
const LD_W_ABS: u16 = 0x20;
const LD_H_ABS: u16 = 0x28;
const LD_B_ABS: u16 = 0x30;
const LD_W_IND: u16 = 0x40;
const LD_IMM: u16 = 0x00;
const LDX_IMM: u16 = 0x01;
const TAX: u16 = 0x07;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const RET: u16 = 0x06;
/// `SKF_AD_OFF + SKF_AD_NLATTR`: the offset of the first attribute of type X at or after offset A, or 0.
const NLATTR: u32 = (-0x1000_i32 + 12) as u32;

/// Builds a filter; `None` when this many watches do not fit at this precision.
pub(crate) fn build(interest: &Interest, precision: Precision) -> Option<Vec<Instruction>> {
    let mut program = Program::default();
    let names = program.names(&interest.names, precision);
    // The value of the attribute is found once; then its words are loaded relative to it.
    let names = program.emit(TAX, 0, names);
    let found = names;
    let drop = program.verdict(false);
    let names = program.branch(JEQ, 0, drop, found);
    let names = program.emit(LD_W_ABS, NLATTR, names);
    let names = program.emit(LDX_IMM, u32::from(IFLA_IFNAME), names);
    let names = program.emit(LD_IMM, (HEADER + IFINFO) as u32, names);

    let ranges = match precision {
        Precision::Exact => interest
            .indexes
            .iter()
            .map(|&index| (index, index))
            .collect(),
        Precision::Ranges | Precision::Coarse | Precision::Coarsest => {
            ranges(interest.indexes.iter().copied())
        }
    };
    // Loads are big-endian, the message is in the host's order; ranges are of the values as they are loaded.
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
        program.swapped_index(search)
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
    program.finish()
}

/// The value that a load gives for a number in the host's order.
const fn big(value: u32) -> u32 {
    u32::from_be_bytes(value.to_ne_bytes())
}

/// Covers sorted values with at most `MAX_RANGES` ranges, by closing the smallest gaps.
fn ranges(values: impl Iterator<Item = u32>) -> Vec<(u32, u32)> {
    let values: Vec<u32> = values.collect();
    let mut gaps: Vec<u32> = values.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_unstable_by(|a, b| b.cmp(a));
    let closed = gaps.get(MAX_RANGES - 1).copied().unwrap_or(1);
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for value in values {
        match ranges.last_mut() {
            Some((_, high)) if value - *high <= closed => *high = value,
            _ => ranges.push((value, value)),
        }
    }
    ranges
}

/// Where an instruction is, counted from the end of the program.
type Label = usize;

/// A program under construction, last instruction first.
#[derive(Default)]
struct Program {
    reversed: Vec<Instruction>,
}

impl Program {
    /// Puts an instruction before `next`, which must follow it.
    fn emit(&mut self, code: u16, k: u32, next: Label) -> Label {
        self.fall_through(next);
        self.push(code, 0, 0, k)
    }

    fn push(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Label {
        self.reversed.push(Instruction { code, jt, jf, k });
        self.reversed.len()
    }

    /// Makes sure that what is put next runs into `target`.
    fn fall_through(&mut self, target: Label) {
        if self.reversed.len() != target {
            let distance = (self.reversed.len() - target) as u32;
            self.push(JA, 0, 0, distance);
        }
    }

    /// Ends the program: pass the message, whole, or drop it.
    fn verdict(&mut self, pass: bool) -> Label {
        self.push(RET, 0, 0, if pass { u32::MAX } else { 0 })
    }

    fn pass(&mut self) -> Label {
        self.verdict(true)
    }

    /// Compares A with `k`. A branch reaches 255 instructions; further targets get a jump of their own.
    fn branch(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let no = self.near(no);
        let yes = self.near(yes);
        // Making `yes` near may have put `no` one too far.
        let no = self.near(no);
        let here = self.reversed.len();
        self.push(code, (here - yes) as u8, (here - no) as u8, k)
    }

    /// A label within reach of a branch that has yet to be put, with room for one more jump between.
    fn near(&mut self, target: Label) -> Label {
        let distance = self.reversed.len() - target;
        if distance < 254 {
            target
        } else {
            self.push(JA, 0, 0, distance as u32)
        }
    }

    /// A binary search for A among sorted ranges; `hit` is made where it is needed, so that it is always near.
    fn search(
        &mut self,
        ranges: &[(u32, u32)],
        miss: Label,
        mut hit: impl FnMut(&mut Self) -> Label + Copy,
    ) -> Label {
        let Some(&(low, high)) = ranges.get(ranges.len() / 2) else {
            // Nothing to find here; keep the target within reach.
            return self.near(miss);
        };
        let (left, right) = ranges.split_at(ranges.len() / 2);
        let right = self.search(right.get(1..).unwrap_or_default(), miss, hit);
        let left = self.search(left, miss, hit);
        let hit = hit(self);
        if low == high {
            let other = self.branch(JGT, low, right, left);
            self.branch(JEQ, low, hit, other)
        } else {
            let upper = self.branch(JGT, high, right, hit);
            match low.checked_sub(1) {
                Some(below) => self.branch(JGT, below, upper, left),
                None => upper,
            }
        }
    }

    /// Loads the index byte by byte, so that A is the number itself on a little-endian host.
    fn swapped_index(&mut self, next: Label) -> Label {
        const LSH: u16 = 0x64;
        const OR_X: u16 = 0x4c;
        const ST: u16 = 0x02;
        const LDX_MEM: u16 = 0x61;
        let at = HEADER as u32 + 4;
        // A = b3; for b in [b2, b1, b0]: M[0] = A << 8; A = b; X = M[0]; A |= X
        let mut next = next;
        for byte in 0..3 {
            next = self.emit(OR_X, 0, next);
            next = self.emit(LDX_MEM, 0, next);
            next = self.emit(LD_B_ABS, at + byte, next);
            next = self.emit(ST, 0, next);
            next = self.emit(LSH, 8, next);
        }
        self.emit(LD_B_ABS, at + 3, next)
    }

    /// Compares the name at X: a search by the first four bytes, then by the next four, and so on.
    fn names(&mut self, names: &BTreeSet<InterfaceName>, precision: Precision) -> Label {
        let names: Vec<[u32; 4]> = names
            .iter()
            .map(|name| {
                let bytes = name.padded();
                std::array::from_fn(|word| {
                    u32::from_be_bytes(std::array::from_fn(|byte| bytes[word * 4 + byte]))
                })
            })
            .collect();
        if precision == Precision::Coarsest {
            let ranges = ranges(names.iter().map(|words| words[0]));
            let drop = self.verdict(false);
            let search = self.search(&ranges, drop, Self::pass);
            return self.emit(LD_W_IND, 4, search);
        }
        self.words(&names, 0, precision)
    }

    /// `names` are sorted and alike up to this word.
    fn words(&mut self, names: &[[u32; 4]], word: usize, precision: Precision) -> Label {
        let groups: Vec<&[[u32; 4]]> = names.chunk_by(|a, b| a[word] == b[word]).collect();
        let search = self.groups(&groups, word, precision);
        // The attribute's header is 4 bytes.
        self.emit(LD_W_IND, 4 + 4 * word as u32, search)
    }

    fn groups(&mut self, groups: &[&[[u32; 4]]], word: usize, precision: Precision) -> Label {
        let Some(group) = groups.get(groups.len() / 2) else {
            return self.verdict(false);
        };
        let (left, right) = groups.split_at(groups.len() / 2);
        let right = self.groups(right.get(1..).unwrap_or_default(), word, precision);
        let left = self.groups(left, word, precision);
        let value = group[0][word];
        // A NUL ends the name (and the attribute is padded with NULs), so nothing follows that could differ.
        let ends = value.to_be_bytes().contains(&0);
        let hit = if ends || precision == Precision::Coarse {
            self.verdict(true)
        } else {
            self.words(group, word + 1, precision)
        };
        let other = self.branch(JGT, value, right, left);
        self.branch(JEQ, value, hit, other)
    }

    fn finish(self) -> Option<Vec<Instruction>> {
        let Self { mut reversed } = self;
        reversed.reverse();
        (reversed.len() <= MAX_INSTRUCTIONS).then_some(reversed)
    }
}

#[cfg(test)]
mod tests;
