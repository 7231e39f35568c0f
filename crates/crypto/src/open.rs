//! Opening sealed objects: whole, as a stream, or by ranges.

use std::fmt;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::error::CryptoError;
use crate::recipient::Identity;
use crate::seal::{NONCE_BYTES, header_len};

/// Plain bytes of one block of the age payload.
pub const BLOCK_PLAIN_BYTES: u64 = 64 * 1024;
const TAG_BYTES: u64 = 16;
const BLOCK_SEALED_BYTES: u64 = BLOCK_PLAIN_BYTES + TAG_BYTES;
const PROBE_BYTES: usize = 1024;

/// Opens a sealed object that is in memory.
///
/// The length of the plaintext follows from the length of `sealed`; if it is above `max_plain_bytes`, nothing is
/// decrypted. [`CryptoError::NoMatchingKey`] means that it is sealed to others, [`CryptoError::Damaged`] that a bit
/// or the length changed. Costs about 65 µs per identity that does not fit, and 1 ms per MiB.
pub fn open(identities: &[Identity], sealed: &[u8], max_plain_bytes: u64) -> Result<Vec<u8>, CryptoError> {
    let header_len = whole_header_len(sealed)?;
    let plain_bytes = plain_len(header_len, sealed.len() as u64)?;
    if plain_bytes > max_plain_bytes {
        return Err(CryptoError::TooLarge { plain_bytes, max_plain_bytes });
    }
    let mut stream = decrypt(identities, sealed)?;
    let mut plain = Vec::with_capacity(plain_bytes as usize);
    stream.read_to_end(&mut plain).map_err(CryptoError::from_read)?;
    Ok(plain)
}

/// Length of the plaintext of a sealed object, from the length of its header and of the whole.
///
/// It is only as true as `sealed_len`; reading to the end proves it.
pub fn plain_len(header_len: usize, sealed_len: u64) -> Result<u64, CryptoError> {
    let payload = sealed_len.saturating_sub((header_len + NONCE_BYTES) as u64);
    let blocks = payload.div_ceil(BLOCK_SEALED_BYTES);
    let last = payload - blocks.saturating_sub(1) * BLOCK_SEALED_BYTES;
    // A last block without plaintext exists only in an empty file (C2SP age.md, "Payload").
    if last < TAG_BYTES || (last == TAG_BYTES && blocks > 1) {
        return Err(CryptoError::damaged("it ends too early"));
    }
    Ok(payload - blocks * TAG_BYTES)
}

/// The range of stored bytes that holds the blocks of a range of plaintext.
///
/// Together with the first `header_len + 16` bytes it is all that [`OpenReader`] touches to read `plain`; see
/// [`Parts`]. Neither end is cut to the length of the object. An empty range needs no bytes.
pub fn sealed_range(header_len: usize, plain: Range<u64>) -> Range<u64> {
    let payload = (header_len + NONCE_BYTES) as u64;
    let first = plain.start / BLOCK_PLAIN_BYTES;
    let end = plain.end.div_ceil(BLOCK_PLAIN_BYTES).max(first);
    let at = |block: u64| payload.saturating_add(block.saturating_mul(BLOCK_SEALED_BYTES));
    if plain.is_empty() { at(first)..at(first) } else { at(first)..at(end) }
}

/// Reads the plaintext of a sealed object, with seeks.
///
/// Every byte that it gives is authentic at its position. A truncated object shows when its end is read: `Ok(0)`, and
/// any answer to [`SeekFrom::End`], are given only after the last block was decrypted as the last. A seek by itself
/// reads nothing. After the first error every further read fails.
/// Of an object in a store only what is needed has to be fetched:
///
/// ```
/// use std::io::{Read, Seek, SeekFrom};
/// use keepwell_crypto::{Identity, NONCE_BYTES, OpenReader, Parts, header_len, seal, sealed_range};
///
/// let identity = Identity::generate();
/// let plain: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
/// let stored = seal(&[identity.recipient()], &plain)?;
///
/// let header_len = header_len(&stored)?; // an index would know it
/// let head = &stored[..header_len + NONCE_BYTES];
/// let range = sealed_range(header_len, 500_000..500_010);
/// let blocks = &stored[range.start as usize..range.end as usize];
/// assert!(head.len() + blocks.len() < 70_000, "of a million bytes");
///
/// let parts = Parts::new(stored.len() as u64).with(0, head).with(range.start, blocks);
/// let mut reader = OpenReader::new(&[identity], parts)?;
/// let mut found = [0; 10];
/// reader.seek(SeekFrom::Start(500_000))?;
/// reader.read_exact(&mut found)?;
/// assert_eq!(found, plain[500_000..500_010]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct OpenReader<R: Read + Seek> {
    stream: age::stream::StreamReader<Sealed<R>>,
    plain_len: u64,
    /// Where the caller is.
    position: u64,
    /// Where `stream` is.
    stream_position: u64,
    end_proven: bool,
    failed: bool,
}

