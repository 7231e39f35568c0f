//! From chunks to packs: one packer per worker, so that workers share nothing but the queue of finished packs.

use keepwell_catalog::PackClass;
use keepwell_crypto::{ChunkId, DomainId, Recipient};

use super::Uploads;
use super::budget::PACK_BYTES_MIN;
use super::compressor::FrameCompressor;
use crate::pack::{FRAME_PLAIN_MAX, FrameBuilder, PackError, PackWriter};
use crate::repository::Repository;
use crate::{BackupOptions, Error};

/// A chunk of at least this many bytes has a frame of its own.
pub(crate) const OWN_FRAME_MIN: usize = 512 << 10;

/// How chunks are compressed and packed.
#[derive(Debug, Clone)]
pub(crate) struct PackSettings {
    pub class: PackClass,
    pub domain: DomainId,
    pub recipient: Recipient,
    /// zstd level.
    pub level: i32,
    /// Small chunks share a frame of about this many plain bytes.
    pub frame_bytes: usize,
    /// A pack of content is finished when it has grown to about this many bytes.
    pub pack_bytes: usize,
}

/// Chunks of content that share a frame fill one of about this many plain bytes (format §6) …
pub(super) const DATA_FRAME_BYTES: usize = 1 << 20;
/// … and tree nodes, which are read one by one, one of this many.
const NODE_FRAME_BYTES: usize = 256 << 10;

impl PackSettings {
    /// How packs of a class are written in a domain whose keys are at hand.
    pub fn of(
        repository: &Repository,
        class: PackClass,
        domain: DomainId,
        level: i32,
    ) -> Result<Self, Error> {
        let domain = repository.domain_for(Some(domain))?;
        Ok(Self {
            class,
            domain: domain.id,
            recipient: domain.recipient.clone(),
            level,
            frame_bytes: match class {
                PackClass::Data => DATA_FRAME_BYTES,
                PackClass::Meta => NODE_FRAME_BYTES,
            },
            pack_bytes: repository.pack_bytes(),
        })
    }

    /// Likewise for chunks that move.
    pub fn for_moved(repository: &Repository, class: PackClass, domain: DomainId) -> Result<Self, Error> {
        Self::of(repository, class, domain, BackupOptions::default().compression_level)
    }

    /// A pack of this class is finished when it has grown to about this many bytes. Those of tree nodes are smaller: a backup has
    /// one open all the time, and memory would follow the number of files until it is full.
    fn full_bytes(&self) -> usize {
        match self.class {
            PackClass::Data => self.pack_bytes,
            PackClass::Meta => (self.pack_bytes / 4).max(PACK_BYTES_MIN).min(self.pack_bytes),
        }
    }
}

/// Gathers chunks into frames and frames into a pack, and hands finished packs to [`Uploads`].
pub(crate) struct Packer<'a> {
    uploads: &'a Uploads,
    settings: PackSettings,
    frame: FrameBuilder,
    pack: Option<PackWriter>,
    compressor: FrameCompressor,
    compressed: Vec<u8>,
}

impl<'a> Packer<'a> {
    pub fn new(uploads: &'a Uploads, settings: PackSettings) -> Result<Self, Error> {
        let compressor = FrameCompressor::new(settings.level).map_err(PackError::Seal)?;
        Ok(Self {
            uploads,
            settings,
            frame: FrameBuilder::default(),
            pack: None,
            compressor,
            compressed: Vec::new(),
        })
    }

    /// Stores a small chunk together with its neighbours, as far as a frame has room: one that moves may be as large as that.
    pub fn add(&mut self, id: ChunkId, chunk: &[u8]) -> Result<(), Error> {
        if self.frame.len() + chunk.len() > FRAME_PLAIN_MAX {
            self.flush_frame()?;
        }
        self.frame.push(id, chunk);
        let full = self.frame.len() >= self.settings.frame_bytes || self.frame.is_full();
        if full { self.flush_frame() } else { Ok(()) }
    }

    /// Stores a frame that was put together elsewhere.
    pub fn add_frame(&mut self, frame: &FrameBuilder) -> Result<(), Error> {
        let bound = zstd::zstd_safe::compress_bound(frame.len());
        if self.compressed.len() < bound {
            self.compressed.resize(bound, 0);
        }
        let mut compressed = std::mem::take(&mut self.compressed);
        let stored = match frame.len() {
            OWN_FRAME_MIN.. if frame.chunks().len() == 1 => {
                self.compressor.large(frame.plain(), &mut compressed)
            }
            _ => self.compressor.mixed(frame.plain(), &mut compressed),
        };
        let stored = stored.map_err(PackError::Seal)?;
        let added = self.add_stored(&compressed[..stored], frame.len(), frame.chunks());
        self.compressed = compressed;
        added
    }

    /// Takes over a frame that is compressed already.
    pub fn add_stored(
        &mut self,
        stored: &[u8],
        plain: usize,
        chunks: &[(ChunkId, u32)],
    ) -> Result<(), Error> {
        if self.pack.as_ref().is_some_and(|pack| !pack.has_room_for(chunks.len())) {
            self.finish_pack()?;
        }
        let full = {
            let pack = open_pack(&mut self.pack, &self.settings)?;
            pack.append(stored, plain, chunks)?;
            // A smaller one a prune takes for that of a small backup, and merges it with others, time and again.
            pack.len() >= PACK_BYTES_MIN as u64 && pack.is_full(self.settings.full_bytes() as u64)
        };
        if full { self.finish_pack() } else { Ok(()) }
    }

    /// Writes out whatever is still open.
    pub fn finish(&mut self) -> Result<(), Error> {
        self.flush_frame()?;
        self.finish_pack()
    }

