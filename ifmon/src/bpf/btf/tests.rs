use super::{
    Bits, BtfError, FuncIds, KindOffsets, Layout, NetdevEvents, Offsets, VMLINUX,
    build::BtfBuilder, format::kind, fuzz_btf as read, layout, window::BtfSource,
};

const EVENTS: NetdevEvents = NetdevEvents {
    register: 5,
    unregister: 6,
    change_name: 11,
};

fn byte(offset: u32) -> Bits {
    Bits {
        offset,
        size: 1,
        shift: 0,
        mask: 0xff,
    }
}

/// What is in testdata/btf: name, bytes, and the offsets (net_device: name, ifindex, nd_net,
/// reg_state, rtnl_link_ops; rtnl_link_ops.kind; net.ns.inum; task_struct.flags), and whether `rtnetlink_event` is there.
const KERNELS: [(&str, &[u8], [u32; 8], bool); 6] = [
    (
        "5.10-amd64",
        include_bytes!("../../../testdata/btf/5.10-amd64.btf"),
        [0, 256, 1264, 1240, 2096, 16, 136, 36],
        true,
    ),
    (
        "5.10-arm64",
        include_bytes!("../../../testdata/btf/5.10-arm64.btf"),
        [0, 256, 1264, 1240, 2112, 16, 136, 44],
        false,
    ),
    (
        "6.1-amd64",
        include_bytes!("../../../testdata/btf/6.1-amd64.btf"),
        [0, 216, 1272, 1248, 2112, 16, 144, 44],
        true,
    ),
    (
        "6.12-amd64",
        include_bytes!("../../../testdata/btf/6.12-amd64.btf"),
        [304, 224, 280, 1368, 2224, 16, 136, 44],
        true,
    ),
    (
        "7.2-amd64",
        include_bytes!("../../../testdata/btf/7.2-amd64.btf"),
        [288, 224, 264, 1472, 2360, 48, 280, 44],
        true,
    ),
    (
        "7.2-arm64",
        include_bytes!("../../../testdata/btf/7.2-arm64.btf"),
        [288, 224, 264, 1472, 2368, 48, 280, 52],
        true,
    ),
];

/// All types that are looked for, but `net_device`.
struct Kernel {
    btf: BtfBuilder,
    int: u32,
    byte: u32,
    name: u32,
    possible_net: u32,
    net_device_ptr: u32,
}

impl Kernel {
    fn new() -> Self {
        let mut btf = BtfBuilder::default();
        let int = btf.int("int", 4);
        let byte = btf.int("unsigned char", 1);
        let name = btf.array(byte, 16);
        let ns = btf.structure("ns_common", 24, &[("stashed", int, 0), ("inum", int, 16)]);
        let net = btf.structure("net", 64, &[("passive", int, 0), ("ns", ns, 8)]);
        let tagged = btf.plain("rcu", kind::TYPE_TAG, net);
        let net_ptr = btf.plain("", kind::PTR, tagged);
        let holder = btf.structure("", 8, &[("net", net_ptr, 0)]);
        let possible_net = btf.plain("possible_net_t", kind::TYPEDEF, holder);
        let net_device = btf.plain("net_device", kind::FWD, 0);
        let net_device_ptr = btf.plain("", kind::PTR, net_device);
        btf.structure("netdev_notifier_info", 16, &[("dev", net_device_ptr, 0)]);
        btf.structure("task_struct", 64, &[("flags", int, 36)]);
        btf.enumeration(
            "netdev_cmd",
            &[
                ("NETDEV_REGISTER", 5),
                ("NETDEV_UNREGISTER", 6),
                ("NETDEV_CHANGENAME", 11),
            ],
        );
        Self {
            btf,
            int,
            byte,
            name,
            possible_net,
            net_device_ptr,
        }
    }

    /// Adds a `net_device`, and gives the file.
    fn with(&mut self, members: &[(&str, u32, u32)]) -> Vec<u8> {
        self.btf.structure("net_device", 64, members);
        self.btf.bytes()
    }