impl<R: Read + Seek> OpenReader<R> {
    /// Reads the header of the object that fills `input` from its position 0 to its end.
    ///
    /// Costs one or two reads of 1 KiB (less where less is there) and about 65 µs per identity that does not fit.
    pub fn new(identities: &[Identity], input: R) -> Result<Self, CryptoError> {
        let sealed = Sealed::new(input)?;
        let plain_len = plain_len(sealed.header_len, sealed.len)?;
        let stream = decrypt(identities, sealed)?;
        Ok(Self { stream, plain_len, position: 0, stream_position: 0, end_proven: false, failed: false })
    }

    /// Length of the plaintext in bytes, as the length of the object implies it; reading to the end proves it.
    pub fn plain_len(&self) -> u64 {
        self.plain_len
    }

    fn guard<T>(&mut self, call: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        if self.failed {
            return Err(io::Error::other("an earlier read of this sealed object failed"));
        }
        let result = call(self).map_err(|error| match CryptoError::from_read(error) {
            CryptoError::Io { source } => source,
            damaged => io::Error::new(io::ErrorKind::InvalidData, damaged),
        });
        self.failed = result.is_err();
        result
    }

    /// Decrypts the last block as the last one, unless that was done.
    fn prove_end(&mut self) -> io::Result<()> {
        if self.end_proven {
            return Ok(());
        }
        if self.stream_position == self.plain_len && self.plain_len > 0 {
            // The last block is at hand; the stream reports truncation instead of an end.
            if self.stream.read(&mut [0])? != 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        } else {
            self.stream.seek(SeekFrom::End(0))?;
            self.stream_position = self.plain_len;
        }
        self.end_proven = true;
        Ok(())
    }

    /// Moves `stream` to `position`, which lies before the end.
    fn reposition(&mut self) -> io::Result<()> {
        if self.position == self.stream_position {
            return Ok(());
        }
        if self.position.is_multiple_of(BLOCK_PLAIN_BYTES) {
            // A seek to the start of a block would make the stream read the object's last block. Going one byte in
            // and back does not, and matters when only a range of the object is at hand.
            self.stream.seek(SeekFrom::Start(self.position + 1))?;
        }
        self.stream.seek(SeekFrom::Start(self.position))?;
        self.stream_position = self.position;
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.plain_len {
            self.prove_end()?;
            return Ok(0);
        }
        self.reposition()?;
        let count = self.stream.read(buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += count as u64;
        self.stream_position = self.position;
        Ok(count)
    }
}

impl<R: Read + Seek> Read for OpenReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.guard(|reader| reader.read_some(buffer))
    }
}

impl<R: Read + Seek> Seek for OpenReader<R> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            SeekFrom::End(offset) => {
                self.guard(Self::prove_end)?;
                self.plain_len.checked_add_signed(offset)
            }
        };
        self.position = position.ok_or_else(out_of_range)?;
        Ok(self.position)
    }
}

impl<R: Read + Seek> fmt::Debug for OpenReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("OpenReader");
        debug.field("position", &self.position).field("plain_len", &self.plain_len).finish_non_exhaustive()
    }
}

/// An object of which only some ranges are at hand, as input of an [`OpenReader`].
///
/// Reading outside of them is an error, never zeros.
#[derive(Clone)]
pub struct Parts<B> {
    len: u64,
    parts: Vec<(u64, B)>,
    position: u64,
}

impl<B: AsRef<[u8]>> Parts<B> {
    /// Nothing is at hand yet of an object of `len` bytes.
    pub fn new(len: u64) -> Self {
        Self { len, parts: Vec::new(), position: 0 }
    }

    /// Adds the bytes that start at `offset`.
    #[must_use]
    pub fn with(mut self, offset: u64, bytes: B) -> Self {
        self.parts.push((offset, bytes));
        self
    }

    fn at(&self, position: u64) -> Option<&[u8]> {
        self.parts.iter().find_map(|(start, bytes)| {
            let skip = usize::try_from(position.checked_sub(*start)?).ok()?;
            bytes.as_ref().get(skip..).filter(|rest| !rest.is_empty())
        })
    }
}

impl<B: AsRef<[u8]>> Read for Parts<B> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len || buffer.is_empty() {
            return Ok(0);
        }
        let position = self.position;
        let missing = || io::Error::other(format!("byte {position} of the object was not fetched"));
        let rest = self.at(position).ok_or_else(missing)?;
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.position += count as u64;
        Ok(count)
    }
}

