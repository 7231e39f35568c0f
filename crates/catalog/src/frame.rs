//! zstd frames with a bound on what they decode to, and skippable frames.

use std::cell::RefCell;

use zstd::bulk::Decompressor;

use crate::error::CatalogError;

thread_local! {
    /// Kept, because making one takes about as long as decoding a block of an index.
    static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
}

/// First bytes of an ordinary zstd frame.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();
/// Frames that do not say their plain length are read through a window of at most 8 MiB (2^23): what is larger would be
/// taken at once, whatever the frame then holds.
const WINDOW_LOG_MAX: u32 = 23;
/// Bytes of a skippable frame before its content.
pub(crate) const SKIPPABLE_HEADER_LEN: usize = 8;

/// Compresses `plain` into one frame whose header says the plain length.
pub(crate) fn compress(plain: &[u8], level: i32) -> Result<Vec<u8>, CatalogError> {
    zstd::bulk::compress(plain, level).map_err(|source| CatalogError::Compress { source })
}

/// Decodes `stored`, which must be exactly one ordinary frame of at most `limit_bytes` plain bytes.
pub(crate) fn decompress(
    what: &'static str,
    stored: &[u8],
    limit_bytes: usize,
) -> Result<Vec<u8>, CatalogError> {
    let malformed = |reason: &str| CatalogError::malformed(what, reason);
    if stored.get(..4) != Some(&ZSTD_MAGIC[..]) {
        return Err(malformed("it does not begin with a zstd frame"));
    }
    match zstd::zstd_safe::find_frame_compressed_size(stored) {
        Ok(len) if len == stored.len() => {}
        Ok(_) => return Err(malformed("something follows its zstd frame")),
        Err(_) => return Err(malformed("its zstd frame is cut short")),
    }
    let said = zstd::zstd_safe::get_frame_content_size(stored)
        .map_err(|_| malformed("its zstd header is damaged"))?;
    let capacity = match said {
        Some(said) if said > limit_bytes as u64 => return Err(CatalogError::TooLarge { what, limit_bytes }),
        Some(said) => usize::try_from(said).unwrap_or(limit_bytes),
        None => return decompress_unsized(what, stored, limit_bytes),
    };
    decompress_sized(stored, capacity).map_err(|_| malformed("its zstd frame is damaged"))
}

fn decompress_sized(stored: &[u8], capacity: usize) -> std::io::Result<Vec<u8>> {
    DECOMPRESSOR.with_borrow_mut(|kept| {
        let decompressor = match kept {
            Some(decompressor) => decompressor,
            None => kept.insert(Decompressor::new()?),
        };
        decompressor.decompress(stored, capacity)
    })
}

/// Decodes a frame that does not say its plain length, growing as it goes.
fn decompress_unsized(
    what: &'static str,
    stored: &[u8],
    limit_bytes: usize,
) -> Result<Vec<u8>, CatalogError> {
    use std::io::Read;
    let damaged = |_| CatalogError::malformed(what, "its zstd frame is damaged");
    let mut decoder = zstd::stream::read::Decoder::with_buffer(stored).map_err(damaged)?.single_frame();
    decoder.window_log_max(WINDOW_LOG_MAX).map_err(damaged)?;
    let mut plain = Vec::new();
    decoder.by_ref().take(limit_bytes as u64 + 1).read_to_end(&mut plain).map_err(damaged)?;
    if plain.len() > limit_bytes { Err(CatalogError::TooLarge { what, limit_bytes }) } else { Ok(plain) }
}

/// Header of a skippable frame with `content_len` bytes of content.
pub(crate) fn skippable_header(magic: u32, content_len: u32) -> [u8; SKIPPABLE_HEADER_LEN] {
    let mut header = [0; SKIPPABLE_HEADER_LEN];
    header[..4].copy_from_slice(&magic.to_le_bytes());
    header[4..].copy_from_slice(&content_len.to_le_bytes());
    header
}

/// Content of `stored`, which must be exactly one skippable frame with this magic number.
pub(crate) fn skippable_content<'a>(
    what: &'static str,
    magic: u32,
    stored: &'a [u8],
) -> Result<&'a [u8], CatalogError> {
    let content_len = stored.len().checked_sub(SKIPPABLE_HEADER_LEN).and_then(|len| u32::try_from(len).ok());
    match content_len {
        Some(len) if stored.starts_with(&skippable_header(magic, len)) => Ok(&stored[SKIPPABLE_HEADER_LEN..]),
        _ => Err(CatalogError::malformed(what, "it is not one skippable frame of the right kind")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_frame_within_the_limit() {
        let stored = compress(&[7; 1000], 3).unwrap();
        assert_eq!(decompress("record", &stored, 1000).unwrap(), [7; 1000]);
        assert!(matches!(decompress("record", &stored, 999), Err(CatalogError::TooLarge { .. })));
        let twice = [stored.clone(), stored.clone()].concat();
        assert!(matches!(decompress("record", &twice, 9000), Err(CatalogError::Malformed { .. })));
        for cut in 0..stored.len() {
            assert!(decompress("record", &stored[..cut], 1000).is_err());
        }
        for at in 0..stored.len() {
            let mut damaged = stored.clone();
            damaged[at] ^= 1;
            let _ = decompress("record", &damaged, 1000);
            assert_eq!(
                decompress("record", &stored, 1000).unwrap(),
                [7; 1000],
                "after byte {at} was damaged"
            );
        }
        let skippable = [&skippable_header(0x184D_2A50, 0)[..], &stored].concat();
        assert!(decompress("record", &skippable, 1000).is_err());
    }

    #[test]
    fn a_frame_without_a_length_is_bounded_too() {
        use std::io::Write;
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.include_contentsize(false).unwrap();
        encoder.write_all(&[7; 100_000]).unwrap();
        let stored = encoder.finish().unwrap();
        assert_eq!(decompress("record", &stored, 100_000).unwrap().len(), 100_000);
        assert!(matches!(decompress("record", &stored, 99_999), Err(CatalogError::TooLarge { .. })));
    }

    #[test]
    fn a_frame_that_asks_for_a_large_window_is_refused() {
        use std::io::Write;
        let with_window = |log: u32| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
            encoder.include_contentsize(false).unwrap();
            encoder.window_log(log).unwrap();
            encoder.write_all(&[7; 300_000]).unwrap();
            encoder.finish().unwrap()
        };
        assert_eq!(decompress("record", &with_window(WINDOW_LOG_MAX), 300_000).unwrap().len(), 300_000);
        let large = decompress("record", &with_window(WINDOW_LOG_MAX + 1), 300_000);
        assert!(matches!(large, Err(CatalogError::Malformed { .. })));
    }

    #[test]
    fn a_skippable_frame_is_taken_whole() {
        let stored = [&skippable_header(0x184D_2A52, 3)[..], b"abc"].concat();
        assert_eq!(skippable_content("filter", 0x184D_2A52, &stored).unwrap(), b"abc");
        assert!(skippable_content("filter", 0x184D_2A53, &stored).is_err());
        assert!(skippable_content("filter", 0x184D_2A52, &stored[..10]).is_err());
        assert!(skippable_content("filter", 0x184D_2A52, b"").is_err());
    }
}
