//! Writes BTF, for the tests.

use std::collections::HashMap;

use super::format::kind;

/// A BTF file in the making.
#[derive(Default)]
pub(super) struct BtfBuilder {
    types: Vec<u8>,
    count: u32,
    strings: Vec<u8>,
    offsets: HashMap<String, u32>,
}

impl BtfBuilder {
    pub(super) fn string(&mut self, string: &str) -> u32 {
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        if string.is_empty() {
            return 0;
        }
        *self.offsets.entry(string.to_owned()).or_insert_with(|| {
            let offset = self.strings.len() as u32;
            self.strings.extend(string.as_bytes());
            self.strings.push(0);
            offset
        })
    }

    /// Adds a type as it is, and returns its id. `info` is kind, kind_flag and vlen as in the file.
    pub(super) fn raw(&mut self, name: &str, info: u32, size_or_type: u32, trailer: &[u32]) -> u32 {
        let name = self.string(name);
        let words = [name, info, size_or_type];
        self.types.extend(
            words
                .iter()
                .chain(trailer)
                .flat_map(|word| word.to_le_bytes()),
        );
        self.count += 1;
        self.count
    }

    /// A type without anything behind it.
    pub(super) fn plain(&mut self, name: &str, kind: u8, size_or_type: u32) -> u32 {
        self.raw(name, u32::from(kind) << 24, size_or_type, &[])
    }

    pub(super) fn int(&mut self, name: &str, size: u32) -> u32 {
        self.raw(name, u32::from(kind::INT) << 24, size, &[size * 8])
    }

    /// Members are name, type and the offset word.
    pub(super) fn record(
        &mut self,
        name: &str,
        kind: u8,
        flag: bool,
        size: u32,
        members: &[(&str, u32, u32)],
    ) -> u32 {
        let info = u32::from(flag) << 31 | u32::from(kind) << 24 | members.len() as u32;
        let trailer: Vec<u32> = members
            .iter()
            .flat_map(|(name, ty, offset)| [self.string(name), *ty, *offset])
            .collect();
        self.raw(name, info, size, &trailer)
    }

    /// A struct whose members have whole-byte offsets, in bytes.
    pub(super) fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let members: Vec<_> = members
            .iter()
            .map(|(name, ty, offset)| (*name, *ty, offset * 8))
            .collect();
        self.record(name, kind::STRUCT, false, size, &members)
    }

    pub(super) fn enumeration(&mut self, name: &str, values: &[(&str, u32)]) -> u32 {
        let trailer: Vec<u32> = values
            .iter()
            .flat_map(|(name, value)| [self.string(name), *value])
            .collect();
        self.raw(
            name,
            u32::from(kind::ENUM) << 24 | values.len() as u32,
            4,
            &trailer,
        )
    }

    pub(super) fn array(&mut self, element: u32, len: u32) -> u32 {
        self.raw(
            "",
            u32::from(kind::ARRAY) << 24,
            0,
            &[element, element, len],
        )
    }

    /// A function with so many parameters, all of one type.
    pub(super) fn func(&mut self, name: &str, params: u32, ty: u32) -> u32 {
        let trailer = [0, ty].repeat(params as usize);
        let proto = self.raw("", u32::from(kind::FUNC_PROTO) << 24 | params, ty, &trailer);
        self.plain(name, kind::FUNC, proto)
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.bytes_with(24, &[])
    }

    /// With a header of this many bytes, and a layout section (`info_sz`, `elem_sz` for each kind)
    /// if it is not empty.
    pub(super) fn bytes_with(&self, header_len: u32, layout: &[(u8, u8)]) -> Vec<u8> {
        let types = self.types.len() as u32;
        let layout_len = layout.len() as u32 * 4;
        let strings = if self.strings.is_empty() {
            &[0][..]
        } else {
            &self.strings
        };
        let header = [
            0x0001_eb9f,
            header_len,
            0,
            types,
            types + layout_len,
            strings.len() as u32,
            types,
            layout_len,
        ];
        let mut bytes: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(header_len as usize, 0);
        bytes.extend(&self.types);
        bytes.extend(
            layout
                .iter()
                .flat_map(|(fixed, each)| [*fixed, *each, 0, 0]),
        );
        bytes.extend(strings);
        bytes
    }
}
