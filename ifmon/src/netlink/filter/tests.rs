//! The filter in the kernel against its specification in Rust: what it drops is what nobody wants,
//! always.
//!
//! A socket filter runs on a socket of any kind, and `SKF_AD_NLATTR` on any message, so the
//! kernel's own interpreter can be asked without a netlink socket, a link or a right: a datagram
//! that the filter drops does not reach the other end.

use std::{
    collections::BTreeSet,
    io,
    os::{fd::AsFd as _, unix::net::UnixDatagram},
};

use super::*;
use crate::netlink::{
    message::{attribute, messages, uapi::*},
    socket::attach_filter,
};

/// The kernel's interpreter with one program.
struct Kernel {
    sender: UnixDatagram,
    receiver: UnixDatagram,
}

impl Kernel {
    fn new(program: &[Instruction]) -> io::Result<Self> {
        let (sender, receiver) = UnixDatagram::pair()?;
        sender.set_nonblocking(true)?;
        receiver.set_nonblocking(true)?;
        attach_filter(receiver.as_fd(), program)?;
        Ok(Self { sender, receiver })
    }

    fn passes(&self, message: &[u8]) -> bool {
        // Dropped by the filter is sent, as far as the sender can tell; or EPERM, in kernels that
        // tell.
        match self.sender.send(message) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return false,
            Err(error) => panic!("a local datagram: {error}"),
        }
        let mut buffer = [0; 2048];
        match self.receiver.recv(&mut buffer) {
            Ok(length) => {
                assert_eq!(&buffer[..length], message, "passed whole or not at all");
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false,
            Err(error) => panic!("a local datagram: {error}"),
        }
    }
}

fn wanted(interest: &Interest, message: &[u8]) -> bool {
    messages(message)
        .next()
        .and_then(|message| message.link())
        .is_some_and(|message| interest.concerns(&message))
}

/// A name of any bytes that names may have, often like the others.
fn some_name(random: &mut Random) -> InterfaceName {
    loop {
        let length = 1 + random.next() as usize % 15;
        let stem: &[u8] = match random.next() % 4 {
            0 => b"veth",
            1 => b"wg",
            2 => b"eth-long-stem",
            _ => b"",
        };
        let mut name = stem.to_vec();
        while name.len() < length {
            name.push(match random.next() % 8 {
                // Every byte, those above 0x7f included: a signed comparison would show.
                0 => random.next() as u8,
                _ => b'0' + (random.next() % 10) as u8,
            });
        }
        name.truncate(length);
        if let Ok(name) = InterfaceName::new(name) {
            return name;
        }
    }
}

fn some_index(random: &mut Random) -> u32 {
    let any = random.next() as u32;
    let index = match random.next() % 3 {
        0 => any % 64,
        1 => any % 100_000,
        _ => any,
    };
    index.clamp(1, i32::MAX as u32)
}

fn some_interest(random: &mut Random, names: usize, indexes: usize) -> Interest {
    let mut interest = Interest::default();
    while interest.names.len() < names {
        interest.names.insert(some_name(random));
    }
    while interest.indexes.len() < indexes {
        interest.indexes.insert(some_index(random));
    }
    for _ in 0..names.min(random.next() as usize % 4) {
        let stem = pick(&interest.names, random).unwrap_or_else(|| some_name(random));
        let length = random.next() as usize % (stem.as_bytes().len() + 1);
        interest.masks.push(Mask::of(&stem.as_bytes()[..length]));
    }
    for _ in 0..random.next() % 4 {
        interest.kinds.insert(some_kind(random));
    }
    interest
}

fn some_kind(random: &mut Random) -> LinkKind {
    let kinds = [
        "veth",
        "vet",
        "vethx",
        "tun",
        "bridge",
        "mac80211_hwsim",
        "fifteen-bytes-x",
    ];
    LinkKind::new(kinds[random.next() as usize % kinds.len()]).expect("a kind")
}