impl<B> Seek for Parts<B> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        self.position = resolve(target, self.position, self.len)?;
        Ok(self.position)
    }
}

impl<B: AsRef<[u8]>> fmt::Debug for Parts<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges: Vec<_> = self.parts.iter().map(|(at, b)| *at..*at + b.as_ref().len() as u64).collect();
        f.debug_struct("Parts").field("len", &self.len).field("ranges", &ranges).finish_non_exhaustive()
    }
}

/// The input of the age library: keeps the head in memory, and the length as it was at the start.
///
/// A fixed length matters: the library's arithmetic panics on an object that changes its length under way.
struct Sealed<R> {
    head: Vec<u8>,
    header_len: usize,
    inner: R,
    inner_position: u64,
    position: u64,
    len: u64,
}

impl<R: Read + Seek> Sealed<R> {
    fn new(mut inner: R) -> Result<Self, CryptoError> {
        let io = |source| CryptoError::Io { source };
        let len = inner.seek(SeekFrom::End(0)).map_err(io)?;
        inner.rewind().map_err(io)?;
        let mut head = Vec::with_capacity(PROBE_BYTES);
        let header_len = loop {
            match header_len(&head) {
                Ok(found) if head.len() >= found + NONCE_BYTES => break found,
                Ok(_) | Err(CryptoError::HeaderIncomplete { .. }) => {}
                Err(error) => return Err(error),
            }
            if read_up_to(&mut inner, &mut head, PROBE_BYTES).map_err(io)? == 0 {
                return Err(CryptoError::damaged("it ends too early"));
            }
        };
        let inner_position = head.len() as u64;
        Ok(Self { head, header_len, inner, inner_position, position: 0, len })
    }

    fn read_inner(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.inner_position != self.position {
            self.inner_position = self.inner.seek(SeekFrom::Start(self.position))?;
        }
        let left = usize::try_from(self.len - self.position).unwrap_or(usize::MAX);
        let limit = buffer.len().min(left);
        let count = self.inner.read(&mut buffer[..limit])?;
        self.inner_position += count as u64;
        Ok(count)
    }
}

impl<R: Read + Seek> Read for Sealed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.position >= self.len {
            return Ok(0);
        }
        let in_head = usize::try_from(self.position).ok().and_then(|at| self.head.get(at..)).unwrap_or(&[]);
        let count = if in_head.is_empty() {
            self.read_inner(buffer).map_err(keep_apart_from_damage)?
        } else {
            let count = in_head.len().min(buffer.len());
            buffer[..count].copy_from_slice(&in_head[..count]);
            count
        };
        self.position += count as u64;
        Ok(count)
    }
}

/// Only for the header: the age library parses it line by line, and reads the payload through `Read`.
impl<R: Read + Seek> BufRead for Sealed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(usize::try_from(self.position).ok().and_then(|at| self.head.get(at..)).unwrap_or(&[]))
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
    }
}

impl<R> Seek for Sealed<R> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        self.position = resolve(target, self.position, self.len)?;
        Ok(self.position)
    }
}

fn whole_header_len(sealed: &[u8]) -> Result<usize, CryptoError> {
    header_len(sealed).map_err(|error| match error {
        CryptoError::HeaderIncomplete { .. } => CryptoError::damaged("it ends too early"),
        other => other,
    })
}

fn decrypt<B: BufRead>(
    identities: &[Identity],
    sealed: B,
) -> Result<age::stream::StreamReader<B>, CryptoError> {
    age::Decryptor::new_buffered(sealed)
        .and_then(|decryptor| decryptor.decrypt(identities.iter().map(Identity::as_age)))
        .map_err(|error| CryptoError::from_decrypt(error, identities.len(), 0))
}

fn read_up_to(input: &mut impl Read, into: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
    let start = into.len();
    into.resize(start + limit, 0);
    let result = loop {
        match input.read(&mut into[start..]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    into.truncate(start + result.as_ref().copied().unwrap_or(0).min(limit));
    result
}

/// The age library reports damage with these two kinds; an error of the input must not look like it.
fn keep_apart_from_damage(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => io::Error::other(error),
        _ => error,
    }
}

fn resolve(target: SeekFrom, position: u64, len: u64) -> io::Result<u64> {
    match target {
        SeekFrom::Start(offset) => Some(offset),
        SeekFrom::Current(offset) => position.checked_add_signed(offset),
        SeekFrom::End(offset) => len.checked_add_signed(offset),
    }
    .ok_or_else(out_of_range)
}

fn out_of_range() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "seek to a position out of range")
}
