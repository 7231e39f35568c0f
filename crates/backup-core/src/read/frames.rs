//! Fetching packs, whole or in part.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use bytes::Bytes;
use keepwell_catalog::{PackClass, PackRef, names};
use keepwell_crypto::{Digest, Identity, OpenReader, Parts, sealed_range};
use keepwell_storage::{Key, StorageErrorKind};

use crate::Error;
use crate::pack::{FRAME_PLAIN_MAX, FrameDecoder, PackDirectory};
use crate::parallel;
use crate::repository::Repository;

/// Ranges of a pack closer than this are fetched as one.
const GAP_MAX: u64 = 256 << 10;
/// Largest pack that is fetched whole, three times what a writer makes of it: its size is what somebody signed. Of larger
/// ones frames are read.
const WHOLE_BYTES_MAX: u64 = 256 << 20;
/// Longest frame, or run of frames, that is fetched and read: twice what a frame decodes to. Its length is what somebody
/// signed, too.
const RANGE_BYTES_MAX: u32 = 2 * FRAME_PLAIN_MAX as u32;

/// Fetches the stored frames at these ranges of a pack's plaintext, in the order asked for. Ranges must ascend.
///
/// Costs what [`fetch_parts`] does.
pub(crate) async fn fetch_frames(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
    ranges: &[Range<u32>],
) -> Result<Vec<Bytes>, Error> {
    let mut parts = fetch_parts(repository, class, pack, ranges).await?;
    let frame = |range| {
        let mut frame = Vec::new();
        parts.read(range, &mut frame).map(|()| Bytes::from(frame))
    };
    ranges.iter().map(frame).collect()
}

/// Fetches what it takes to read the stored frames at these ranges of a pack's plaintext, which must ascend.
///
/// Costs one request for the header and one per run of neighbouring ranges, all at the same time. What is longer than any
/// frame is not fetched, and not read.
pub(crate) async fn fetch_parts(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
    ranges: &[Range<u32>],
) -> Result<FrameReader, Error> {
    let key = names::pack_key(class, &pack.name);
    let identities = repository.data_identities(pack.domain)?;
    let head_len = u64::from(pack.header_len) + 16;
    let header_len = pack.header_len as usize;
    let mut parts = Parts::new(pack.size);
    let mut merged: Vec<Range<u64>> = std::iter::once(0..head_len.min(pack.size)).collect();
    for range in ranges.iter().filter(|range| !is_too_long(range)) {
        let sealed = sealed_range(header_len, u64::from(range.start)..u64::from(range.end));
        let sealed = sealed.start.min(pack.size)..sealed.end.min(pack.size);
        match merged.last_mut() {
            Some(last) if sealed.start <= last.end + GAP_MAX => last.end = last.end.max(sealed.end),
            _ => merged.push(sealed),
        }
    }
    let fetches = merged.into_iter().map(|range| {
        let (repository, key) = (repository.clone(), key.clone());
        async move { Ok((range.start, fetch_range(&repository, &key, range).await?)) }
    });
    for (start, bytes) in parallel::all(fetches).await? {
        parts = parts.with(start, bytes);
    }
    FrameReader::of(identities, key, parts)
}

/// Whether no frame has this length.
fn is_too_long(range: &Range<u32>) -> bool {
    range.end.saturating_sub(range.start) > RANGE_BYTES_MAX
}

/// The frames of a pack of which all or parts are at hand, each decrypted when it is asked for.
pub(crate) struct FrameReader {
    key: Key,
    reader: OpenReader<Parts<Bytes>>,
}

impl FrameReader {
    /// Those of a whole pack, of which these are the stored bytes.
    pub fn new(
        repository: &Repository,
        class: PackClass,
        pack: &PackRef,
        stored: Bytes,
    ) -> Result<Self, Error> {
        let parts = Parts::new(stored.len() as u64).with(0, stored);
        Self::of(repository.data_identities(pack.domain)?, names::pack_key(class, &pack.name), parts)
    }

    fn of(identities: &[Identity], key: Key, parts: Parts<Bytes>) -> Result<Self, Error> {
        match OpenReader::new(identities, parts) {
            Ok(reader) => Ok(Self { key, reader }),
            Err(error) => Err(Error::damaged(key, error)),
        }
    }

    /// Length of the pack's plaintext, as its stored length implies it.
    pub fn plain_len(&self) -> usize {
        usize::try_from(self.reader.plain_len()).unwrap_or(usize::MAX)
    }

    /// Puts the stored frame at this range of the pack's plaintext into `frame`, in the place of what is there.
    pub fn read(&mut self, range: &Range<u32>, frame: &mut Vec<u8>) -> Result<(), Error> {
        if is_too_long(range) {
            return Err(Error::damaged(&self.key, "an index segment places a frame that is longer than any"));
        }
        if u64::from(range.end) > self.reader.plain_len() {
            return Err(Error::damaged(&self.key, "an index segment places a frame past its end"));
        }
        self.read_at(u64::from(range.start), range.end.saturating_sub(range.start) as usize, frame)
    }

    /// The directory of a whole pack.
    pub fn directory(&mut self) -> Result<PackDirectory, Error> {
        PackDirectory::find(self.plain_len(), |range| {
            let mut piece = Vec::new();
            self.read_at(range.start as u64, range.len(), &mut piece).map(|()| piece)
        })
    }

    /// Reads a whole pack from there to its end, and so proves that nothing in between was changed.
    pub fn prove_from(&mut self, at: u64) -> Result<(), Error> {
        let rest = self.reader.seek(SeekFrom::Start(at));
        let read = rest.and_then(|_| std::io::copy(&mut self.reader, &mut std::io::sink()));
        read.map(|_| ()).map_err(|error| Error::damaged(&self.key, error))
    }

