//! A strict reader and a small writer for the core deterministic encoding of CBOR (RFC 8949 §4.2).
//!
//! The reader accepts exactly what the writer can produce: definite lengths, shortest heads, and, also in what it passes
//! over, ascending keys, UTF-8 and no tags or floats. It borrows from its input, never allocates, nests no deeper than the
//! format does, and every step consumes at least one byte.

const UINT: u8 = 0;
const NEGATIVE: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const FALSE: u8 = 0xf4;
const TRUE: u8 = 0xf5;
const NULL: u8 = 0xf6;
/// Nothing nests deeper; the map that a record is counts.
const NESTING_MAX: usize = 16;

/// What is wrong with some bytes, as a lower case fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub &'static str);

const TRUNCATED: Malformed = Malformed("it is cut short");
const WRONG_TYPE: Malformed = Malformed("a value has the wrong type");

/// Reads one data item after another.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'b> {
    bytes: &'b [u8],
    position: usize,
}

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    /// Starts in the middle of `bytes`; a position past the end reads as cut short.
    pub(crate) fn at(bytes: &'b [u8], position: usize) -> Self {
        Self { bytes, position }
    }

    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// Length of everything that it reads from.
    pub(crate) fn input_len(&self) -> usize {
        self.bytes.len()
    }

    /// Refuses trailing bytes.
    pub(crate) fn finish(&self) -> Result<(), Malformed> {
        if self.position == self.bytes.len() { Ok(()) } else { Err(Malformed("bytes follow its end")) }
    }

    pub(crate) fn uint(&mut self) -> Result<u64, Malformed> {
        self.expect(UINT)
    }

    /// An unsigned integer that fits `T`.
    pub(crate) fn uint_as<T: TryFrom<u64>>(&mut self) -> Result<T, Malformed> {
        T::try_from(self.uint()?).map_err(|_| Malformed("a number is too large"))
    }

    pub(crate) fn int(&mut self) -> Result<i64, Malformed> {
        let (major, value) = self.head()?;
        let magnitude = i64::try_from(value).map_err(|_| Malformed("a number is too large"))?;
        match major {
            UINT => Ok(magnitude),
            NEGATIVE => Ok(-1 - magnitude),
            _ => Err(WRONG_TYPE),
        }
    }

    pub(crate) fn bytes(&mut self) -> Result<&'b [u8], Malformed> {
        let length = self.expect(BYTES)?;
        self.take(length)
    }

    pub(crate) fn text(&mut self) -> Result<&'b str, Malformed> {
        let length = self.expect(TEXT)?;
        self.take_text(length)
    }

    /// The number of items that follow. It is a claim: check it before allocating for it.
    pub(crate) fn array(&mut self) -> Result<u64, Malformed> {
        self.expect(ARRAY)
    }

    /// Enters an array that must have exactly `items` items.
    pub(crate) fn array_of(&mut self, items: u64) -> Result<(), Malformed> {
        if self.array()? == items { Ok(()) } else { Err(Malformed("an array has the wrong length")) }
    }

    /// The number of pairs that follow. It is a claim: check it before allocating for it.
    pub(crate) fn map(&mut self) -> Result<u64, Malformed> {
        self.expect(MAP)
    }

    /// Consumes a null if one is next.
    pub(crate) fn null(&mut self) -> bool {
        let found = self.bytes.get(self.position) == Some(&NULL);
        self.position += usize::from(found);
        found
    }

    pub(crate) fn bool(&mut self) -> Result<bool, Malformed> {
        let [byte] = self.fixed()?;
        match byte {
            FALSE => Ok(false),
            TRUE => Ok(true),
            _ => Err(WRONG_TYPE),
        }
    }

    /// Passes over one item, and gives its bytes.
    pub(crate) fn raw(&mut self) -> Result<&'b [u8], Malformed> {
        let start = self.position;
        self.skip()?;
        self.bytes.get(start..self.position).ok_or(TRUNCATED)
    }

    /// Passes over one item with everything in it: a field of a later version, which keeps to the same rules.
    pub(crate) fn skip(&mut self) -> Result<(), Malformed> {
        self.skip_at(1)
    }

    fn skip_at(&mut self, depth: usize) -> Result<(), Malformed> {
        if depth > NESTING_MAX {
            return Err(Malformed("it nests too deeply"));
        }
        if matches!(self.bytes.get(self.position), Some(&(FALSE | TRUE | NULL))) {
            self.position += 1;
            return Ok(());
        }
        let (major, value) = self.head()?;
        match major {
            UINT | NEGATIVE => Ok(()),
            BYTES => self.take(value).map(drop),
            TEXT => self.take_text(value).map(drop),
            ARRAY => (0..value).try_for_each(|_| self.skip_at(depth + 1)),
            MAP => self.skip_pairs(value, depth + 1),
            _ => Err(Malformed("it has a tag or a float")),
        }
    }

    fn skip_pairs(&mut self, pairs: u64, depth: usize) -> Result<(), Malformed> {
        let mut previous: Option<&[u8]> = None;
        for _ in 0..pairs {
            let start = self.position;
            self.skip_at(depth)?;
            let key = self.bytes.get(start..self.position).unwrap_or_default();
            if previous.is_some_and(|previous| previous >= key) {
                return Err(Malformed("the keys of a map do not ascend"));
            }
            previous = Some(key);
            self.skip_at(depth)?;
        }
        Ok(())
    }

    fn expect(&mut self, wanted: u8) -> Result<u64, Malformed> {
        let (major, value) = self.head()?;
        if major == wanted { Ok(value) } else { Err(WRONG_TYPE) }
    }

    fn head(&mut self) -> Result<(u8, u64), Malformed> {
        let first = *self.bytes.get(self.position).ok_or(TRUNCATED)?;
        self.position += 1;
        let (major, info) = (first >> 5, first & 31);
        if info < 24 {
            return Ok((major, u64::from(info)));
        }
        let (value, smallest) = match info {
            24 => (u64::from(self.fixed::<1>()?[0]), 24),
            25 => (u64::from(u16::from_be_bytes(self.fixed()?)), 1 << 8),
            26 => (u64::from(u32::from_be_bytes(self.fixed()?)), 1 << 16),
            27 => (u64::from_be_bytes(self.fixed()?), 1 << 32),
            _ => return Err(Malformed("a length is indefinite")),
        };
        let is_number = major != 7;
        if is_number && value < smallest {
            return Err(Malformed("a number is not in its shortest form"));
        }
        Ok((major, value))
    }

    fn fixed<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let rest = self.bytes.get(self.position..).unwrap_or_default();
        let (bytes, _) = rest.split_first_chunk::<N>().ok_or(TRUNCATED)?;
        self.position += N;
        Ok(*bytes)
    }

    fn take_text(&mut self, length: u64) -> Result<&'b str, Malformed> {
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed("a text is not UTF-8"))
    }

    fn take(&mut self, length: u64) -> Result<&'b [u8], Malformed> {
        let length = usize::try_from(length).map_err(|_| TRUNCATED)?;
        let end = self.position.checked_add(length).ok_or(TRUNCATED)?;
        let taken = self.bytes.get(self.position..end).ok_or(TRUNCATED)?;
        self.position = end;
        Ok(taken)
    }
}

