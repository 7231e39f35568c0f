//! What a trust record can say.

use std::fmt;
use std::ops::BitOr;

use crate::ids::{Digest, DomainId, GroupId, MemberId, RepositoryId};
use crate::recipient::Recipient;
use crate::sign::VerifyingKey;

/// What a member may do. A set; the bits are those of the format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Roles(u8);

impl Roles {
    /// Backs up: creates commits, and cannot read what it wrote.
    pub const WRITER: Self = Self(1);
    /// Restores, verifies, browses.
    pub const READER: Self = Self(2);
    /// Retires and prunes.
    pub const KEEPER: Self = Self(4);

    const NAMES: [(Self, &str); 3] =
        [(Self::WRITER, "writer"), (Self::READER, "reader"), (Self::KEEPER, "keeper")];

    /// The set of these bits, or `None` for an empty set or a bit that this version does not know.
    pub fn from_bits(bits: u8) -> Option<Self> {
        (bits != 0 && bits & !7 == 0).then_some(Self(bits))
    }

    /// The bits as stored.
    pub fn bits(self) -> u8 {
        self.0
    }

    /// Whether every role of `other` is in this set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any role of `other` is in this set.
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The names of the roles in this set, in a fixed order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES.into_iter().filter(move |(role, _)| self.contains(*role)).map(|(_, name)| name)
    }

    /// The one role of this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.into_iter().find(|(_, known)| *known == name).map(|(role, _)| role)
    }
}

impl BitOr for Roles {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.names().collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roles({self})")
    }
}

/// Who signs the trust chain, and can open every keyring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// For people: 1 to 200 bytes without control characters.
    pub name: String,
    /// Keyrings are sealed to it.
    pub recipient: Recipient,
    /// The root key.
    pub key: VerifyingKey,
}

impl Owner {
    /// Derived from the root key.
    pub fn id(&self) -> MemberId {
        self.key.member_id()
    }
}

/// A host or a service that takes part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// For people: 1 to 200 bytes without control characters.
    pub name: String,
    /// Verifies the member's records.
    pub key: VerifyingKey,
    /// The member's keyring is sealed to it.
    pub recipient: Recipient,
    /// What it may do.
    pub roles: Roles,
    /// Where its commits go.
    pub group: GroupId,
}

impl Member {
    /// Derived from the public key.
    pub fn id(&self) -> MemberId {
        self.key.member_id()
    }
}

/// Names a keyring object and pins its stored bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyringRef {
    /// `keys/<member>/<n>`.
    pub name: String,
    /// SHA-256 of the stored bytes.
    pub digest: Digest,
}

/// A group, or the next epoch of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name for ever.
    pub id: GroupId,
    /// For people; a later epoch may change it.
    pub name: String,
    /// Index segments are sealed to it.
    pub recipient: Recipient,
    /// 0 at first, then one more with every rotation.
    pub epoch: u64,
}

/// A domain, or the next epoch of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Domain {
    /// Its name for ever.
    pub id: DomainId,
    /// The group it belongs to, for ever.
    pub group: GroupId,
    /// For people; a later epoch may change it.
    pub name: String,
    /// Packs are sealed to it.
    pub recipient: Recipient,
    /// Whether its keys are kept apart, so that they can be destroyed. For ever.
    pub erasable: bool,
    /// 0 at first, then one more with every rotation.
    pub epoch: u64,
}

/// From which of its sequence numbers on a member's commits are refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoke {
    /// Who is revoked.
    pub member: MemberId,
    /// The first refused number; 0 refuses all. A later record can only lower it.
    pub first_refused: u64,
    /// For people.
    pub reason: String,
}

/// What is proven about the destruction of a domain's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erase {
    /// The domain; it must be erasable.
    pub domain: DomainId,
    /// When the keys were destroyed, in nanoseconds since 1970.
    pub time: i64,
    /// Key objects proven gone, `keys/erasable/<domain>/…`.
    pub gone: Vec<String>,
    /// Holders of a copy that are known, and of which nothing is proven; and key objects that are to be destroyed.
    pub unproven: Vec<String>,
}

/// The body of a trust record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// The first record, and only that.
    Genesis {
        /// What every signature is bound to.
        repository: RepositoryId,
        /// Format version of the repository.
        format: u64,
        /// At least one; the first signs.
        owners: Vec<Owner>,
    },
    /// A member joins, with its first keyring.
    Enrol {
        /// Who joins.
        member: Member,
        /// What it may open.
        keyring: KeyringRef,
    },
    /// A member's commits are refused from a number on.
    Revoke(Revoke),
    /// A new group, or a rotation of its recipient.
    Group(Group),
    /// A new domain, or a rotation of its recipient.
    Domain(Domain),
    /// Keys of an erasable domain were destroyed. May be repeated, to prove more of them gone.
    Erase(Erase),
    /// An owner joins. Its id was never used before.
    AddOwner(Owner),
    /// An owner leaves, never the last one. Rotate what it could read as well.
    RemoveOwner(MemberId),
    /// A new keyring for a member, after a rotation or for a new group or domain.
    Keyring {
        /// Whose.
        member: MemberId,
        /// Its number is higher than those of all its keyrings before.
        keyring: KeyringRef,
    },
}
