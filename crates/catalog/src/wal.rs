//! Archived write-ahead logs (format §15): names of their pieces, and what a piece looks like inside.
//!
//! A log is a row of files of equal size; a piece is a stretch of one of them, or a timeline's history file. Names sort
//! in the order of the log, so a listing from a place on is what recovery needs from there.

use std::fmt;
use std::str::FromStr;

use keepwell_crypto::{IdKey, MemberId};
use keepwell_storage::Key;

use crate::error::CatalogError;
use crate::frame;
use crate::names::{NUMBER_MAX, NameError};

/// Longest piece, in plain bytes: larger log files are archived in several.
pub const WAL_PIECE_BYTES_MAX: usize = 16 << 20;

const HEADER_MAGIC: u32 = 0x184D_2A55;
/// A signed header has some 300 bytes.
const HEADER_BYTES_MAX: usize = 64 << 10;
const WHAT: &str = "WAL piece";

/// Names a piece's plaintext: the first half of its keyed hash. Says nothing to whoever lacks the id key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalHash([u8; 16]);

impl WalHash {
    /// Of these bytes, under the id key of the domain they are sealed to.
    pub fn of(key: &IdKey, plaintext: &[u8]) -> Self {
        Self(key.wal_hash(plaintext))
    }

    /// Wraps the bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for WalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for WalHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WalHash({self})")
    }
}

/// Which part of a log a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalPlace {
    /// Bytes `from..to` of a log file. `file` is the last 16 hex digits of its name.
    Bytes {
        /// Which file of the timeline.
        file: u64,
        /// First byte.
        from: u32,
        /// Behind the last byte.
        to: u32,
    },
    /// The history file of the timeline.
    History,
}

/// The name of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalName {
    /// Who archived it.
    pub writer: MemberId,
    /// Which cluster's log.
    pub system: u64,
    /// Which timeline; not 0.
    pub timeline: u32,
    /// Which part.
    pub place: WalPlace,
    /// What is in it.
    pub hash: WalHash,
}

impl WalName {
    /// The key under which it is stored.
    pub fn key(&self) -> Key {
        self.to_string().parse().expect("names of this format are valid keys")
    }
}

/// Everything that a writer archived of a cluster's timeline is below this.
pub fn timeline_prefix(writer: MemberId, system: u64, timeline: u32) -> String {
    format!("wal/{writer}/{system:016x}/{timeline:08x}/")
}

/// Everything that a writer archived of a cluster is below this.
pub fn system_prefix(writer: MemberId, system: u64) -> String {
    format!("wal/{writer}/{system:016x}/")
}

/// A key that sorts behind all pieces of a log file and before those of the next.
pub fn after_file(writer: MemberId, system: u64, timeline: u32, file: u64) -> Key {
    let text = format!("{}{file:016x}/z", timeline_prefix(writer, system, timeline));
    text.parse().expect("a valid key")
}

/// A key that sorts behind everything of a timeline and before the next.
pub fn after_timeline(writer: MemberId, system: u64, timeline: u32) -> Key {
    let text = format!("{}z", timeline_prefix(writer, system, timeline));
    text.parse().expect("a valid key")
}

/// Records that say which cluster a dataset's log is of are below this.
pub fn cluster_prefix(writer: MemberId, tag: &[u8; 16]) -> String {
    format!("wal/{writer}/clusters/{}/", hex::encode(tag))
}

/// The key of such a record.
pub fn cluster_key(writer: MemberId, tag: &[u8; 16], n: u64) -> Key {
    let n = n.min(NUMBER_MAX);
    format!("{}{n:010}", cluster_prefix(writer, tag)).parse().expect("a valid key")
}

impl fmt::Display for WalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&timeline_prefix(self.writer, self.system, self.timeline))?;
        match self.place {
            WalPlace::Bytes { file, from, to } => write!(f, "{file:016x}/{from:08x}-{to:08x}-{}", self.hash),
            WalPlace::History => write!(f, "history-{}", self.hash),
        }
    }
}

impl FromStr for WalName {
    type Err = NameError;