/// `IFLA_LINKINFO`, in which there is more than the kind, or no kind.
fn link_info(message: &mut Vec<u8>, kind: Option<LinkKind>, random: &mut Random) {
    const IFLA_INFO_DATA: u16 = 2;
    const IFLA_INFO_SLAVE_KIND: u16 = 4;
    let mut info = Vec::new();
    if random.next().is_multiple_of(4) {
        attribute(&mut info, IFLA_INFO_DATA, b"\x08\0\x01\0veth");
    }
    if let Some(kind) = kind {
        let length = kind.as_bytes().len() + 1;
        attribute(&mut info, IFLA_INFO_KIND, &kind.padded()[..length]);
    }
    if random.next().is_multiple_of(4) {
        attribute(&mut info, IFLA_INFO_SLAVE_KIND, b"veth\0");
    }
    let flags = [0, 0x8000][random.next() as usize % 2];
    attribute(message, IFLA_LINKINFO | flags, &info);
}

fn pick<T: Copy>(set: &BTreeSet<T>, random: &mut Random) -> Option<T> {
    let at = random.next() as usize % set.len().max(1);
    set.iter().nth(at).copied()
}

/// A message as the kernel writes them: the attributes around the name differ from kernel to
/// kernel.
fn some_message(interest: &Interest, random: &mut Random) -> Vec<u8> {
    let name = pick(&interest.names, random).filter(|_| random.next().is_multiple_of(3));
    let name = name.unwrap_or_else(|| near(interest, random));
    let index = pick(&interest.indexes, random).filter(|_| random.next().is_multiple_of(3));
    let index = index.unwrap_or_else(|| some_index(random));
    let kind = [RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, 20][random.next() as usize % 4 % 3];
    let family = [AF_UNSPEC, AF_UNSPEC, AF_UNSPEC, 7, 10][random.next() as usize % 5];
    let mut message = vec![0; HEADER];
    message[4..6].copy_from_slice(&kind.to_ne_bytes());
    message.extend([family, 0, 1, 0]);
    message.extend(index.to_ne_bytes());
    message.extend(random.bytes::<8>());
    let around = |message: &mut Vec<u8>, random: &mut Random| {
        for _ in 0..random.next() % 3 {
            let value: [u8; 16] = random.bytes();
            let length = random.next() as usize % value.len();
            // Any but the name and those that say where a device went.
            attribute(message, 50 + (random.next() % 8) as u16, &value[..length]);
        }
    };
    around(&mut message, random);
    let padded = name.padded();
    attribute(
        &mut message,
        IFLA_IFNAME,
        &padded[..name.as_bytes().len() + 1],
    );
    around(&mut message, random);
    match random.next() % 4 {
        0 => {}
        1 => link_info(&mut message, None, random),
        2 => {
            let kind = pick(&interest.kinds, random);
            link_info(&mut message, kind, random);
        }
        _ => {
            let kind = some_kind(random);
            link_info(&mut message, Some(kind), random);
        }
    }
    around(&mut message, random);
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// A message that says no more than it must.
fn message(index: u32, name: &InterfaceName) -> Vec<u8> {
    let mut message = vec![0; HEADER];
    message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend([AF_UNSPEC, 0, 1, 0]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    attribute(
        &mut message,
        IFLA_IFNAME,
        &name.padded()[..name.as_bytes().len() + 1],
    );
    let length = message.len() as u32;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message
}

/// A name that is nearly one of those: with a byte more, less or changed.
fn near(interest: &Interest, random: &mut Random) -> InterfaceName {
    let Some(name) = pick(&interest.names, random) else {
        return some_name(random);
    };
    let mut bytes = name.as_bytes().to_vec();
    let at = random.next() as usize % bytes.len();
    match random.next() % 3 {
        0 => bytes.push(b'0'),
        1 => bytes.truncate(at),
        _ => bytes[at] ^= 1 << (random.next() % 8),
    }
    InterfaceName::new(bytes).unwrap_or_else(|_| some_name(random))
}

/// What no kernel sends: cut short, lengths that lie, bytes changed, rubbish after the name.
fn mutate(message: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.next() % 3 {
        if message.is_empty() {
            return;
        }
        let at = random.next() as usize % message.len();
        match random.next() % 6 {
            0 => message.truncate(at),
            1 => message[at] = random.next() as u8,
            2 => message[at] ^= 1 << (random.next() % 8),
            3 => message.extend(random.bytes::<5>()),
            // A length or a type, most likely.
            4 => {
                let at = at & !3;
                if let Some(short) = message.get_mut(at..at + 2) {
                    short.copy_from_slice(&((random.next() % 40) as u16).to_ne_bytes());
                }
            }
            _ => {
                let byte = message[at];
                message.insert(at, byte);
            }
        }
    }
}

/// Sizes of interests; each is tried at every precision at which it fits.
const SIZES: [(usize, usize); 9] = [
    (0, 0),
    (1, 0),
    (1, 1),
    (2, 3),
    (10, 10),
    (300, 300),
    (1000, 1000),
    (5000, 5000),
    (1, 5000),
];

#[test]
fn what_the_kernel_drops_nobody_wants() {
    let (rounds, seed) = run_length(3_000);
    let mut random = Random(seed);
    let (mut sent, mut passed) = (0_u64, 0_u64);
    for (names, indexes) in SIZES {
        let interest = some_interest(&mut random, names, indexes);
        let mut fits = 0;
        for precision in Precision::ALL {
            let Some(program) = build(&interest, precision) else {
                continue;
            };
            fits += 1;
            println!(
                "{names} names, {indexes} indexes, {precision:?}: {} instructions",
                program.len()
            );
            let kernel = Kernel::new(&program).expect("the kernel takes the program");
            for round in 0..rounds {
                let mut message = some_message(&interest, &mut random);
                let intact = round % 2 == 0;
                if !intact {
                    mutate(&mut message, &mut random);
                }
                let wanted = wanted(&interest, &message);
                let passes = kernel.passes(&message);
                sent += 1;
                passed += u64::from(passes);
                assert!(
                    passes || !wanted,
                    "dropped and wanted, {precision:?}: {message:?} of {interest:?}"
                );
                if precision == Precision::Exact && intact {
                    assert_eq!(passes, wanted, "{message:?} of {interest:?}");
                }
            }
        }
        assert!(
            fits > 0,
            "{names} names and {indexes} indexes fit at no precision"
        );
    }
    println!("seed {seed}: {sent} messages, {passed} passed");
}

/// The tables of the program are walked to their ends: every name and every index is found, and its
/// neighbours are not.
#[test]
fn every_name_and_every_index_passes() {
    let mut random = Random(run_length(0).1);
    for (names, indexes) in SIZES {
        let interest = Interest {
            masks: Vec::new(),
            ..some_interest(&mut random, names, indexes)
        };
        let Some((precision, program)) = Precision::ALL
            .into_iter()
            .find_map(|precision| Some((precision, build(&interest, precision)?)))
        else {
            panic!("{names} names and {indexes} indexes fit at no precision");
        };
        let kernel = Kernel::new(&program).expect("the kernel takes the program");
        let stranger = InterfaceName::new("\u{1}").expect("a name");
        for name in &interest.names {
            assert!(kernel.passes(&message(i32::MAX as u32 - 1, name)), "{name}");
        }
        for &index in &interest.indexes {
            assert!(kernel.passes(&message(index, &stranger)), "{index}");
            for beside in [index.wrapping_sub(1), index + 1, index.swap_bytes()] {
                let message = message(beside, &stranger);
                if precision == Precision::Exact {
                    assert_eq!(kernel.passes(&message), interest.indexes.contains(&beside));
                }
            }
        }
    }
}

/// Where there are too many names to compare, those that begin otherwise are dropped all the same.
#[test]
fn names_that_begin_otherwise_are_dropped() {
    let name = |number: u32| InterfaceName::new(format!("veth{number}")).expect("a name");
    let interest = Interest {
        names: (0..10_000).map(name).collect(),
        // In as many pieces as are told apart.
        indexes: (1..).step_by(3).take(10_000).collect(),
        ..Interest::default()
    };
    assert!(build(&interest, Precision::Exact).is_none());
    let program = build(&interest, Precision::Coarsest).expect("it fits");
    let kernel = Kernel::new(&program).expect("the kernel takes the program");
    let passes = |name: &InterfaceName| kernel.passes(&message(i32::MAX as u32 - 1, name));
    assert!((0..10_000).all(|number| passes(&name(number))));
    let otherwise = InterfaceName::new("eth0").expect("a name");
    assert!(!passes(&otherwise), "one that begins otherwise passes");
}

/// Whatever a pattern has in it, what matches passes, and one that begins alike is dropped wherever
/// the pattern begins with what it is to begin with.
#[test]
fn what_matches_a_pattern_passes() {
    let name = |name: &str| InterfaceName::new(name).expect("a name");
    for (patterns, passing, dropped) in [
        (
            &["veth*"][..],
            &["veth", "veth0", "vethabcdefghijk"][..],
            &["vet", "wveth", "wg0"][..],
        ),
        (
            &["veth0?*"],
            &["veth01", "veth0abcdefghij"],
            &["veth1", "veth"],
        ),
        (&["wg?"], &["wg0"], &["wh0", "w", "wg00"]),
        (&["[ab]x*"], &["ax", "bx0"], &["ay", "a"]),
        (&["????x*"], &["abcdx", "abcdxyz"], &[]),
        (&["*0", "wg*"], &["a", "wg0", "x0"], &[]),
        (
            &["veth*", "wg?", "br-*"],
            &["veth1", "wg1", "br-1"],
            &["br", "eth0", "wg11"],
        ),
        (
            &["fifteen-bytes-x"],
            &["fifteen-bytes-x"],
            &["fifteen-bytes-y", "fifteen-bytes-"],
        ),
    ] {
        let patterns: Vec<_> = patterns
            .iter()
            .map(|text| crate::Pattern::new(text).expect("a pattern"))
            .collect();
        let interest = Interest {
            masks: crate::pattern::masks(patterns.iter(), MAX_MASKS),
            ..Interest::default()
        };
        let program = build(&interest, Precision::Exact).expect("it fits");
        let kernel = Kernel::new(&program).expect("the kernel takes the program");
        for one in passing {
            assert!(
                kernel.passes(&message(7, &name(one))),
                "{patterns:?}: {one}"
            );
        }
        for one in dropped {
            assert!(
                !kernel.passes(&message(7, &name(one))),
                "{patterns:?}: {one}"
            );
        }
    }
}

#[test]
fn another_kind_is_dropped_and_names_are_not_narrowed() {
    let kind = |kind: &str| LinkKind::new(kind).expect("a kind");
    let name = |name: &str| InterfaceName::new(name).expect("a name");
    let interest = Interest {
        names: [name("eth0")].into(),
        indexes: [5].into(),
        masks: vec![Mask::of(b"wg"), Mask::of(b"v")],
        kinds: [kind("wireguard"), kind("veth")].into(),
    };
    let program = build(&interest, Precision::Exact).expect("it fits");
    let kernel = Kernel::new(&program).expect("the kernel takes the program");
    let mut random = Random(1);
    for (index, one, of, passes) in [
        (7, "wg0", Some("wireguard"), true),
        (7, "v", Some("veth"), true),
        (7, "wg0", Some("wireguardx"), false),
        (7, "wg0", Some("wire"), false),
        (7, "wg0", None, false),
        (7, "br0", Some("veth"), false),
        (7, "eth0", None, true),
        (5, "br0", Some("bridge"), true),
    ] {
        let mut message = message(index, &name(one));
        for _ in 0..4 {
            let whole = message.len();
            link_info(&mut message, of.map(kind), &mut random);
            let length = message.len() as u32;
            message[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(kernel.passes(&message), passes, "{index} {one} {of:?}");
            message.truncate(whole);
        }
        // Nothing says what it is.
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        let is_certain = index == 5 || one == "eth0";
        assert_eq!(kernel.passes(&message), is_certain, "{index} {one}");
    }
}

/// Far more watches than anybody has still fit, and few watches fit exactly.
#[test]
fn programs_stay_within_bounds() {
    let mut random = Random(1);
    let few = some_interest(&mut random, 1, 1);
    let exact = build(&few, Precision::Exact).expect("one watch fits exactly");
    assert!(
        exact.len() <= 40,
        "{} instructions for one watch",
        exact.len()
    );
    let some = some_interest(&mut random, 100, 100);
    assert!(
        build(&some, Precision::Exact).is_some(),
        "100 watches fit exactly"
    );
    for count in [1_000, 10_000, 50_000] {
        let interest = some_interest(&mut random, count, count);
        let program = build(&interest, Precision::Coarsest).expect("always fits");
        assert!(program.len() <= MAX_INSTRUCTIONS);
    }
}

/// Numbers that look random and depend on the seed alone (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.next() as u8)
    }
}

/// How long a run with a seed is, and the seed: `IFMON_MODEL_STEPS`, `IFMON_MODEL_SEED`.
fn run_length(default: u64) -> (u64, u64) {
    let number = |variable: &str| std::env::var(variable).ok()?.parse().ok();
    (
        number("IFMON_MODEL_STEPS").unwrap_or(default),
        number("IFMON_MODEL_SEED").unwrap_or(1),
    )
}
