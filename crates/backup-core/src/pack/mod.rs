//! Packs: many chunks in one encrypted object. The byte layout is format.md §6.

mod directory;
mod frame;
mod padding;
mod read;
mod write;

pub use directory::{FrameInfo, PackDirectory};
pub(crate) use frame::FrameDecoder;
pub use frame::{FRAME_PLAIN_MAX, FrameBuilder, decode_frame};
pub use padding::padme;
pub use read::chunk_from_frame;
pub use write::{FinishedPack, PackWriter};

/// Why the bytes of a pack are not what they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackError {
    /// The trailer, directory or a frame breaks the format.
    #[error("pack is malformed: {0}")]
    Malformed(&'static str),
    /// zstd refuses a frame, or it is larger than allowed.
    #[error("frame does not decompress: {0}")]
    Frame(String),
    /// Decoded bytes do not have the id that the index claims.
    #[error("chunk {0} does not match its id")]
    WrongId(keepwell_crypto::ChunkId),
    /// age refuses.
    #[error(transparent)]
    Crypto(#[from] keepwell_crypto::CryptoError),
    /// Writing into the encrypting writer failed.
    #[error("seal a pack")]
    Seal(#[source] std::io::Error),
}