    fn members(&self) -> [(&'static str, u32, u32); 4] {
        [
            ("name", self.name, 0),
            ("ifindex", self.int, 16),
            ("nd_net", self.possible_net, 24),
            ("reg_state", self.byte, 32),
        ]
    }

    fn complete() -> Self {
        let mut kernel = Self::new();
        let members = kernel.members();
        kernel.with(&members);
        kernel.btf.func("rtnetlink_event", 3, kernel.int);
        kernel
    }
}

/// What is read from [`Kernel::complete`].
fn expected() -> Layout {
    Layout {
        offsets: Offsets {
            dev_name: 0,
            dev_ifindex: 16,
            dev_net: 24,
            dev_reg_state: byte(32),
            net_inum: 24,
            kind: None,
            task_flags: 36,
            task_tgid: None,
            notifier_info_dev: 0,
        },
        events: EVENTS,
        funcs: FuncIds {
            rtnetlink_event: Some(17),
        },
    }
}

fn refused(btf: &[u8]) -> String {
    read(btf).expect_err("was read").to_string()
}

#[test]
fn real_kernels() {
    for (
        kernel,
        btf,
        [
            dev_name,
            dev_ifindex,
            dev_net,
            reg_state,
            dev_link_ops,
            link_ops_kind,
            net_inum,
            task_flags,
        ],
        func,
    ) in KERNELS
    {
        let Layout {
            offsets,
            events,
            funcs,
        } = read(btf).unwrap_or_else(|error| panic!("{kernel}: {error}"));
        let dev_reg_state = byte(reg_state);
        let wanted = Offsets {
            dev_name,
            dev_ifindex,
            dev_net,
            dev_reg_state,
            net_inum,
            kind: Some(KindOffsets {
                dev_link_ops,
                link_ops_kind,
            }),
            task_flags,
            // Not among what tracing needs; found all the same.
            task_tgid: offsets.task_tgid,
            notifier_info_dev: 0,
        };
        assert_eq!(offsets, wanted, "{kernel}");
        assert!(offsets.task_tgid.is_some(), "{kernel}");
        assert_eq!(events, EVENTS, "{kernel}");
        assert_eq!(funcs.rtnetlink_event.is_some(), func, "{kernel}");
    }
}

#[test]
fn the_running_kernel() {
    match super::read_layout(VMLINUX) {
        Ok(layout) => {
            assert_eq!(layout.events, EVENTS);
            assert!(layout.offsets.task_tgid.is_some());
            assert!(layout.offsets.kind.is_some());
        }
        Err(BtfError::Open { .. }) => eprintln!("this kernel has no BTF"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_made_up_kernel() {
    assert_eq!(read(&Kernel::complete().btf.bytes()).unwrap(), expected());
}

#[test]
fn the_kind_of_a_device_is_behind_two_pointers() {
    let offsets = |to_ops: &str, char_size: u32| {
        let mut kernel = Kernel::new();
        let char = kernel.btf.int("char", char_size);
        let constant = kernel.btf.plain("", kind::CONST, char);
        let text = kernel.btf.plain("", kind::PTR, constant);
        let of = [("list", kernel.int, 0), ("kind", text, 16)];
        let ops = kernel.btf.structure("rtnl_link_ops", 64, &of);
        let other = kernel.btf.structure("other_ops", 64, &of);
        let ops = if to_ops == "rtnl_link_ops" {
            ops
        } else {
            other
        };
        let constant = kernel.btf.plain("", kind::CONST, ops);
        let pointer = kernel.btf.plain("", kind::PTR, constant);
        let mut members = kernel.members().to_vec();
        members.push(("rtnl_link_ops", pointer, 40));
        read(&kernel.with(&members)).unwrap().offsets.kind
    };
    let found = KindOffsets {
        dev_link_ops: 40,
        link_ops_kind: 16,
    };
    assert_eq!(offsets("rtnl_link_ops", 1), Some(found));
    assert_eq!(offsets("other_ops", 1), None);
    assert_eq!(offsets("rtnl_link_ops", 2), None);
}

/// Gives one byte per read, as a pipe might.
struct Dribble<'a>(&'a [u8]);

impl BtfSource for Dribble<'_> {
    fn read_at(&self, buf: &mut [u8], at: u64) -> std::io::Result<usize> {
        let len = buf.len().min(1);
        self.0.read_at(&mut buf[..len], at)
    }
}

#[test]
fn short_reads_make_no_difference() {
    for (kernel, btf, ..) in KERNELS {
        assert_eq!(
            layout(Dribble(btf)).unwrap(),
            read(btf).unwrap(),
            "{kernel}"
        );
    }
}

/// More types than there are milestones for in one stride, and strings across and beyond the
/// window.
#[test]
fn far_apart() {
    let mut kernel = Kernel::new();
    let long = "dev".repeat(20_000);
    for number in 0..1000 {
        kernel.btf.plain(&format!("filler {number}"), kind::FWD, 0);
        kernel.btf.int(&format!("name{number}"), 8);
    }
    kernel.btf.plain(&long, kind::FWD, 0);
    let members = kernel.members();
    kernel.with(&members);
    kernel.btf.plain(&format!("{long}net_device"), kind::FWD, 0);
    kernel.btf.func("rtnetlink_event", 3, kernel.int);
    let wanted = Layout {
        funcs: FuncIds {
            rtnetlink_event: Some(2019),
        },
        ..expected()
    };
    assert_eq!(read(&kernel.btf.bytes()).unwrap(), wanted);
}

#[test]
fn fields_within_anonymous_structs_and_unions() {
    let mut kernel = Kernel::new();
    let Kernel {
        btf,
        int,
        byte,
        name,
        possible_net,
        ..
    } = &mut kernel;
    // Pointers, arrays and bitfields without a name are not looked into.
    let pointer = btf.plain("", kind::PTR, 999);
    let index = btf.structure("", 8, &[("pad", *int, 0), ("ifindex", *int, 4)]);
    let either = btf.record(
        "",
        kind::UNION,
        false,
        8,
        &[("alias", *int, 0), ("", index, 0)],
    );
    let constant = btf.plain("", kind::CONST, either);
    let state = btf.plain("", kind::VOLATILE, *byte);
    let state = btf.plain("state_t", kind::TYPEDEF, state);
    // As -fms-extensions allows: a struct that has a name, as a member that has none.
    let named = btf.structure("device_state", 4, &[("reg_state", state, 1)]);
    btf.structure(
        "net_device",
        64,
        &[
            ("", pointer, 0),
            ("", constant, 8),
            ("name", *name, 16),
            ("nd_net", *possible_net, 32),
            ("", named, 40),
        ],
    );
    let offsets = read(&btf.bytes()).unwrap().offsets;
    assert_eq!(
        (offsets.dev_ifindex, offsets.dev_name, offsets.dev_net),
        (12, 16, 32)
    );
    assert_eq!(offsets.dev_reg_state, self::byte(41));
}

/// A `net_device` with `kind_flag`: the width of bitfields is in the upper 8 bits of their offset.
fn with_reg_state(size: u32, offset: u32, width: u32) -> Result<Bits, BtfError> {
    let mut kernel = Kernel::new();
    let Kernel {
        btf,
        int,
        name,
        possible_net,
        ..
    } = &mut kernel;
    let state = btf.raw("", u32::from(kind::ENUM) << 24, size, &[]);
    let members = [
        ("name", *name, 0),
        ("ifindex", *int, 16 * 8),
        ("nd_net", *possible_net, 24 * 8),
        ("reg_state", state, width << 24 | offset),
    ];
    btf.record("net_device", kind::STRUCT, true, 64, &members);
    read(&btf.bytes()).map(|layout| layout.offsets.dev_reg_state)
}

#[test]
fn bitfields() {
    let at = |offset, shift, mask| Bits {
        offset,
        size: 1,
        shift,
        mask,
    };
    assert_eq!(with_reg_state(4, 256, 8).unwrap(), at(32, 0, 0xff));
    assert_eq!(with_reg_state(4, 258, 3).unwrap(), at(32, 2, 7));
    assert_eq!(with_reg_state(4, 263, 1).unwrap(), at(32, 7, 1));
    // No bitfield after all.
    assert_eq!(
        with_reg_state(4, 256, 0).unwrap(),
        Bits {
            offset: 32,
            size: 4,
            shift: 0,
            mask: u32::MAX
        }
    );
    assert_eq!(
        with_reg_state(2, 256, 0).unwrap(),
        Bits {
            offset: 32,
            size: 2,
            shift: 0,
            mask: 0xffff
        }
    );
    // Across two bytes; not on a byte; larger than a program would load; behind the end.
    for (size, offset, width) in [(4, 262, 3), (4, 256, 9), (4, 257, 0), (8, 256, 0)] {
        let error = with_reg_state(size, offset, width).unwrap_err();
        assert!(
            matches!(error, BtfError::WrongType { .. }),
            "{size} {offset} {width}: {error}"
        );
    }
    for (size, offset, width) in [(4, 505, 8), (4, 488, 0), (4, 0x00ff_ffff, 1)] {
        let error = with_reg_state(size, offset, width).unwrap_err();
        assert!(
            matches!(error, BtfError::Misplaced { .. }),
            "{size} {offset} {width}: {error}"
        );
    }
}

#[test]
fn bitfields_of_before_kind_flag_are_refused() {
    let mut kernel = Kernel::new();
    let mut members = kernel.members();
    // Three bits, from the second on.
    members[3].1 = kernel.btf.raw(
        "unsigned char",
        u32::from(kind::INT) << 24,
        1,
        &[1 << 16 | 3],
    );
    let error = refused(&kernel.with(&members));
    assert!(
        error.contains("net_device.reg_state, but it is not an integer"),
        "{error}"
    );
}

#[test]
fn fields_that_are_something_else() {
    for (index, name) in ["name", "ifindex", "nd_net", "reg_state"]
        .iter()
        .enumerate()
    {
        let mut kernel = Kernel::new();
        let mut members = kernel.members();
        members[index].1 = kernel.net_device_ptr;
        let error = refused(&kernel.with(&members));
        let wanted = format!(
            "the kernel's BTF has {}net_device.{name}",
            if *name == "nd_net" { "no field " } else { "" }
        );
        assert!(error.starts_with(&wanted), "{error}");
    }
    for len in [15, 17] {
        let mut kernel = Kernel::new();
        let mut members = kernel.members();
        members[0].1 = kernel.btf.array(kernel.byte, len);
        assert!(
            refused(&kernel.with(&members))
                .contains("net_device.name, but it is not an array of 16")
        );
    }
    let mut kernel = Kernel::new();
    let mut members = kernel.members();
    members[2].1 = kernel
        .btf
        .structure("", 8, &[("net", kernel.net_device_ptr, 0)]);
    assert!(
        refused(&kernel.with(&members))
            .contains("net_device.nd_net.net, but it is not a pointer to the struct")
    );
}

#[test]
fn what_is_missing_is_named() {
    let mut kernel = Kernel::new();
    assert_eq!(
        refused(&kernel.btf.bytes()),
        "the kernel's BTF has no struct net_device"
    );
    let members = kernel.members();
    assert_eq!(
        refused(&kernel.with(&members[..2])),
        "the kernel's BTF has no field net_device.nd_net.net"
    );
    assert_eq!(
        refused(&BtfBuilder::default().bytes()),
        "the kernel's BTF has no struct net_device"
    );

    let renamed = |from: &str, to: &str| {
        let mut bytes = Kernel::complete().btf.bytes();
        let at = bytes
            .windows(from.len())
            .position(|bytes| bytes == from.as_bytes())
            .unwrap();
        bytes[at..at + from.len()].copy_from_slice(to.as_bytes());
        bytes
    };
    assert_eq!(
        refused(&renamed("inum\0", "inun\0")),
        "the kernel's BTF has no field net.ns.inum"
    );
    assert_eq!(
        refused(&renamed("netdev_cmd", "netdev_cme")),
        "the kernel's BTF has no enum netdev_cmd"
    );
    assert_eq!(
        refused(&renamed("NETDEV_CHANGENAME", "NETDEV_CHANGENAMF")),
        "the kernel's BTF has no NETDEV_CHANGENAME in enum netdev_cmd"
    );
    let no_func = read(&renamed("rtnetlink_event", "rtnetlink_evenu")).unwrap();
    assert_eq!(
        no_func.funcs,
        FuncIds {
            rtnetlink_event: None
        }
    );
    let missing = super::read_layout("/nonexistent/btf").unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("cannot open the kernel's BTF at /nonexistent/btf: "),
        "{missing}"
    );
}

#[test]
fn functions_have_to_be_the_known_ones() {
    let mut kernel = Kernel::complete();
    kernel.btf.func("rtnetlink_event", 3, kernel.int);
    assert_eq!(
        read(&kernel.btf.bytes()).unwrap().funcs.rtnetlink_event,
        None,
        "two of them"
    );
    let mut kernel = Kernel::new();
    let members = kernel.members();
    kernel.with(&members);
    kernel.btf.func("rtnetlink_event", 2, kernel.int);
    assert_eq!(
        read(&kernel.btf.bytes()).unwrap().funcs.rtnetlink_event,
        None,
        "another prototype"
    );
}

#[test]
fn several_structs_of_one_name() {
    // They agree, or do not have the field at all.
    let mut kernel = Kernel::complete();
    let members = kernel.members();
    kernel.with(&members);
    kernel.with(&[("other", kernel.int, 0)]);
    assert_eq!(read(&kernel.btf.bytes()).unwrap(), expected());
    // They do not agree.
    let mut moved = kernel.members();
    moved[1].2 += 4;
    let error = refused(&kernel.with(&moved));
    assert_eq!(
        error,
        "the kernel's BTF is ambiguous: there are several net_device.ifindex, and they differ"
    );

    let mut kernel = Kernel::complete();
    kernel
        .btf
        .enumeration("netdev_cmd", &[("NETDEV_REGISTER", 7)]);
    let error = refused(&kernel.btf.bytes());
    assert!(
        error.contains("several NETDEV_REGISTER in enum netdev_cmd, and they differ"),
        "{error}"
    );

    let mut kernel = Kernel::complete();
    for _ in 0..2000 {
        kernel.btf.plain("net", kind::FWD, 0);
    }
    assert!(refused(&kernel.btf.bytes()).contains("more than 1024 types of the names that matter"));
}

#[test]
fn structs_that_the_kernel_would_refuse() {
    let mut kernel = Kernel::new();
    let [name, ifindex, net, state] = kernel.members();
    assert!(
        refused(&kernel.with(&[ifindex, name, net, state]))
            .contains("before the member in front of it")
    );

    let mut kernel = Kernel::new();
    let outside = [name, ifindex, net, ("reg_state", kernel.byte, 64)];
    assert!(refused(&kernel.with(&outside)).contains("lies outside of it"));

    let mut kernel = Kernel::new();
    let twice = [name, ifindex, net, state, ("reg_state", kernel.byte, 33)];
    assert!(refused(&kernel.with(&twice)).contains("two members of the same name"));

    let mut kernel = Kernel::new();
    let inner = kernel
        .btf
        .record("", kind::UNION, false, 8, &[("reg_state", kernel.byte, 8)]);
    assert!(
        refused(&kernel.with(&[name, ifindex, net, ("", inner, 32)]))
            .contains("lies outside of it")
    );
}

#[test]
fn enum64_serves_as_well() {
    let mut kernel = Kernel::new();
    let members = kernel.members();
    let strings = ["NETDEV_REGISTER", "NETDEV_UNREGISTER", "NETDEV_CHANGENAME"]
        .map(|name| kernel.btf.string(name));
    let values: Vec<u32> = strings
        .iter()
        .zip([5, 6, 11])
        .flat_map(|(name, value)| [*name, value, 0])
        .collect();
    kernel
        .btf
        .raw("netdev_cmd", u32::from(kind::ENUM64) << 24 | 3, 8, &values);
    assert_eq!(read(&kernel.with(&members)).unwrap().events, EVENTS);
    // A value of more than 32 bits is no event, and that leaves the other enum's.
    kernel.btf.raw(
        "netdev_cmd",
        u32::from(kind::ENUM64) << 24 | 1,
        8,
        &[strings[0], 7, 1],
    );
    assert_eq!(read(&kernel.btf.bytes()).unwrap().events, EVENTS);
}

/// `info_sz` and `elem_sz` of the kinds 0 to 19, as the kernel's tools write them.
const KNOWN_LAYOUT: [(u8, u8); 20] = [
    (0, 0),
    (4, 0),
    (0, 0),
    (12, 0),
    (0, 12),
    (0, 12),
    (0, 8),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 0),
    (0, 8),
    (4, 0),
    (0, 12),
    (0, 0),
    (4, 0),
    (0, 0),
    (0, 12),
];

