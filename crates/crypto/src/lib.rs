//! Keys, sealing, ids and signatures of a Keepwell repository.
//!
//! Pure: nothing here opens a file or reads a clock. Random bytes for keys come from the operating system.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cbor;
mod chunk;
mod error;
mod ids;
pub mod keyfile;
pub mod keyring;
mod open;
mod passphrase;
mod random;
mod recipient;
mod seal;
mod secret;
mod sign;
mod signed;
pub mod trust;

pub use chunk::{BoundaryKey, ChunkKind, IdKey};
pub use error::CryptoError;
pub use ids::{
    ChunkId, Digest, DigestHasher, DomainId, GroupId, IdError, MemberId, RepositoryId, SnapshotId, StoreId,
};
pub use open::{BLOCK_PLAIN_BYTES, OpenReader, Parts, open, plain_len, sealed_range};
pub use recipient::{Identity, Recipient};
pub use seal::{MAX_HEADER_BYTES, MAX_RECIPIENTS, NONCE_BYTES, SealWriter, header_len, seal};
pub use secret::Secret;
pub use sign::{SignatureError, SigningKey, VerifyingKey, sign_detached, verify_detached};
pub use signed::Signed;
