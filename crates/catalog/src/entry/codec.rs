//! The bytes of an entry (format §9): a map of numbered fields, each written in one way only.

use std::collections::BTreeMap;

use super::{Entry, EntryKind, INLINE_EXTENTS_MAX};
use crate::MapKey;
use crate::cbor::{Malformed, Reader, put_array, put_bytes, put_int, put_map, put_text, put_uint};
use crate::error::MapError;
use crate::extent::{Extent, decode_extents, encode_extents};

impl Entry {
    /// Encodes an entry that fits one record. Fails on what [`Entry::decode`] would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, MapError> {
        self.check()?;
        if self.content.len() > INLINE_EXTENTS_MAX {
            return Err(MapError::Entry { what: "it has too many extents for one record" });
        }
        let mut out = Vec::with_capacity(128);
        self.encode_head(&self.content, self.more_extents, &mut out);
        Ok(out)
    }

    /// Decodes the value of a record: a whole entry, or the head of one with sub-key records.
    ///
    /// Skips fields it does not know. Refuses an unknown kind, any second way to write the same entry, and extents
    /// that do not add up to the size.
    pub fn decode(value: &[u8]) -> Result<Self, MapError> {
        let mut reader = Reader::new(value);
        let mut entry = Self::new(EntryKind::File);
        let mut content_bytes = 0;
        let mut fields = Fields::new(&mut reader)?;
        if fields.next(&mut reader)? != Some(0) {
            return Err(MapError::Entry { what: "it has no kind" });
        }
        entry.kind = EntryKind::from_number(reader.uint()?)?;
        while let Some(field) = fields.next(&mut reader)? {
            entry.decode_field(field, &mut reader, &mut content_bytes)?;
        }
        reader.finish()?;
        entry.check_with(content_bytes)?;
        Ok(entry)
    }

    /// Appends the encoding with `inline` in place of the content.
    pub(crate) fn encode_head(&self, inline: &[Extent], more_extents: u32, out: &mut Vec<u8>) {
        let mut pairs = Pairs::begin(out);
        put_uint(pairs.field(0), self.kind as u64);
        for (field, number) in [(1, self.mode), (2, self.uid), (3, self.gid)] {
            pairs.uint(field, u64::from(number));
        }
        if self.mtime != (0, 0) {
            let out = pairs.field(4);
            put_array(out, 2);
            put_int(out, self.mtime.0);
            put_uint(out, u64::from(self.mtime.1));
        }
        pairs.uint(5, self.size);
        if !inline.is_empty() {
            encode_extents(inline, pairs.field(6));
        }
        if let Some(target) = &self.link_target {
            put_bytes(pairs.field(7), target);
        }
        self.encode_rare(&mut pairs);
        for (field, name) in [(11, &self.user), (12, &self.group)] {
            if let Some(name) = name {
                put_text(pairs.field(field), name);
            }
        }
        pairs.uint(13, u64::from(more_extents));
        encode_attributes(&self.attributes, &mut pairs);
        pairs.end();
    }

    /// Fields 8 to 10.
    fn encode_rare(&self, pairs: &mut Pairs<'_>) {
        if !self.xattrs.is_empty() {
            let out = pairs.field(8);
            put_array(out, self.xattrs.len() as u64);
            for (name, value) in &self.xattrs {
                put_array(out, 2);
                put_bytes(out, name);
                put_bytes(out, value);
            }
        }
        if let Some((major, minor)) = self.device {
            let out = pairs.field(9);
            put_array(out, 2);
            put_uint(out, u64::from(major));
            put_uint(out, u64::from(minor));
        }
        if let Some(first) = &self.hard_link {
            put_bytes(pairs.field(10), first.as_bytes());
        }
    }

    fn decode_field(
        &mut self,
        field: u64,
        reader: &mut Reader<'_>,
        content_bytes: &mut u64,
    ) -> Result<(), MapError> {
        match field {
            1 => self.mode = nonzero(reader.uint_as()?)?,
            2 => self.uid = nonzero(reader.uint_as()?)?,
            3 => self.gid = nonzero(reader.uint_as()?)?,
            4 => {
                reader.array_of(2)?;
                self.mtime = nonzero((reader.int()?, reader.uint_as()?))?;
            }
            5 => self.size = nonzero(reader.uint()?)?,
            6 => *content_bytes = decode_extents(reader, INLINE_EXTENTS_MAX, &mut self.content)?,
            7 => self.link_target = Some(reader.bytes()?.to_vec()),
            8 => decode_xattrs(reader, &mut self.xattrs)?,
            9 => {
                reader.array_of(2)?;
                self.device = Some((reader.uint_as()?, reader.uint_as()?));
            }
            10 => self.hard_link = Some(MapKey::from_bytes(reader.bytes()?)?),
            11 => self.user = Some(reader.text()?.into()),
            12 => self.group = Some(reader.text()?.into()),
            13 => self.more_extents = nonzero(reader.uint_as()?)?,
            14 => self.attributes = decode_attributes(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }
}

/// Reads only the number of sub-key records out of an encoded entry; costs no allocation.
pub(crate) fn peek_more_extents(value: &[u8]) -> Result<u32, Malformed> {
    let mut reader = Reader::new(value);
    let mut fields = Fields::new(&mut reader)?;
    while let Some(field) = fields.next(&mut reader)? {
        match field {
            13 => return reader.uint_as(),
            _ => reader.skip()?,
        }
    }
    Ok(0)
}

/// Walks the keys of a map that must ascend.
struct Fields {
    left: u64,
    next_at_least: u64,
}

impl Fields {
    fn new(reader: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self { left: reader.map()?, next_at_least: 0 })
    }

    fn next(&mut self, reader: &mut Reader<'_>) -> Result<Option<u64>, Malformed> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let field = reader.uint()?;
        if field < self.next_at_least {
            return Err(Malformed("its fields are out of order"));
        }
        self.next_at_least = field.saturating_add(1);
        Ok(Some(field))
    }
}