#[test]
fn longer_headers() {
    let kernel = Kernel::complete();
    for header_len in [24, 28, 32, 40, 100] {
        assert_eq!(
            read(&kernel.btf.bytes_with(header_len, &[])).unwrap(),
            expected(),
            "{header_len}"
        );
    }
    for header_len in [32, 40] {
        assert_eq!(
            read(&kernel.btf.bytes_with(header_len, &KNOWN_LAYOUT)).unwrap(),
            expected(),
            "{header_len}"
        );
    }
    let mut contradicting = KNOWN_LAYOUT;
    contradicting[4] = (0, 16);
    let error = refused(&kernel.btf.bytes_with(32, &contradicting));
    assert_eq!(
        error,
        "the BTF says that types of kind 4 have another length than the one known"
    );
}

#[test]
fn kinds_of_the_future() {
    for kind in [20, 31, 32, 100, 127_u8] {
        let mut kernel = Kernel::new();
        // Eight bytes, and four more for each of two elements.
        kernel.btf.raw(
            "net_device",
            1 << 31 | u32::from(kind) << 24 | 2,
            7,
            &[1, 2, 3, 4],
        );
        let members = kernel.members();
        kernel.with(&members);
        kernel.btf.func("rtnetlink_event", 3, kernel.int);
        let mut layout = KNOWN_LAYOUT.to_vec();
        layout.resize(128, (0, 0));
        layout[usize::from(kind)] = (8, 4);
        let wanted = Layout {
            funcs: FuncIds {
                rtnetlink_event: Some(18),
            },
            ..expected()
        };
        assert_eq!(
            read(&kernel.btf.bytes_with(32, &layout)).unwrap(),
            wanted,
            "{kind}"
        );
        let unknown =
            format!("the BTF has a type of kind {kind}, and does not say how long that is");
        assert_eq!(refused(&kernel.btf.bytes_with(32, &layout[..20])), unknown);
        assert_eq!(refused(&kernel.btf.bytes()), unknown);
    }
    let mut kernel = Kernel::complete();
    kernel.btf.plain("", 0, 0);
    assert!(refused(&kernel.btf.bytes_with(32, &KNOWN_LAYOUT)).contains("type of kind 0"));
}

