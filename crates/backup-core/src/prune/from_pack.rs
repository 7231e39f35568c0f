//! Taking chunks out of a pack, each proved on the way.

use std::ops::Range;

use keepwell_catalog::{IndexEntry, PackClass, PackRef};
use keepwell_crypto::{ChunkId, ChunkKind};
use tokio::runtime::Handle;

use crate::Error;
use crate::pack::chunk_from_frame;
use crate::read::{FrameMemory, FrameReader, fetch_parts};
use crate::repository::Repository;
use crate::write::Packer;

/// A pack, as something is said of it.
#[derive(Clone, Copy)]
pub(crate) struct FromPack<'p> {
    repository: &'p Repository,
    class: PackClass,
    pack: &'p PackRef,
}

/// What a pack does not hold although the index says so.
#[derive(Debug, Default)]
pub(crate) struct Left {
    pub entries: Vec<IndexEntry>,
    /// What is wrong with the last of it.
    pub reason: String,
}

/// Puts entries of one pack in the order of their places, and leaves out those that say the same as another. Two that name
/// different chunks at one place both stay: at most one of them is true, and which, the pack says.
pub(crate) fn by_place(entries: &mut Vec<IndexEntry>) {
    let all = |e: &IndexEntry| (e.frame_offset, e.frame_length, e.offset, e.length, e.id);
    entries.sort_unstable_by_key(all);
    entries.dedup_by_key(|entry| all(entry));
}

impl<'p> FromPack<'p> {
    pub fn new(repository: &'p Repository, class: PackClass, pack: &'p PackRef) -> Self {
        Self { repository, class, pack }
    }

    /// Frames that are live as a whole move as they are; of others, the live chunks are compressed anew.
    pub fn move_frames(
        self,
        frames: &mut FrameReader,
        entries: &[IndexEntry],
        packer: &mut Packer<'_>,
    ) -> Result<(), Error> {
        let mut memory = FrameMemory::default();
        for frame in frames_of(entries) {
            frames.read(&range(frame), &mut memory.stored)?;
            self.move_frame(&mut memory, frame, packer)?;
        }
        Ok(())
    }

    /// The same, but for entries that the pack does not bear out: these are given back.
    pub fn move_provable(
        self,
        frames: &mut FrameReader,
        entries: &[IndexEntry],
        packer: &mut Packer<'_>,
    ) -> Result<Left, Error> {
        let mut left = Left::default();
        for frame in frames_of(entries) {
            match self.move_frames(frames, frame, packer) {
                Ok(()) => {}
                Err(Error::Damaged { reason, .. }) => {
                    let (sound, unsound) = self.borne_out(frames, frame)?;
                    self.move_frames(frames, &sound, packer)?;
                    left.entries.extend(unsound);
                    left.reason = reason;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(left)
    }

    /// Moves what can still be proved out of a damaged pack, one frame at a time: damage spoils the frames that it lies in and
    /// no others. `true` if that was everything that was asked for. Runs on an ordinary thread.
    pub fn move_singly(
        self,
        entries: &[IndexEntry],
        packer: &mut Packer<'_>,
        handle: &Handle,
    ) -> Result<bool, Error> {
        let mut all = true;
        let mut memory = FrameMemory::default();
        for frame in frames_of(entries) {
            let range = range(frame);
            let fetch = fetch_parts(self.repository, self.class, self.pack, std::slice::from_ref(&range));
            let fetched = handle.block_on(fetch);
            let moved = match fetched.and_then(|mut parts| parts.read(&range, &mut memory.stored)) {
                Err(Error::Storage(error)) if error.is_not_found() => return Ok(false),
                Ok(()) => self.move_frame(&mut memory, frame, packer),
                Err(error) => Err(error),
            };
            match moved {
                Ok(()) => {}
                Err(Error::Damaged { .. } | Error::Storage(_)) => all = false,
                Err(error) => return Err(error),
            }
        }
        Ok(all)
    }

    /// Of entries in the order of their places, those that the pack does not hold there.
    pub fn not_borne_out(
        self,
        frames: &mut FrameReader,
        entries: &[IndexEntry],
    ) -> Result<Vec<IndexEntry>, Error> {
        let mut left = Vec::new();
        for frame in frames_of(entries) {
            left.extend(self.borne_out(frames, frame)?.1);
        }
        Ok(left)
    }

    /// Of entries of one frame those that it bears out, and the others.
    fn borne_out(
        self,
        frames: &mut FrameReader,
        frame: &[IndexEntry],
    ) -> Result<(Vec<IndexEntry>, Vec<IndexEntry>), Error> {
        let key = self.repository.id_key(self.pack.domain)?;
        let FrameMemory { mut stored, mut decoder } = FrameMemory::default();
        let read = frames.read(&range(frame), &mut stored);
        let decoded = read.ok().and_then(|()| decoder.decode(&stored, None).ok()).unwrap_or_default();
        let holds =
            |e: &&IndexEntry| chunk_from_frame(decoded, e.offset, e.length, &e.id, self.kind(), key).is_ok();
        let (sound, unsound): (Vec<&IndexEntry>, Vec<&IndexEntry>) = frame.iter().partition(holds);
        Ok((sound.into_iter().copied().collect(), unsound.into_iter().copied().collect()))
    }

    fn move_frame(
        self,
        memory: &mut FrameMemory,
        frame: &[IndexEntry],
        packer: &mut Packer<'_>,
    ) -> Result<(), Error> {
        let key = self.repository.id_key(self.pack.domain)?;
        let FrameMemory { stored, decoder } = memory;
        let decoded = decoder.decode(stored, None).map_err(|e| Error::damaged(self.pack.name, e))?;
        let mut chunks: Vec<(ChunkId, u32)> = Vec::new();
        let mut end = 0;
        let mut whole = true;
        for entry in frame {
            chunk_from_frame(decoded, entry.offset, entry.length, &entry.id, self.kind(), key)
                .map_err(|e| Error::damaged(self.pack.name, e))?;
            whole &= entry.offset == end;
            end = entry.offset.saturating_add(entry.length);
            chunks.push((entry.id, entry.length));
        }
        if whole && end as usize == decoded.len() {
            return packer.add_stored(stored, decoded.len(), &chunks);
        }
        for entry in frame {
            packer.add(entry.id, &decoded[entry.offset as usize..][..entry.length as usize])?;
        }
        Ok(())
    }

    fn kind(self) -> ChunkKind {
        match self.class {
            PackClass::Data => ChunkKind::Content,
            PackClass::Meta => ChunkKind::Node,
        }
    }
}

/// Entries of one frame each; a false entry may say another length, and is on its own then.
fn frames_of(entries: &[IndexEntry]) -> impl Iterator<Item = &[IndexEntry]> {
    entries.chunk_by(|a, b| (a.frame_offset, a.frame_length) == (b.frame_offset, b.frame_length))
}

/// Where the frame of these lies in its pack.
fn range(frame: &[IndexEntry]) -> Range<u32> {
    frame[0].frame_offset..frame[0].frame_offset.saturating_add(frame[0].frame_length)
}
