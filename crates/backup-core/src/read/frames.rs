//! Fetching packs, whole or in part.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use keepwell_catalog::{PackClass, PackRef, names};
use keepwell_crypto::{Identity, OpenReader, Parts, sealed_range};

use crate::Error;
use crate::pack::PackError;
use crate::repository::Repository;

/// Ranges of a pack closer than this are fetched as one.
const GAP_MAX: u64 = 256 << 10;

/// Fetches the stored frames at these ranges of a pack's plaintext, in the order asked for. Ranges must ascend.
///
/// Costs one request for the header and one per run of neighbouring ranges.
pub(crate) async fn fetch_frames(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
    ranges: &[Range<u32>],
) -> Result<Vec<Bytes>, Error> {
    let key = names::pack_key(class, &pack.name);
    let identities = repository.data_identities(pack.domain)?;
    let store = repository.store();
    let head_len = u64::from(pack.header_len) + 16;
    let header_len = pack.header_len as usize;
    let mut parts = Parts::new(pack.size);
    let mut merged: Vec<Range<u64>> = std::iter::once(0..head_len.min(pack.size)).collect();
    for range in ranges {
        let sealed = sealed_range(header_len, u64::from(range.start)..u64::from(range.end));
        let sealed = sealed.start.min(pack.size)..sealed.end.min(pack.size);
        match merged.last_mut() {
            Some(last) if sealed.start <= last.end + GAP_MAX => last.end = last.end.max(sealed.end),
            _ => merged.push(sealed),
        }
    }
    for range in merged {
        let bytes = store.get_range(&key, range.clone()).await?;
        parts = parts.with(range.start, bytes);
    }
    open_ranges(identities, parts, ranges).map_err(|e| Error::damaged(&key, e))
}

fn open_ranges(
    identities: &[Identity],
    source: Parts<Bytes>,
    ranges: &[Range<u32>],
) -> Result<Vec<Bytes>, PackError> {
    let mut reader = OpenReader::new(identities, source)?;
    let mut frames = Vec::with_capacity(ranges.len());
    for range in ranges {
        let length = range.end.saturating_sub(range.start) as usize;
        let mut frame = vec![0; length];
        reader.seek(SeekFrom::Start(u64::from(range.start))).map_err(PackError::Seal)?;
        reader.read_exact(&mut frame).map_err(PackError::Seal)?;
        frames.push(Bytes::from(frame));
    }
    Ok(frames)
}

/// A whole pack.
pub(crate) struct FetchedPack {
    /// As stored.
    pub stored: Bytes,
    /// Decrypted: frames, directory, padding.
    pub plain: Vec<u8>,
}

/// Fetches and decrypts a whole pack.
pub(crate) async fn fetch_pack(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
) -> Result<FetchedPack, Error> {
    let key = names::pack_key(class, &pack.name);
    let stored = repository.store().get(&key).await?;
    let plain = open_pack(repository, class, pack, &stored)?;
    Ok(FetchedPack { stored, plain })
}

/// Decrypts the stored bytes of a pack.
pub(crate) fn open_pack(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
    stored: &[u8],
) -> Result<Vec<u8>, Error> {
    let identities = repository.data_identities(pack.domain)?;
    keepwell_crypto::open(identities, stored, stored.len() as u64)
        .map_err(|e| Error::damaged(names::pack_key(class, &pack.name), e))
}
