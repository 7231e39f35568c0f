//! Why a trust chain, or a record of a member, is refused.

use super::body::Roles;
use crate::cbor::CborError;
use crate::ids::{Digest, DomainId, GroupId, MemberId};
use crate::sign::SignatureError;

/// A trust chain, or a record judged by it, that must not be believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// There is no genesis.
    #[error("the trust chain is empty: there is no `trust/0000000000`")]
    Empty,
    /// It is another repository, or somebody replaced its chain.
    #[error("the genesis fingerprint is {found}, the key at hand expects {expected}")]
    WrongGenesis {
        /// What the key file or the recovery kit pins.
        expected: Digest,
        /// What the store holds.
        found: Digest,
    },
    /// A trust record does not decode.
    #[error("trust record {n} is malformed")]
    Malformed {
        /// Its number.
        n: u64,
        /// Where and why.
        source: CborError,
    },
    /// The envelope or the signature of a trust record does not hold.
    #[error("trust record {n} is not genuine")]
    NotGenuine {
        /// Its number.
        n: u64,
        /// Why.
        source: SignatureError,
    },
    /// A trust record breaks a rule.
    #[error("trust record {n} breaks a rule")]
    Broken {
        /// Its number.
        n: u64,
        /// Which rule.
        source: Violation,
    },
    /// The record names a signer that the chain never enrolled.
    #[error("{signer} is not enrolled in this repository")]
    UnknownSigner {
        /// Whom the record names.
        signer: MemberId,
    },
    /// The signer may not sign this.
    #[error("{signer} signed a `{kind}` record but is not a {needed}")]
    MissingRole {
        /// Who signed.
        signer: MemberId,
        /// What was signed.
        kind: String,
        /// One of these was needed.
        needed: Roles,
    },
    /// The signer was revoked.
    #[error("{signer} is revoked from its number {from} on")]
    Revoked {
        /// Who signed.
        signer: MemberId,
        /// The first refused number.
        from: u64,
    },
    /// The record is not what its signer signed.
    #[error("a record of {signer} is not genuine")]
    Signature {
        /// Who is said to have signed.
        signer: MemberId,
        /// Why.
        source: SignatureError,
    },
}

/// The rule of the trust chain that a record breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A gap, a repetition, or a record in another's place.
    #[error("it says that its number is {found}")]
    Number {
        /// What it says.
        found: u64,
    },
    /// The hash of the record before it does not match.
    #[error("it does not continue the record before it")]
    Link,
    /// Signed by nobody who may sign.
    #[error("{signer} is not an owner in force")]
    Signer {
        /// Who signed.
        signer: MemberId,
    },
    /// The first record is no genesis, or a later one is.
    #[error("a genesis is the first record and no other")]
    Genesis,
    /// A newer program is needed.
    #[error("format {found} is not known to this version")]
    Format {
        /// What the genesis says.
        found: u64,
    },
    /// Nobody would be left to sign.
    #[error("at least one owner must remain")]
    NoOwner,
    /// An id is given only once, also after its holder has gone.
    #[error("{id} was named before")]
    DuplicateId {
        /// Which one.
        id: MemberId,
    },
    /// The record speaks about nobody.
    #[error("{id} is not known")]
    UnknownId {
        /// Which one.
        id: MemberId,
    },
    /// The group was not declared before.
    #[error("group {id} is not known")]
    UnknownGroup {
        /// Which one.
        id: GroupId,
    },
    /// The domain was not declared before.
    #[error("domain {id} is not known")]
    UnknownDomain {
        /// Which one.
        id: DomainId,
    },
    /// Epochs count 0, 1, 2 …
    #[error("epoch {found} does not follow: {expected} is next")]
    Epoch {
        /// What it says.
        found: u64,
        /// What comes next.
        expected: u64,
    },
    /// A rotation to a recipient of an earlier epoch would give back what it takes away.
    #[error("its recipient was used before")]
    RecipientReused,
    /// A domain keeps its group, and stays erasable or not.
    #[error("the group and the kind of a domain never change")]
    DomainChanged,
    /// The keys of the domain are gone.
    #[error("domain {id} is erased")]
    Erased {
        /// Which one.
        id: DomainId,
    },
    /// Only an erasable domain can be erased.
    #[error("domain {id} is not erasable")]
    NotErasable {
        /// Which one.
        id: DomainId,
    },
    /// A revocation can be moved only to an earlier number.
    #[error("{id} is already revoked from {from} on")]
    RevokedBefore {
        /// Who.
        id: MemberId,
        /// The number in force.
        from: u64,
    },
    /// A name for people is empty, too long, or would garble a terminal.
    #[error("a name must have 1 to 200 bytes and no control characters")]
    Name,
    /// A key object is named where it does not belong, or does not follow the one before it.
    #[error("a key object has a name that does not belong here")]
    KeyObject,
}
