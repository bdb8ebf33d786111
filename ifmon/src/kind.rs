//! The kind of a device: what the kernel calls what made it.

use std::{fmt, str::FromStr};

/// What is compared in the kernel, with a NUL.
const SIZE: usize = 16;

/// The kind of a network interface, as `ip -details link` shows it and `ip link add type` takes it:
/// `wireguard`, `veth`, `bridge` and so on (`IFLA_INFO_KIND`).
///
/// It never changes while the interface exists. An interface that is hardware has none, nor has `lo`.
///
/// The kernel takes kinds of up to 55 bytes (`MODULE_NAME_LEN` in `rtnl_newlink` of
/// `net/core/rtnetlink.c`), and those in use are far shorter. Here 15 are compared, as of a name, which
/// a BPF program does at once: an interface of a longer kind counts as one without.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkKind([u8; SIZE]);

/// Why a string is not taken for the kind of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidKind {
    /// It is empty.
    #[error("a kind of interface cannot be empty")]
    Empty,
    /// It is longer than 15 bytes.
    #[error("a kind of interface has 15 bytes at most, this one has {0}")]
    TooLong(usize),
    /// It has something in it that is neither a letter, a digit, `-`, `_` nor `.`.
    #[error("a kind of interface has letters, digits, \"-\", \"_\" and \".\" alone")]
    Forbidden,
}

impl LinkKind {
    /// Checks a kind. Whether this kernel has it is not known before there is an interface of it.
    ///
    /// # Errors
    /// When it is empty, longer than is told apart here, or has a byte that no kind has.
    pub fn new(kind: impl AsRef<[u8]>) -> Result<Self, InvalidKind> {
        let kind = kind.as_ref();
        if kind.is_empty() {
            return Err(InvalidKind::Empty);
        }
        let is_fine = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        if !kind.iter().all(is_fine) {
            return Err(InvalidKind::Forbidden);
        }
        Self::from_kernel(kind).ok_or(InvalidKind::TooLong(kind.len()))
    }

    /// A kind as the kernel reports it, up to its first NUL; `None` when there is none, or it is
    /// longer than what is compared.
    pub(crate) fn from_kernel(bytes: &[u8]) -> Option<Self> {
        let end = bytes.iter().position(|&byte| byte == 0);
        let bytes = bytes.get(..end.unwrap_or(bytes.len()))?;
        if bytes.is_empty() || bytes.len() >= SIZE {
            return None;
        }
        let mut kind = [0; SIZE];
        kind.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self(kind))
    }

    /// The bytes of the kind, without padding.
    pub fn as_bytes(&self) -> &[u8] {
        let Self(bytes) = self;
        bytes.split(|&byte| byte == 0).next().unwrap_or_default()
    }

    /// Do devices of this kind come in pairs?
    pub(crate) fn is_pair(&self) -> bool {
        matches!(self.as_bytes(), b"veth" | b"netkit")
    }

    /// The kind padded with NUL.
    pub(crate) const fn padded(&self) -> [u8; SIZE] {
        self.0
    }
}

/// Bytes that are not UTF-8 appear as U+FFFD.
impl fmt::Display for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for LinkKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

/// As it is displayed.
#[cfg(feature = "serde")]
impl serde::Serialize for LinkKind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for LinkKind {
    type Err = InvalidKind;

    fn from_str(kind: &str) -> Result<Self, InvalidKind> {
        Self::new(kind)
    }
}

impl TryFrom<&str> for LinkKind {
    type Error = InvalidKind;

    fn try_from(kind: &str) -> Result<Self, InvalidKind> {
        Self::new(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_what_ip_calls_it() {
        for kind in [
            "veth",
            "wireguard",
            "ip6gretap",
            "mac80211_hwsim",
            "fifteen.bytes-x",
        ] {
            let made = LinkKind::new(kind).expect("a good kind");
            assert_eq!(made.to_string(), kind);
            assert_eq!(LinkKind::from_kernel(kind.as_bytes()), Some(made));
        }
        for (kind, why) in [
            ("", InvalidKind::Empty),
            ("sixteen-bytes-xx", InvalidKind::TooLong(16)),
            ("wire guard", InvalidKind::Forbidden),
            ("veth*", InvalidKind::Forbidden),
            ("a/b", InvalidKind::Forbidden),
            ("vëth", InvalidKind::Forbidden),
        ] {
            assert_eq!(LinkKind::new(kind), Err(why), "{kind}");
        }
        assert_eq!(LinkKind::from_kernel(b""), None);
        assert_eq!(LinkKind::from_kernel(b"sixteen-bytes-xx"), None);
        let of_its_own = LinkKind::from_kernel(b"a b\xff\0rest").expect("the kernel's word");
        assert_eq!(of_its_own.to_string(), "a b\u{fffd}");
    }
}
