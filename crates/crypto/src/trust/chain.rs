//! The chain itself: loading, growing, asking.

use super::body::{Body, Domain, Group, KeyringRef, Member, Owner, Roles};
use super::error::{TrustError, Violation};
use super::record::Record;
use super::state::{MemberState, State};
use crate::ids::{Digest, DomainId, GroupId, MemberId, RepositoryId};
use crate::recipient::Recipient;
use crate::sign::{SigningKey, VerifyingKey, verify_detached};
use crate::signed::Signed;

/// The kind of the signed records `trust/<n>`.
pub const KIND: &str = "trust";
/// The version of the repository format that this crate knows.
pub const FORMAT_VERSION: u64 = 1;

/// A verified trust chain and what it adds up to.
/// ```
/// use keepwell_crypto::trust::{Body, Chain, Group, KeyringRef, Member, Owner, Roles};
/// use keepwell_crypto::{Digest, GroupId, Identity, RepositoryId, Signed, SigningKey};
///
/// let (root, identity) = (SigningKey::generate(), Identity::generate());
/// let ann = Owner { name: "ann".into(), recipient: identity.recipient(), key: root.verifying_key() };
/// let (mut chain, genesis) = Chain::genesis(&root, 0, RepositoryId::generate(), vec![ann])?;
///
/// // The owner lets a host in that writes.
/// let id = GroupId::generate();
/// let group = Group { id, name: "all".into(), recipient: Identity::generate().recipient(), epoch: 0 };
/// let host = SigningKey::generate();
/// let member = Member {
///     name: "web1".into(),
///     key: host.verifying_key(),
///     recipient: Identity::generate().recipient(),
///     roles: Roles::WRITER,
///     group: id,
/// };
/// let keyring = KeyringRef {
///     name: format!("keys/{}/0000000000", member.id()),
///     digest: Digest::of(b"the stored bytes of its keyring"),
/// };
/// let second = chain.append(&root, 1, Body::Group(group))?;
/// let third = chain.append(&root, 2, Body::Enrol { member, keyring })?;
/// let stored = [genesis, second, third];
///
/// // Whoever has the fingerprint in a key file believes that host, as far as its roles go.
/// let chain = Chain::load(&stored, Some(chain.fingerprint()))?;
/// let commit = Signed::sign(&host, chain.repository_id(), "commit", vec![0xa0]);
/// assert_eq!(chain.verify_member(&commit, "commit", Roles::WRITER, None)?.name, "web1");
/// assert!(chain.verify_member(&commit, "commit", Roles::KEEPER, None).is_err());
/// assert!(Chain::load(&stored[1..], None).is_err(), "nothing can be left out");
/// # Ok::<(), keepwell_crypto::trust::TrustError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Chain {
    state: State,
    /// SHA-256 of the stored bytes of every record; never empty.
    digests: Vec<Digest>,
}

impl Chain {
    /// Starts the chain of a new repository. The first of `owners` must hold `root_key`.
    ///
    /// `time` is in nanoseconds since 1970. Returns the chain and the bytes to store as `trust/0000000000`.
    pub fn genesis(
        root_key: &SigningKey,
        time: i64,
        repository: RepositoryId,
        owners: Vec<Owner>,
    ) -> Result<(Self, Vec<u8>), TrustError> {
        let body = Body::Genesis { repository, format: FORMAT_VERSION, owners };
        let record = Record { n: 0, previous: None, time, body };
        let bytes = Signed::sign(root_key, repository, KIND, record.to_bytes()).to_bytes();
        Ok((Self::from_genesis(&bytes)?, bytes))
    }

    /// Rebuilds a chain from its stored objects, `trust/0000000000` first.
    ///
    /// With a `pin` the genesis must be the one that a key file names. Without one nothing is proven but that the
    /// chain is consistent: show the [`fingerprint`](Self::fingerprint) to a person who knows the right one.
    pub fn load<B: AsRef<[u8]>>(
        objects: impl IntoIterator<Item = B>,
        pin: Option<Digest>,
    ) -> Result<Self, TrustError> {
        let mut objects = objects.into_iter();
        let genesis = objects.next().ok_or(TrustError::Empty)?;
        let found = Digest::of(genesis.as_ref());
        if let Some(expected) = pin.filter(|pin| *pin != found) {
            return Err(TrustError::WrongGenesis { expected, found });
        }
        let mut chain = Self::from_genesis(genesis.as_ref())?;
        objects.try_for_each(|object| chain.advance(object.as_ref()))?;
        Ok(chain)
    }

    fn from_genesis(bytes: &[u8]) -> Result<Self, TrustError> {
        let broken = |source| TrustError::Broken { n: 0, source };
        let (signed, record) = decode(0, bytes)?;
        check_place(&record, 0, None).map_err(broken)?;
        let state = State::genesis(&record.body, FORMAT_VERSION).map_err(broken)?;
        let first = &state.owners[0].owner; // a genesis without owners was refused above
        if signed.signer != first.id() {
            return Err(broken(Violation::Signer { signer: signed.signer }));
        }
        check_signature(0, &signed, &first.key, state.repository)?;
        Ok(Self { state, digests: vec![Digest::of(bytes)] })
    }

