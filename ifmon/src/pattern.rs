//! Patterns for the names of interfaces, as a shell has them for files.

pub(crate) mod table;

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use crate::{InterfaceName, InvalidName, LinkKind};

/// Bytes that an interface name has at most.
const LONGEST: usize = 15;

/// A pattern for names of interfaces: `*` stands for any bytes, `?` for one, `[a-z0]` for one of
/// these, `[!a-z]` for one that is none of these. A backslash takes the next byte as it is.
///
/// As in a shell, but that a name that begins with a dot is no exception.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use ifmon::{LinkKind, Pattern};
///
/// let all_tunnels = Pattern::new("*")?.of_kinds([LinkKind::new("wireguard")?]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Pattern(Arc<Inner>);

struct Inner {
    text: Box<[u8]>,
    parts: Box<[Part]>,
    /// Sorted; empty where the kind does not matter.
    kinds: Box<[LinkKind]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Byte(u8),
    /// One byte of these, one bit for each.
    Class([u64; 4]),
    /// Any number of any bytes.
    Many,
}

/// Why a string is no pattern for names of interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPattern {
    /// No interface can have a name that it matches.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A backslash at the end.
    #[error("the backslash at its end has nothing to take as it is; write \\\\ for a backslash")]
    Backslash,
    /// A bracket that is not closed.
    #[error("there is no ] to its [; write \\[ for an interface that has a [ in its name")]
    Unclosed,
    /// A range whose end comes before its beginning.
    #[error("the range {}-{} has its end before its beginning", char::from(*.0), char::from(*.1))]
    Range(u8, u8),
    /// `[:alpha:]` and the like.
    #[error("classes such as [:alpha:] are not known here; write a range, such as [a-z]")]
    Class,
}

/// The names that a filter in the kernel lets through: those that have these bytes at the places
/// with a mask. All names that a pattern matches are among them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mask {
    pub(crate) bytes: [u8; LONGEST + 1],
    pub(crate) mask: [u8; LONGEST + 1],
}

