//! The rules that every CBOR structure of the format obeys.

use std::convert::Infallible;

/// Nesting deeper than this is refused; no structure of the format comes near it.
const MAX_DEPTH: usize = 16;

const MAJOR_UNSIGNED: u8 = 0;
const MAJOR_NEGATIVE: u8 = 1;
const MAJOR_BYTES: u8 = 2;
const MAJOR_TEXT: u8 = 3;
const MAJOR_ARRAY: u8 = 4;
const MAJOR_MAP: u8 = 5;

/// Bytes that are not one item in core deterministic encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the CBOR is invalid at byte {at}: {reason}")]
pub struct CborError {
    /// Position of the offending item.
    pub at: usize,
    /// What does not hold.
    pub reason: &'static str,
}

/// Checks that `bytes` are exactly one CBOR item in core deterministic encoding (RFC 8949 §4.2.1).
///
/// That is: definite lengths, shortest integers, map keys strictly ascending by their encoded bytes, valid UTF-8,
/// and nothing after the item. Tags, floats and simple values other than false, true and null are refused: the
/// format has none. A decoder that runs after this check may skip what it does not know without further care.
/// Linear time, no allocation.
pub fn check(bytes: &[u8]) -> Result<(), CborError> {
    let mut walker = Walker { bytes, at: 0 };
    walker.item(0)?;
    if walker.at == bytes.len() { Ok(()) } else { Err(walker.error("bytes follow the item")) }
}

struct Walker<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Walker<'a> {
    fn error(&self, reason: &'static str) -> CborError {
        CborError { at: self.at, reason }
    }

    fn item(&mut self, depth: usize) -> Result<(), CborError> {
        if depth > MAX_DEPTH {
            return Err(self.error("nested too deeply"));
        }
        let first = *self.bytes.get(self.at).ok_or_else(|| self.error("it ends too early"))?;
        let major = first >> 5;
        if matches!(first, 0xf4..=0xf6) {
            self.at += 1; // false, true, null
            return Ok(());
        }
        if major > MAJOR_MAP {
            return Err(self.error("a tag, a float or a simple value that the format does not have"));
        }
        let argument = self.argument(first)?;
        match major {
            MAJOR_UNSIGNED | MAJOR_NEGATIVE => Ok(()),
            MAJOR_BYTES => self.take(argument).map(drop),
            MAJOR_TEXT => self.text(argument),
            MAJOR_ARRAY => (0..argument).try_for_each(|_| self.item(depth + 1)),
            _ => self.map(argument, depth),
        }
    }

    fn argument(&mut self, first: u8) -> Result<u64, CborError> {
        let (width, least) = match first & 0x1f {
            small @ 0..=23 => {
                self.at += 1;
                return Ok(u64::from(small));
            }
            24 => (1, 24),
            25 => (2, 1 << 8),
            26 => (4, 1 << 16),
            27 => (8, 1 << 32),
            _ => return Err(self.error("an indefinite or reserved length")),
        };
        let start = self.at + 1;
        let digits = self.bytes.get(start..start + width).ok_or_else(|| self.error("it ends too early"))?;
        let value = digits.iter().fold(0, |value, digit| value << 8 | u64::from(*digit));
        if value < least {
            return Err(self.error("an integer is not in its shortest form"));
        }
        self.at = start + width;
        Ok(value)
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], CborError> {
        let end = usize::try_from(length).ok().and_then(|length| self.at.checked_add(length));
        let taken = end.and_then(|end| self.bytes.get(self.at..end));
        let taken = taken.ok_or_else(|| self.error("it ends too early"))?;
        self.at += taken.len();
        Ok(taken)
    }

    fn text(&mut self, length: u64) -> Result<(), CborError> {
        let start = self.at;
        let invalid = CborError { at: start, reason: "a text is not UTF-8" };
        std::str::from_utf8(self.take(length)?).map(drop).map_err(|_| invalid)
    }

    fn map(&mut self, pairs: u64, depth: usize) -> Result<(), CborError> {
        let mut previous: Option<&[u8]> = None;
        for _ in 0..pairs {
            let start = self.at;
            self.item(depth + 1)?;
            let key = &self.bytes[start..self.at];
            if previous.is_some_and(|previous| previous >= key) {
                return Err(CborError { at: start, reason: "map keys are not strictly ascending" });
            }
            previous = Some(key);
            self.item(depth + 1)?;
        }
        Ok(())
    }
}