    /// Verifies the next stored record and takes it in. On an error the chain is unchanged.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<(), TrustError> {
        let (n, previous) = self.head();
        let n = n + 1;
        let broken = |source| TrustError::Broken { n, source };
        let (signed, record) = decode(n, bytes)?;
        check_place(&record, n, Some(previous)).map_err(broken)?;
        let owner = self.state.owner_in_force(&signed.signer);
        let owner = owner.ok_or_else(|| broken(Violation::Signer { signer: signed.signer }))?;
        check_signature(n, &signed, &owner.key, self.state.repository)?;
        self.state.apply(&record.body).map_err(broken)?;
        self.digests.push(Digest::of(bytes));
        Ok(())
    }

    /// Signs the next record and takes it in. `time` is in nanoseconds since 1970.
    ///
    /// Store the bytes by conditional create as `trust/<n>`, n being that of the new [`head`](Self::head). If the name
    /// is taken, another owner was faster: drop this chain, load it again and decide anew.
    pub fn append(&mut self, root_key: &SigningKey, time: i64, body: Body) -> Result<Vec<u8>, TrustError> {
        let (n, previous) = self.head();
        let record = Record { n: n + 1, previous: Some(previous), time, body };
        let bytes = Signed::sign(root_key, self.state.repository, KIND, record.to_bytes()).to_bytes();
        self.advance(&bytes)?;
        Ok(bytes)
    }

    /// What every signature in this repository is bound to.
    pub fn repository_id(&self) -> RepositoryId {
        self.state.repository
    }

    /// The genesis fingerprint: SHA-256 of the stored bytes of `trust/0000000000`.
    pub fn fingerprint(&self) -> Digest {
        self.digests[0]
    }

    /// Number and digest of the newest record.
    pub fn head(&self) -> (u64, Digest) {
        let last = self.digests.len() - 1;
        (last as u64, self.digests[last])
    }

    /// SHA-256 of the stored bytes of record `n`: equal to what was remembered, or the chain was replaced or cut.
    pub fn record_digest(&self, n: u64) -> Option<Digest> {
        usize::try_from(n).ok().and_then(|n| self.digests.get(n)).copied()
    }

    /// The owners in force, in the order in which they joined. Never empty.
    pub fn owners(&self) -> impl Iterator<Item = &Owner> {
        self.state.owners.iter().filter(|o| o.in_force).map(|o| &o.owner)
    }

    /// Owners that have left.
    pub fn former_owners(&self) -> impl Iterator<Item = &Owner> {
        self.state.owners.iter().filter(|o| !o.in_force).map(|o| &o.owner)
    }

    /// The recipients of the owners in force: every keyring is sealed to them too.
    pub fn owner_recipients(&self) -> Vec<Recipient> {
        self.owners().map(|owner| owner.recipient.clone()).collect()
    }

    /// A member, revoked or not.
    pub fn member(&self, id: &MemberId) -> Option<&Member> {
        self.state.members.get(id).map(|state| &state.member)
    }

    /// All members, revoked or not, by id.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.state.members.values().map(|state| &state.member)
    }

    /// The newest epoch of every group, oldest group first.
    pub fn groups(&self) -> impl Iterator<Item = &Group> {
        self.state.groups.iter().map(|group| &group.newest)
    }

    /// The newest epoch of a group.
    pub fn group(&self, id: &GroupId) -> Option<&Group> {
        self.state.group(id).map(|group| &group.newest)
    }

    /// The newest epoch of every domain, erased or not, oldest domain first.
    pub fn domains(&self) -> impl Iterator<Item = &Domain> {
        self.state.domains.iter().map(|domain| &domain.newest)
    }

    /// The newest epoch of a domain, erased or not.
    pub fn domain(&self, id: &DomainId) -> Option<&Domain> {
        self.state.domain(id).map(|domain| &domain.newest)
    }

    /// The oldest domain of a group that is not erasable: manifests and tree nodes are sealed to it.
    pub fn default_domain(&self, group: &GroupId) -> Option<&Domain> {
        self.domains().find(|domain| domain.group == *group && !domain.erasable)
    }

    /// From which of its numbers on a member's commits are refused.
    pub fn revoked_from(&self, id: &MemberId) -> Option<u64> {
        self.state.members.get(id).and_then(|state| state.revoked_from)
    }

    /// Whether an owner has signed that the keys of a domain were destroyed.
    pub fn is_erased(&self, id: &DomainId) -> bool {
        self.state.erased.contains_key(id)
    }

    /// Key objects of an erased domain that were to be destroyed, and that no record proves gone: its erasure was
    /// interrupted.
    pub fn unproven_keys(&self, id: &DomainId) -> impl Iterator<Item = &str> {
        self.state.erased.get(id).into_iter().flatten().map(String::as_str)
    }

    /// The newest keyring of a member: its object name and the digest of its stored bytes.
    pub fn keyring(&self, id: &MemberId) -> Option<&KeyringRef> {
        self.state.members.get(id).map(|state| &state.keyring)
    }

    /// The object name of the newest keyring of a member.
    pub fn keyring_name(&self, id: &MemberId) -> Option<&str> {
        self.keyring(id).map(|keyring| keyring.name.as_str())
    }

    /// Returns the signer of a record of `kind` if it is a member that has one of `roles`, is not revoked, and signed.
    ///
    /// `at` is the place of a record that has one, (writer, sequence number): a writer that was revoked later is
    /// believed up to that number. A revoked member is refused for everything else; see
    /// [`verify_author`](Self::verify_author) for records that must outlive the revocation of their author.
    pub fn verify_member(
        &self,
        signed: &Signed,
        kind: &str,
        roles: Roles,
        at: Option<(MemberId, u64)>,
    ) -> Result<&Member, TrustError> {
        let state = self.member_with_role(signed.signer, kind, roles)?;
        let believed = |from: u64| at.is_some_and(|(writer, seq)| writer == signed.signer && seq < from);
        if let Some(from) = state.revoked_from.filter(|from| !believed(*from)) {
            return Err(TrustError::Revoked { signer: signed.signer, from });
        }
        self.verify_with(signed, &state.member.key, kind)?;
        Ok(&state.member)
    }

    /// Returns the signer of a record of `kind` if it is an owner in force, and signed.
    pub fn verify_owner(&self, signed: &Signed, kind: &str) -> Result<&Owner, TrustError> {
        let owner = self.state.owner_in_force(&signed.signer);
        let owner = owner.ok_or(TrustError::UnknownSigner { signer: signed.signer })?;
        self.verify_with(signed, &owner.key, kind)?;
        Ok(owner)
    }

    /// Checks that somebody who had one of `roles`, or an owner if [`Roles::KEEPER`] is among them, signed a record.
    ///
    /// Revocation and departure do not count. For statements that stay true whatever became of their author, and
    /// are dangerous to forget: a prune plan whose packs are gone, a fence, a retirement.
    pub fn verify_author(&self, signed: &Signed, kind: &str, roles: Roles) -> Result<(), TrustError> {
        let owner = self.state.owners.iter().find(|o| o.owner.id() == signed.signer).map(|o| &o.owner);
        match owner.filter(|_| roles.intersects(Roles::KEEPER)) {
            Some(owner) => self.verify_with(signed, &owner.key, kind),
            None => {
                let state = self.member_with_role(signed.signer, kind, roles)?;
                self.verify_with(signed, &state.member.key, kind)
            }
        }
    }

    /// Checks a detached signature of a member that has, or had before it was revoked, one of `roles`.
    pub fn verify_detached(
        &self,
        signer: MemberId,
        kind: &str,
        roles: Roles,
        bytes: &[u8],
        signature: &[u8; 64],
    ) -> Result<&Member, TrustError> {
        let member = &self.member_with_role(signer, kind, roles)?.member;
        verify_detached(&member.key, self.state.repository, kind, bytes, signature)
            .map_err(|source| TrustError::Signature { signer, source })?;
        Ok(member)
    }

    fn member_with_role(
        &self,
        signer: MemberId,
        kind: &str,
        needed: Roles,
    ) -> Result<&MemberState, TrustError> {
        let state = self.state.members.get(&signer).ok_or(TrustError::UnknownSigner { signer })?;
        if state.member.roles.intersects(needed) {
            Ok(state)
        } else {
            Err(TrustError::MissingRole { signer, kind: kind.to_owned(), needed })
        }
    }

    fn verify_with(&self, signed: &Signed, key: &VerifyingKey, kind: &str) -> Result<(), TrustError> {
        let verified = signed.verify(key, self.state.repository, kind);
        verified.map(drop).map_err(|source| TrustError::Signature { signer: signed.signer, source })
    }
}

fn decode(n: u64, bytes: &[u8]) -> Result<(Signed, Record), TrustError> {
    let signed = Signed::from_bytes(bytes).map_err(|source| TrustError::NotGenuine { n, source })?;
    let record = Record::from_bytes(&signed.payload).map_err(|source| TrustError::Malformed { n, source })?;
    Ok((signed, record))
}

fn check_place(record: &Record, n: u64, previous: Option<Digest>) -> Result<(), Violation> {
    if record.n != n {
        return Err(Violation::Number { found: record.n });
    }
    if record.previous != previous {
        return Err(Violation::Link);
    }
    Ok(())
}

fn check_signature(
    n: u64,
    signed: &Signed,
    key: &VerifyingKey,
    repository: RepositoryId,
) -> Result<(), TrustError> {
    signed.verify(key, repository, KIND).map(drop).map_err(|source| TrustError::NotGenuine { n, source })
}