impl Pattern {
    /// Checks a pattern.
    ///
    /// # Errors
    /// When it is none, or the length of what it matches, or a byte that is certain in it, rules out that
    /// an interface is called so.
    pub fn new(text: impl AsRef<[u8]>) -> Result<Self, InvalidPattern> {
        let text = text.as_ref();
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            parts.push(match byte {
                b'*' => Part::Many,
                b'?' => Part::Class([u64::MAX; 4]),
                b'[' => {
                    let (class, after) = class(rest)?;
                    rest = after;
                    class
                }
                b'\\' => {
                    let (&byte, after) = rest.split_first().ok_or(InvalidPattern::Backslash)?;
                    rest = after;
                    literal(byte)?
                }
                byte => literal(byte)?,
            });
        }
        // One after the other they are one.
        parts.dedup_by(|one, before| *one == Part::Many && *before == Part::Many);
        let least = parts.iter().filter(|part| **part != Part::Many).count();
        if parts.is_empty() {
            return Err(InvalidName::Empty.into());
        }
        if least > LONGEST {
            return Err(InvalidName::TooLong(least).into());
        }
        Ok(Self(Arc::new(Inner {
            text: text.into(),
            parts: parts.into(),
            kinds: Box::default(),
        })))
    }

    /// Narrows it to interfaces of one of these kinds. Without any kind, that does not matter.
    #[must_use]
    pub fn of_kinds(self, kinds: impl IntoIterator<Item = LinkKind>) -> Self {
        let kinds: BTreeSet<LinkKind> = kinds.into_iter().collect();
        let Inner { text, parts, .. } = &*self.0;
        Self(Arc::new(Inner {
            text: text.clone(),
            parts: parts.clone(),
            kinds: kinds.into_iter().collect(),
        }))
    }

    /// Does an interface of this name match, if it is of the right kind?
    pub fn matches(&self, name: &InterfaceName) -> bool {
        let name = name.as_bytes();
        let parts = &*self.0.parts;
        let (mut part, mut at) = (0, 0);
        // Where to go on when what follows the last `*` does not match: with one byte more in it.
        let mut again = None;
        loop {
            match (parts.get(part), name.get(at)) {
                (Some(Part::Many), _) => {
                    again = Some((part, at));
                    part += 1;
                    continue;
                }
                (Some(one), Some(&byte)) if one.is(byte) => {
                    part += 1;
                    at += 1;
                    continue;
                }
                (None, None) => return true,
                _ => {}
            }
            match again {
                Some((many, from)) if from < name.len() => {
                    again = Some((many, from + 1));
                    part = many + 1;
                    at = from + 1;
                }
                _ => return false,
            }
        }
    }

    /// Does an interface of this name and kind match?
    pub(crate) fn accepts(&self, name: &InterfaceName, kind: Option<LinkKind>) -> bool {
        let kinds = self.kinds();
        let is_it = kinds.is_empty() || kind.is_some_and(|kind| kinds.binary_search(&kind).is_ok());
        is_it && self.matches(name)
    }

    /// The kinds to which it is narrowed; none where the kind does not matter.
    pub fn kinds(&self) -> &[LinkKind] {
        &self.0.kinds
    }

    /// What makes two the same.
    fn key(&self) -> (&[u8], &[LinkKind]) {
        (&self.0.text, &self.0.kinds)
    }

    /// The pattern as it was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.text
    }

    /// What a filter in the kernel compares.
    pub(crate) fn mask(&self) -> Mask {
        let mut mask = Mask::default();
        let parts = &*self.0.parts;
        let fixed = parts.iter().position(|part| *part == Part::Many);
        for (at, part) in parts.iter().take(fixed.unwrap_or(parts.len())).enumerate() {
            if let Part::Byte(byte) = part {
                mask.set(at, *byte);
            }
        }
        if fixed.is_none() {
            mask.set(parts.len(), 0);
        }
        mask
    }
}

/// The pattern that this name alone matches.
impl From<InterfaceName> for Pattern {
    fn from(name: InterfaceName) -> Self {
        let mut text = Vec::new();
        for &byte in name.as_bytes() {
            if matches!(byte, b'*' | b'?' | b'[' | b'\\') {
                text.push(b'\\');
            }
            text.push(byte);
        }
        let parts = name.as_bytes().iter().map(|&byte| Part::Byte(byte));
        Self(Arc::new(Inner {
            text: text.into(),
            parts: parts.collect(),
            kinds: Box::default(),
        }))
    }
}

impl Mask {
    fn set(&mut self, at: usize, byte: u8) {
        if let (Some(to), Some(mask)) = (self.bytes.get_mut(at), self.mask.get_mut(at)) {
            *to = byte;
            *mask = u8::MAX;
        }
    }

    /// Names that begin so.
    #[cfg(test)]
    pub(crate) fn of(stem: &[u8]) -> Self {
        let mut mask = Self::default();
        for (at, &byte) in stem.iter().enumerate() {
            mask.set(at, byte);
        }
        mask
    }

    /// Does it let a name through?
    pub(crate) fn passes(&self, name: &InterfaceName) -> bool {
        let name = name.padded();
        (0..name.len()).all(|at| (name[at] ^ self.bytes[at]) & self.mask[at] == 0)
    }

    /// This kind alone.
    fn of_kind(kind: LinkKind) -> Self {
        Self {
            bytes: kind.padded(),
            mask: [u8::MAX; LONGEST + 1],
        }
    }

    /// One that lets through what either does.
    fn or(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for at in 0..self.bytes.len() {
            if self.mask[at] & other.mask[at] != 0 && self.bytes[at] == other.bytes[at] {
                both.set(at, self.bytes[at]);
            }
        }
        both
    }
}

