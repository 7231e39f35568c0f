//! Fetching packs, whole or in part.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use keepwell_catalog::{PackClass, PackRef, names};
use keepwell_crypto::{Identity, OpenReader, Parts, sealed_range};

use crate::Error;
use crate::pack::PackError;
use crate::parallel;
use crate::repository::Repository;

/// Ranges of a pack closer than this are fetched as one.
const GAP_MAX: u64 = 256 << 10;

/// Fetches the stored frames at these ranges of a pack's plaintext, in the order asked for. Ranges must ascend.
///
/// Costs one request for the header and one per run of neighbouring ranges, all at the same time.
pub(crate) async fn fetch_frames(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
    ranges: &[Range<u32>],
) -> Result<Vec<Bytes>, Error> {
    let key = names::pack_key(class, &pack.name);
    let identities = repository.data_identities(pack.domain)?;
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
    let fetches = merged.into_iter().map(|range| {
        let (repository, key) = (repository.clone(), key.clone());
        async move { Ok((range.start, repository.store().get_range(&key, range).await?)) }
    });
    for (start, bytes) in parallel::all(fetches).await? {
        parts = parts.with(start, bytes);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use async_trait::async_trait;
    use keepwell_storage::{Capabilities, Key, Memory, ObjectInfo, ObjectStore, Page, StorageError};
    use tokio::sync::Barrier;

    use super::*;
    use crate::testing::{MemorySource, Thing, TreeModel, World, noise, options};
    use crate::{BackupOptions, Limits};

    /// Answers parts of data packs only when two of them were asked for.
    #[derive(Debug)]
    struct InPairs(Memory, Barrier);

    #[async_trait]
    impl ObjectStore for InPairs {
        async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
            self.0.put_new(key, body).await
        }

        async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
            self.0.get(key).await
        }

        async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
            if key.as_str().starts_with("data/") {
                self.1.wait().await;
            }
            self.0.get_range(key, range).await
        }

        async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
            self.0.head(key).await
        }

        async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
            self.0.list_page(prefix, after).await
        }

        async fn delete(&self, key: &Key) -> Result<(), StorageError> {
            self.0.delete(key).await
        }

        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }

        fn describe(&self) -> String {
            "a store that answers in pairs".into()
        }
    }

    #[tokio::test]
    async fn the_header_of_a_pack_is_not_waited_for() {
        let world = World::new().await;
        let tree = TreeModel::default().with("large", Thing::file(noise(1, 8 << 20)));
        let sizes = BackupOptions { chunk_sizes: crate::chunker::ChunkSizes::FILES, ..options("data") };
        world.repository.backup(Arc::new(MemorySource::new(tree)), sizes).await.unwrap();
        let index = world.repository.index();
        let far = index.segments().into_iter().find_map(|(_, segment)| {
            let entry = segment.iter().map(|item| item.unwrap().1).find(|e| e.frame_offset > 1 << 20)?;
            Some((segment.packs()[entry.pack as usize], entry))
        });
        let (pack, entry) = far.expect("a frame lies far behind the header of its pack");
        let store = InPairs(world.store.inner().clone(), Barrier::new(2));
        let limits = Limits { threads: 2, memory_bytes: 64 << 20 };
        let builder = Repository::builder(Arc::new(store)).limits(limits);
        let repository = builder.open(world.key.clone()).await.unwrap();
        let range = entry.frame_offset..entry.frame_offset + entry.frame_length;
        let ranges = [range.clone()];
        let fetch = fetch_frames(&repository, PackClass::Data, &pack, &ranges);
        let frames = tokio::time::timeout(Duration::from_secs(60), fetch).await;
        let frames = frames.expect("both are asked for at once").unwrap();
        assert_eq!(frames[0].len(), range.len());
    }
}
