//! The envelope of a signed record.

use minicbor::{Decoder, Encoder};

use crate::cbor;
use crate::ids::{MemberId, RepositoryId};
use crate::sign::{SignatureError, SigningKey, VerifyingKey, sign_detached, verify_detached};

/// A record with its signature, as it is stored: plain, readable by anybody, alterable by nobody.
///
/// The payload means nothing until [`verify`](Self::verify) has returned it.
/// ```
/// use keepwell_crypto::{RepositoryId, Signed, SigningKey};
///
/// let (key, repository) = (SigningKey::generate(), RepositoryId::generate());
/// let stored = Signed::sign(&key, repository, "commit", vec![0xa0]).to_bytes();
///
/// let record = Signed::from_bytes(&stored)?;
/// assert_eq!(record.verify(&key.verifying_key(), repository, "commit")?, [0xa0]);
/// // Neither in another place nor in another repository does it count.
/// assert!(record.verify(&key.verifying_key(), repository, "retired").is_err());
/// assert!(record.verify(&key.verifying_key(), RepositoryId::generate(), "commit").is_err());
/// # Ok::<(), keepwell_crypto::SignatureError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// What the payload is, for example `commit`.
    pub kind: String,
    /// The record itself, CBOR.
    pub payload: Vec<u8>,
    /// Who is said to have signed.
    pub signer: MemberId,
    /// The Ed25519 signature.
    pub signature: [u8; 64],
}

impl Signed {
    /// Signs a payload.
    pub fn sign(key: &SigningKey, repository: RepositoryId, kind: &str, payload: Vec<u8>) -> Self {
        let signature = sign_detached(key, repository, kind, &payload);
        Self { kind: kind.to_owned(), payload, signer: key.member_id(), signature }
    }

    /// The stored form: deterministic CBOR, the same bytes for the same value.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::new(Vec::with_capacity(self.payload.len() + self.kind.len() + 96));
        cbor::infallible(|| {
            e.map(4)?.u8(0)?.str(&self.kind)?.u8(1)?.bytes(&self.payload)?;
            e.u8(2)?.encode(self.signer)?.u8(3)?.bytes(&self.signature)?.ok()
        });
        e.into_writer()
    }

    /// Decodes the stored form. Nothing is verified yet.
    ///
    /// Exactly one encoding of a value is accepted, with these four keys and no more: nobody can alter the stored
    /// bytes, and so their hash, without breaking the signature.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignatureError> {
        let malformed = |at, reason| SignatureError::Malformed { at, reason };
        cbor::check(bytes).map_err(|e| malformed(e.at, e.reason))?;
        let mut d = Decoder::new(bytes);
        let decoded = decode(&mut d);
        decoded.map_err(|e| {
            malformed(e.position().unwrap_or(d.position()), "it is not a map of the keys 0 to 3")
        })
    }

    /// Returns the payload if `key` signed it as a record of `kind` in `repository`.
    pub fn verify(
        &self,
        key: &VerifyingKey,
        repository: RepositoryId,
        kind: &str,
    ) -> Result<&[u8], SignatureError> {
        if self.kind != kind {
            return Err(SignatureError::WrongKind { expected: kind.to_owned() });
        }
        let expected = key.member_id();
        if self.signer != expected {
            return Err(SignatureError::WrongSigner { expected, found: self.signer });
        }
        verify_detached(key, repository, kind, &self.payload, &self.signature)?;
        Ok(&self.payload)
    }
}

fn decode(d: &mut Decoder<'_>) -> Result<Signed, minicbor::decode::Error> {
    let refuse = || minicbor::decode::Error::message("unexpected shape");
    if d.map()? != Some(4) {
        return Err(refuse());
    }
    let key = |d: &mut Decoder<'_>, expected: u8| if d.u8()? == expected { Ok(()) } else { Err(refuse()) };
    key(d, 0)?;
    let kind = d.str()?.to_owned();
    key(d, 1)?;
    let payload = d.bytes()?.to_vec();
    key(d, 2)?;
    let signer = d.decode()?;
    key(d, 3)?;
    let signature = d.bytes()?.try_into().map_err(|_| refuse())?;
    Ok(Signed { kind, payload, signer, signature })
}
