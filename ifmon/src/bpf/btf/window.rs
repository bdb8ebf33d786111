//! Reads a file piece by piece.

use std::{array, fs::File, io, os::unix::fs::FileExt};

use super::BtfError;

/// Where the bytes of a BTF file come from.
pub(super) trait BtfSource {
    /// As `pread(2)`: the number of bytes read, which may be fewer than wanted; 0 at the end.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
}

impl BtfSource for File {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        FileExt::read_at(self, buf, at)
    }
}

impl BtfSource for &[u8] {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..))
            .unwrap_or_default();
        let len = rest.len().min(buf.len());
        buf[..len].copy_from_slice(&rest[..len]);
        Ok(len)
    }
}

/// The stretch of the file that is in memory.
pub(super) struct Window<S> {
    source: S,
    buf: Box<[u8]>,
    at: u64,
    len: usize,
}

impl<S: BtfSource> Window<S> {
    /// sysfs gives at most one page per read(2), so more would not save calls; a plain file is read
    /// in larger steps.
    const SIZE: usize = 16 * 1024;

    pub(super) fn new(source: S) -> Self {
        Self {
            source,
            buf: vec![0; Self::SIZE].into_boxed_slice(),
            at: 0,
            len: 0,
        }
    }

    /// What there is in memory from `at` on: at least `min` bytes, read if need be.
    // Asked for each of a hundred thousand types, as are the others that say so: the program is
    // optimised for room, and a call would cost more than what is done there.
    #[inline(always)]
    pub(super) fn get(&mut self, at: u64, min: usize) -> Result<&[u8], BtfError> {
        // Before what is held, this is more than there can be in memory.
        let skip = usize::try_from(at.wrapping_sub(self.at)).unwrap_or(usize::MAX);
        match self.len.checked_sub(skip) {
            Some(len) if len >= min => Ok(&self.buf[skip..self.len]),
            _ => self.fill(at, min),
        }
    }

    #[cold]
    fn fill(&mut self, at: u64, min: usize) -> Result<&[u8], BtfError> {
        (self.at, self.len) = (at, 0);
        while self.len < min {
            let here = at.saturating_add(self.len as u64);
            match self.source.read_at(&mut self.buf[self.len..], here) {
                Ok(0) => return Err(BtfError::Truncated { at: here }),
                Ok(read) => self.len += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(BtfError::Read(error)),
            }
        }
        Ok(&self.buf[..self.len])
    }

    /// `N` little-endian words.
    #[inline(always)]
    pub(super) fn words<const N: usize>(&mut self, at: u64) -> Result<[u32; N], BtfError> {
        Ok(words(self.get(at, 4 * N)?))
    }
}

/// The first `N` words, which have to be there.
#[inline(always)]
pub(super) fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let (words, _) = bytes[..4 * N].as_chunks();
    array::from_fn(|index| u32::from_le_bytes(words[index]))
}
