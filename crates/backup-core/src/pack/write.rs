//! Writing a pack, frame by frame, straight into ciphertext.

use std::io::{self, Write};

use bytes::Bytes;
use keepwell_catalog::{IndexEntry, PackClass, PackRef, names};
use keepwell_crypto::{ChunkId, Digest, DomainId, Recipient, SealWriter};
use sha2::{Digest as _, Sha256};

use super::PackError;
use super::directory::{
    CHUNK_BYTES, FORMAT, FRAME_BYTES, FrameInfo, MAGIC_DIRECTORY, MAGIC_PADDING, PackDirectory, TRAILER_LEN,
    TRAILER_MAGIC,
};
use super::frame::FRAME_PLAIN_MAX;
use super::padding::padme;

/// An open pack: its ciphertext grows in memory, bounded by whoever decides when it is full.
/// ```
/// use backup_core::pack::{FrameBuilder, PackDirectory, PackWriter, chunk_from_frame, decode_frame};
/// use keepwell_catalog::PackClass;
/// use keepwell_crypto::{ChunkKind, DomainId, IdKey, Identity, open};
///
/// let (identity, id_key) = (Identity::generate(), IdKey::generate());
/// let mut frame = FrameBuilder::default();
/// for chunk in [b"one".as_slice(), b"two"] {
///     frame.push(id_key.chunk_id(ChunkKind::Content, chunk), chunk);
/// }
/// let compressed = zstd::bulk::compress(frame.plain(), 2)?;
/// let mut writer = PackWriter::new(PackClass::Data, DomainId::generate(), &identity.recipient(), 4096)?;
/// writer.append(&compressed, frame.len(), frame.chunks())?;
/// let pack = writer.finish([1, 2, 3, 4])?;
///
/// // The index has an entry for each chunk; the pack itself says the same, should the index be lost.
/// let plain = open(&[identity], &pack.bytes, 1 << 20)?;
/// assert_eq!(PackDirectory::of_plaintext(&plain)?.entries(0), pack.entries);
/// let two = pack.entries[1];
/// let frame = decode_frame(&plain[two.frame_offset as usize..][..two.frame_length as usize], None)?;
/// let chunk = chunk_from_frame(&frame, two.offset, two.length, &two.id, ChunkKind::Content, &id_key)?;
/// assert_eq!(chunk, b"two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct PackWriter {
    class: PackClass,
    domain: DomainId,
    out: SealWriter<Hashing>,
    plain_len: u64,
    directory: PackDirectory,
    /// As many bytes the directory takes at most.
    directory_bytes: usize,
}

/// A finished pack, ready to be stored under its name.
#[derive(Debug, Clone)]
pub struct FinishedPack {
    /// Data or meta.
    pub class: PackClass,
    /// How the index will refer to it.
    pub reference: PackRef,
    /// The stored bytes.
    pub bytes: Bytes,
    /// One entry per chunk; their `pack` is 0 until a segment numbers its packs.
    pub entries: Vec<IndexEntry>,
}

impl PackWriter {
    /// Opens a pack for one domain. `capacity` is the expected size in bytes.
    pub fn new(
        class: PackClass,
        domain: DomainId,
        recipient: &Recipient,
        capacity: usize,
    ) -> Result<Self, PackError> {
        let sink = Hashing { hash: Sha256::new(), bytes: Vec::with_capacity(capacity) };
        let out = SealWriter::new(std::slice::from_ref(recipient), sink)?;
        Ok(Self { class, domain, out, plain_len: 0, directory: PackDirectory::default(), directory_bytes: 0 })
    }

    /// Appends a compressed frame that holds `chunks`, whose plain bytes are `plain` long in all.
    pub fn append(
        &mut self,
        stored: &[u8],
        plain: usize,
        chunks: &[(ChunkId, u32)],
    ) -> Result<(), PackError> {
        self.write(stored)?;
        let length = |n: usize| u32::try_from(n).expect("a frame is at most 8 MiB");
        let frame = FrameInfo { stored: length(stored.len()), plain: length(plain), chunks: chunks.to_vec() };
        self.directory.frames.push(frame);
        self.directory_bytes += FRAME_BYTES + chunks.len() * CHUNK_BYTES;
        Ok(())
    }

    /// Whether the directory stays as small as a frame has to be (8 MiB) with a further frame of so many chunks.
    pub(crate) fn has_room_for(&self, chunks: usize) -> bool {
        self.directory_bytes + FRAME_BYTES + chunks * CHUNK_BYTES < FRAME_PLAIN_MAX - 16
    }