#[test]
fn headers_that_are_none() {
    let good = Kernel::complete().btf.bytes();
    let with = |at: usize, bytes: &[u8]| {
        let mut btf = good.clone();
        btf[at..at + bytes.len()].copy_from_slice(bytes);
        refused(&btf)
    };
    let word = |at: usize, word: u32| with(at, &word.to_le_bytes());
    assert_eq!(
        with(0, b"\x7fELF"),
        "not BTF: the file begins with 0x457f, not with 0xeb9f"
    );
    assert_eq!(
        with(0, &[0xeb, 0x9f]),
        "the BTF is big-endian, and only little-endian is supported"
    );
    assert!(with(2, &[2]).contains("its version is not 1"));
    assert!(with(3, &[1]).contains("flags"));
    assert!(word(4, 23).contains("shorter than 24 bytes"));
    // Whatever the lengths and offsets are, up to the largest.
    assert!(word(4, u32::MAX).contains("cut short") || word(4, u32::MAX).contains("overlap"));
    assert!(word(8, 1).contains("not aligned") || word(8, 1).contains("overlap"));
    assert!(word(8, u32::MAX - 3).contains("cut short"));
    assert!(word(12, u32::MAX).contains("overlap"));
    assert!(word(16, 0).contains("overlap"));
    assert!(word(16, u32::MAX).contains("cut short"));
    assert!(word(20, u32::MAX).contains("cut short"));
    assert!(word(20, 0).contains("string section"));
}