/// Writes the pairs of a map of fewer than 24, whose number is known only at the end.
struct Pairs<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    count: u64,
}

impl<'o> Pairs<'o> {
    fn begin(out: &'o mut Vec<u8>) -> Self {
        let start = out.len();
        put_map(out, 0);
        Self { out, start, count: 0 }
    }

    fn field(&mut self, field: u64) -> &mut Vec<u8> {
        self.count += 1;
        put_uint(self.out, field);
        self.out
    }

    fn uint(&mut self, field: u64, value: u64) {
        if value != 0 {
            put_uint(self.field(field), value);
        }
    }

    fn end(self) {
        // The head of a map of up to 23 pairs is one byte, so the count can be added to it.
        self.out[self.start] += self.count as u8;
    }
}

fn nonzero<T: Default + PartialEq>(value: T) -> Result<T, Malformed> {
    if value == T::default() { Err(Malformed("a field that is zero was not left out")) } else { Ok(value) }
}

fn decode_xattrs(reader: &mut Reader<'_>, xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), Malformed> {
    for _ in 0..nonzero(reader.array()?)? {
        reader.array_of(2)?;
        xattrs.push((reader.bytes()?.to_vec(), reader.bytes()?.to_vec()));
    }
    Ok(())
}

/// Deterministic CBOR sorts the keys of a map by their encoding: shorter texts first.
fn encode_attributes(attributes: &BTreeMap<String, Vec<u8>>, pairs: &mut Pairs<'_>) {
    if attributes.is_empty() {
        return;
    }
    let mut sorted: Vec<(&String, &Vec<u8>)> = attributes.iter().collect();
    sorted.sort_by_key(|(name, _)| (name.len(), *name));
    let out = pairs.field(14);
    put_map(out, sorted.len() as u64);
    for (name, value) in sorted {
        put_text(out, name);
        put_bytes(out, value);
    }
}

