//! Maps with ascending integer keys (format §1.4): how every record is written and strictly read.

use std::str::FromStr;

use keepwell_crypto::{Digest, MemberId};

use crate::cbor::{self, Malformed, put_array, put_bool, put_bytes, put_int, put_map, put_text, put_uint};
use crate::error::CatalogError;

/// So much memory an array may take in any case …
const ITEMS_BYTES_FREE: usize = 1 << 20;
/// … and beyond it so many times what the record itself takes. Names, ids and hashes take less than twice that.
const ITEMS_SHARE: usize = 4;

/// Writes one map. Keys must come in ascending order. Fields without a value are left out, everything else is written.
#[derive(Default)]
pub(crate) struct MapWriter {
    fields: u64,
    body: Vec<u8>,
}

impl MapWriter {
    /// Writes `key`; the caller appends exactly one item.
    pub(crate) fn field(&mut self, key: u64) -> &mut Vec<u8> {
        self.fields += 1;
        put_uint(&mut self.body, key);
        &mut self.body
    }

    pub(crate) fn uint(&mut self, key: u64, value: u64) {
        put_uint(self.field(key), value);
    }

    pub(crate) fn int(&mut self, key: u64, value: i64) {
        put_int(self.field(key), value);
    }

    pub(crate) fn bool(&mut self, key: u64, value: bool) {
        put_bool(self.field(key), value);
    }

    pub(crate) fn text(&mut self, key: u64, value: &str) {
        put_text(self.field(key), value);
    }

    pub(crate) fn bytes(&mut self, key: u64, value: &[u8]) {
        put_bytes(self.field(key), value);
    }

    /// Writes an array whose items `write` appends, one CBOR item each.
    pub(crate) fn array<T>(&mut self, key: u64, items: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
        let out = self.field(key);
        put_array(out, items.len() as u64);
        for item in items {
            write(out, item);
        }
    }

    pub(crate) fn texts(&mut self, key: u64, items: &[String]) {
        self.array(key, items, |out, text| put_text(out, text));
    }

    /// Writes a map as the value of `key`.
    pub(crate) fn map(&mut self, key: u64, map: MapWriter) {
        let encoded = map.finish();
        self.field(key).extend_from_slice(&encoded);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        let mut encoded = Vec::with_capacity(self.body.len() + 9);
        put_map(&mut encoded, self.fields);
        encoded.extend_from_slice(&self.body);
        encoded
    }
}

/// Appends `[text, uint]`.
pub(crate) fn put_text_uint(out: &mut Vec<u8>, text: &str, number: u64) {
    put_array(out, 2);
    put_text(out, text);
    put_uint(out, number);
}

/// Appends `[member, uint]`.
pub(crate) fn put_member_uint(out: &mut Vec<u8>, (member, number): &(MemberId, u64)) {
    put_array(out, 2);
    put_bytes(out, member.as_bytes());
    put_uint(out, *number);
}

/// Reads CBOR items; every error names the record they belong to.
pub(crate) struct Reader<'b> {
    what: &'static str,
    input: cbor::Reader<'b>,
}

impl<'b> Reader<'b> {
    pub(crate) fn malformed(&self, reason: impl Into<String>) -> CatalogError {
        CatalogError::malformed(self.what, reason)
    }

