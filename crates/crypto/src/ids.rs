//! Identifiers: fixed strings of bytes, each with a type of its own.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

use crate::random::random_bytes;

/// A text or byte string that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: {digits} lower-case hex digits are needed")]
pub struct IdError {
    /// What was expected, for example `snapshot id`.
    pub kind: &'static str,
    /// How many hex digits such an identifier has.
    pub digits: usize,
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal) => {
        $(#[$doc])*
        ///
        /// `Display` and `FromStr` use lower-case hex of the full length; nothing else is accepted.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Length in bytes; the text form has twice as many digits.
            pub const LEN: usize = $len;

            /// Wraps bytes that are already known to be this identifier.
            pub const fn from_bytes(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let shown = self.0.len().min(8);
                let dots = if shown < self.0.len() { "…" } else { "" };
                write!(f, concat!(stringify!($name), "({}{})"), hex::encode(&self.0[..shown]), dots)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                decode_lower_hex(text).map(Self).ok_or(IdError { kind: $kind, digits: 2 * $len })
            }
        }

        impl TryFrom<&[u8]> for $name {
            type Error = IdError;

            fn try_from(bytes: &[u8]) -> Result<Self, IdError> {
                let array = bytes.try_into().map_err(|_| IdError { kind: $kind, digits: 2 * $len })?;
                Ok(Self(array))
            }
        }
    };
}

macro_rules! cbor_as_bytes {
    ($($name:ident),+) => {$(
        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.bytes(&self.0)?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                Self::try_from(d.bytes()?).map_err(|e| minicbor::decode::Error::message(e).at(at))
            }
        }
    )+};
}

macro_rules! cbor_as_text {
    ($($name:ident),+) => {$(
        impl<C> minicbor::Encode<C> for $name {
            fn encode<W: minicbor::encode::Write>(
                &self,
                e: &mut minicbor::Encoder<W>,
                _: &mut C,
            ) -> Result<(), minicbor::encode::Error<W::Error>> {
                e.str(&hex::encode(self.0))?.ok()
            }
        }

        impl<'b, C> minicbor::Decode<'b, C> for $name {
            fn decode(d: &mut minicbor::Decoder<'b>, _: &mut C) -> Result<Self, minicbor::decode::Error> {
                let at = d.position();
                d.str()?.parse().map_err(|e: IdError| minicbor::decode::Error::message(e).at(at))
            }
        }
    )+};
}

macro_rules! random_id {
    ($($name:ident),+) => {$(
        impl $name {
            /// Draws a fresh identifier from the operating system's random source.
            pub fn generate() -> Self {
                Self(random_bytes())
            }
        }
    )+};
}

byte_id!(
    /// Names one repository in all its stores; every signature is bound to it.
    RepositoryId, 16, "repository id"
);
byte_id!(
    /// Names one store (one copy) of a repository; commits are bound to it.
    StoreId, 16, "store id"
);
byte_id!(
    /// Names a member or an owner: the first 8 bytes of SHA-256 of its Ed25519 public key.
    MemberId, 8, "member id"
);
byte_id!(
    /// Names a group, the set of writers that share an index. Text in CBOR.
    GroupId, 4, "group id"
);
byte_id!(
    /// Names a domain, the data that shares one id key and can be erased together. Text in CBOR.
    DomainId, 4, "domain id"
);
byte_id!(
    /// Keyed hash of the plaintext of one chunk; see [`crate::IdKey::chunk_id`].
    ChunkId, 32, "chunk id"
);
byte_id!(
    /// SHA-256 of the CBOR of a manifest.
    SnapshotId, 32, "snapshot id"
);
byte_id!(
    /// SHA-256 of stored bytes: what an object is named after and what records pin each other by.
    Digest, 32, "digest"
);

cbor_as_bytes!(RepositoryId, StoreId, MemberId, ChunkId, SnapshotId, Digest);
cbor_as_text!(GroupId, DomainId);
random_id!(RepositoryId, StoreId, GroupId, DomainId);

impl Digest {
    /// Hashes `bytes` in one go.
    pub fn of(bytes: &[u8]) -> Self {
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl SnapshotId {
    /// The id of the snapshot whose manifest encodes to `manifest_cbor` (before compression and sealing).
    pub fn of(manifest_cbor: &[u8]) -> Self {
        Self(Digest::of(manifest_cbor).0)
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Clone, Default)]
pub struct DigestHasher(sha2::Sha256);

impl DigestHasher {
    /// Starts with no bytes hashed.
    pub fn new() -> Self {
        Self::default()
    }

    /// Hashes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all bytes given so far.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl fmt::Debug for DigestHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestHasher")
    }
}

fn decode_lower_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.bytes().any(|b| b.is_ascii_uppercase()) {
        return None;
    }
    let mut bytes = [0; N];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_full_lower_case_hex_is_an_id() {
        let id: MemberId = "00ff10a0b0c0d0e0".parse().unwrap();
        assert_eq!(id.to_string(), "00ff10a0b0c0d0e0");
        for bad in
            ["", "00ff", "00FF10A0B0C0D0E0", "00ff10a0b0c0d0e", "00ff10a0b0c0d0e0ff", "zz ff10a0b0c0d0e0"]
        {
            let error = bad.parse::<MemberId>().unwrap_err();
            assert_eq!(error.to_string(), "not a member id: 16 lower-case hex digits are needed");
        }
    }

    #[test]
    fn debug_is_short() {
        assert_eq!(format!("{:?}", ChunkId::from_bytes([0xab; 32])), "ChunkId(abababababababab…)");
        assert_eq!(format!("{:?}", GroupId::from_bytes([1, 2, 3, 4])), "GroupId(01020304)");
    }

    #[test]
    fn known_digest() {
        // FIPS 180-4 example, "abc".
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(Digest::of(b"abc").to_string(), known);
        assert_eq!(SnapshotId::of(b"abc").to_string(), known);
        let mut hasher = DigestHasher::new();
        hasher.update(b"a");
        hasher.update(b"bc");
        assert_eq!(hasher.finish().to_string(), known);
    }

    #[test]
    fn groups_are_text_and_the_rest_bytes_in_cbor() {
        assert_eq!(minicbor::to_vec(GroupId::from_bytes([1, 2, 3, 4])).unwrap(), b"\x6801020304");
        assert_eq!(
            minicbor::to_vec(MemberId::from_bytes([7; 8])).unwrap(),
            b"\x48\x07\x07\x07\x07\x07\x07\x07\x07"
        );
        assert!(minicbor::decode::<MemberId>(b"\x41\x07").is_err());
        assert!(minicbor::decode::<GroupId>(b"\x680102030G").is_err());
    }

    proptest! {
        #[test]
        fn text_and_cbor_round_trip(bytes: [u8; 32], short: [u8; 4]) {
            let id = ChunkId::from_bytes(bytes);
            prop_assert_eq!(id.to_string().parse::<ChunkId>().unwrap(), id);
            prop_assert_eq!(minicbor::decode::<ChunkId>(&minicbor::to_vec(id).unwrap()).unwrap(), id);
            let domain = DomainId::from_bytes(short);
            prop_assert_eq!(domain.to_string().parse::<DomainId>().unwrap(), domain);
            prop_assert_eq!(minicbor::decode::<DomainId>(&minicbor::to_vec(domain).unwrap()).unwrap(), domain);
        }

        #[test]
        fn any_text_parses_or_fails(text in ".*") {
            let _ = text.parse::<RepositoryId>();
        }
    }
}
