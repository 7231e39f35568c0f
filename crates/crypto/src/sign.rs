//! Ed25519 signatures, bound to a repository and to a kind of record.

use std::fmt;
use std::str::FromStr;

use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use ed25519_dalek::Signer as _;
use zeroize::Zeroize;

use crate::error::CryptoError;
use crate::ids::{Digest, MemberId, RepositoryId};
use crate::random::random_bytes;
use crate::secret::Secret;

const DOMAIN: &[u8] = b"keepwell.v1.signed\0";
const SECRET_PREFIX: Hrp = Hrp::parse_unchecked("keepwell-signing-key-");
const SIGNING_KIND: &str = "signing key";
const VERIFYING_KIND: &str = "Ed25519 public key";

/// Why a signed record is not to be believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// The envelope does not decode.
    #[error("the signed record is malformed at byte {at}: {reason}")]
    Malformed {
        /// Position in the envelope.
        at: usize,
        /// What does not hold.
        reason: &'static str,
    },
    /// A record of another kind was put in this place. Its kind is not shown: it is unproven text.
    #[error("the signed record is not of kind `{expected}`")]
    WrongKind {
        /// The kind that belongs here.
        expected: String,
    },
    /// The record names another signer than the key at hand.
    #[error("the record is signed by {found}, not by {expected}")]
    WrongSigner {
        /// Whose key is at hand.
        expected: MemberId,
        /// Whom the record names.
        found: MemberId,
    },
    /// The signature does not fit: forged, damaged, or made for another repository.
    #[error("the signature of {signer} over a `{kind}` record does not verify")]
    Bad {
        /// Who is said to have signed.
        signer: MemberId,
        /// The kind that belongs here.
        kind: String,
    },
}

/// An Ed25519 private key. Wiped when dropped.
#[derive(Clone)]
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// Draws a fresh key.
    pub fn generate() -> Self {
        let mut seed = random_bytes();
        let key = Self::from_seed(&seed);
        seed.zeroize();
        key
    }

    /// The key of an RFC 8032 seed.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// Parses `KEEPWELL-SIGNING-KEY-1…`. The error never repeats the text.
    pub fn parse(text: &str) -> Result<Self, CryptoError> {
        let invalid = |reason| CryptoError::InvalidKey { kind: SIGNING_KIND, reason };
        let (prefix, mut bytes) =
            decode_bech32(text).ok_or_else(|| invalid("it does not decode as `KEEPWELL-SIGNING-KEY-1…`"))?;
        let seed: Result<[u8; 32], _> = bytes.as_slice().try_into();
        bytes.zeroize();
        let mut seed = seed.map_err(|_| invalid("it does not have 32 bytes"))?;
        if prefix != SECRET_PREFIX {
            seed.zeroize();
            return Err(invalid("it does not begin with `KEEPWELL-SIGNING-KEY-1`"));
        }
        let key = Self::from_seed(&seed);
        seed.zeroize();
        Ok(key)
    }

    /// The text form: Bech32 of the seed, in upper case like an age identity. Its checksum catches typing errors.
    pub fn to_secret_string(&self) -> Secret {
        let text = bech32::encode_upper::<Bech32>(SECRET_PREFIX, self.0.as_bytes());
        Secret::new(text.expect("32 bytes fit into Bech32"))
    }

    /// The public half.
    pub fn verifying_key(&self) -> VerifyingKey {
        VerifyingKey(self.0.verifying_key())
    }

    /// The id of the public half.
    pub fn member_id(&self) -> MemberId {
        self.verifying_key().member_id()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey(of {})", self.member_id())
    }
}

/// An Ed25519 public key. Only points that can be verified strictly exist: decodable, and not of low order.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VerifyingKey(ed25519_dalek::VerifyingKey);

impl VerifyingKey {
    /// Checks and wraps the 32 bytes of RFC 8032.
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, CryptoError> {
        let invalid = |reason| CryptoError::InvalidKey { kind: VERIFYING_KIND, reason };
        let key =
            ed25519_dalek::VerifyingKey::from_bytes(&bytes).map_err(|_| invalid("it is not a point"))?;
        if key.is_weak() {
            return Err(invalid("the point has a low order"));
        }
        Ok(Self(key))
    }

    /// The 32 bytes of RFC 8032.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The first 8 bytes of SHA-256 of the key: the name of its holder.
    pub fn member_id(&self) -> MemberId {
        let digest = Digest::of(self.as_bytes());
        let mut id = [0; MemberId::LEN];
        id.copy_from_slice(&digest.as_bytes()[..MemberId::LEN]);
        MemberId::from_bytes(id)
    }
}

impl fmt::Display for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(self.as_bytes()))
    }
}

impl fmt::Debug for VerifyingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyingKey({self})")
    }
}

impl FromStr for VerifyingKey {
    type Err = CryptoError;

    /// Parses 64 lower-case hex digits.
    fn from_str(text: &str) -> Result<Self, CryptoError> {
        let digits = text.parse::<Digest>().map_err(|_| CryptoError::InvalidKey {
            kind: VERIFYING_KIND,
            reason: "64 lower-case hex digits are needed",
        })?;
        Self::from_bytes(*digits.as_bytes())
    }
}

/// Signs `bytes` as a record of `kind` in `repository`. Deterministic; about 15 µs.
pub fn sign_detached(key: &SigningKey, repository: RepositoryId, kind: &str, bytes: &[u8]) -> [u8; 64] {
    key.0.sign(&message(repository, kind, bytes)).to_bytes()
}

/// Verifies strictly (RFC 8032, no malleable encodings, no low-order points); about 30 µs.
pub fn verify_detached(
    key: &VerifyingKey,
    repository: RepositoryId,
    kind: &str,
    bytes: &[u8],
    signature: &[u8; 64],
) -> Result<(), SignatureError> {
    let signature = ed25519_dalek::Signature::from_bytes(signature);
    key.0
        .verify_strict(&message(repository, kind, bytes), &signature)
        .map_err(|_| SignatureError::Bad { signer: key.member_id(), kind: kind.to_owned() })
}

/// What is signed: a text for this purpose alone, then repository, kind and payload, each of unambiguous length.
fn message(repository: RepositoryId, kind: &str, bytes: &[u8]) -> Vec<u8> {
    let kind_len = u32::try_from(kind.len()).expect("kinds are short names");
    let mut message = Vec::with_capacity(DOMAIN.len() + 20 + kind.len() + bytes.len());
    message.extend_from_slice(DOMAIN);
    message.extend_from_slice(repository.as_bytes());
    message.extend_from_slice(&kind_len.to_be_bytes());
    message.extend_from_slice(kind.as_bytes());
    message.extend_from_slice(bytes);
    message
}

/// Bech32 with its original checksum, the one that age uses; Bech32m is refused.
fn decode_bech32(text: &str) -> Option<(Hrp, Vec<u8>)> {
    let checked = CheckedHrpstring::new::<Bech32>(text).ok()?;
    Some((checked.hrp(), checked.byte_iter().collect()))
}
