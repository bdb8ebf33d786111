use super::*;

fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a good name")
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a good pattern")
}

#[test]
fn it_matches_as_in_a_shell() {
    for (text, yes, no) in [
        (
            "veth*",
            &["veth", "veth0", "vethabcdefghijk"][..],
            &["vet", "xveth", "Veth0"][..],
        ),
        ("*", &["a", ".hidden", "fifteen-bytes-x"], &[]),
        ("wg?", &["wg0", "wgx"], &["wg", "wg00"]),
        ("*0", &["0", "wg0", "wg00"], &["wg01"]),
        (
            "a*b*c",
            &["abc", "axbxc", "abbcbc", "abcc"],
            &["ab", "acb", "abcx"],
        ),
        ("*ab", &["ab", "aab", "abab"], &["aba"]),
        ("?*", &["a", "ab"], &[]),
        ("w[gh]0", &["wg0", "wh0"], &["wi0", "w0"]),
        ("w[!gh]0", &["wi0", "w!0"], &["wg0", "w0"]),
        ("w[^g]0", &["wi0"], &["wg0"]),
        ("w[0-9a]", &["w0", "w9", "wa"], &["wb", "w-"]),
        ("w[a-]", &["wa", "w-"], &["wb"]),
        ("w[]x]", &["w]", "wx"], &["w["]),
        ("w[!]]", &["wx"], &["w]"]),
        (r"w[\]\-x]", &["w]", "w-", "wx"], &[r"w\"]),
        (r"\*x*", &["*x", "*xy"], &["xx"]),
        (r"a\[*", &["a[", "a[1"], &["a1"]),
        ("a=*", &["a=", "a=7"], &["a7"]),
        ("wg0", &["wg0"], &["wg00", "wg"]),
        ("***a***", &["a", "bab"], &["b"]),
    ] {
        let pattern = pattern(text);
        for one in yes {
            assert!(pattern.matches(&name(one)), "{text} matches {one}");
            assert!(pattern.mask().passes(&name(one)), "{text} lets {one} pass");
        }
        for one in no {
            assert!(!pattern.matches(&name(one)), "{text} does not match {one}");
        }
    }
}

#[test]
fn what_matches_no_name_is_refused() {
    use InvalidPattern::{Backslash, Class, Name, Range, Unclosed};
    for (text, why) in [
        ("", Name(InvalidName::Empty)),
        ("a/*", Name(InvalidName::Forbidden(b'/'))),
        ("a *", Name(InvalidName::Forbidden(b' '))),
        ("wg%*", Name(InvalidName::Percent)),
        ("????????????????", Name(InvalidName::TooLong(16))),
        ("a*\\", Backslash),
        ("w[gh", Unclosed),
        ("w[]", Unclosed),
        ("w[a-", Unclosed),
        ("w[z-a]", Range(b'z', b'a')),
        ("w[[:alpha:]]", Class),
    ] {
        assert_eq!(Pattern::new(text).map(|_| ()), Err(why), "{text}");
    }
    assert!(Pattern::new("???????????????*").is_ok(), "fifteen bytes");
}

#[test]
fn the_kernel_compares_what_is_certain() {
    for (text, passes, drops) in [
        ("veth*", &["veth9"][..], &["vetx", "wg0"][..]),
        ("*", &["anything"], &[]),
        ("w?0", &["wg0", "wx0"], &["wg1", "wg00", "wg"]),
        ("w[gh]*", &["wg0", "wx0"], &["xg0"]),
        ("*-tap", &["anything"], &[]),
    ] {
        let mask = pattern(text).mask();
        for one in passes {
            assert!(mask.passes(&name(one)), "{text}: {one}");
        }
        for one in drops {
            assert!(!mask.passes(&name(one)), "{text}: {one}");
        }
    }
}

#[test]
fn many_patterns_share_the_last_mask() {
    let patterns = ["wg*", "veth*", "vxlan*", "vtap*"].map(pattern);
    let masks = masks(patterns.iter(), 2);
    assert_eq!(masks.len(), 2);
    let passes = |one: &str| masks.iter().any(|mask| mask.passes(&name(one)));
    for one in ["wg0", "veth0", "vxlan1", "vtap", "vx"] {
        assert!(passes(one), "{one}");
    }
    assert!(!passes("eth0"));
    assert!(super::masks(std::iter::empty(), 2).is_empty());
}

#[test]
fn kinds_narrow_a_pattern_and_make_it_another_one() {
    let kind = |kind: &str| LinkKind::new(kind).expect("a good kind");
    let all = pattern("wg*");
    let some = all.clone().of_kinds([kind("wireguard"), kind("veth")]);
    assert_ne!(all, some);
    assert_eq!(
        some,
        pattern("wg*").of_kinds(["veth", "wireguard"].map(kind))
    );
    assert_eq!(all, all.clone().of_kinds([]));
    assert_eq!(some.kinds(), [kind("veth"), kind("wireguard")]);
    for (of, accepted) in [(Some("veth"), true), (Some("vlan"), false), (None, false)] {
        assert_eq!(some.accepts(&name("wg0"), of.map(kind)), accepted);
        assert!(all.accepts(&name("wg0"), of.map(kind)));
        assert!(!some.accepts(&name("eth0"), of.map(kind)));
    }
    let others = pattern("*").of_kinds([kind("vlan")]);
    let count = |patterns: &[&Pattern]| kinds(patterns.iter().copied()).len();
    assert_eq!(count(&[&some, &others]), 3);
    assert_eq!(count(&[&some, &all]), 0, "any");
}

#[test]
fn many_kinds_share_the_last_mask() {
    let passes = |kinds: &[&str], most, one: &str| {
        let kinds = kinds
            .iter()
            .map(|kind| LinkKind::new(kind).expect("a kind"));
        let masks = kind_masks(&kinds.collect(), most);
        assert!(masks.len() <= most);
        masks.iter().any(|mask| mask.passes(&name(one)))
    };
    assert!(passes(&[], 2, "anything"));
    let few = ["veth", "bridge"];
    assert!(passes(&few, 2, "veth") && passes(&few, 2, "bridge"));
    assert!(!passes(&few, 2, "vet") && !passes(&few, 2, "vethx") && !passes(&few, 2, "vlan"));
    let many = ["bridge", "vlan", "veth", "vxlan"];
    assert!(many.iter().all(|one| passes(&many, 2, one)));
    assert!(!passes(&many, 2, "wireguard"));
}

#[test]
fn a_pattern_need_not_be_utf8() {
    let pattern = Pattern::new(b"w\xff*").expect("any byte");
    assert!(pattern.matches(&InterfaceName::new(b"w\xff1").expect("any byte")));
    assert_eq!(pattern.to_string(), "w\u{fffd}*");
    assert_eq!(pattern.as_bytes(), b"w\xff*");
}
