//! The name of an interface, checked once and then trusted.

use std::{fmt, str::FromStr};

/// `IFNAMSIZ` with its NUL (`include/uapi/linux/if.h`).
const IFNAMSIZ: usize = 16;

/// The name of a network interface: 1 to 15 bytes, any but `/`, `:`, `%`, white space and NUL, and
/// neither `.` nor `..`.
///
/// These are the kernel's own rules (`dev_valid_name` and `__dev_alloc_name` in `net/core/dev.c`):
/// no interface can ever have another name, so waiting for one would be waiting for ever. A name
/// need not be UTF-8.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName([u8; IFNAMSIZ]);

/// Why a string cannot be the name of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// The name is empty.
    #[error("an interface name cannot be empty")]
    Empty,
    /// The name is longer than 15 bytes.
    #[error("an interface name has 15 bytes at most, this one has {0}")]
    TooLong(usize),
    /// The name has a `%`: the kernel puts a number in place of `%d`, and takes no other.
    #[error("an interface name cannot contain \"%\": the kernel makes a number of it")]
    Percent,
    /// The name has a byte that the kernel allows in no name.
    #[error("an interface name cannot contain {}", describe(*.0))]
    Forbidden(u8),
    /// The name is `.` or `..`.
    #[error("an interface cannot be called \".\" or \"..\"")]
    Dots,
}

fn describe(byte: u8) -> String {
    match byte {
        b'/' | b':' => format!("\"{}\"", char::from(byte)),
        0 => "a NUL byte".to_owned(),
        _ => "white space".to_owned(),
    }
}

/// `isspace` of the kernel (`lib/ctype.c`): the ASCII ones and Latin-1's no-break space.
const fn is_space(byte: u8) -> bool {
    matches!(byte, b'\t'..=b'\r' | b' ' | 0xa0)
}

impl InterfaceName {
    /// No name: what no interface is called.
    pub const NONE: Self = Self([0; IFNAMSIZ]);
    /// Comes before every name.
    pub(crate) const LEAST: Self = Self::NONE;

    /// Checks a name by the kernel's rules.
    ///
    /// # Errors
    /// When no interface can have this name.
    pub fn new(name: impl AsRef<[u8]>) -> Result<Self, InvalidName> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(InvalidName::Empty);
        }
        if let Some(&byte) = name
            .iter()
            .find(|&&byte| matches!(byte, b'/' | b':' | 0) || is_space(byte))
        {
            return Err(InvalidName::Forbidden(byte));
        }
        if name == b"." || name == b".." {
            return Err(InvalidName::Dots);
        }
        if name.contains(&b'%') {
            return Err(InvalidName::Percent);
        }
        Self::from_kernel(name).ok_or(InvalidName::TooLong(name.len()))
    }

    /// A name as the kernel reports it, up to its first NUL; `None` when it cannot be one. The
    /// kernel's word is taken for the rest.
    pub(crate) fn from_kernel(bytes: &[u8]) -> Option<Self> {
        let length = bytes
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(bytes.len());
        let mut name = [0; IFNAMSIZ];
        if length == 0 || length >= IFNAMSIZ {
            return None;
        }
        name.get_mut(..length)?
            .copy_from_slice(bytes.get(..length)?);
        Some(Self(name))
    }

    /// The bytes of the name, without padding.
    pub fn as_bytes(&self) -> &[u8] {
        let Self(bytes) = self;
        bytes.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// The name padded with NUL to the kernel's 16 bytes.
    pub(crate) const fn padded(&self) -> [u8; IFNAMSIZ] {
        self.0
    }
}

/// Bytes that are not UTF-8 appear as U+FFFD.
impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(self.as_bytes()))
    }
}

/// As it is displayed.
#[cfg(feature = "serde")]
impl serde::Serialize for InterfaceName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl TryFrom<&str> for InterfaceName {
    type Error = InvalidName;

    fn try_from(name: &str) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_the_kernel_accepts() {
        for name in ["wg0", "$(reboot)", "ünï", "a\"b", "...", "012345678901234"] {
            assert_eq!(
                InterfaceName::new(name).map(|name| name.to_string()),
                Ok(name.to_owned())
            );
        }
        let latin1 = InterfaceName::new([b'w', 0xff]).expect("any byte");
        assert_eq!(latin1.to_string(), "w\u{fffd}");
        assert_eq!(latin1.as_bytes(), [b'w', 0xff]);
    }

    #[test]
    fn refuses_what_the_kernel_refuses() {
        use InvalidName::{Dots, Empty, Forbidden, Percent, TooLong};
        for (name, why) in [
            ("", Empty),
            ("0123456789012345", TooLong(16)),
            ("a/b", Forbidden(b'/')),
            ("eth0:1", Forbidden(b':')),
            ("a b", Forbidden(b' ')),
            ("a\n", Forbidden(b'\n')),
            ("a\0", Forbidden(0)),
            ("wg%d", Percent),
            ("100%", Percent),
            (".", Dots),
            ("..", Dots),
        ] {
            assert_eq!(InterfaceName::new(name), Err(why));
        }
    }
}
