//! What is to be watched, as it is named on the command line: `[NETNS/]NAME[=IFINDEX]`, or
//! `[NETNS/]PATTERN`.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt as _,
};

use ifmon::{InterfaceName, InvalidName, InvalidPattern, LinkKind, Pattern};

/// Stands for all network namespaces.
pub(crate) const EVERYWHERE: &str = "*";

/// A name, or all that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Selection {
    Name(InterfaceName),
    Pattern(Pattern),
}

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WatchArgument {
    /// Where it was named with its namespace.
    pub(crate) netns: Option<OsString>,
    pub(crate) what: Selection,
    /// The device that its user set up.
    pub(crate) expected: Option<u32>,
}

/// Why a word names no interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoInterface {
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error(
        "a pattern has no index; write \\= for interfaces that have a = in their names, and \\*, \\? or \\[ for \
         one that has these in it"
    )]
    PatternIndex,
    #[error(
        "after = the index of the device is wanted, a number above 0; write \\= for an interface that has a = in its \
         name"
    )]
    Index,
    #[error("an index is one of a single network namespace")]
    EverywhereIndex,
    #[error("the backslash at its end has nothing to take as it is; write \\\\ for a backslash")]
    Backslash,
}

impl WatchArgument {
    pub(crate) const fn is_pattern(&self) -> bool {
        matches!(self.what, Selection::Pattern(_))
    }

    /// Takes a word apart. No interface name has a slash in it, so the last one ends the namespace,
    /// which is taken as it is. In the name a backslash takes the next character as it is;
    /// `literal` takes all of them so.
    pub(crate) fn parse(word: &OsStr, literal: bool) -> Result<Self, NoInterface> {
        let bytes = word.as_bytes();
        let slash = bytes.iter().rposition(|&byte| byte == b'/');
        let (netns, name) = match slash.and_then(|slash| bytes.split_at_checked(slash)) {
            Some((netns, name)) => (
                Some(OsStr::from_bytes(netns).to_owned()),
                name.get(1..).unwrap_or_default(),
            ),
            None => (None, bytes),
        };
        let (what, expected) = if literal {
            (Selection::Name(InterfaceName::new(name)?), None)
        } else if is_pattern(name) {
            if has_equals_sign(name) {
                return Err(NoInterface::PatternIndex);
            }
            (Selection::Pattern(Pattern::new(name)?), None)
        } else {
            let (name, expected) = unescape(name)?;
            (Selection::Name(InterfaceName::new(name)?), expected)
        };
        Ok(Self {
            netns,
            what,
            expected,
        })
    }
}

impl WatchArgument {
    /// Is it meant in all namespaces?
    pub(crate) fn is_everywhere(&self) -> bool {
        self.netns.as_deref() == Some(OsStr::new(EVERYWHERE))
    }
}

/// Takes the names in all namespaces as the patterns that they are there. `all`: so it is with those
/// that were named without a namespace.
pub(crate) fn spread(targets: &mut [WatchArgument], all: bool) -> Result<(), NoInterface> {
    for target in targets {
        if all && target.netns.is_none() {
            target.netns = Some(EVERYWHERE.into());
        }
        if !target.is_everywhere() {
            continue;
        }
        if let Selection::Name(name) = target.what {
            if target.expected.is_some() {
                return Err(NoInterface::EverywhereIndex);
            }
            target.what = Selection::Pattern(Pattern::from(name));
        }
    }
    Ok(())
}

/// Narrows every pattern to these kinds. Where there is no pattern, all interfaces of these kinds are
/// meant.
pub(crate) fn narrow(
    targets: &mut Vec<WatchArgument>,
    kinds: &[LinkKind],
) -> Result<(), InvalidPattern> {
    let mut has_pattern = false;
    for target in targets.iter_mut() {
        if let Selection::Pattern(pattern) = &mut target.what {
            *pattern = pattern.clone().of_kinds(kinds.iter().copied());
            has_pattern = true;
        }
    }
    if !has_pattern {
        let all = Pattern::new("*")?.of_kinds(kinds.iter().copied());
        targets.push(WatchArgument {
            netns: None,
            what: Selection::Pattern(all),
            expected: None,
        });
    }
    Ok(())
}

