//! Positions in the WAL, timelines, and the names of segment files.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

/// A position in the WAL of a cluster: a byte offset, written as `16/B374D848`.
///
/// ```
/// use keepwell_source_postgres::lsn::Lsn;
///
/// let begin: Lsn = "16/FFFFFFF0".parse()?;
/// assert_eq!(begin.plus(0x20).to_string(), "17/10");
/// # Ok::<(), keepwell_source_postgres::lsn::NotA>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

/// A text that is none of the things this module names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}")]
pub struct NotA {
    text: String,
    what: &'static str,
}

fn not_a(text: &str, what: &'static str) -> NotA {
    NotA { text: text.chars().take(64).collect(), what }
}

impl Lsn {
    /// The position this many bytes from the beginning.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Bytes from the beginning.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `bytes` further on; saturates at the end of the number space.
    pub const fn plus(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = NotA;

    fn from_str(text: &str) -> Result<Self, NotA> {
        let parse = || {
            let (high, low) = text.split_once('/')?;
            Some(Self((u64::from(hex32(high)?) << 32) | u64::from(hex32(low)?)))
        };
        parse().ok_or_else(|| not_a(text, "a WAL position, as in `16/B374D848`"))
    }
}

/// One to eight hex digits.
fn hex32(text: &str) -> Option<u32> {
    let fits = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u32::from_str_radix(text, 16).ok())?
}

/// A line of history of a cluster; each promotion begins a new one. Counts from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timeline(NonZeroU32);

impl Timeline {
    /// The timeline of a cluster that was never promoted.
    pub const FIRST: Self = Self(NonZeroU32::MIN);

    /// `None` for 0, which is no timeline.
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).map(Self)
    }

    /// Its number.
    pub fn get(self) -> u32 {
        self.0.get()
    }

    /// Name of its history file: `00000002.history`.
    pub fn history_file(self) -> String {
        format!("{:08X}.history", self.get())
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Timeline {
    type Err = NotA;

    fn from_str(text: &str) -> Result<Self, NotA> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| not_a(text, "a timeline, a number from 1 on"))
    }
}

/// How many bytes a WAL segment file of a cluster has: a power of two from 1 MiB to 1 GiB, 16 MiB unless initdb was told otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

impl Default for SegmentSize {
    fn default() -> Self {
        Self(16 << 20)
    }
}

impl SegmentSize {
    /// `None` for what no cluster has.
    pub fn new(bytes: u64) -> Option<Self> {
        let fits = bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes);
        fits.then_some(Self(bytes as u32))
    }

    /// In bytes.
    pub fn get(self) -> u32 {
        self.0
    }

    /// Number of the segment that holds the byte at `at`.
    pub fn number_at(self, at: Lsn) -> u64 {
        at.get() / u64::from(self.0)
    }

    /// How far `at` is into its segment.
    pub fn offset_of(self, at: Lsn) -> u32 {
        (at.get() % u64::from(self.0)) as u32
    }

    /// Where a segment begins; saturates.
    pub fn start_of(self, number: u64) -> Lsn {
        Lsn::new(number.saturating_mul(u64::from(self.0)))
    }

    fn per_log(self) -> u64 {
        (1 << 32) / u64::from(self.0)
    }
}

/// A WAL segment file of a timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    /// The timeline in its name.
    pub timeline: Timeline,
    /// Segments before it since the beginning of the WAL.
    pub number: u64,
}

impl Segment {
    /// The name PostgreSQL gives the file: 24 hex digits.
    pub fn file_name(self, size: SegmentSize) -> String {
        let (log, rest) = (self.number / size.per_log(), self.number % size.per_log());
        format!("{:08X}{log:08X}{rest:08X}", self.timeline.get())
    }

    /// The last sixteen digits of the file name as a number: what the archive calls the file.
    pub fn file_number(self, size: SegmentSize) -> u64 {
        ((self.number / size.per_log()) << 32) | (self.number % size.per_log())
    }

    /// The segment with this [`Segment::file_number`]; `None` if no segment has it.
    pub fn of_file(timeline: Timeline, file: u64, size: SegmentSize) -> Option<Self> {
        let (log, rest) = (file >> 32, file & 0xffff_ffff);
        (rest < size.per_log()).then(|| Self { timeline, number: log * size.per_log() + rest })
    }

    /// Reads a file name back.
    pub fn parse(name: &str, size: SegmentSize) -> Result<Self, NotA> {
        let parse = || {
            let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
            if name.len() != 24 || !name.bytes().all(upper) {
                return None;
            }
            let timeline = Timeline::new(hex32(&name[..8])?)?;
            let (log, rest) = (u64::from(hex32(&name[8..16])?), u64::from(hex32(&name[16..])?));
            (rest < size.per_log()).then(|| Self { timeline, number: log * size.per_log() + rest })
        };
        parse().ok_or_else(|| not_a(name, "the name of a WAL segment"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_read_as_postgresql_writes_them() {
        assert_eq!("16/B374D848".parse::<Lsn>().unwrap().get(), 0x16_b374_d848);
        assert_eq!(Lsn::new(0x16_0000_0028).to_string(), "16/28");
        for bad in ["", "/", "1", "1/", "/1", "123456789/0", "+1/0", "1/0 ", "g/0"] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad}");
        }
    }

    #[test]
    fn segment_names_carry_over_at_four_gigabytes() {
        let size = SegmentSize::default();
        let at = |lsn: &str| {
            let number = size.number_at(lsn.parse().unwrap());
            Segment { timeline: Timeline::FIRST, number }.file_name(size)
        };
        assert_eq!(at("0/FFFFFFFF"), "0000000100000000000000FF");
        assert_eq!(at("1/0"), "000000010000000100000000");
        assert!(Segment::parse("000000010000000000000100", size).is_err(), "there are only 256 in a log");
        assert!(Segment::parse("000000000000000000000001", size).is_err(), "timeline 0");
        assert!(Segment::parse("0000000100000000000000ff", size).is_err(), "lower case");
    }

    proptest! {
        #[test]
        fn names_and_positions_survive_the_way_there_and_back(lsn: u64, timeline in 1u32.., shift in 20u32..=30) {
            let size = SegmentSize::new(1 << shift).unwrap();
            let segment = Segment { timeline: Timeline::new(timeline).unwrap(), number: size.number_at(Lsn::new(lsn)) };
            prop_assert_eq!(Segment::parse(&segment.file_name(size), size).unwrap(), segment);
            prop_assert_eq!(Segment::of_file(segment.timeline, segment.file_number(size), size), Some(segment));
            prop_assert_eq!(size.start_of(segment.number).plus(size.offset_of(Lsn::new(lsn)).into()), Lsn::new(lsn));
            prop_assert_eq!(Lsn::new(lsn).to_string().parse::<Lsn>().unwrap(), Lsn::new(lsn));
        }
    }
}
