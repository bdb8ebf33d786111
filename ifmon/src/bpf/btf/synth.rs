//! Enough BTF for aya to load an fentry program, without parsing the kernel's.

use aya_obj::btf::{Btf, BtfType, Func, FuncLinkage, Ptr};

/// The kernel's `BTF_MAX_TYPE`: it has no type with a higher id.
const MAX_ID: u32 = 0x000f_ffff;

/// A BTF in which `name` is a function, has this id, and nothing else is worth mentioning.
///
/// `aya::programs::FEntry::load` wants an `aya::Btf`, and takes one number from it: the id of the
/// function, which it hands to the kernel; the kernel looks it up in its own BTF. We know that
/// number already (see [`FuncIds`](super::FuncIds)), so there is no need for aya to parse 5 MB.
/// Besides, aya refuses a kernel's BTF as a whole if there is a kind of type in it that it does not
/// know, which a newer kernel may well have.
///
/// An id is a position, so there have to be as many types in front of the function: nameless
/// pointers to nothing. None if there can be no such id.
pub(crate) fn btf_with_func(name: &str, id: u32) -> Option<Btf> {
    if id == 0 || id > MAX_ID || name.is_empty() || name.contains('\0') {
        return None;
    }
    let mut btf = Btf::new();
    for _ in 1..id {
        btf.add_type(BtfType::Ptr(Ptr::new(0, 0)));
    }
    let name = btf.add_string(name);
    btf.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Static)));
    Some(btf)
}

#[cfg(test)]
mod tests {
    use aya_obj::btf::BtfKind;

    use super::*;

    #[test]
    fn aya_finds_the_id() {
        for id in [1, 2, 1000, 107_981] {
            let btf = btf_with_func("rtnetlink_event", id).unwrap();
            assert_eq!(
                btf.id_by_type_name_kind("rtnetlink_event", BtfKind::Func)
                    .unwrap(),
                id
            );
            assert!(btf.id_by_type_name_kind("other", BtfKind::Func).is_err());
        }
    }

    #[test]
    fn ids_and_names_that_cannot_be() {
        for (name, id) in [
            ("f", 0),
            ("f", MAX_ID + 1),
            ("f", u32::MAX),
            ("", 1),
            ("f\0", 1),
        ] {
            assert!(btf_with_func(name, id).is_none(), "{name:?} {id}");
        }
        assert!(btf_with_func("f", MAX_ID).is_some());
    }
}