    fn flush_frame(&mut self) -> Result<(), Error> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let mut frame = std::mem::take(&mut self.frame);
        let added = self.add_frame(&frame);
        frame.clear();
        self.frame = frame;
        added
    }

    fn finish_pack(&mut self) -> Result<(), Error> {
        let Some(pack) = self.pack.take() else { return Ok(()) };
        let suffix = self.uploads.fresh_suffix();
        self.uploads.submit(pack.finish(suffix)?)
    }
}

fn open_pack<'p>(
    pack: &'p mut Option<PackWriter>,
    settings: &PackSettings,
) -> Result<&'p mut PackWriter, Error> {
    match pack {
        Some(pack) => Ok(pack),
        none => {
            let capacity = settings.full_bytes() + (settings.full_bytes() >> 2);
            Ok(none.insert(PackWriter::new(settings.class, settings.domain, &settings.recipient, capacity)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::begin_uploads;
    use crate::pack::PackDirectory;
    use crate::testing::{World, noise};

    fn short_chunks(count: u32) -> impl Iterator<Item = (ChunkId, [u8; 4])> {
        (0..count).map(|n| (ChunkId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes()), n.to_le_bytes()))
    }

    /// The directory of a pack, whose length before compression has the last word.
    fn directory(repository: &Repository, stored: &[u8]) -> PackDirectory {
        let plain =
            keepwell_crypto::open(&repository.domain().identities, stored, stored.len() as u64).unwrap();
        PackDirectory::of_plaintext(&plain).unwrap()
    }

    /// The directories of the packs that come of this.
    async fn packed(
        class: PackClass,
        pack: impl FnOnce(&mut Packer<'_>) -> Result<(), Error> + Send + 'static,
    ) -> Vec<PackDirectory> {
        let world = World::new().await;
        let repository = &world.repository;
        let uploads = begin_uploads(repository).await.unwrap();
        let settings = PackSettings::for_moved(repository, class, repository.domain().id).unwrap();
        let packing = uploads.clone();
        let packed = tokio::task::spawn_blocking(move || {
            let mut packer = Packer::new(&packing, settings)?;
            pack(&mut packer)?;
            packer.finish()
        });
        packed.await.unwrap().unwrap();
        uploads.flush().await.unwrap();
        let mut directories = Vec::new();
        for name in &world.names(&format!("{class}/")).await {
            let stored = repository.store().get(&name.parse().unwrap()).await.unwrap();
            directories.push(directory(repository, &stored));
        }
        directories
    }

    #[tokio::test]
    async fn packs_of_very_short_chunks_are_finished_before_their_directories_are_too_long() {
        let packs = packed(PackClass::Data, |packer| {
            short_chunks(300_000).try_for_each(|(id, chunk)| packer.add(id, &chunk))
        });
        let packs = packs.await;
        assert!(packs.iter().all(|directory| directory.encode().len() <= FRAME_PLAIN_MAX));
        let frames = packs.iter().flat_map(|directory| &directory.frames);
        let chunks = frames.map(|frame| frame.chunks.len()).sum::<usize>();
        assert_eq!((packs.len(), chunks), (2, 300_000));
    }

    #[tokio::test]
    async fn no_chunk_makes_a_frame_larger_than_readers_take() {
        let packs = packed(PackClass::Data, |packer| {
            let mut chunks = [(1, 1000), (2, FRAME_PLAIN_MAX), (3, 1000)].into_iter();
            chunks.try_for_each(|(n, length)| packer.add(ChunkId::from_bytes([n; 32]), &vec![n; length]))
        });
        let packs = packs.await;
        let frames = packs.iter().flat_map(|directory| &directory.frames);
        let lengths: Vec<u32> = frames.map(|frame| frame.plain).collect();
        assert_eq!(lengths, [1000, FRAME_PLAIN_MAX as u32, 1000]);
    }

    #[tokio::test]
    async fn no_full_pack_is_so_small_that_a_prune_would_merge_it() {
        let packs = packed(PackClass::Meta, |packer| {
            let mut seeds = 0_u64..;
            short_chunks(1_500).try_for_each(|(id, _)| packer.add(id, &noise(seeds.next().unwrap(), 8_000)))
        });
        let packs = packs.await;
        let stored = |directory: &PackDirectory| {
            directory.frames.iter().map(|frame| u64::from(frame.stored)).sum::<u64>()
        };
        let mut sizes: Vec<u64> = packs.iter().map(stored).collect();
        sizes.sort_unstable();
        assert_eq!(sizes.len(), 3, "{sizes:?}");
        assert!(sizes[1] >= PACK_BYTES_MIN as u64, "only the last may be smaller: {sizes:?}");
    }

    #[tokio::test]
    async fn a_pack_with_a_longer_directory_is_read() {
        let world = World::new().await;
        let domain = world.repository.domain();
        let mut pack = PackWriter::new(PackClass::Data, domain.id, &domain.recipient, 1 << 20).unwrap();
        let chunks: Vec<(ChunkId, u32)> = short_chunks(300_000).map(|(id, _)| (id, 4)).collect();
        let plain: Vec<u8> = short_chunks(300_000).flat_map(|(_, chunk)| chunk).collect();
        pack.append(&zstd::bulk::compress(&plain, 1).unwrap(), plain.len(), &chunks).unwrap();
        let directory = directory(&world.repository, &pack.finish([0; 4]).unwrap().bytes);
        assert!(directory.encode().len() > FRAME_PLAIN_MAX);
        assert_eq!(directory.frames[0].chunks.len(), 300_000);
    }
}