/// Runs an encoding into memory, which cannot fail.
pub(crate) fn infallible(encode: impl FnOnce() -> Result<(), minicbor::encode::Error<Infallible>>) {
    encode().expect("encoding into memory does not fail");
}

pub(crate) type Decoded<T> = Result<T, minicbor::decode::Error>;

/// Reads a map with unsigned keys. `field` reads the value of a key that it knows and returns true; others are skipped.
pub(crate) fn fields<'b>(
    d: &mut minicbor::Decoder<'b>,
    mut field: impl FnMut(u64, &mut minicbor::Decoder<'b>) -> Decoded<bool>,
) -> Decoded<()> {
    for _ in 0..definite(d.map()?)? {
        let key = d.u64()?;
        if !field(key, d)? {
            d.skip()?;
        }
    }
    Ok(())
}

/// Reads an array of items.
pub(crate) fn items<'b, T>(
    d: &mut minicbor::Decoder<'b>,
    mut item: impl FnMut(&mut minicbor::Decoder<'b>) -> Decoded<T>,
) -> Decoded<Vec<T>> {
    (0..definite(d.array()?)?).map(|_| item(d)).collect()
}

/// The value of a key that must be there.
pub(crate) fn need<T>(value: Option<T>, key: i64) -> Decoded<T> {
    value.ok_or_else(|| minicbor::decode::Error::missing_value(key))
}

fn definite(length: Option<u64>) -> Decoded<u64> {
    length.ok_or_else(|| minicbor::decode::Error::message("indefinite length"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reason(hex_text: &str) -> &'static str {
        check(&hex::decode(hex_text).unwrap()).map_or_else(|error| error.reason, |()| "fine")
    }

    /// Mostly from RFC 8949, appendices A and F.
    #[test]
    fn only_core_deterministic_items_pass() {
        let fine =
            ["00", "17", "1818", "1903e8", "1bffffffffffffffff", "20", "3863", "40", "4401020304", "f6"];
        let nested = [
            "f4",
            "f5",
            "6161",
            "62c3bc",
            "80",
            "83010203",
            "8301820203820405",
            "a0",
            "a201020304",
            "a26161016162820203",
        ];
        for item in fine.into_iter().chain(nested) {
            assert_eq!(reason(item), "fine", "{item}");
        }
        for early in
            ["", "18", "19ff", "41", "62c3", "81", "a1", "a101", "5bffffffffffffffff", "9bffffffffffffffff"]
        {
            assert_eq!(reason(early), "it ends too early", "{early}");
        }
        for long in
            ["1800", "1817", "190017", "1900ff", "1a0000ffff", "1b00000000ffffffff", "580101", "b80101"]
        {
            assert_eq!(reason(long), "an integer is not in its shortest form", "{long}");
        }
        for open in ["5f42010243030405ff", "9fff", "bfff", "7f657374ff", "1c", "5e"] {
            assert_eq!(reason(open), "an indefinite or reserved length", "{open}");
        }
        for foreign in ["c11a514b67b0", "f90000", "fb3ff199999999999a", "f7", "f0", "f8ff", "ff"] {
            assert_eq!(
                reason(foreign),
                "a tag, a float or a simple value that the format does not have",
                "{foreign}"
            );
        }
        for order in ["a201000100", "a202000100", "a2616200616100", "a2200000ff"] {
            assert_eq!(reason(order), "map keys are not strictly ascending", "{order}");
        }
        assert_eq!(reason("62c328"), "a text is not UTF-8");
        assert_eq!(reason("0000"), "bytes follow the item");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| [vec![0x81; depth], vec![0]].concat();
        assert!(check(&nested(MAX_DEPTH)).is_ok());
        assert_eq!(check(&nested(MAX_DEPTH + 1)).unwrap_err().reason, "nested too deeply");
        assert!(check(&nested(1_000_000)).is_err());
    }

    proptest! {
        /// What passes can be skipped by the decoder, exactly to its end.
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if check(&bytes).is_ok() {
                let mut d = minicbor::Decoder::new(&bytes);
                prop_assert!(d.skip().is_ok());
                prop_assert_eq!(d.position(), bytes.len());
            }
        }
    }
}