/// The bytes that no backslash takes as they are.
fn unescaped(word: &[u8]) -> impl Iterator<Item = u8> {
    let mut bytes = word.iter();
    std::iter::from_fn(move || {
        loop {
            match bytes.next()? {
                b'\\' => drop(bytes.next()),
                byte => return Some(*byte),
            }
        }
    })
}

/// Is there anything in it that makes it a pattern?
fn is_pattern(word: &[u8]) -> bool {
    unescaped(word).any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

/// Is there an equals sign in a pattern, but for one in brackets?
fn has_equals_sign(pattern: &[u8]) -> bool {
    let mut is_inside = false;
    unescaped(pattern).any(|byte| {
        is_inside = byte == b'[' || is_inside && byte != b']';
        byte == b'=' && !is_inside
    })
}

/// The name as it is, and the index after an equals sign.
fn unescape(word: &[u8]) -> Result<(Vec<u8>, Option<u32>), NoInterface> {
    let mut name = Vec::new();
    let mut bytes = word.iter();
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => name.push(*bytes.next().ok_or(NoInterface::Backslash)?),
            b'=' => {
                let index = std::str::from_utf8(bytes.as_slice()).unwrap_or_default();
                return ifindex(index).map(|index| (name, Some(index)));
            }
            byte => name.push(byte),
        }
    }
    Ok((name, None))
}

