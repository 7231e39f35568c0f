//! Key files: the credential of an owner or a member, and the recovery kit.
//!
//! A key file is TOML, readable by people and safe to print. Who holds it holds what it says, so it is best kept
//! [protected](KeyFile::protect) by a passphrase.

mod parse;
mod write;

use crate::error::CryptoError;
use crate::ids::{Digest, RepositoryId};
use crate::passphrase;
use crate::recipient::Identity;
use crate::secret::Secret;
use crate::sign::SigningKey;
use crate::trust::Roles;

/// The version of key files that this crate writes, and the only one that it reads.
pub const KEYFILE_VERSION: u32 = 1;

/// What a key file holds.
/// ```
/// use keepwell_crypto::keyfile::{KeyFile, OwnerKeys};
/// use keepwell_crypto::{Digest, Identity, RepositoryId, SigningKey};
///
/// let key = KeyFile {
///     repository: RepositoryId::generate(),
///     genesis: Digest::of(b"the stored bytes of trust/0000000000"),
///     name: "ann".into(),
///     owner: Some(OwnerKeys { identity: Identity::generate(), root: SigningKey::generate() }),
///     member: None,
///     store_hint: Some("/srv/backup".into()),
/// };
/// let text = key.to_toml(); // a secret; `KeyFile::protect` puts it under a passphrase
/// assert_eq!(KeyFile::parse(text.expose())?.genesis, key.genesis);
/// // What is printed and locked away reads back as well.
/// assert!(KeyFile::parse(key.recovery_kit_text()?.expose())?.owner.is_some());
/// # Ok::<(), keepwell_crypto::keyfile::KeyFileError>(())
/// ```
#[derive(Debug, Clone)]
pub struct KeyFile {
    /// The repository that the keys belong to.
    pub repository: RepositoryId,
    /// The pin: SHA-256 of the stored bytes of `trust/0000000000`.
    pub genesis: Digest,
    /// Whose keys these are, for people.
    pub name: String,
    /// The keys of an owner.
    pub owner: Option<OwnerKeys>,
    /// The keys of a member.
    pub member: Option<MemberKeys>,
    /// Where the repository was when the file was written, for people. Must not hold a password.
    pub store_hint: Option<String>,
}

/// The secrets of an owner.
#[derive(Debug, Clone)]
pub struct OwnerKeys {
    /// Opens every keyring.
    pub identity: Identity,
    /// Signs the trust chain.
    pub root: SigningKey,
}

/// The secrets of a member.
#[derive(Debug, Clone)]
pub struct MemberKeys {
    /// Opens the member's keyring.
    pub identity: Identity,
    /// Signs commits and the like.
    pub signing: SigningKey,
    /// What the member may do; only a hint, the trust chain decides.
    pub roles: Roles,
}

/// A text that is not a key file. No variant repeats any of the text but the name of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The text is not TOML, or not of the shape of a key file.
    #[error("the key file is wrong at line {line}, column {column}: {reason}")]
    At {
        /// Counted from 1.
        line: usize,
        /// Counted from 1, in characters.
        column: usize,
        /// What does not hold.
        reason: String,
    },
    /// The text is an armored age file: it needs its passphrase first.
    #[error("the key file is protected by a passphrase")]
    Protected,
    /// The keys of an owner are needed for this, and the file has none.
    #[error("the key file of `{name}` holds no keys of an owner")]
    NoOwner {
        /// The name in the file.
        name: String,
    },
}

/// A protected key file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnprotectError {
    /// The passphrase or the text is wrong.
    #[error("the protected key file cannot be opened")]
    Open(#[from] CryptoError),
    /// What was inside is not a key file.
    #[error("what the passphrase protects cannot be used")]
    Parse(#[from] KeyFileError),
}

impl KeyFile {
    /// The text of the file, with a short comment on what it is. An identity in a device is not in it, and without one it
    /// cannot be parsed again.
    pub fn to_toml(&self) -> Secret {
        write::key_file(self)
    }

    /// Parses a key file or a recovery kit. Unknown keys are refused, with their position.
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        if Self::is_protected(text) {
            return Err(KeyFileError::Protected);
        }
        parse::key_file(text)
    }

    /// Whether a text is protected by a passphrase (or sealed in another way), and not plain.
    pub fn is_protected(text: &str) -> bool {
        passphrase::is_armored(text)
    }

    /// The text of the file under a passphrase, as an armored age file. Takes about a second and 256 MiB.
    ///
    /// `age -d` opens it too. Nobody opens it without the passphrase: there is no way around.
    pub fn protect(&self, passphrase: &Secret) -> Result<String, CryptoError> {
        protect_text(&self.to_toml(), passphrase)
    }

    /// Opens what [`protect`](Self::protect) made. Texts that ask for more than 1 GiB of work are refused.
    pub fn unprotect(armored: &str, passphrase: &Secret) -> Result<Self, UnprotectError> {
        Ok(Self::parse(passphrase::unprotect(armored, passphrase)?.expose())?)
    }

    /// A text to print and lock away, from which the owner can get everything back.
    ///
    /// It holds the owner's keys, not those of a member, and says how it is used, with and without Keepwell.
    /// [`parse`](Self::parse) reads it.
    pub fn recovery_kit_text(&self) -> Result<Secret, KeyFileError> {
        if self.owner.is_none() {
            return Err(KeyFileError::NoOwner { name: self.name.clone() });
        }
        Ok(write::recovery_kit(self))
    }
}

/// Any secret text under a passphrase, for example a recovery kit. Costs as [`KeyFile::protect`].
pub fn protect_text(text: &Secret, passphrase: &Secret) -> Result<String, CryptoError> {
    passphrase::protect(text, passphrase)
}
