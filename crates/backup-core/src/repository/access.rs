//! What a credential opens.

use std::sync::OnceLock;

use keepwell_crypto::keyfile::{MemberKeys, OwnerKeys};
use keepwell_crypto::keyring::{DomainKeys, GroupKeys};
use keepwell_crypto::trust::Roles;
use keepwell_crypto::{DomainId, GroupId, Identity, MemberId, Recipient, RepositoryId, SigningKey};

use crate::Error;

/// The keys that a credential brought, and what they allow. Secrets do not show in `Debug`.
#[derive(Debug)]
pub struct Access {
    pub(crate) repository: RepositoryId,
    /// The member, if the credential is (also) one.
    pub(crate) member: Option<MemberId>,
    pub(crate) roles: Option<Roles>,
    pub(crate) signing: Option<SigningKey>,
    /// The member's own age identity, for its state.
    pub(crate) state: Option<Identity>,
    /// The owner's root key and identity, if the credential is an owner's.
    pub(crate) owner: Option<OwnerKeys>,
    pub(crate) group: GroupId,
    pub(crate) groups: Vec<GroupKeys>,
    /// The newest record of the trust chain when the keys were read.
    pub(crate) as_of: u64,
}

/// What an open repository can open. Renewed keys come behind older ones, which stay for whoever borrowed them.
#[derive(Debug)]
pub(super) struct Accesses {
    access: Access,
    newer: OnceLock<Box<Self>>,
}

impl Accesses {
    pub fn new(access: Access) -> Self {
        Self { access, newer: OnceLock::new() }
    }

    pub fn newest(&self) -> &Access {
        &self.last().access
    }

    pub fn renew(&self, access: Access) {
        let mut next = Box::new(Self::new(access));
        while let Err(back) = self.last().newer.set(next) {
            next = back; // somebody else renewed them at the same moment
        }
    }

    fn last(&self) -> &Self {
        let mut last = self;
        while let Some(newer) = last.newer.get() {
            last = newer;
        }
        last
    }
}

impl Access {
    /// The member's part of the key file that this was opened with.
    pub(super) fn member_keys(&self) -> Option<MemberKeys> {
        let keys = self.signing.clone().zip(self.state.clone()).zip(self.roles);
        keys.map(|((signing, identity), roles)| MemberKeys { identity, signing, roles })
    }

    /// Whether the credential holds an owner's keys.
    pub fn is_owner(&self) -> bool {
        self.owner.is_some()
    }

    /// The member that the credential signs as.
    pub fn member(&self) -> Option<MemberId> {
        self.member
    }

    /// The member's roles, if the credential is a member's.
    pub fn roles(&self) -> Option<Roles> {
        self.roles
    }

    /// The group that new snapshots belong to; its presence is checked when the repository is opened.
    pub(crate) fn group(&self) -> &GroupKeys {
        self.groups.iter().find(|g| g.id == self.group).unwrap_or(&self.groups[0])
    }

    /// The default domain of the group.
    pub(crate) fn domain(&self) -> &DomainKeys {
        &self.group().domains[0]
    }

    /// Every domain whose keys are at hand.
    pub(crate) fn domains(&self) -> impl Iterator<Item = &DomainKeys> {
        self.groups.iter().flat_map(|g| &g.domains)
    }

    pub(crate) fn domain_keys(&self, domain: DomainId) -> Result<&DomainKeys, Error> {
        let found = self.groups.iter().flat_map(|g| &g.domains).find(|d| d.id == domain);
        found.ok_or_else(|| self.cannot("read this domain, whose keys it was never given,"))
    }

    pub(crate) fn index_identities(&self) -> &[Identity] {
        &self.group().index_identities
    }

    pub(crate) fn index_recipient(&self) -> Result<Recipient, Error> {
        let newest = self.index_identities().last();
        newest.map(Identity::recipient).ok_or_else(|| self.cannot("write an index"))
    }

    /// Whether the credential may retire and prune.
    pub fn is_keeper(&self) -> bool {
        self.signing.is_some() && self.roles.is_some_and(|roles| roles.contains(Roles::KEEPER))
    }

    pub(crate) fn cannot(&self, action: &'static str) -> Error {
        Error::NotAllowed { action, role: self.describe() }
    }

    /// The roles in words.
    pub fn describe(&self) -> String {
        let mut names = Vec::new();
        if self.is_owner() {
            names.push("owner");
        }
        names.extend(self.roles.iter().flat_map(|roles| roles.names()));
        names.join(", ")
    }
}
