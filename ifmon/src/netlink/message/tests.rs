//! The parser believes nothing: no bytes make it panic, and what it does not understand it leaves
//! alone.

use netlink_packet_core::NetlinkMessage;
use netlink_packet_route::RouteNetlinkMessage;
use proptest::prelude::*;

use super::*;

fn message(kind: u16, family: u8, ifindex: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message.extend([family, 0, 1, 0]);
    message.extend(ifindex.to_ne_bytes());
    message.extend([0; 8]);
    for (kind, value) in attributes {
        attribute(&mut message, *kind, value);
    }
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

fn link(datagram: &[u8]) -> Option<LinkMessage> {
    messages(datagram).next()?.link()
}

fn name(name: &str) -> InterfaceName {
    InterfaceName::new(name).expect("a valid name")
}

#[test]
fn reads_what_the_kernel_says() {
    // The kernel's own search for an attribute, which the filter uses, does not look at its flags
    // either.
    for flags in [0, NLA_FLAGS] {
        let attributes: [(u16, &[u8]); 1] = [(IFLA_IFNAME | flags, b"wg0\0")];
        let new = message(RTM_NEWLINK, AF_UNSPEC, 7, &attributes);
        assert_eq!(
            link(&new),
            Some(LinkMessage::New {
                ifindex: 7,
                name: name("wg0"),
                kind: None
            })
        );
    }
    let deleted = |attributes: &[(u16, &[u8])]| {
        let mut all: Vec<(u16, &[u8])> = vec![(IFLA_IFNAME, b"wg0\0")];
        all.extend(attributes);
        match link(&message(RTM_DELLINK, AF_UNSPEC, 7, &all)) {
            Some(LinkMessage::Deleted { moved, .. }) => moved,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(deleted(&[]), None);
    let nsid = (IFLA_NEW_NETNSID, &3_i32.to_ne_bytes()[..]);
    let ifindex = (IFLA_NEW_IFINDEX, &9_u32.to_ne_bytes()[..]);
    assert_eq!(
        deleted(&[nsid, ifindex]),
        Some(Moved {
            nsid: 3,
            ifindex: Some(9)
        })
    );
    assert_eq!(
        deleted(&[nsid]),
        Some(Moved {
            nsid: 3,
            ifindex: None
        })
    );
}

#[test]
fn leaves_alone_what_is_no_statement_about_a_device() {
    const AF_BRIDGE: u8 = 7;
    let with_name: &[(u16, &[u8])] = &[(IFLA_IFNAME, b"wg0\0")];
    for datagram in [
        vec![],
        vec![0xff; 3],
        message(RTM_DELLINK, AF_BRIDGE, 7, with_name),
        message(20, AF_UNSPEC, 7, with_name),
        message(RTM_NEWLINK, AF_UNSPEC, 0, with_name),
        message(RTM_NEWLINK, AF_UNSPEC, u32::MAX, with_name),
        message(RTM_NEWLINK, AF_UNSPEC, 7, &[]),
        message(RTM_NEWLINK, AF_UNSPEC, 7, &[(IFLA_IFNAME, b"")]),
        message(RTM_NEWLINK, AF_UNSPEC, 7, &[(IFLA_IFNAME, b"\0")]),
        // What a wireless device says of itself.
        message(
            RTM_NEWLINK,
            AF_UNSPEC,
            7,
            &[(IFLA_IFNAME, b"wg0\0"), (IFLA_WIRELESS, b"\x0c\0\x15\x8b")],
        ),
        // Nested: a name in there is another's.
        message(RTM_NEWLINK, AF_UNSPEC, 7, &[(18, b"\x08\0\x03\0wg0\0")]),
    ] {
        assert_eq!(link(&datagram), None, "{datagram:?}");
    }
}

#[test]
fn a_kind_is_the_device_s_own_and_is_bounded() {
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_INFO_SLAVE_KIND: u16 = 4;
    const NLA_F_NESTED: u16 = 0x8000;
    let kind = |attributes: &[(u16, &[u8])]| {
        let mut info = Vec::new();
        for (kind, value) in attributes {
            attribute(&mut info, *kind, value);
        }
        for flags in [0, NLA_F_NESTED] {
            let all: [(u16, &[u8]); 2] = [
                (IFLA_IFNAME, b"wg0\0"),
                (IFLA_LINKINFO | flags, info.as_slice()),
            ];
            let of = |message_kind| {
                let link = link(&message(message_kind, AF_UNSPEC, 7, &all));
                link.expect("a link").kind()
            };
            assert_eq!(of(RTM_NEWLINK), of(RTM_DELLINK));
            if flags != 0 {
                return of(RTM_NEWLINK).map(|kind| kind.to_string());
            }
        }
        None
    };
    let known = |kind: &str| Some(kind.to_owned());
    let port = (IFLA_INFO_SLAVE_KIND, &b"bridge\0"[..]);
    assert_eq!(kind(&[(IFLA_INFO_KIND, b"veth\0"), port]), known("veth"));
    assert_eq!(
        kind(&[
            (IFLA_INFO_DATA, b"\x08\0\x01\0tun\0"),
            (IFLA_INFO_KIND, b"fifteen-bytes-x\0")
        ]),
        known("fifteen-bytes-x")
    );
    // A port without a kind of its own.
    assert_eq!(kind(&[port]), None);
    for odd in [&b""[..], b"\0", b"veth", b"veth\0no", b"sixteen-bytes-xx\0"] {
        assert_eq!(kind(&[(IFLA_INFO_KIND, odd)]), None, "{odd:?}");
    }
}

/// Why messages are not read with `netlink-packet-route`. When this fails, look at it again.
#[test]
fn an_alias_that_is_not_utf8_hides_no_deletion() {
    const IFLA_IFALIAS: u16 = 20;
    for (alias, is_decoded) in [(b"caf\xc3\xa9\0", true), (b"caf\xe9!\0", false)] {
        let attributes: [(u16, &[u8]); 2] = [(IFLA_IFNAME, b"wg0\0"), (IFLA_IFALIAS, alias)];
        let datagram = message(RTM_DELLINK, AF_UNSPEC, 7, &attributes);
        let decoded = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram);
        assert_eq!(decoded.is_ok(), is_decoded, "{decoded:?}");
        assert_eq!(
            link(&datagram),
            Some(LinkMessage::Deleted {
                ifindex: 7,
                name: name("wg0"),
                kind: None,
                moved: None
            })
        );
    }
}

#[test]
fn a_pair_has_another_end_and_nothing_else_has() {
    let info = |kind: &[u8]| {
        let mut info = Vec::new();
        // `IFLA_INFO_DATA`, which may come first.
        attribute(&mut info, 2, b"data");
        attribute(&mut info, IFLA_INFO_KIND, kind);
        info
    };
    let lower = 9_u32.to_ne_bytes();
    let nsid = |nsid: i32| nsid.to_ne_bytes();
    let here = OtherEnd {
        ifindex: 9,
        nsid: None,
    };
    let there = |nsid| OtherEnd {
        ifindex: 9,
        nsid: Some(nsid),
    };
    let other_end = |kind: &[u8], more: &[(u16, &[u8])]| {
        let info = info(kind);
        let mut all: Vec<(u16, &[u8])> = vec![(IFLA_IFNAME, b"wg0\0")];
        all.extend(more);
        all.push((IFLA_LINKINFO, &info));
        let message = message(RTM_NEWLINK, AF_UNSPEC, 7, &all);
        messages(&message).next().and_then(|new| new.other_end())
    };
    let link = (IFLA_LINK, &lower[..]);
    for kind in [&b"veth\0"[..], b"netkit\0"] {
        assert_eq!(other_end(kind, &[link]), Some(here));
        for id in [0, 3, -1] {
            let with_id = [link, (IFLA_LINK_NETNSID, &nsid(id)[..])];
            assert_eq!(other_end(kind, &with_id), Some(there(id)));
        }
        let same = OtherEnd {
            ifindex: 7,
            nsid: Some(3),
        };
        let id_alone = [(IFLA_LINK_NETNSID, &nsid(3)[..])];
        assert_eq!(other_end(kind, &id_alone), Some(same));
        // The other end is going.
        assert_eq!(other_end(kind, &[]), None);
        assert_eq!(other_end(kind, &[(IFLA_LINK, &[0; 4])]), None);
    }
    // What is below a tunnel is no other end of it.
    for kind in [&b"vlan\0"[..], b"veth", b"vethx\0", b""] {
        assert_eq!(other_end(kind, &[link]), None);
    }
    let attributes: [(u16, &[u8]); 2] = [(IFLA_IFNAME, b"eth0\0"), link];
    let physical = message(RTM_NEWLINK, AF_UNSPEC, 7, &attributes);
    let physical = messages(&physical).next().expect("a message");
    assert_eq!(physical.other_end(), None);
}

#[test]
fn survives_depth() {
    let mut nested = Vec::new();
    // An attribute holds 65,531 bytes at most, its header has 4.
    while nested.len() + 4 < 65_000 {
        let mut outer = Vec::new();
        attribute(&mut outer, 18 | 0x8000, &nested);
        nested = outer;
    }
    let deep = message(
        RTM_NEWLINK,
        AF_UNSPEC,
        7,
        &[(18 | 0x8000, &nested), (IFLA_IFNAME, b"wg0\0")],
    );
    assert!(link(&deep).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(5000)
    })]

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for message in messages(&bytes) {
            let _ = (message.link(), message.error(), message.other_end());
        }
    }

    #[test]
    fn no_attributes_make_it_panic(
        kind in 16_u16..18,
        attributes in prop::collection::vec((0_u16..64, prop::collection::vec(any::<u8>(), 0..20)), 0..8),
        cut in 0_usize..300,
    ) {
        let attributes: Vec<(u16, &[u8])> = attributes
            .iter()
            .map(|(kind, value)| (*kind, value.as_slice()))
            .collect();
        let mut bytes = message(kind, AF_UNSPEC, 7, &attributes);
        let whole = link(&bytes);
        bytes.truncate(cut);
        // What is cut short is never read as something else than the whole.
        let part = link(&bytes);
        prop_assert!(part.is_none() || part == whole);
    }

    #[test]
    fn a_name_is_read_as_it_was_written(bytes in prop::collection::vec(0xa1_u8..=255, 1..16)) {
        let mut terminated = bytes.clone();
        terminated.push(0);
        let read = link(&message(RTM_NEWLINK, AF_UNSPEC, 7, &[(IFLA_IFNAME, &terminated)]));
        match read {
            Some(LinkMessage::New { name, .. }) => prop_assert_eq!(name.as_bytes(), bytes),
            other => prop_assert!(false, "{:?}", other),
        }
    }
}
