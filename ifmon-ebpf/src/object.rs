//! The built programs, shipped with the crate so that nobody needs a BPF tool chain to use it.
//!
//! `cargo xtask ebpf` makes them and `cargo xtask ebpf --check` shows that they come from these
//! sources, byte for byte. There is one a processor architecture, because a kprobe finds its
//! arguments in that architecture's `pt_regs`.

/// An ELF parser wants its headers aligned, which `include_bytes!` alone does not promise.
#[cfg(not(feature = "program"))]
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

/// The BPF object for this architecture; `None` where ifmon has none, and then only netlink is
/// left.
pub const OBJECT: Option<&[u8]> = objects().0;

/// The same with a log.
pub const OBJECT_WITH_LOG: Option<&[u8]> = objects().1;

/// The same for names alone: its maps fit into 64 KiB.
pub const OBJECT_OF_NAMES: Option<&[u8]> = objects().2;

type Object = Option<&'static [u8]>;
type Objects = (Object, Object, Object);

#[cfg(all(target_arch = "x86_64", not(feature = "program")))]
const fn objects() -> Objects {
    static PLAIN: &Aligned<[u8]> = &Aligned(*include_bytes!("../object/ifmon-x86_64.o"));
    static LOG: &Aligned<[u8]> = &Aligned(*include_bytes!("../object/ifmon-x86_64-log.o"));
    static NAMES: &Aligned<[u8]> = &Aligned(*include_bytes!("../object/ifmon-x86_64-names.o"));
    (Some(&PLAIN.0), Some(&LOG.0), Some(&NAMES.0))
}

#[cfg(all(target_arch = "aarch64", not(feature = "program")))]
const fn objects() -> Objects {
    static PLAIN: &Aligned<[u8]> = &Aligned(*include_bytes!("../object/ifmon-aarch64.o"));
    static LOG: &Aligned<[u8]> = &Aligned(*include_bytes!("../object/ifmon-aarch64-log.o"));
    static NAMES: &Aligned<[u8]> = &Aligned(*include_bytes!("../object/ifmon-aarch64-names.o"));
    (Some(&PLAIN.0), Some(&LOG.0), Some(&NAMES.0))
}

#[cfg(any(
    feature = "program",
    not(any(target_arch = "x86_64", target_arch = "aarch64"))
))]
const fn objects() -> Objects {
    (None, None, None)
}
