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
            // Not handed through the loop, which would take a tenth more instructions by it.
            let mut noted = Ok(());
            let end = each_of(&lengths, held, &mut |start, string| {
                let is_tail = within && start == 0;
                if !is_tail
                    && let Some(name) = wanted.iter().find(|name| name.as_bytes() == string)
                    && noted.is_ok()
                {
                    // It fits: the length of the section has 32 bits.
                    noted = names.note((at - section.start) as u32 + start as u32, name);
                }
            });
            noted?;
            within = end == 0;
            at += if within { held.len() } else { end } as u64;
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

/// Calls `each` with every string that ends here and has, for its first byte, one of these lengths; and
/// says where the last one ends.
///
/// There are a hundred thousand strings of a dozen bytes: to search for the end of each as with
/// memchr(3) takes more than twice as many instructions as not to begin anew each time. The loop is
/// a function of its own, so that it gets all the registers.
#[inline(never)]
fn each_of(lengths: &[u64; 256], held: &[u8], each: &mut dyn FnMut(usize, &[u8])) -> usize {
    const LOWER: u64 = u64::MAX / 255 * 0x7f;
    let mut start = 0;
    let mut base = 0;
    while let Some(rest) = held.get(base..)
        && !rest.is_empty()
    {
        let word = match rest.first_chunk() {
            Some(word) => *word,
            None => array::from_fn(|index| rest.get(index).copied().unwrap_or(u8::MAX)),
        };
        let word = u64::from_le_bytes(word);
        // The uppermost bit of each byte that is NUL: no byte's sum reaches the next one.
        let mut nuls = !(((word & LOWER) + LOWER) | word | LOWER);
        while nuls != 0 {
            let end = base + nuls.trailing_zeros() as usize / 8;
            nuls &= nuls - 1;
            let string = &held[start..end];
            if let [first, ..] = string
                && lengths[usize::from(*first)] >> (string.len() % LONGEST) & 1 != 0
            {
                each(start, string);
            }
            start = end + 1;
        }
        base += size_of::<u64>();
    }
    start
}
