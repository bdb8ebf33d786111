//! The few names that matter, among the hundred thousand in the string section.

use std::{array, ops::Range};

use super::{
    BtfError,
    window::{BtfSource, Window},
};

/// More than the length of any name that is wanted, with its NUL.
const LONGEST: usize = 64;
/// Many times the names that are wanted, so that few others share a mark with them.
const MARKS: usize = 1024;

/// The wanted names that the file has, and the offsets in its string section by which it calls
/// them.
pub(super) struct WantedNames {
    /// In ascending order of the offsets.
    found: Vec<(u32, &'static str)>,
    /// Whether an offset with this remainder is among them: most others are told apart by that
    /// alone.
    marks: [bool; MARKS],
}

impl WantedNames {
    /// Looks for these strings.
    ///
    /// A name offset may by the letter of the format point into the middle of a string ("dev" as
    /// the end of "netdev"). No tool makes use of that, and names so encoded are not found:
    /// that ends in an error, as there is no such type or field.
    pub(super) fn find<S: BtfSource>(
        window: &mut Window<S>,
        section: Range<u64>,
        wanted: &[&'static str],
    ) -> Result<Self, BtfError> {
        if section.is_empty()
            || window.get(section.start, 1)?[0] != 0
            || window.get(section.end - 1, 1)?[0] != 0
        {
            return Err(BtfError::Strings);
        }
        let mut names = Self {
            found: Vec::with_capacity(wanted.len()),
            marks: [false; MARKS],
        };
        // Most strings are turned down by their first byte and their length.
        let mut lengths = [0_u64; 256];
        for name in wanted {
            lengths[usize::from(name.as_bytes()[0])] |= 1 << (name.len() % LONGEST);
        }
        let mut at = section.start;
        // Whether `at` is within a string that is longer than what was in memory, and hence than
        // any that we want.
        let mut within = false;
        while at < section.end {
            let rest = usize::try_from(section.end - at).unwrap_or(usize::MAX);
            let held = window.get(at, rest.min(LONGEST))?;
            let held = &held[..held.len().min(rest)];
            let mut strings = Strings::of(held);
            while let Some((start, string)) = strings.next(&lengths) {
                let is_tail = within && start == 0;
                if !is_tail && let Some(name) = wanted.iter().find(|name| name.as_bytes() == string)
                {
                    // It fits: the length of the section has 32 bits.
                    names.note((at - section.start) as u32 + start as u32, name)?;
                }
            }
            within = strings.start == 0;
            at += if within { held.len() } else { strings.start } as u64;
        }
        Ok(names)
    }

    fn note(&mut self, offset: u32, name: &'static str) -> Result<(), BtfError> {
        if self.offset(name).is_some() {
            return Err(BtfError::DuplicateString(name));
        }
        self.found.push((offset, name));
        self.marks[offset as usize % MARKS] = true;
        Ok(())
    }

    /// The offset of a name. It is never that of the empty name, which is what anonymous types
    /// have.
    pub(super) fn offset(&self, name: &str) -> Option<u32> {
        self.found
            .iter()
            .find(|(_, known)| *known == name)
            .map(|(offset, _)| *offset)
    }

    /// Whether one of the names is at this offset.
    #[inline(always)]
    pub(super) fn has(&self, offset: u32) -> bool {
        self.marks[offset as usize % MARKS]
            && self
                .found
                .binary_search_by_key(&offset, |name| name.0)
                .is_ok()
    }
}

/// The strings in a piece of memory, found by where they end.
struct Strings<'a> {
    held: &'a [u8],
    words: &'a [[u8; WORD]],
    /// What is behind the last whole word, and nothing that is NUL.
    tail: [u8; WORD],
    /// The word that is looked at next.
    next: usize,
    /// The uppermost bit of each byte of the one before that is NUL and was not counted yet.
    nuls: u64,
    /// Where the string begins whose end comes next.
    start: usize,
}

const WORD: usize = size_of::<u64>();

impl<'a> Strings<'a> {
    fn of(held: &'a [u8]) -> Self {
        let (words, rest) = held.as_chunks();
        Self {
            held,
            words,
            tail: array::from_fn(|index| rest.get(index).copied().unwrap_or(u8::MAX)),
            next: 0,
            nuls: 0,
            start: 0,
        }
    }

    /// The next string that has, for its first byte, one of these lengths, and where it begins.
    ///
    /// There are a hundred thousand strings of a dozen bytes: to search for the end of each as with
    /// memchr(3) takes three times as many instructions as not to begin anew each time. A function of
    /// its own, so that the loop has all the registers; what is done with the few strings that come
    /// out of it would take them.
    #[inline(never)]
    fn next(&mut self, lengths: &[u64; 256]) -> Option<(usize, &'a [u8])> {
        const LOWER: u64 = u64::MAX / 255 * 0x7f;
        let Self {
            held,
            words,
            tail,
            mut next,
            mut nuls,
            mut start,
        } = *self;
        let found = 'found: loop {
            while nuls == 0 {
                let word = match words.get(next) {
                    Some(word) => *word,
                    None if next == words.len() => tail,
                    None => break 'found None,
                };
                next += 1;
                let word = u64::from_le_bytes(word);
                // No byte's sum reaches the next one.
                nuls = !(((word & LOWER) + LOWER) | word | LOWER);
            }
            let end = next * WORD - WORD + nuls.trailing_zeros() as usize / 8;
            nuls &= nuls - 1;
            let begin = start;
            start = end + 1;
            // Of an empty one it is the NUL, for which there are no lengths.
            let first = held.get(begin).copied().unwrap_or_default();
            if lengths[usize::from(first)] >> ((end - begin) % LONGEST) & 1 != 0 {
                break held.get(begin..end).map(|string| (begin, string));
            }
        };
        (self.next, self.nuls, self.start) = (next, nuls, start);
        found
    }
}