    fn item<T>(
        &mut self,
        read: impl FnOnce(&mut cbor::Reader<'b>) -> Result<T, Malformed>,
    ) -> Result<T, CatalogError> {
        let at = self.input.position();
        read(&mut self.input).map_err(|Malformed(reason)| {
            CatalogError::malformed(self.what, format!("{reason} (byte {at} of its CBOR)"))
        })
    }

    pub(crate) fn uint(&mut self) -> Result<u64, CatalogError> {
        self.item(cbor::Reader::uint)
    }

    pub(crate) fn uint32(&mut self) -> Result<u32, CatalogError> {
        self.item(cbor::Reader::uint_as)
    }

    pub(crate) fn int(&mut self) -> Result<i64, CatalogError> {
        self.item(cbor::Reader::int)
    }

    pub(crate) fn bool(&mut self) -> Result<bool, CatalogError> {
        self.item(cbor::Reader::bool)
    }

    pub(crate) fn text(&mut self) -> Result<String, CatalogError> {
        self.item(cbor::Reader::text).map(str::to_owned)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'b [u8], CatalogError> {
        self.item(cbor::Reader::bytes)
    }

    /// A byte string of exactly `N` bytes.
    pub(crate) fn exact<const N: usize>(&mut self) -> Result<[u8; N], CatalogError> {
        let bytes = self.bytes()?;
        bytes.try_into().map_err(|_| self.malformed(format!("{} bytes stand where {N} belong", bytes.len())))
    }

    pub(crate) fn digest(&mut self) -> Result<Digest, CatalogError> {
        Ok(Digest::from_bytes(self.exact()?))
    }

    pub(crate) fn member(&mut self) -> Result<MemberId, CatalogError> {
        Ok(MemberId::from_bytes(self.exact()?))
    }

    /// An id or name that the format writes as text.
    pub(crate) fn parsed<T: FromStr>(&mut self) -> Result<T, CatalogError> {
        let text = self.item(cbor::Reader::text)?;
        text.parse().map_err(|_| self.malformed(format!("`{}` is no valid id or name", text.escape_debug())))
    }

    /// An array of items that `read` decodes. The promised length reserves no memory, and empty texts by the million, of a
    /// byte each and two dozen in memory, are refused.
    pub(crate) fn array<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, CatalogError>,
    ) -> Result<Vec<T>, CatalogError> {
        let bytes_max = ITEMS_SHARE * self.input.input_len() + ITEMS_BYTES_FREE;
        let mut items = Vec::new();
        for _ in 0..self.item(cbor::Reader::array)? {
            if items.len() * size_of::<T>() > bytes_max {
                return Err(self.malformed("an array has more items than its length bears"));
            }
            items.push(read(self)?);
        }
        Ok(items)
    }

    pub(crate) fn texts(&mut self) -> Result<Vec<String>, CatalogError> {
        self.array(Self::text)
    }

    /// Enters an array of exactly `len` items.
    pub(crate) fn tuple(&mut self, len: u64) -> Result<(), CatalogError> {
        self.item(|input| input.array_of(len))
    }

    /// `[member, uint]`.
    pub(crate) fn member_uint(&mut self) -> Result<(MemberId, u64), CatalogError> {
        self.tuple(2)?;
        Ok((self.member()?, self.uint()?))
    }

    /// A map with ascending integer keys: `field` reads the value of each key that it knows and returns `false`
    /// for the others, which are skipped.
    pub(crate) fn map(
        &mut self,
        mut field: impl FnMut(&mut Self, u64) -> Result<bool, CatalogError>,
    ) -> Result<(), CatalogError> {
        let mut last = None;
        for _ in 0..self.map_len()? {
            let key = self.uint()?;
            if last.is_some_and(|last| last >= key) {
                return Err(self.malformed(format!("key {key} comes out of order")));
            }
            last = Some(key);
            if !field(self, key)? {
                self.item(cbor::Reader::skip)?;
            }
        }
        Ok(())
    }

    /// One item of any type, as its bytes.
    pub(crate) fn raw(&mut self) -> Result<&'b [u8], CatalogError> {
        self.item(cbor::Reader::raw)
    }

    /// Header of a map: how many pairs follow.
    pub(crate) fn map_len(&mut self) -> Result<u64, CatalogError> {
        self.item(cbor::Reader::map)
    }
}

/// Reads the one map that `bytes` must be; trailing bytes are refused.
pub(crate) fn read_map<'b>(
    what: &'static str,
    bytes: &'b [u8],
    field: impl FnMut(&mut Reader<'b>, u64) -> Result<bool, CatalogError>,
) -> Result<(), CatalogError> {
    let mut reader = Reader { what, input: cbor::Reader::new(bytes) };
    reader.map(field)?;
    reader.item(|input| input.finish())
}

/// A field that must be there.
pub(crate) fn required<T>(what: &'static str, field: &str, value: Option<T>) -> Result<T, CatalogError> {
    value.ok_or_else(|| CatalogError::malformed(what, format!("its {field} is missing")))
}