#[test]
fn strings_without_an_end() {
    let mut btf = Kernel::complete().btf.bytes();
    *btf.last_mut().unwrap() = b'x';
    assert_eq!(
        refused(&btf),
        "the BTF string section does not begin and end with a NUL byte"
    );
    let mut kernel = Kernel::complete();
    kernel.btf.string("net");
    let mut btf = kernel.btf.bytes();
    btf.extend(b"net\0");
    let strings_len = u32::from_le_bytes(btf[20..24].try_into().unwrap()) + 4;
    btf[20..24].copy_from_slice(&strings_len.to_le_bytes());
    assert_eq!(
        refused(&btf),
        "the BTF holds the string \"net\" more than once"
    );
}

#[test]
fn circles() {
    type Circle = fn(&mut BtfBuilder, u32) -> u32;
    let itself: Circle = |btf, next| btf.plain("self_t", kind::TYPEDEF, next);
    let each_other: Circle = |btf, next| {
        btf.plain("", kind::CONST, next + 1);
        btf.plain("other_t", kind::TYPEDEF, next)
    };
    let of_itself: Circle =
        |btf, next| btf.raw("", u32::from(kind::ARRAY) << 24, 0, &[next, next, 2]);
    let within_itself: Circle = |btf, next| btf.structure("", 64, &[("", next, 0)]);
    let cases = [
        (itself, ""),
        (itself, "name"),
        (each_other, ""),
        (each_other, "nd_net"),
        (of_itself, "name"),
        (within_itself, ""),
        (within_itself, "nd_net"),
    ];
    for (circle, name) in cases {
        let mut kernel = Kernel::new();
        let mut members = kernel.members().to_vec();
        // The first type that the circle adds; there are 14 before.
        let ty = circle(&mut kernel.btf, 15);
        match members.iter_mut().find(|member| member.0 == name) {
            Some(member) => (member.1, member.2) = (ty, 0),
            None => members.insert(0, (name, ty, 0)),
        }
        members.sort_by_key(|member| member.2);
        let error = refused(&kernel.with(&members));
        assert!(
            error.contains("nested too deeply, or in a circle"),
            "{name:?}: {error}"
        );
    }
}