fn decode_attributes(reader: &mut Reader<'_>) -> Result<BTreeMap<String, Vec<u8>>, Malformed> {
    let mut attributes = BTreeMap::new();
    let mut previous: Option<&str> = None;
    for _ in 0..nonzero(reader.map()?)? {
        let name = reader.text()?;
        if previous.is_some_and(|previous| (previous.len(), previous) >= (name.len(), name)) {
            return Err(Malformed("its attributes are out of order"));
        }
        previous = Some(name);
        attributes.insert(name.to_owned(), reader.bytes()?.to_vec());
    }
    Ok(attributes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keepwell_crypto::ChunkId;
    use proptest::collection::{btree_map, vec};
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn extent() -> impl Strategy<Value = Extent> {
        prop_oneof![
            (any::<[u8; 32]>(), prop_oneof![Just(0u32), 0..1u32 << 30], 1..1u32 << 30).prop_map(
                |(id, offset, length)| Extent::Chunk { id: ChunkId::from_bytes(id), offset, length }
            ),
            (1..1u64 << 50).prop_map(|length| Extent::Hole { length }),
        ]
    }

    prop_compose! {
        fn file()(
            meta in (0..=0o7777u32, any::<u32>(), any::<u32>(), any::<i64>(), 0..1_000_000_000u32),
            content in vec(extent(), 0..=INLINE_EXTENTS_MAX),
            xattrs in btree_map(vec(any::<u8>(), 1..8), vec(any::<u8>(), 0..40), 0..3),
            user in option::of("[a-z]{0,8}"), group in option::of("[a-z]{1,30}"),
            attributes in btree_map("[a-z]{0,30}", vec(any::<u8>(), 0..300), 0..4),
        ) -> Entry {
            let (mode, uid, gid, seconds, nanoseconds) = meta;
            let size = content.iter().map(Extent::length).sum();
            Entry {
                mode, uid, gid, mtime: (seconds, nanoseconds), size, content, attributes,
                xattrs: xattrs.into_iter().collect(),
                user: user.map(Arc::from), group: group.map(Arc::from),
                ..Entry::new(EntryKind::File)
            }
        }
    }

    fn special() -> impl Strategy<Value = Entry> {
        prop_oneof![
            vec(any::<u8>(), 0..30)
                .prop_map(|target| Entry { link_target: Some(target), ..Entry::new(EntryKind::Symlink) }),
            any::<(u32, u32)>()
                .prop_map(|device| Entry { device: Some(device), ..Entry::new(EntryKind::CharDevice) }),
            vec(vec(any::<u8>(), 1..5), 1..4).prop_map(|components| Entry {
                hard_link: Some(MapKey::from_components(components).unwrap()),
                ..Entry::new(EntryKind::HardLink)
            }),
            Just(Entry::new(EntryKind::Directory)),
        ]
    }

    #[test]
    fn the_encoding_is_the_documented_one() {
        let entry = Entry {
            mode: 0o644,
            mtime: (-1, 5),
            size: 12,
            content: vec![
                Extent::Chunk { id: ChunkId::from_bytes([9; 32]), offset: 0, length: 5 },
                Extent::Hole { length: 7 },
            ],
            user: Some("ann".into()),
            ..Entry::new(EntryKind::File)
        };
        let id = "09".repeat(32);
        let expected =
            format!("a6 00 00 01 1901a4 04 82 20 05 05 0c 06 82 82 5820{id} 05 82 f6 07 0b 63616e6e");
        let encoded = entry.encode().unwrap();
        assert_eq!(hex::encode(&encoded), expected.replace(' ', ""));
        assert_eq!(Entry::decode(&encoded).unwrap(), entry);
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        for (hex, what) in [
            ("a10009", "its kind is unknown to this version"),
            ("a10101", "it has no kind"),
            ("a0", "it has no kind"),
            ("a100", "it is cut short"),
            ("a1000000", "bytes follow its end"),
            ("a200010100", "a field that is zero was not left out"),
            ("a300010218010101", "a number is not in its shortest form"),
            ("a3000102010101", "its fields are out of order"),
            ("a200010501", "its extents do not add up to its size"),
            ("a10002", "link target and kind disagree"),
            ("a10007", "hard link and kind disagree"),
            ("a10004", "device number and kind disagree"),
            ("a20000011a00010000", "its mode has unknown bits"),
            ("a20000048200 1a3b9aca00", "its time is out of range"),
            ("a200000680", "an array of extents has the wrong length"),
            ("a2000006818 2f600", "an extent is empty"),
        ] {
            let error = Entry::decode(&hex::decode(hex.replace(' ', "")).unwrap()).unwrap_err();
            assert_eq!(error.to_string(), format!("entry is not valid: {what}"), "{hex}");
        }
    }

    #[test]
    fn a_field_from_the_future_is_passed_over() {
        let known = Entry::new(EntryKind::Directory);
        let with_more = hex::decode("a300010f83a1616101f663616263181882f50a").unwrap();
        assert_eq!(Entry::decode(&with_more).unwrap(), known);
    }

    proptest! {
        #[test]
        fn entries_round_trip(entry in prop_oneof![file(), special()]) {
            let encoded = entry.encode().unwrap();
            prop_assert_eq!(Entry::decode(&encoded).unwrap(), entry);
            prop_assert_eq!(peek_more_extents(&encoded), Ok(0));
        }

        #[test]
        fn what_decodes_has_one_encoding(entry in prop_oneof![file(), special()], at: prop::sample::Index, flip: u8, cut: bool) {
            let mut bytes = entry.encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if cut {
                bytes.truncate(at);
            }
            let _ = peek_more_extents(&bytes);
            if let Ok(decoded) = Entry::decode(&bytes) {
                let again = decoded.encode().unwrap();
                // A changed field number may turn into one that this version does not know and leaves out.
                prop_assert!(again == bytes || again.len() < bytes.len());
                prop_assert_eq!(Entry::decode(&again).unwrap(), decoded);
            }
        }

        #[test]
        fn any_bytes_are_handled(bytes in vec(any::<u8>(), 0..200)) {
            let _ = Entry::decode(&bytes);
        }
    }
}
