//! What can go wrong with keys and sealed bytes.

use std::io;

use crate::device::device_error;

/// A failure to seal, to open, or to read a key. No variant carries secret material or, but for what a device
/// says, untrusted text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// Sealing to nobody would lose the data.
    #[error("no recipient was given")]
    NoRecipient,
    /// The header would grow beyond what a reader accepts.
    #[error("{count} recipients are more than the {max} that one object may have")]
    TooManyRecipients {
        /// How many were given.
        count: usize,
        /// How many are possible.
        max: usize,
    },
    /// The object is sealed to others. A damaged recipient line looks the same: nobody can tell them apart.
    #[error("none of the {identities} identities at hand opens this object")]
    NoMatchingKey {
        /// How many identities were tried.
        identities: usize,
    },
    /// The bytes are not what was sealed.
    #[error("the sealed bytes are damaged: {reason}")]
    Damaged {
        /// What does not hold.
        reason: &'static str,
    },
    /// More bytes are needed before the header can be judged.
    #[error("the sealed header does not end within the first {have_bytes} bytes")]
    HeaderIncomplete {
        /// How many bytes were given.
        have_bytes: usize,
    },
    /// The plaintext is longer than the caller can accept. Nothing was decrypted.
    #[error("the plaintext has {plain_bytes} bytes, more than the limit of {max_plain_bytes}")]
    TooLarge {
        /// Length of the plaintext.
        plain_bytes: u64,
        /// The caller's limit.
        max_plain_bytes: u64,
    },
    /// A text or byte string is not a key of the kind that was expected.
    #[error("not a valid {kind}: {reason}")]
    InvalidKey {
        /// For example `age recipient`.
        kind: &'static str,
        /// What does not hold.
        reason: &'static str,
    },
    /// The passphrase does not open this text. A damaged header looks the same.
    #[error("the passphrase is wrong")]
    WrongPassphrase,
    /// The text asks for more work than we are ready to spend on it.
    #[error("the passphrase work factor 2^{required_log_n} is above the limit of 2^{max_log_n}")]
    ExcessiveWork {
        /// What the text asks for.
        required_log_n: u8,
        /// Our limit.
        max_log_n: u8,
    },
    /// A device that holds the secret did not do its part.
    #[error("the device with the key does not answer: {reason}")]
    Device {
        /// What it, or whoever speaks to it, said.
        reason: String,
    },
    /// The sealed object could not be read or written.
    #[error("access to the sealed object failed")]
    Io {
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl CryptoError {
    pub(crate) fn damaged(reason: &'static str) -> Self {
        Self::Damaged { reason }
    }

    /// Maps a failure of the age library. `identities` is how many were tried.
    pub(crate) fn from_decrypt(error: age::DecryptError, identities: usize, max_log_n: u8) -> Self {
        match error {
            age::DecryptError::NoMatchingKeys => Self::NoMatchingKey { identities },
            age::DecryptError::KeyDecryptionFailed => Self::WrongPassphrase,
            age::DecryptError::ExcessiveWork { required, .. } => {
                Self::ExcessiveWork { required_log_n: required, max_log_n }
            }
            age::DecryptError::InvalidMac => Self::damaged("the header's MAC does not match"),
            age::DecryptError::InvalidHeader => Self::damaged("the header is malformed"),
            age::DecryptError::UnknownFormat => Self::damaged("not an age v1 file"),
            age::DecryptError::Io(source) => match device_error(source) {
                Ok(error) => Self::Device { reason: error.to_string() },
                Err(source) => Self::from_read(source),
            },
            _ => Self::damaged("decryption failed"),
        }
    }

    /// Maps an error of reading decrypted bytes: what age says about the bytes is damage, the rest is I/O.
    pub(crate) fn from_read(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::damaged("it ends too early"),
            io::ErrorKind::InvalidData => Self::damaged("a block does not decrypt"),
            _ => Self::Io { source: error },
        }
    }
}