/// No circle, but 2^30 ways through it.
#[test]
fn too_many_ways() {
    let mut kernel = Kernel::new();
    let mut inner = kernel.btf.structure("", 0, &[]);
    kernel.btf.string("name");
    for _ in 0..30 {
        inner = kernel
            .btf
            .record("", kind::UNION, false, 0, &[("", inner, 0), ("", inner, 0)]);
    }
    let error = refused(&kernel.with(&[("", inner, 0)]));
    assert!(error.contains("nested too deeply"), "{error}");
}

#[test]
fn types_beyond_the_end() {
    let mut kernel = Kernel::complete();
    kernel
        .btf
        .raw("", u32::from(kind::STRUCT) << 24 | 0x00ff_ffff, 8, &[]);
    assert_eq!(
        refused(&kernel.btf.bytes()),
        "BTF type 18 does not end within the type section"
    );
    let mut kernel = Kernel::new();
    let mut members = kernel.members();
    members[1].1 = 4000;
    assert_eq!(
        refused(&kernel.with(&members)),
        "the BTF refers to type 4000, which it does not have"
    );
    members[1].1 = 0;
    assert_eq!(
        refused(&kernel.with(&members)),
        "the BTF refers to type 4000, which it does not have"
    );
}

/// The strings come last, and are read to their end.
#[test]
fn cut_short_anywhere() {
    for (kernel, btf, ..) in KERNELS {
        for len in (0..btf.len()).rev().step_by(101).chain(0..100) {
            assert!(read(&btf[..len]).is_err(), "{kernel} cut at {len}");
        }
    }
    let btf = Kernel::complete().btf.bytes();
    for len in 0..btf.len() {
        assert!(read(&btf[..len]).is_err(), "cut at {len}");
    }
}

