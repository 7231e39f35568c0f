//! Content-defined chunking: FastCDC with a keyed gear table.
//!
//! After Xia et al., "FastCDC" (USENIX ATC 2016) and its 2020 successor: a gear hash, two masks around the average size
//! (normalization level 2), and no hashing below the minimum size. Ours differs in one thing: the gear table comes from
//! the domain's id key, so that cut points do not reveal which known file was stored. The hash is warmed up on the 64
//! bytes before the minimum, so a cut depends on content alone, never on where the chunk began.
//!
//! Cut points are part of the format: `tests/fixtures/chunker.txt` pins them for ever.

/// Smallest, average and largest chunk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSizes {
    /// No cut before this many bytes; a content not larger is one chunk.
    pub min: usize,
    /// The size around which the masks change; a power of two.
    pub average: usize,
    /// A cut here at the latest.
    pub max: usize,
}

impl ChunkSizes {
    /// For files, objects and dumps: 256 KiB, 1 MiB, 4 MiB.
    pub const FILES: Self = Self { min: 256 << 10, average: 1 << 20, max: 4 << 20 };
    /// For logical dumps of databases: 16, 64, 256 KiB.
    pub const DUMPS: Self = Self { min: 16 << 10, average: 64 << 10, max: 256 << 10 };
}

/// Width of the gear hash in bytes: older bytes have been shifted out.
const WINDOW: usize = 64;
/// How many bits stricter (below the average) and laxer (above it) the masks are.
const NORMALIZATION: u32 = 2;

/// Finds chunk boundaries. Pure: the same table, sizes and bytes give the same cuts.
///
/// ```
/// use backup_core::chunker::{ChunkSizes, Chunker};
/// let gear = keepwell_crypto::IdKey::from_bytes([7; 32]).gear_table();
/// let chunker = Chunker::new(gear, ChunkSizes { min: 64, average: 256, max: 1024 });
/// let data = vec![1u8; 5000];
/// assert_eq!(chunker.cut(&data, true), Some(1024), "bytes without variety are cut at the maximum");
/// assert_eq!(chunker.cut(&data[..60], true), Some(60), "the end of the content ends a chunk");
/// assert_eq!(chunker.cut(&data[..60], false), None, "more bytes are needed to tell");
/// ```
pub struct Chunker {
    gear: Box<[u64; 256]>,
    sizes: ChunkSizes,
    limit_small: u64,
    limit_large: u64,
}

impl Chunker {
    /// A chunker over a domain's gear table.
    pub fn new(gear: Box<[u64; 256]>, sizes: ChunkSizes) -> Self {
        debug_assert!(sizes.min >= WINDOW && sizes.min <= sizes.average && sizes.average <= sizes.max);
        let bits = sizes.average.ilog2();
        Self {
            gear,
            sizes,
            limit_small: 1 << (64 - bits - NORMALIZATION),
            limit_large: 1 << (64 - bits + NORMALIZATION),
        }
    }

    /// The sizes in force.
    pub fn sizes(&self) -> ChunkSizes {
        self.sizes
    }

    /// Length of the first chunk of `data`; empty data has none. `None` also when `at_end` is false and fewer than the maximum
    /// are given, be there a chunk in them or not: who gets a stream in small pieces would look through it again with each.
    pub fn cut(&self, data: &[u8], at_end: bool) -> Option<usize> {
        let len = data.len().min(self.sizes.max);
        if len == 0 || !at_end && len < self.sizes.max {
            return None;
        }
        if len <= self.sizes.min {
            return Some(len);
        }
        let mut hash = 0u64;
        for &byte in &data[self.sizes.min - WINDOW..self.sizes.min] {
            hash = (hash << 1).wrapping_add(self.gear[usize::from(byte)]);
        }
        let middle = len.min(self.sizes.average);
        let found = self
            .scan(&mut hash, data, self.sizes.min, middle, self.limit_small)
            .or_else(|| self.scan(&mut hash, data, middle, len, self.limit_large));
        found.or(Some(len))
    }