pub(crate) fn put_uint(out: &mut Vec<u8>, value: u64) {
    put_head(out, UINT, value);
}

pub(crate) fn put_int(out: &mut Vec<u8>, value: i64) {
    match u64::try_from(value) {
        Ok(value) => put_head(out, UINT, value),
        Err(_) => put_head(out, NEGATIVE, (-1 - value).unsigned_abs()),
    }
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_head(out, BYTES, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_head(out, TEXT, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_array(out: &mut Vec<u8>, items: u64) {
    put_head(out, ARRAY, items);
}

pub(crate) fn put_map(out: &mut Vec<u8>, pairs: u64) {
    put_head(out, MAP, pairs);
}

pub(crate) fn put_null(out: &mut Vec<u8>) {
    out.push(NULL);
}

pub(crate) fn put_bool(out: &mut Vec<u8>, value: bool) {
    out.push(if value { TRUE } else { FALSE });
}

fn put_head(out: &mut Vec<u8>, major: u8, value: u64) {
    let major = major << 5;
    match value {
        0..=23 => out.push(major | value as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, value as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(value as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(value as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&value.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_shortest_definite_form_is_read() {
        for (bytes, read) in [
            (&[0x17][..], Ok(23)),
            (&[0x18, 24], Ok(24)),
            (&[0x18, 23], Err(Malformed("a number is not in its shortest form"))),
            (&[0x19, 0, 255], Err(Malformed("a number is not in its shortest form"))),
            (&[0x1f], Err(Malformed("a length is indefinite"))),
            (&[0x19, 1], Err(TRUNCATED)),
            (&[0x40], Err(WRONG_TYPE)),
        ] {
            assert_eq!(Reader::new(bytes).uint(), read, "{bytes:02x?}");
        }
    }

    #[test]
    fn skipping_deep_or_endless_claims_ends() {
        let nested = |depth: usize| [vec![0x81; depth], vec![0]].concat();
        assert_eq!(Reader::new(&nested(NESTING_MAX - 1)).skip(), Ok(()));
        for deep in [nested(NESTING_MAX), vec![0x81; 1 << 20]] {
            assert_eq!(Reader::new(&deep).skip(), Err(Malformed("it nests too deeply")));
        }
        let claims = [0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(Reader::new(&claims).skip(), Err(TRUNCATED));
    }

    #[test]
    fn what_is_passed_over_keeps_to_the_rules_as_well() {
        for fine in ["17", "3818", "4100", "62c3bc", "83f4f5f6", "a201000200", "a26161006162a0"] {
            assert_eq!(Reader::new(&hex::decode(fine).unwrap()).skip(), Ok(()), "{fine}");
        }
        for foreign in ["c11a514b67b0", "f90000", "fb3ff199999999999a", "f7", "f0", "f814", "ff", "9fff"] {
            assert!(Reader::new(&hex::decode(foreign).unwrap()).skip().is_err(), "{foreign}");
        }
        for wrong in ["1817", "62c328", "a202000100", "a201000100", "81a2616200616100"] {
            assert!(Reader::new(&hex::decode(wrong).unwrap()).skip().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn numbers_agree_with_another_encoder(value: i64, bytes: Vec<u8>, text: String) {
            let mut ours = Vec::new();
            put_array(&mut ours, 5);
            put_int(&mut ours, value);
            put_bytes(&mut ours, &bytes);
            put_text(&mut ours, &text);
            put_uint(&mut ours, value as u64);
            put_null(&mut ours);
            let mut theirs = minicbor::Encoder::new(Vec::new());
            theirs.array(5).unwrap().i64(value).unwrap().bytes(&bytes).unwrap();
            theirs.str(&text).unwrap().u64(value as u64).unwrap().null().unwrap();
            prop_assert_eq!(&ours, &theirs.into_writer());

            let mut reader = Reader::new(&ours);
            reader.array_of(5).unwrap();
            prop_assert_eq!(reader.int(), Ok(value));
            prop_assert_eq!(reader.bytes(), Ok(&bytes[..]));
            prop_assert_eq!(reader.text(), Ok(&text[..]));
            prop_assert_eq!(reader.uint(), Ok(value as u64));
            prop_assert!(reader.null());
            prop_assert_eq!(reader.finish(), Ok(()));
            let mut skipper = Reader::new(&ours);
            skipper.skip().unwrap();
            prop_assert_eq!(skipper.finish(), Ok(()));
        }
    }
}
