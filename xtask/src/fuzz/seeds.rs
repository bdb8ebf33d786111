//! Input to begin with, as small as can be: the smaller it is, the more of its bytes matter.

/// What a netlink socket receives.
pub(super) fn datagrams() -> Vec<(String, Vec<u8>)> {
    // Message types, then attributes, from `include/uapi/linux/`.
    const ERROR: u16 = 2;
    const NEWLINK: u16 = 16;
    const DELLINK: u16 = 17;
    const NEWNSID: u16 = 88;
    const NSID: u16 = 1;
    const ADDRESS: u16 = 1;
    const NAME: u16 = 3;
    const LINKINFO: u16 = 18;
    const NEW_NETNSID: u16 = 45;
    const NEW_IFINDEX: u16 = 49;
    /// `struct ifinfomsg` of a device with the index 7.
    const INFO: [u32; 4] = [0, 7, 0, 0];

    let name = attribute(NAME, b"wg0\0");
    let address = attribute(ADDRESS, &[2, 0, 0, 0, 0, 1]);
    let kind = attribute(LINKINFO | 0x8000, &attribute(1, b"wireguard\0"));
    let nsid = attribute(NEW_NETNSID, &3_u32.to_ne_bytes());
    let ifindex = attribute(NEW_IFINDEX, &9_u32.to_ne_bytes());

    let new = message(NEWLINK, &INFO, &[&name, &address, &kind]);
    let deleted = message(DELLINK, &INFO, &[&name, &address]);
    let moved = message(DELLINK, &INFO, &[&name, &nsid, &ifindex]);
    let id = message(NEWNSID, &[0], &[&attribute(NSID, &3_u32.to_ne_bytes())]);
    // `-ENODEV`, and the header of the request.
    let error = message(ERROR, &[19_u32.wrapping_neg(), 32, 18, 1, 0], &[]);
    let several = [&new[..], &moved, &error, &id].concat();
    [
        ("new", new),
        ("deleted", deleted),
        ("moved", moved),
        ("id", id),
        ("error", error),
        ("several", several),
    ]
    .map(|(name, bytes)| (name.to_owned(), bytes))
    .to_vec()
}

/// What a client of the agent sends.
pub(super) fn calls() -> Vec<(String, Vec<u8>)> {
    [
        (
            "watch",
            r#"{"method":"io.ifmon.Watch","parameters":{"interfaces":["wg0","a"],"expect":{"a":7},"netns":"web"},"more":true}"#,
        ),
        ("list", r#"{"method":"io.ifmon.List","more":true}"#),
        ("sync", r#"{"method":"io.ifmon.Sync","oneway":true}"#),
        ("other", r#"{"method":"io.other.Do","parameters":{}}"#),
        (
            "describe",
            r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"io.ifmon"}}"#,
        ),
        (
            "two",
            "{\"method\":\"io.ifmon.Info\"}\0{\"method\":\"org.varlink.service.GetInfo\"}",
        ),
    ]
    .map(|(name, text)| (name.to_owned(), [text.as_bytes(), b"\0"].concat()))
    .to_vec()
}

fn message(kind: u16, structure: &[u32], attributes: &[&[u8]]) -> Vec<u8> {
    let structure = structure.iter().flat_map(|word| word.to_ne_bytes());
    let body: Vec<u8> = structure.chain(attributes.concat()).collect();
    let mut message = (16 + body.len() as u32).to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    // No flags, the sequence number 1, and the kernel for a sender.
    message.extend([0; 2]);
    message.extend(1_u32.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(body);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut attribute = (4 + value.len() as u16).to_ne_bytes().to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// The least BTF in which ifmon finds all that it looks for; a kernel's own would hide that under
/// thousands of types.
pub(super) fn small_btf() -> Vec<u8> {
    const STRINGS: &str = "\0net\0ns\0inum\0net_device\0name\0ifindex\0nd_net\0reg_state\0task_struct\0flags\0\
                           netdev_notifier_info\0dev\0netdev_cmd\0NETDEV_REGISTER\0NETDEV_UNREGISTER\0\
                           NETDEV_CHANGENAME\0rtnetlink_event\0";
    const HEADER: u32 = 24;
    // `BTF_KIND_*`
    const INT: u32 = 1 << 24;
    const PTR: u32 = 2 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT: u32 = 4 << 24;
    const ENUM: u32 = 6 << 24;
    const FUNC: u32 = 12 << 24;
    const FUNC_PROTO: u32 = 13 << 24;
    // Its members may be bitfields, whose width is in the upper 8 bits of their offset.
    const BITFIELDS: u32 = 1 << 31;
    // Ids: a type's place in the list below.
    const CHAR: u32 = 1;
    const WORD: u32 = 2;
    const NAME: u32 = 3;
    const NS: u32 = 4;
    const NET: u32 = 5;
    const NET_PTR: u32 = 6;
    const POSSIBLE_NET: u32 = 7;
    const DEV: u32 = 8;
    const DEV_PTR: u32 = 9;
    const PROTO: u32 = 13;

    let at = |name: &str| {
        let at = STRINGS.find(&format!("\0{name}\0"));
        at.map_or(0, |before| before as u32 + 1)
    };
    let types: &[&[u32]] = &[
        &[0, INT, 1, 8],
        &[0, INT, 4, 32],
        &[0, ARRAY, 0, CHAR, WORD, 16],
        &[0, STRUCT | 1, 4, at("inum"), WORD, 0],
        &[at("net"), STRUCT | 1, 4, at("ns"), NS, 0],
        &[0, PTR, NET],
        &[0, STRUCT | 1, 8, at("net"), NET_PTR, 0],
        // Of Linux 6.1, but for all the other members.
        &[
            at("net_device"),
            BITFIELDS | STRUCT | 4,
            40,
            at("name"),
            NAME,
            0,
            at("ifindex"),
            WORD,
            128,
            at("nd_net"),
            POSSIBLE_NET,
            192,
            at("reg_state"),
            WORD,
            8 << 24 | 256,
        ],
        &[0, PTR, DEV],
        &[
            at("netdev_notifier_info"),
            STRUCT | 1,
            8,
            at("dev"),
            DEV_PTR,
            0,
        ],
        &[at("task_struct"), STRUCT | 1, 4, at("flags"), WORD, 0],
        &[
            at("netdev_cmd"),
            ENUM | 3,
            4,
            at("NETDEV_REGISTER"),
            5,
            at("NETDEV_UNREGISTER"),
            6,
            at("NETDEV_CHANGENAME"),
            10,
        ],
        &[0, FUNC_PROTO | 3, WORD, 0, WORD, 0, WORD, 0, WORD],
        &[at("rtnetlink_event"), FUNC, PROTO],
    ];
    let types = types.concat();
    let length = 4 * types.len() as u32;
    [0x0001_eb9f, HEADER, 0, length, length, STRINGS.len() as u32]
        .into_iter()
        .chain(types)
        .flat_map(u32::to_le_bytes)
        .chain(STRINGS.bytes())
        .collect()
}
