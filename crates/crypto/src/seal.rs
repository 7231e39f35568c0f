//! Sealing: one standard age v1 file per object.

use std::fmt;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::CryptoError;
use crate::recipient::Recipient;

/// More recipients than this are refused. Keeps every header of ours well below [`MAX_HEADER_BYTES`].
pub const MAX_RECIPIENTS: usize = 64;

/// A header longer than this is refused: parsing a hostile one costs time that grows with its square.
pub const MAX_HEADER_BYTES: usize = 16 * 1024;

/// Bytes of the payload nonce, which follows the header.
pub const NONCE_BYTES: usize = 16;

const VERSION_LINE: &[u8] = b"age-encryption.org/v1\n";
const MAC_PREFIX: &[u8] = b"--- ";
const MAC_LINE_BYTES: usize = MAC_PREFIX.len() + 43 + 1;

/// Seals `plain` to all `recipients`; any one of their identities opens it.
///
/// Costs about 65 µs per recipient and 1 ms per MiB. Two calls never give the same bytes.
pub fn seal(recipients: &[Recipient], plain: &[u8]) -> Result<Vec<u8>, CryptoError> {
    let mut writer =
        SealWriter::new(recipients, Vec::with_capacity(plain.len() + plain.len() / 2048 + 1024))?;
    writer.write_all(plain).and_then(|()| writer.finish()).map_err(|source| CryptoError::Io { source })
}

/// Seals what is written to it, in constant memory (one block of 64 KiB).
///
/// Bytes are complete only after [`finish`](Self::finish); what was written before it does not open. After the first
/// error every further call fails: a block half written cannot be repaired.
/// ```
/// use std::io::Write;
/// use keepwell_crypto::{Identity, SealWriter, open};
///
/// let identity = Identity::generate();
/// let mut writer = SealWriter::new(&[identity.recipient()], Vec::new())?;
/// for part in ["one, ", "two"] {
///     writer.write_all(part.as_bytes())?;
/// }
/// let sealed = writer.finish()?;
/// assert_eq!(open(&[identity], &sealed, 100)?, b"one, two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SealWriter<W: Write> {
    stream: age::stream::StreamWriter<Counting<W>>,
    written: Arc<AtomicU64>,
    header_len: usize,
    failed: bool,
}

impl<W: Write> SealWriter<W> {
    /// Writes the header for `recipients` to `output` at once.
    pub fn new(recipients: &[Recipient], output: W) -> Result<Self, CryptoError> {
        if recipients.len() > MAX_RECIPIENTS {
            return Err(CryptoError::TooManyRecipients { count: recipients.len(), max: MAX_RECIPIENTS });
        }
        Self::with_age_recipients(recipients.iter().map(Recipient::as_age), output)
    }

    pub(crate) fn with_age_recipients<'a>(
        recipients: impl Iterator<Item = &'a dyn age::Recipient>,
        output: W,
    ) -> Result<Self, CryptoError> {
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(from_encrypt)?;
        let written = Arc::new(AtomicU64::new(0));
        let counting = Counting { inner: output, written: Arc::clone(&written) };
        let stream = encryptor.wrap_output(counting).map_err(|source| CryptoError::Io { source })?;
        let header_len = written.load(Ordering::Relaxed) as usize - NONCE_BYTES;
        Ok(Self { stream, written, header_len, failed: false })
    }

    /// Bytes of the header, as [`header_len`] finds them. An index keeps it, so that a range read needs no probe.
    pub fn header_len(&self) -> usize {
        self.header_len
    }

    /// Bytes given to the output so far. Up to 64 KiB that were written are still held back.
    pub fn sealed_len(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Seals the last block and gives the output back. It is not flushed.
    pub fn finish(self) -> io::Result<W> {
        self.refuse_after_failure()?;
        Ok(self.stream.finish()?.inner)
    }

    fn refuse_after_failure(&self) -> io::Result<()> {
        if self.failed {
            Err(io::Error::other("an earlier write of this sealed object failed"))
        } else {
            Ok(())
        }
    }

    /// The age library would seal a block twice if it were called again after an error.
    fn guard<T>(
        &mut self,
        call: impl FnOnce(&mut age::stream::StreamWriter<Counting<W>>) -> io::Result<T>,
    ) -> io::Result<T> {
        self.refuse_after_failure()?;
        let result = call(&mut self.stream);
        self.failed = result.is_err();
        result
    }
}

impl<W: Write> Write for SealWriter<W> {
    fn write(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.guard(|stream| stream.write(plain))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.guard(|stream| stream.flush())
    }
}

impl<W: Write> fmt::Debug for SealWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealWriter").field("sealed_len", &self.sealed_len()).finish_non_exhaustive()
    }
}

/// Counts what passes: the age library does not say how long its header is.
struct Counting<W> {
    inner: W,
    written: Arc<AtomicU64>,
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Bytes of the age header, up to and including the newline of the MAC line; 16 bytes of payload nonce follow.
///
/// `sealed_prefix` is the start of a sealed object. [`CryptoError::HeaderIncomplete`] asks for more of it, and stops
/// asking at [`MAX_HEADER_BYTES`]. Says nothing about who can open it, nor whether it is genuine.
pub fn header_len(sealed_prefix: &[u8]) -> Result<usize, CryptoError> {
    let start = &sealed_prefix[..sealed_prefix.len().min(VERSION_LINE.len())];
    if !VERSION_LINE.starts_with(start) {
        return Err(CryptoError::damaged("not an age v1 file"));
    }
    let mut line_start = VERSION_LINE.len();
    while let Some(rest) = sealed_prefix.get(line_start..) {
        let Some(newline) = rest.iter().position(|byte| *byte == b'\n') else { break };
        let line = &rest[..=newline];
        line_start += line.len();
        if line_start > MAX_HEADER_BYTES {
            break;
        }
        if line.starts_with(b"---") {
            let whole = line.starts_with(MAC_PREFIX) && line.len() == MAC_LINE_BYTES;
            return if whole {
                Ok(line_start)
            } else {
                Err(CryptoError::damaged("the header's MAC line is malformed"))
            };
        }
    }
    if sealed_prefix.len() >= MAX_HEADER_BYTES {
        return Err(CryptoError::damaged("the header is longer than 16 KiB"));
    }
    Err(CryptoError::HeaderIncomplete { have_bytes: sealed_prefix.len() })
}

fn from_encrypt(error: age::EncryptError) -> CryptoError {
    match error {
        age::EncryptError::MissingRecipients => CryptoError::NoRecipient,
        age::EncryptError::Io(source) => CryptoError::Io { source },
        _ => CryptoError::InvalidKey { kind: "set of recipients", reason: "they cannot share one object" },
    }
}
