//! Where the names do not fit into a program: a bitmap of their hashes does. Classic BPF has no memory to look it up in,
//! so it is a search tree, whose leaves are constants of 32 bits each.
//!
//! A name passes that begins like a watched one and whose bit is set: those that are watched, and of others that begin
//! alike about as many as bits are set. A bitmap of 30,000 bits lets through 3 in 100 for 1,000 watches, and 28 in 100 for
//! 10,000.

use super::program::*;

/// Instructions that a leaf takes: a branch of the tree, its constant, and a jump to what they have in common.
const LEAF: usize = 3;

/// Any odd numbers will do; these are known to mix well (MurmurHash3).
const STEP: u32 = 0xcc9e_2d51;
const MIX: [(u32, u32); 2] = [(16, 0x85eb_ca6b), (13, 0xc2b2_ae35)];
const LAST_SHIFT: u32 = 16;

// Scratch memory of the program.
const ATTRIBUTE: u32 = 0;
const HASH: u32 = 1;
const WORD: u32 = 2;

/// How many leaves there is room for, with some left for jumps to what is too far away for a branch.
pub(super) fn leaves(instructions: usize) -> usize {
    let instructions = instructions - instructions / 32;
    (instructions / LEAF).max(1)
}

/// A NUL ends the name, and what follows up to the end of the word is NUL too.
fn ends(word: u32) -> bool {
    word & 0xff == 0
}

fn hash(words: &[u32; 4]) -> u32 {
    let [first, rest @ ..] = *words;
    let mut hash = first;
    let mut last = first;
    for word in rest {
        if ends(last) {
            break;
        }
        hash = hash.wrapping_mul(STEP) ^ word;
        last = word;
    }
    for (shift, factor) in MIX {
        hash = (hash ^ (hash >> shift)).wrapping_mul(factor);
    }
    hash ^ (hash >> LAST_SHIFT)
}

/// Which leaf a hash belongs to, and which bit of it.
fn place(hash: u32, leaves: usize) -> (usize, u32) {
    (((hash >> 16) as usize * leaves) >> 16, hash & 31)
}

/// Looks up the name in the attribute at X. `beginnings` are the ranges of the first word.
pub(super) fn names(
    program: &mut Program,
    names: &[[u32; 4]],
    beginnings: &[(u32, u32)],
    leaves: usize,
) -> Label {
    let mut bitmap = vec![0_u32; leaves];
    for name in names {
        let (leaf, bit) = place(hash(name), leaves);
        if let Some(leaf) = bitmap.get_mut(leaf) {
            *leaf |= 1 << bit;
        }
    }
    // From the end to the start: A is the leaf, X the number of the bit …
    let drop = program.verdict(false);
    let pass = program.verdict(true);
    let test = program.branch(JSET, 1, pass, drop);
    let test = program.emit(RSH_X, 0, test);
    // … A is the number of the leaf …
    let mut next = tree(program, &bitmap, 0, test);
    // … A is the hash …
    for (code, k) in [
        (RSH, 16),
        (MUL, leaves as u32),
        (RSH, 16),
        (LD_MEM, HASH),
        (TAX, 0),
        (AND, 31),
        (ST, HASH),
        (XOR_X, 0),
        (RSH, LAST_SHIFT),
        (TAX, 0),
    ] {
        next = program.emit(code, k, next);
    }
    // … A is what the words have made of it …
    for (shift, factor) in MIX.into_iter().rev() {
        for (code, k) in [(MUL, factor), (XOR_X, 0), (RSH, shift), (TAX, 0)] {
            next = program.emit(code, k, next);
        }
    }
    let mix = program.emit(LD_MEM, HASH, next);
    words(program, beginnings, mix)
}

/// Makes the hash of the words of the name, if it begins like one that is watched.
fn words(program: &mut Program, beginnings: &[(u32, u32)], mix: Label) -> Label {
    let mut next = mix;
    for word in (1..4).rev() {
        // What follows a word that ends the name is not read: it may be beyond the end of the message.
        if word < 3 {
            next = program.branch(JSET, 0xff, next, mix);
            next = program.emit(LD_MEM, WORD, next);
        }
        for (code, k) in [
            (ST, HASH),
            (XOR_X, 0),
            (MUL, STEP),
            (LD_MEM, HASH),
            (TAX, 0),
            (ST, WORD),
            // The attribute's header is 4 bytes.
            (LD_W_IND, 4 + 4 * word),
            (LDX_MEM, ATTRIBUTE),
        ] {
            next = program.emit(code, k, next);
        }
    }
    next = program.branch(JSET, 0xff, next, mix);
    let drop = program.verdict(false);
    next = program.search(beginnings, drop, |program| program.near(next));
    for (code, k) in [(ST, HASH), (LD_W_IND, 4), (STX, ATTRIBUTE)] {
        next = program.emit(code, k, next);
    }
    next
}

/// Loads the leaf that A is the number of; the first of these has the number `first`.
fn tree(program: &mut Program, leaves: &[u32], first: u32, next: Label) -> Label {
    let (left, right) = leaves.split_at(leaves.len() / 2);
    match (left.first(), right.first()) {
        // What follows is the same for all of them.
        (None, Some(&leaf)) => program.emit(LD_IMM, leaf, next),
        (Some(leaf), _) if leaves.iter().all(|other| other == leaf) => {
            program.emit(LD_IMM, *leaf, next)
        }
        _ => {
            let middle = first + left.len() as u32;
            let right = tree(program, right, middle, next);
            let left = tree(program, left, first, next);
            program.branch(JGT, middle - 1, right, left)
        }
    }
}