/// The index of a device, which the kernel keeps in an `int`.
pub(crate) fn ifindex(word: &str) -> Result<u32, NoInterface> {
    word.parse::<i32>()
        .ok()
        .and_then(|index| u32::try_from(index).ok())
        .filter(|&index| index > 0)
        .ok_or(NoInterface::Index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(
        netns: Option<&str>,
        name: &str,
        expected: Option<u32>,
    ) -> Result<WatchArgument, NoInterface> {
        Ok(WatchArgument {
            netns: netns.map(OsString::from),
            what: Selection::Name(InterfaceName::new(name).expect("a good name")),
            expected,
        })
    }

    fn pattern(netns: Option<&str>, pattern: &str) -> Result<WatchArgument, NoInterface> {
        Ok(WatchArgument {
            netns: netns.map(OsString::from),
            what: Selection::Pattern(Pattern::new(pattern).expect("a good pattern")),
            expected: None,
        })
    }

    #[test]
    fn words_are_taken_apart() {
        let parse = |word: &str| WatchArgument::parse(OsStr::new(word), false);
        for (word, expected) in [
            ("wg0", target(None, "wg0", None)),
            ("web/wg0", target(Some("web"), "wg0", None)),
            (
                "/proc/1/ns/net/wg0",
                target(Some("/proc/1/ns/net"), "wg0", None),
            ),
            ("wg0=7", target(None, "wg0", Some(7))),
            // What has a meaning in a name has none in a namespace.
            ("a=b*\\/wg0=7", target(Some("a=b*\\"), "wg0", Some(7))),
            (r"a\=7", target(None, "a=7", None)),
            (r"a\=7=8", target(None, "a=7", Some(8))),
            (r"\*\?\[\]\\", target(None, r"*?[]\", None)),
            (r"\w\g0", target(None, "wg0", None)),
            ("a]", target(None, "a]", None)),
            ("", Err(NoInterface::Name(InvalidName::Empty))),
            ("web/", Err(NoInterface::Name(InvalidName::Empty))),
            ("=7", Err(NoInterface::Name(InvalidName::Empty))),
            (r"a\", Err(NoInterface::Backslash)),
            ("wg*", pattern(None, "wg*")),
            ("web/wg?", pattern(Some("web"), "wg?")),
            ("wg[=0]", pattern(None, "wg[=0]")),
            (r"\*a\=*", pattern(None, r"\*a\=*")),
            ("wg*=7", Err(NoInterface::PatternIndex)),
            ("a=wg*", Err(NoInterface::PatternIndex)),
            ("wg[", Err(NoInterface::Pattern(InvalidPattern::Unclosed))),
            (r"*\", Err(NoInterface::Pattern(InvalidPattern::Backslash))),
        ] {
            assert_eq!(parse(word), expected, "{word}");
        }
        for word in [
            "wg0=",
            "wg0=0",
            "wg0=-1",
            "wg0=x",
            "wg0=2147483648",
            "a=b=7",
        ] {
            assert_eq!(parse(word), Err(NoInterface::Index), "{word}");
        }
    }

    #[test]
    fn kinds_narrow_patterns_and_not_names() {
        let kinds = ["veth", "bridge"].map(|kind| LinkKind::new(kind).expect("a good kind"));
        let narrowed = |words: &[&str]| {
            let parse = |word: &&str| WatchArgument::parse(OsStr::new(word), false);
            let targets: Result<Vec<WatchArgument>, _> = words.iter().map(parse).collect();
            let mut targets = targets.expect("good words");
            narrow(&mut targets, &kinds).expect("a good pattern");
            let said = |target: &WatchArgument| match &target.what {
                Selection::Name(name) => name.to_string(),
                Selection::Pattern(pattern) => format!("{pattern} of {:?}", pattern.kinds()),
            };
            targets.iter().map(said).collect::<Vec<_>>()
        };
        let all = "* of [\"bridge\", \"veth\"]";
        assert_eq!(narrowed(&[]), [all]);
        assert_eq!(narrowed(&["wg0"]), ["wg0", all]);
        let some = "wg* of [\"bridge\", \"veth\"]";
        assert_eq!(narrowed(&["wg0", "wg*"]), ["wg0", some]);
    }

    #[test]
    fn names_in_all_namespaces_are_patterns() {
        let everywhere = |words: &[&str], all| {
            let parse = |word: &&str| WatchArgument::parse(OsStr::new(word), false);
            let targets: Result<Vec<WatchArgument>, _> = words.iter().map(parse).collect();
            let mut targets = targets.expect("good words");
            spread(&mut targets, all).map(|()| targets)
        };
        let all = Some(EVERYWHERE);
        for (words, is_all, expected) in [
            (
                &["*/wg0", "*/veth*"][..],
                false,
                [pattern(all, "wg0"), pattern(all, "veth*")],
            ),
            (
                &["wg0", "veth*"],
                true,
                [pattern(all, "wg0"), pattern(all, "veth*")],
            ),
            // One that was named stays what it is.
            (
                &["web/wg0", "wg0"],
                true,
                [target(Some("web"), "wg0", None), pattern(all, "wg0")],
            ),
            (
                &["web/wg0=7", "wg0=7"],
                false,
                [
                    target(Some("web"), "wg0", Some(7)),
                    target(None, "wg0", Some(7)),
                ],
            ),
            // Nothing in it has a meaning.
            (
                &[r"*/a\*", r"*/a\="],
                false,
                [pattern(all, r"a\*"), pattern(all, "a=")],
            ),
        ] {
            let expected = expected.into_iter().collect::<Result<Vec<_>, _>>();
            assert_eq!(everywhere(words, is_all), expected, "{words:?}");
        }
        for (words, is_all) in [(&["*/wg0=7"][..], false), (&["wg1", "wg0=7"], true)] {
            let said = everywhere(words, is_all);
            assert_eq!(said, Err(NoInterface::EverywhereIndex), "{words:?}");
        }
    }

    #[test]
    fn literally_everything_is_a_name() {
        for word in [r"\*", "wg0=7", "wg[0]", r"a\"] {
            assert_eq!(
                WatchArgument::parse(OsStr::new(word), true),
                target(None, word, None)
            );
        }
    }

    #[test]
    fn neither_name_nor_namespace_need_be_utf_8() {
        let parsed =
            WatchArgument::parse(OsStr::from_bytes(b"n\xff/w\xff"), false).expect("a target");
        assert_eq!(parsed.netns.as_deref(), Some(OsStr::from_bytes(b"n\xff")));
        let name = InterfaceName::new(b"w\xff").expect("any byte");
        assert_eq!(parsed.what, Selection::Name(name));
    }
}