/// The kinds of interfaces that any of these patterns matches; none where one does not look at it.
pub(crate) fn kinds<'a>(patterns: impl Iterator<Item = &'a Pattern>) -> BTreeSet<LinkKind> {
    let mut all = BTreeSet::new();
    for pattern in patterns {
        if pattern.kinds().is_empty() {
            return BTreeSet::new();
        }
        all.extend(pattern.kinds());
    }
    all
}

/// At most so many masks that let through whatever one of these patterns matches: where there are
/// more patterns, the last mask stands for all the others.
pub(crate) fn masks<'a>(patterns: impl Iterator<Item = &'a Pattern>, most: usize) -> Vec<Mask> {
    at_most(most, patterns.map(Pattern::mask))
}

/// The same for kinds. Where these do not matter, one mask lets all of them through.
pub(crate) fn kind_masks(kinds: &BTreeSet<LinkKind>, most: usize) -> Vec<Mask> {
    if kinds.is_empty() {
        return vec![Mask::default()];
    }
    at_most(most, kinds.iter().copied().map(Mask::of_kind))
}

fn at_most(most: usize, all: impl Iterator<Item = Mask>) -> Vec<Mask> {
    let mut masks: Vec<Mask> = Vec::new();
    for mask in all {
        let is_full = masks.len() == most;
        match masks.last_mut() {
            Some(last) if is_full => *last = last.or(&mask),
            _ => masks.push(mask),
        }
    }
    masks
}

impl Part {
    fn is(self, byte: u8) -> bool {
        match self {
            Self::Byte(one) => one == byte,
            Self::Class(bits) => bits[usize::from(byte / 64)] & 1 << (byte % 64) != 0,
            Self::Many => false,
        }
    }
}

/// A byte that stands for itself.
fn literal(byte: u8) -> Result<Part, InvalidPattern> {
    // Any name with it in it: what is wrong with one is wrong with all.
    match InterfaceName::new([b'x', byte]) {
        Ok(_) => Ok(Part::Byte(byte)),
        Err(error) => Err(error.into()),
    }
}

/// What follows a `[`, and what comes after it.
fn class(text: &[u8]) -> Result<(Part, &[u8]), InvalidPattern> {
    let is_negated = matches!(text.first(), Some(b'!' | b'^'));
    let mut at = usize::from(is_negated);
    let begin = at;
    let mut bits = [0_u64; 4];
    let next = |at: &mut usize| -> Result<u8, InvalidPattern> {
        if text.get(*at) == Some(&b'\\') {
            *at += 1;
        }
        let byte = text.get(*at).ok_or(InvalidPattern::Unclosed)?;
        *at += 1;
        Ok(*byte)
    };
    loop {
        match text.get(at..).unwrap_or_default() {
            // Right at the beginning it stands for itself.
            [b']', rest @ ..] if at > begin => {
                if is_negated {
                    bits = bits.map(|word| !word);
                }
                return Ok((Part::Class(bits), rest));
            }
            [b'[', b':' | b'.' | b'=', ..] => return Err(InvalidPattern::Class),
            _ => {}
        }
        let low = next(&mut at)?;
        let is_range = matches!(text.get(at..), Some([b'-', after, ..]) if *after != b']');
        let high = if is_range {
            at += 1;
            next(&mut at)?
        } else {
            low
        };
        if high < low {
            return Err(InvalidPattern::Range(low, high));
        }
        for byte in low..=high {
            bits[usize::from(byte / 64)] |= 1 << (byte % 64);
        }
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key().cmp(&other.key())
    }
}

impl std::hash::Hash for Pattern {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// Bytes that are not UTF-8 appear as U+FFFD.
impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// As it is displayed.
#[cfg(feature = "serde")]
impl serde::Serialize for Pattern {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        Self::new(text)
    }
}

impl TryFrom<&str> for Pattern {
    type Error = InvalidPattern;

    fn try_from(text: &str) -> Result<Self, InvalidPattern> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests;
