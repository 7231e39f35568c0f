//! Keys, sealing, ids and signatures of a Keepwell repository.
//!
//! The byte format is `docs/format.md`; this crate is its sections 2, 4, 5 and 7, and the encryption of all others.
//!
//! - **Sealing**: [`seal`] and [`open`], [`SealWriter`] and [`OpenReader`]. One object is one standard age v1 file.
//! - **Ids**: [`IdKey`] keys the ids of chunks and where chunks and nodes are cut. [`Digest`] is SHA-256.
//! - **Signatures**: [`Signed`] envelopes, bound to one repository and to one kind of record.
//! - **Trust**: [`trust::Chain`] says who owns a repository and whose records count.
//! - **Keys at rest**: [`keyring::Keyring`] in the repository, [`keyfile::KeyFile`] in the hands of people.
//!
//! Pure: nothing here opens a file or reads a clock. Random bytes for keys come from the operating system. Secrets
//! are wiped when dropped, and no `Debug`, `Display` or error shows one. No type of the libraries below that are
//! before 1.0 appears in a signature, except that ids implement minicbor's traits.
//!
//! ```
//! use keepwell_crypto::trust::{Body, Chain, Group, Owner};
//! use keepwell_crypto::{GroupId, Identity, RepositoryId, Signed, SigningKey, open, seal};
//!
//! // A new repository: its owner signs the first record of the trust chain, and declares a group.
//! let (owner_identity, root_key) = (Identity::generate(), SigningKey::generate());
//! let owner = Owner {
//!     name: "alice".into(),
//!     recipient: owner_identity.recipient(),
//!     key: root_key.verifying_key(),
//! };
//! let (mut chain, genesis) = Chain::genesis(&root_key, 0, RepositoryId::generate(), vec![owner])?;
//! let index_identity = Identity::generate();
//! let group = Group {
//!     id: GroupId::generate(),
//!     name: "production".into(),
//!     recipient: index_identity.recipient(),
//!     epoch: 0,
//! };
//! let second = chain.append(&root_key, 1, Body::Group(group))?;
//!
//! // Somebody else loads it, pinned by the fingerprint in a key file.
//! let loaded = Chain::load([genesis, second], Some(chain.fingerprint()))?;
//!
//! // Seal to the group; sign a record as the owner.
//! let recipient = loaded.groups().next().unwrap().recipient.clone();
//! let sealed = seal(&[recipient], b"an index segment")?;
//! assert_eq!(open(&[index_identity], &sealed, 1 << 20)?, b"an index segment");
//! let record = Signed::sign(&root_key, loaded.repository_id(), "retired", vec![0xa0]);
//! let record = Signed::from_bytes(&record.to_bytes())?;
//! assert_eq!(loaded.verify_owner(&record, "retired")?.name, "alice");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::exit)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod cbor;
mod chunk;
mod device;
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
mod statement;
pub mod trust;

pub use cbor::CborError;
pub use chunk::{BoundaryKey, ChunkHasher, ChunkKind, IdKey};
pub use device::{DeviceError, KeyAgreement};
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
pub use statement::{STATEMENT_BYTES_MAX, STATEMENT_KIND, Statement, StatementError};
