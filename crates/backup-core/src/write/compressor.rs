//! Compression of frames, at the level that was asked for where that pays.

use std::io;

use zstd::bulk;

/// The level that a higher one has to beat.
const FAST: i32 = 1;
/// The higher level is kept as long as it saves one byte of so many.
const WORTH: usize = 32;
/// So many frames of large contents go by one comparison.
const FRAMES_BETWEEN: u32 = 32;

/// Compresses frames at one zstd level, and those of large contents at level 1 where more effort gains nothing: media and
/// archives, and pages of a database, which levels 2 and 3 often leave larger. One per worker, whose frames follow each other.
pub(super) struct FrameCompressor {
    wanted: bulk::Compressor<'static>,
    /// `None` where nothing above level 1 was asked for.
    fast: Option<bulk::Compressor<'static>>,
    /// What the last comparison said.
    fast_is_as_good: bool,
    until_next: u32,
}

impl FrameCompressor {
    pub fn new(level: i32) -> io::Result<Self> {
        let fast = (level > FAST).then(|| bulk::Compressor::new(FAST)).transpose()?;
        let wanted = bulk::Compressor::new(level)?;
        Ok(Self { wanted, fast, fast_is_as_good: false, until_next: 0 })
    }

    /// Compresses small chunks that share a frame: what comes next is something else.
    pub fn mixed(&mut self, plain: &[u8], out: &mut [u8]) -> io::Result<usize> {
        self.wanted.compress_to_buffer(plain, out)
    }

    /// Compresses a chunk of a large content, whose next chunks are likely to be of its kind.
    pub fn large(&mut self, plain: &[u8], out: &mut [u8]) -> io::Result<usize> {
        let Some(fast) = &mut self.fast else { return self.wanted.compress_to_buffer(plain, out) };
        if self.until_next > 0 {
            self.until_next -= 1;
            let chosen = if self.fast_is_as_good { fast } else { &mut self.wanted };
            return chosen.compress_to_buffer(plain, out);
        }
        self.until_next = FRAMES_BETWEEN - 1;
        let wanted = self.wanted.compress_to_buffer(plain, out)?;
        let stored = fast.compress_to_buffer(plain, out)?;
        self.fast_is_as_good = stored <= wanted + wanted / WORTH;
        if self.fast_is_as_good { Ok(stored) } else { self.wanted.compress_to_buffer(plain, out) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: usize = 1 << 20;

    fn bytes(seed: &[u8], length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(seed).finalize_xof().fill(&mut bytes);
        bytes
    }

    /// Sentences of a few words: a higher level finds longer matches.
    fn prose() -> Vec<u8> {
        let words: Vec<Vec<u8>> =
            (0_u32..4096).map(|n| bytes(&n.to_le_bytes(), 3 + n as usize % 9)).collect();
        let choices = bytes(b"prose", FRAME);
        let chosen = choices.chunks(2).map(|two| &words[usize::from(two[0]) << 4 | usize::from(two[1] & 15)]);
        chosen.flatten().copied().take(FRAME).collect()
    }

    fn at(level: i32, plain: &[u8]) -> usize {
        bulk::compress(plain, level).unwrap().len()
    }

    fn large(compressor: &mut FrameCompressor, plain: &[u8]) -> usize {
        let mut out = vec![0; zstd::zstd_safe::compress_bound(plain.len())];
        let stored = compressor.large(plain, &mut out).unwrap();
        assert_eq!(bulk::decompress(&out[..stored], plain.len()).unwrap(), plain);
        stored
    }

    #[test]
    fn a_level_that_gains_nothing_is_left_until_the_next_comparison() {
        let (noise, prose) = (bytes(b"noise", FRAME), prose());
        assert!(at(19, &prose) < at(1, &prose) / 10 * 9, "a higher level gains something");
        let mut compressor = FrameCompressor::new(19).unwrap();
        assert_eq!(large(&mut compressor, &noise), at(1, &noise));
        assert_eq!(large(&mut compressor, &prose), at(1, &prose), "it goes by the last comparison");
        for _ in 2..FRAMES_BETWEEN {
            large(&mut compressor, &noise[..1000]);
        }
        assert_eq!(large(&mut compressor, &prose), at(19, &prose), "compared again");
        assert_eq!(large(&mut compressor, &prose), at(19, &prose));
    }

    #[test]
    fn what_shares_a_frame_has_the_level_that_was_asked_for() {
        let (noise, prose) = (bytes(b"noise", FRAME), prose());
        let mut compressor = FrameCompressor::new(19).unwrap();
        large(&mut compressor, &noise);
        let mut out = vec![0; zstd::zstd_safe::compress_bound(FRAME)];
        assert_eq!(compressor.mixed(&prose, &mut out).unwrap(), at(19, &prose));
    }

    #[test]
    fn there_is_nothing_to_compare_at_level_1_and_below() {
        let prose = prose();
        for level in [-5, 1] {
            let mut compressor = FrameCompressor::new(level).unwrap();
            assert!(compressor.fast.is_none());
            assert_eq!(large(&mut compressor, &prose), at(level, &prose));
        }
    }
}