    /// Whether it is as large as it should be: a frame like the last would take it beyond `bytes`, or it is close to that and has
    /// next to no padding if it ends here. Packs that ended anywhere would have 1.5 % of it.
    pub(crate) fn is_full(&self, bytes: u64) -> bool {
        let last = self.directory.frames.last().map_or(0, |frame| u64::from(frame.stored));
        let unpadded = self.plain_len + (self.directory_bytes + 16 + TRAILER_LEN) as u64;
        let padding = padme(unpadded) - unpadded;
        unpadded + last > bytes || (unpadded > bytes - bytes / 8 && padding <= bytes / 256)
    }

    /// Bytes so far, before directory and padding.
    pub fn len(&self) -> u64 {
        self.plain_len
    }

    /// Whether no frame was appended.
    pub fn is_empty(&self) -> bool {
        self.directory.frames.is_empty()
    }

    /// Ends the pack. `suffix` makes its name new even if the same bytes were stored before.
    pub fn finish(mut self, suffix: [u8; 4]) -> Result<FinishedPack, PackError> {
        let entries = self.directory.entries(0);
        self.write_directory()?;
        let sealed = self.out.finish().map_err(PackError::Seal)?;
        let digest = Digest::from_bytes(sealed.hash.finalize().into());
        let header_len = keepwell_crypto::header_len(&sealed.bytes)?;
        let reference = PackRef {
            name: names::content_name(&digest, suffix),
            size: sealed.bytes.len() as u64,
            header_len: u32::try_from(header_len).expect("a header for one recipient is short"),
            domain: self.domain,
        };
        Ok(FinishedPack { class: self.class, reference, bytes: Bytes::from(sealed.bytes), entries })
    }

    fn write_directory(&mut self) -> Result<(), PackError> {
        let at = self.plain_len;
        let cbor = self.directory.encode();
        let stored = zstd::bulk::compress(&cbor, 3).map_err(PackError::Seal)?;
        let length =
            u32::try_from(stored.len()).map_err(|_| PackError::Malformed("the directory is too long"))?;
        self.write(&MAGIC_DIRECTORY.to_le_bytes())?;
        self.write(&length.to_le_bytes())?;
        self.write(&stored)?;
        let unpadded = self.plain_len + 8 + TRAILER_LEN as u64;
        let padding = usize::try_from(padme(unpadded) - unpadded).expect("a pack fits in memory");
        let body = u32::try_from(padding + TRAILER_LEN).expect("padding is an eighth at most");
        self.write(&MAGIC_PADDING.to_le_bytes())?;
        self.write(&body.to_le_bytes())?;
        self.write(&vec![0; padding])?;
        self.write(&at.to_le_bytes())?;
        self.write(&(length + 8).to_le_bytes())?;
        self.write(&FORMAT.to_le_bytes())?;
        self.write(TRAILER_MAGIC)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), PackError> {
        self.plain_len += bytes.len() as u64;
        self.out.write_all(bytes).map_err(PackError::Seal)
    }
}

/// Collects bytes and hashes them on the way.
struct Hashing {
    hash: Sha256,
    bytes: Vec<u8>,
}

impl Write for Hashing {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.hash.update(buf);
        self.bytes.extend_from_slice(buf);
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use keepwell_crypto::Identity;

    use super::*;

    #[test]
    fn full_packs_have_next_to_no_padding() {
        let (full, identity) = (4 << 20, Identity::generate());
        let mut lengths = (0_usize..).map(|n| 40_000 + n * 7_919 % 50_000);
        let (mut content, mut stored) = (0, 0);
        for _ in 0..8 {
            let mut pack =
                PackWriter::new(PackClass::Data, DomainId::generate(), &identity.recipient(), 0).unwrap();
            while !pack.is_full(full) {
                let frame = vec![0; lengths.next().unwrap()];
                pack.append(&frame, frame.len(), &[(ChunkId::from_bytes([1; 32]), 1)]).unwrap();
            }
            content += pack.len();
            let size = pack.finish([0; 4]).unwrap().reference.size;
            assert!((full / 8 * 7..=full + full / 64).contains(&size), "{size}");
            stored += size;
        }
        assert!(stored - content < content / 128, "{content} bytes in {stored}");
    }

    #[test]
    fn one_frame_fills_a_pack_that_it_is_too_long_for() {
        let recipient = Identity::generate().recipient();
        let mut pack = PackWriter::new(PackClass::Data, DomainId::generate(), &recipient, 0).unwrap();
        assert!(!pack.is_full(1 << 20));
        pack.append(&vec![0; 2 << 20], 2 << 20, &[(ChunkId::from_bytes([1; 32]), 2 << 20)]).unwrap();
        assert!(pack.is_full(1 << 20));
    }
}