    /// Scans `data[from..to]`; a cut is before the byte that is looked at next.
    #[inline]
    fn scan(&self, hash: &mut u64, data: &[u8], from: usize, to: usize, limit: u64) -> Option<usize> {
        let mut h = *hash;
        for (i, &byte) in data[from..to].iter().enumerate() {
            if h < limit {
                return Some(from + i);
            }
            h = (h << 1).wrapping_add(self.gear[usize::from(byte)]);
        }
        *hash = h;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn chunker(sizes: ChunkSizes) -> Chunker {
        Chunker::new(keepwell_crypto::IdKey::from_bytes([42; 32]).gear_table(), sizes)
    }

    fn noise(seed: &str, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        blake3::Hasher::new_derive_key(seed).finalize_xof().fill(&mut out);
        out
    }

    fn cuts(chunker: &Chunker, mut data: &[u8]) -> Vec<usize> {
        let mut out = Vec::new();
        while let Some(n) = chunker.cut(data, true) {
            out.push(n);
            data = &data[n..];
        }
        out
    }

    #[test]
    fn golden_vectors_never_change() {
        let file = include_str!("../../../tests/fixtures/chunker.txt");
        for line in file.lines().filter(|l| !l.starts_with('#')) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let sizes = match fields[0] {
                "files" => ChunkSizes::FILES,
                _ => ChunkSizes::DUMPS,
            };
            let data = match fields[1] {
                "zeros" => vec![0; fields[2].parse().unwrap()],
                seed => noise(seed, fields[2].parse().unwrap()),
            };
            let got: Vec<String> = cuts(&chunker(sizes), &data).iter().map(ToString::to_string).collect();
            assert_eq!(got.join(","), fields[3], "{line}");
        }
    }

    #[test]
    fn nothing_is_looked_through_before_the_largest_chunk_is_there() {
        let sizes = ChunkSizes { min: 64, average: 256, max: 1024 };
        let (c, data) = (chunker(sizes), noise("wait", 1024));
        let first = c.cut(&data, false).unwrap();
        assert!(first < 1000, "there is a chunk in less: {first}");
        assert_eq!(c.cut(&data[..1000], false), None);
        assert_eq!(c.cut(&data[..1000], true), Some(first));
    }

    #[test]
    fn an_insertion_moves_few_cuts() {
        let c = chunker(ChunkSizes::DUMPS);
        let data = noise("insertion", 8 << 20);
        let mut edited = data.clone();
        edited.splice(1_000_000..1_000_000, *b"something new");
        let set = |d: &[u8]| {
            let mut at = 0;
            cuts(&c, d)
                .iter()
                .map(|n| {
                    at += n;
                    blake3::hash(&d[at - n..at])
                })
                .collect::<std::collections::HashSet<_>>()
        };
        let (a, b) = (set(&data), set(&edited));
        assert!(b.difference(&a).count() <= 3, "{} new chunks", b.difference(&a).count());
    }

    #[test]
    fn the_average_is_near_the_target() {
        let n = cuts(&chunker(ChunkSizes::DUMPS), &noise("average", 64 << 20)).len();
        let average = (64 << 20) / n;
        assert!((50 << 10..90 << 10).contains(&average), "average {average}");
    }

    proptest! {
        #[test]
        fn streaming_gives_the_same_cuts(seed in "[a-z]{8}", len in 0usize..6000, step in 1usize..700) {
            let c = chunker(ChunkSizes { min: 64, average: 256, max: 1024 });
            let data = noise(&seed, len);
            let whole = cuts(&c, &data);
            let (mut out, mut from, mut to) = (Vec::new(), 0, 0);
            loop {
                match c.cut(&data[from..to], to == len) {
                    Some(n) => { out.push(n); from += n; }
                    None if to == len => break,
                    None => to = (to + step).min(len),
                }
            }
            prop_assert_eq!(&out, &whole);
            prop_assert_eq!(out.iter().sum::<usize>(), len);
            for n in out.iter().rev().skip(1) { prop_assert!((64..=1024).contains(n)); }
        }
    }
}