    /// Accepts exactly what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let parsed = parse(text).filter(|name| name.to_string() == text);
        parsed.ok_or_else(|| NameError { name: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<WalName> {
    let mut parts = text.strip_prefix("wal/")?.split('/');
    let mut writer = [0; 8];
    hex::decode_to_slice(parts.next()?, &mut writer).ok()?;
    let system = u64::from_str_radix(parts.next()?, 16).ok()?;
    let timeline = u32::from_str_radix(parts.next()?, 16).ok()?;
    let third = parts.next()?;
    let (place, hash) = match (parts.next(), third.strip_prefix("history-")) {
        (None, Some(hash)) => (WalPlace::History, hash),
        (Some(piece), None) => {
            let mut fields = piece.splitn(3, '-');
            let mut number = || u32::from_str_radix(fields.next()?, 16).ok();
            let (from, to) = (number()?, number()?);
            let file = u64::from_str_radix(third, 16).ok()?;
            (WalPlace::Bytes { file, from, to }, fields.next()?)
        }
        _ => return None,
    };
    let sound = !matches!(place, WalPlace::Bytes { from, to, .. } if from >= to);
    let mut bytes = [0; 16];
    hex::decode_to_slice(hash, &mut bytes).ok()?;
    let name =
        WalName { writer: MemberId::from_bytes(writer), system, timeline, place, hash: WalHash(bytes) };
    (sound && timeline != 0 && parts.next().is_none()).then_some(name)
}

/// Makes pieces, one after the other in the same memory.
pub struct PieceEncoder {
    compressor: zstd::bulk::Compressor<'static>,
    compressed: Vec<u8>,
}

impl PieceEncoder {
    /// `level` is zstd's.
    pub fn new(level: i32) -> Result<Self, CatalogError> {
        let compressor =
            zstd::bulk::Compressor::new(level).map_err(|source| CatalogError::Compress { source })?;
        Ok(Self { compressor, compressed: Vec::new() })
    }

    /// Puts a signed header and the plaintext together: what is then sealed, in two parts, one behind the other.
    pub fn encode(&mut self, header: &[u8], plaintext: &[u8]) -> Result<(Vec<u8>, &[u8]), CatalogError> {
        self.compressed.clear();
        self.compressed.reserve(zstd::zstd_safe::compress_bound(plaintext.len()));
        self.compressor
            .compress_to_buffer(plaintext, &mut self.compressed)
            .map_err(|source| CatalogError::Compress { source })?;
        let length = u32::try_from(header.len()).unwrap_or(u32::MAX);
        let mut head = Vec::with_capacity(frame::SKIPPABLE_HEADER_LEN + header.len());
        head.extend_from_slice(&frame::skippable_header(HEADER_MAGIC, length));
        head.extend_from_slice(header);
        Ok((head, &self.compressed))
    }
}

impl fmt::Debug for PieceEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PieceEncoder").finish_non_exhaustive()
    }
}

/// Takes an opened piece apart again: the signed header, not yet verified, and the plaintext.
pub fn decode_piece(opened: &[u8]) -> Result<(&[u8], Vec<u8>), CatalogError> {
    let malformed = || CatalogError::malformed(WHAT, "its header is damaged");
    let length: [u8; 4] = opened.get(4..8).and_then(|b| b.try_into().ok()).ok_or_else(malformed)?;
    let length = u32::from_le_bytes(length) as usize;
    let end = frame::SKIPPABLE_HEADER_LEN + length;
    if length > HEADER_BYTES_MAX || opened.len() < end {
        return Err(malformed());
    }
    let header = frame::skippable_content(WHAT, HEADER_MAGIC, &opened[..end])?;
    let plaintext = frame::decompress(WHAT, &opened[end..], WAL_PIECE_BYTES_MAX)?;
    Ok((header, plaintext))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<WalName> {
        let at = |place| WalName {
            writer: MemberId::from_bytes([7; 8]),
            system: 0x0123_4567_89ab_cdef,
            timeline: 2,
            place,
            hash: WalHash([9; 16]),
        };
        vec![
            at(WalPlace::Bytes { file: 0x1_0000_0001, from: 0, to: 16 << 20 }),
            at(WalPlace::Bytes { file: u64::MAX, from: 1, to: 2 }),
            at(WalPlace::History),
        ]
    }

    #[test]
    fn every_name_survives_and_no_other_text_is_one() {
        for name in names() {
            let text = name.to_string();
            assert_eq!(text.parse(), Ok(name));
            assert!(crate::ObjectName::is_reserved(&text));
            for at in 0..text.len() {
                for replacement in ["", "/", "A", "+", "g", "-"] {
                    let changed = format!("{}{replacement}{}", &text[..at], &text[at + 1..]);
                    if let Ok(other) = changed.parse::<WalName>() {
                        assert_eq!(other.to_string(), changed);
                    }
                }
            }
        }
        let bad = WalName { place: WalPlace::Bytes { file: 1, from: 5, to: 5 }, ..names()[0] };
        assert!(bad.to_string().parse::<WalName>().is_err(), "an empty stretch");
        assert!(WalName { timeline: 0, ..names()[0] }.to_string().parse::<WalName>().is_err());
    }

    #[test]
    fn names_sort_as_the_log_runs() {
        let [first, last, history] = names()[..] else { panic!() };
        let key = |name: &WalName| name.key();
        assert!(key(&first) < key(&last) && key(&last) < key(&history));
        let WalPlace::Bytes { file, .. } = first.place else { panic!() };
        let after = after_file(first.writer, first.system, first.timeline, file);
        assert!(key(&first) < after && after < key(&last));
        assert!(key(&history) < after_timeline(first.writer, first.system, first.timeline));
    }

    fn encoded(encoder: &mut PieceEncoder, header: &[u8], plaintext: &[u8]) -> Vec<u8> {
        let (head, compressed) = encoder.encode(header, plaintext).unwrap();
        [&head, compressed].concat()
    }

    #[test]
    fn a_piece_is_read_back_and_never_beyond_its_bound() {
        let encoder = &mut PieceEncoder::new(1).unwrap();
        let stored = encoded(encoder, b"header", &[5; 100_000]);
        assert_eq!(decode_piece(&stored).unwrap(), (&b"header"[..], vec![5; 100_000]));
        for cut in 0..stored.len() {
            assert!(decode_piece(&stored[..cut]).is_err(), "{cut}");
        }
        let bomb = encoded(encoder, b"h", &vec![0; WAL_PIECE_BYTES_MAX + 1]);
        assert!(matches!(decode_piece(&bomb), Err(CatalogError::TooLarge { .. })));
    }

    #[test]
    fn a_piece_depends_on_nothing_before_it_and_takes_no_memory_anew() {
        let encoder = &mut PieceEncoder::new(1).unwrap();
        let text: Vec<u8> = (0..200_000_u32).flat_map(|n| (n % 977).to_le_bytes()).collect();
        let first = encoded(encoder, b"a", &text);
        let memory = encoder.compressed.as_ptr();
        for length in [0, 1, 70_000, text.len()] {
            let stored = encoded(encoder, b"b", &text[..length]);
            assert_eq!(decode_piece(&stored).unwrap(), (&b"b"[..], text[..length].to_vec()));
        }
        assert_eq!(encoded(encoder, b"a", &text), first);
        assert_eq!(encoder.compressed.as_ptr(), memory);
    }
}