    fn read_at(&mut self, at: u64, length: usize, into: &mut Vec<u8>) -> Result<(), Error> {
        into.resize(length, 0);
        let read = self.reader.seek(SeekFrom::Start(at)).and_then(|_| self.reader.read_exact(into));
        read.map_err(|error| Error::damaged(&self.key, error))
    }
}

/// Memory for a frame, used again for the next one.
#[derive(Default)]
pub(crate) struct FrameMemory {
    /// As stored.
    pub stored: Vec<u8>,
    pub decoder: FrameDecoder,
}

/// The stored bytes of a whole pack, as many as the index says it has: an object that is longer costs no more memory than
/// that, and what follows is no part of the pack. One that is shorter is damaged, or the index says what is not so.
pub(crate) async fn fetch_stored(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
) -> Result<Bytes, Error> {
    fetch_whole(repository, &names::pack_key(class, &pack.name), pack.size).await
}

/// The same of a pack that no segment lists, by the size that a listing shows.
pub(crate) async fn fetch_whole(repository: &Repository, key: &Key, size: u64) -> Result<Bytes, Error> {
    if size > WHOLE_BYTES_MAX {
        return Err(Error::damaged(key, format_args!("with {size} bytes it is larger than any pack")));
    }
    fetch_range(repository, key, 0..size).await
}

async fn fetch_range(repository: &Repository, key: &Key, range: Range<u64>) -> Result<Bytes, Error> {
    match repository.store().get_range(key, range).await {
        Err(error) if error.kind == StorageErrorKind::OutOfRange => {
            Err(Error::damaged(key, "it is shorter than it should be"))
        }
        fetched => Ok(fetched?),
    }
}

/// A whole pack.
pub(crate) struct FetchedPack {
    /// As stored.
    pub stored: Bytes,
    /// Whether that has the hash in its name.
    pub has_its_hash: bool,
    pub frames: FrameReader,
}

/// Fetches a whole pack. Damage anywhere in it fails this, rather than the first read that comes to it.
pub(crate) async fn fetch_pack(
    repository: &Repository,
    class: PackClass,
    pack: &PackRef,
) -> Result<FetchedPack, Error> {
    let stored = fetch_stored(repository, class, pack).await?;
    FetchedPack::open(repository, class, pack, stored)
}

impl FetchedPack {
    /// One of which these are the stored bytes.
    pub fn open(
        repository: &Repository,
        class: PackClass,
        pack: &PackRef,
        stored: Bytes,
    ) -> Result<Self, Error> {
        let has_its_hash = Digest::of(&stored) == pack.name.digest();
        let mut frames = FrameReader::new(repository, class, pack, stored.clone())?;
        if !has_its_hash {
            frames.prove_from(0)?;
        }
        Ok(Self { stored, has_its_hash, frames })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use keepwell_storage::{ObjectStore, Operation};

    use super::*;
    use crate::testing::{MemorySource, Paired, Thing, TreeModel, World, back_up, data_pack, noise, options};
    use crate::{BackupOptions, Limits};

    #[tokio::test]
    async fn of_a_pack_no_more_is_fetched_than_the_index_says() {
        let world = World::new().await;
        let repository = &world.repository;
        back_up(repository, &TreeModel::default().with("a", Thing::file(noise(1, 9_000)))).await;
        let (pack, _) = data_pack(repository);
        let key = names::pack_key(PackClass::Data, &pack.name);
        let sound = world.store.get(&key).await.unwrap();
        let replace = async |bytes: Bytes| {
            world.delete(key.as_str()).await;
            world.store.put_new(&key, bytes).await.unwrap();
            world.store.reset();
            let fetched = fetch_pack(repository, PackClass::Data, &pack).await;
            (fetched.map(|fetched| fetched.stored), world.store.reset().total().bytes)
        };
        let (longer, bytes) = replace([&sound[..], &[0; 1 << 20]].concat().into()).await;
        assert_eq!((longer.unwrap(), bytes), (sound.clone(), pack.size));
        let (shorter, bytes) = replace(sound.slice(1..)).await;
        assert!(matches!(shorter, Err(Error::Damaged { .. })), "{shorter:?}");
        assert_eq!(bytes, 0);
        let mut changed = sound.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        let (changed, _) = replace(changed.into()).await;
        let told = changed.unwrap_err().to_string();
        assert!(told.contains("is damaged") && !told.contains("seal a pack"), "{told}");
        let huge = PackRef { size: WHOLE_BYTES_MAX + 1, ..pack };
        let refused = fetch_stored(repository, PackClass::Data, &huge).await;
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        assert_eq!(world.store.reset().calls(Operation::GetRange), 0);
    }

    #[tokio::test]
    async fn a_frame_that_is_longer_than_any_is_not_fetched() {
        let world = World::new().await;
        let repository = &world.repository;
        back_up(repository, &TreeModel::default().with("a", Thing::file(noise(1, 9_000)))).await;
        let (pack, _) = data_pack(repository);
        let key = names::pack_key(PackClass::Data, &pack.name);
        let mut longer = world.store.get(&key).await.unwrap().to_vec();
        longer.resize(32 << 20, 0);
        let pack = PackRef { size: longer.len() as u64, ..pack };
        world.delete(key.as_str()).await;
        world.store.put_new(&key, longer.into()).await.unwrap();
        world.store.reset();
        let range = 0..24 << 20;
        let fetched = fetch_frames(repository, PackClass::Data, &pack, std::slice::from_ref(&range)).await;
        assert!(matches!(fetched, Err(Error::Damaged { .. })));
        let bytes = world.store.reset().total().bytes;
        assert!(bytes < 1 << 20, "{bytes} bytes were fetched");
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
        let store = Paired::over(world.store.inner().clone());
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