/// What a changed byte may do. Where the file remains sound, nothing can tell the change from what
/// the compiler wrote, so exactly one of these comes out different, and never because something was
/// taken for something else:
///
/// - the offset of a member (or of the anonymous one around it), as long as it stays in order, in
///   bounds and aligned;
/// - for `reg_state` also its width, or one integer type taken for another;
/// - the number of an event;
/// - the function's id: another length of a type in front of it can swallow its neighbours and so
///   shift the ids, and anything that touches its name or prototype hides it.
///
/// That is what the loader's proof on a live device is for.
fn assert_harmless(before: &Layout, btf: &[u8], at: usize, to: u8) {
    let mut changed = btf.to_vec();
    changed[at] = to;
    let Ok(after) = read(&changed) else { return };
    let differences = |layout: &Layout| {
        let Layout {
            offsets,
            events,
            funcs,
        } = *layout;
        let Offsets {
            dev_name,
            dev_ifindex,
            dev_net,
            dev_reg_state,
            net_inum,
            kind,
            task_flags,
            task_tgid,
            notifier_info_dev,
        } = offsets;
        let NetdevEvents {
            register,
            unregister,
            change_name,
        } = events;
        // Where it is missing no kind is read.
        let kind = kind.or(before.offsets.kind);
        let (dev_link_ops, link_ops_kind) = kind
            .map(|kind| (kind.dev_link_ops, kind.link_ops_kind))
            .unwrap_or_default();
        let reg_state = if dev_reg_state.offset == before.offsets.dev_reg_state.offset {
            dev_reg_state.mask << dev_reg_state.shift
        } else {
            !dev_reg_state.offset
        };
        let fields = [
            dev_name,
            dev_ifindex,
            dev_net,
            reg_state,
            dev_link_ops,
            link_ops_kind,
            net_inum,
            task_flags,
            task_tgid.unwrap_or_default(),
            notifier_info_dev,
        ];
        let numbers = [
            register,
            unregister,
            change_name,
            funcs.rtnetlink_event.unwrap_or(0),
        ];
        [fields.as_slice(), numbers.as_slice()].concat()
    };
    let different = differences(before)
        .iter()
        .zip(differences(&after))
        .filter(|(before, after)| *before != after)
        .count();
    assert!(
        different <= 1,
        "byte {at} from {} to {to}: {before:?} became {after:?}",
        btf[at]
    );
}

#[test]
fn any_byte_changed() {
    let btf = Kernel::complete().btf.bytes();
    let before = read(&btf).unwrap();
    for at in 0..btf.len() {
        for to in (0..8).map(|bit| btf[at] ^ 1 << bit).chain([0, 0xff, b'x']) {
            assert_harmless(&before, &btf, at, to);
        }
    }
}

#[test]
fn some_bytes_of_real_kernels_changed() {
    for (_, btf, ..) in KERNELS {
        let before = read(btf).unwrap();
        for at in (0..btf.len()).step_by(499) {
            assert_harmless(&before, btf, at, btf[at] ^ 1 << (at % 8));
        }
    }
}

#[test]
#[ignore = "takes minutes"]
fn any_bit_of_real_kernels_changed() {
    for (_, btf, ..) in KERNELS {
        let before = read(btf).unwrap();
        for at in 0..btf.len() {
            (0..8).for_each(|bit| assert_harmless(&before, btf, at, btf[at] ^ 1 << bit));
        }
    }
}
