//! The words of `/proc/PID/mountinfo` (`proc(5)`).

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

/// White space and backslashes are written as a backslash and three octal digits: `mangle_path` of
/// `fs/seq_file.c`.
pub(crate) fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let digits = after.get(..3).filter(|_| *first == b'\\');
        let byte = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(bytes)
}
