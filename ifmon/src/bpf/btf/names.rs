//! The few names that matter, among the hundred thousand in the string section.

use std::ops::Range;

use super::{
    BtfError,
    window::{Source, Window},
};

/// More than the length of any name that is wanted, with its NUL.
const LONGEST: usize = 64;
/// Many times the names that are wanted, so that few others share a mark with them.
const MARKS: usize = 1024;

/// The wanted names that the file has, and the offsets in its string section by which it calls
/// them.
pub(super) struct Names {
    /// In ascending order of the offsets.
    found: Vec<(u32, &'static str)>,
    /// Whether an offset with this remainder is among them: most others are told apart by that
    /// alone.
    marks: [bool; MARKS],
}

impl Names {
    /// Looks for these strings.
    ///
    /// A name offset may by the letter of the format point into the middle of a string ("dev" as
    /// the end of "netdev"). No tool makes use of that, and names so encoded are not found:
    /// that ends in an error, as there is no such type or field.
    pub(super) fn find<S: Source>(
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
            let mut start = 0;
            for end in memchr::memchr_iter(0, held) {
                let string = &held[start..end];
                let is_tail = std::mem::take(&mut within);
                if let [first, ..] = string
                    && lengths[usize::from(*first)] >> (string.len() % LONGEST) & 1 != 0
                    && !is_tail
                    && let Some(name) = wanted.iter().find(|name| name.as_bytes() == string)
                {
                    // It fits: the length of the section has 32 bits.
                    names.note((at - section.start) as u32 + start as u32, name)?;
                }
                start = end + 1;
            }
            if start == 0 {
                within = true;
                start = held.len();
            }
            at += start as u64;
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
