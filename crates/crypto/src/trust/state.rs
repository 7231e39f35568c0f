//! What the records so far add up to, and the rules for the next one.

use std::collections::{BTreeMap, BTreeSet};

use super::body::{Body, Domain, Erase, Group, KeyringRef, Member, Owner, Revoke};
use super::error::Violation;
use crate::ids::{DomainId, GroupId, MemberId, RepositoryId};
use crate::recipient::Recipient;

const NAME_MAX_BYTES: usize = 200;

#[derive(Debug, Clone)]
pub(super) struct State {
    pub repository: RepositoryId,
    /// In the order in which they joined, also those that have left.
    pub owners: Vec<OwnerState>,
    pub members: BTreeMap<MemberId, MemberState>,
    /// In the order of their first epoch.
    pub groups: Vec<Epochs<Group>>,
    pub domains: Vec<Epochs<Domain>>,
    /// With the key objects that were announced and are not proven gone yet.
    pub erased: BTreeMap<DomainId, BTreeSet<String>>,
}

#[derive(Debug, Clone)]
pub(super) struct OwnerState {
    pub owner: Owner,
    pub in_force: bool,
}

#[derive(Debug, Clone)]
pub(super) struct MemberState {
    pub member: Member,
    pub keyring: KeyringRef,
    pub revoked_from: Option<u64>,
}

/// Something that rotates: its newest record, and the recipients of all its epochs.
#[derive(Debug, Clone)]
pub(super) struct Epochs<T> {
    pub newest: T,
    pub recipients: Vec<Recipient>,
}

impl State {
    pub(super) fn genesis(body: &Body, format_known: u64) -> Result<Self, Violation> {
        let Body::Genesis { repository, format, owners } = body else { return Err(Violation::Genesis) };
        if *format != format_known {
            return Err(Violation::Format { found: *format });
        }
        if owners.is_empty() {
            return Err(Violation::NoOwner);
        }
        let mut state = Self {
            repository: *repository,
            owners: Vec::new(),
            members: BTreeMap::new(),
            groups: Vec::new(),
            domains: Vec::new(),
            erased: BTreeMap::new(),
        };
        owners.iter().try_for_each(|owner| state.add_owner(owner))?;
        Ok(state)
    }

    /// Applies the body of a record after the genesis. On an error nothing has changed.
    pub(super) fn apply(&mut self, body: &Body) -> Result<(), Violation> {
        match body {
            Body::Genesis { .. } => Err(Violation::Genesis),
            Body::Enrol { member, keyring } => self.enrol(member, keyring),
            Body::Revoke(revoke) => self.revoke(revoke),
            Body::Group(group) => self.set_group(group),
            Body::Domain(domain) => self.set_domain(domain),
            Body::Erase(erase) => self.erase(erase),
            Body::AddOwner(owner) => self.add_owner(owner),
            Body::RemoveOwner(id) => self.remove_owner(*id),
            Body::Keyring { member, keyring } => self.set_keyring(*member, keyring),
        }
    }

    pub(super) fn owner_in_force(&self, id: &MemberId) -> Option<&Owner> {
        self.owners.iter().find(|o| o.in_force && o.owner.id() == *id).map(|o| &o.owner)
    }

    pub(super) fn group(&self, id: &GroupId) -> Option<&Epochs<Group>> {
        self.groups.iter().find(|group| group.newest.id == *id)
    }

    pub(super) fn domain(&self, id: &DomainId) -> Option<&Epochs<Domain>> {
        self.domains.iter().find(|domain| domain.newest.id == *id)
    }

    fn refuse_known_id(&self, id: MemberId) -> Result<(), Violation> {
        let known = self.members.contains_key(&id) || self.owners.iter().any(|o| o.owner.id() == id);
        if known { Err(Violation::DuplicateId { id }) } else { Ok(()) }
    }

    fn add_owner(&mut self, owner: &Owner) -> Result<(), Violation> {
        check_name(&owner.name)?;
        self.refuse_known_id(owner.id())?;
        self.owners.push(OwnerState { owner: owner.clone(), in_force: true });
        Ok(())
    }

    fn remove_owner(&mut self, id: MemberId) -> Result<(), Violation> {
        let in_force = self.owners.iter().filter(|o| o.in_force).count();
        let leaving = self.owners.iter_mut().find(|o| o.in_force && o.owner.id() == id);
        let leaving = leaving.ok_or(Violation::UnknownId { id })?;
        if in_force == 1 {
            return Err(Violation::NoOwner);
        }
        leaving.in_force = false;
        Ok(())
    }

    fn enrol(&mut self, member: &Member, keyring: &KeyringRef) -> Result<(), Violation> {
        let id = member.id();
        check_name(&member.name)?;
        self.refuse_known_id(id)?;
        self.group(&member.group).ok_or(Violation::UnknownGroup { id: member.group })?;
        keyring_number(id, keyring)?;
        let state = MemberState { member: member.clone(), keyring: keyring.clone(), revoked_from: None };
        self.members.insert(id, state);
        Ok(())
    }

    fn revoke(&mut self, revoke: &Revoke) -> Result<(), Violation> {
        let id = revoke.member;
        let state = self.members.get_mut(&id).ok_or(Violation::UnknownId { id })?;
        if let Some(from) = state.revoked_from.filter(|from| revoke.first_refused >= *from) {
            return Err(Violation::RevokedBefore { id, from });
        }
        state.revoked_from = Some(revoke.first_refused);
        Ok(())
    }

    fn set_keyring(&mut self, id: MemberId, keyring: &KeyringRef) -> Result<(), Violation> {
        let number = keyring_number(id, keyring)?;
        let state = self.members.get_mut(&id).ok_or(Violation::UnknownId { id })?;
        if let Some(from) = state.revoked_from {
            return Err(Violation::RevokedBefore { id, from });
        }
        if number <= keyring_number(id, &state.keyring)? {
            return Err(Violation::KeyObject);
        }
        state.keyring = keyring.clone();
        Ok(())
    }

    fn set_group(&mut self, group: &Group) -> Result<(), Violation> {
        check_name(&group.name)?;
        match self.groups.iter_mut().find(|known| known.newest.id == group.id) {
            Some(known) => {
                let expected = known.newest.epoch.saturating_add(1);
                known.rotate(group.clone(), &group.recipient, group.epoch, expected)
            }
            None => {
                self.groups.push(Epochs::first(group.clone(), &group.recipient, group.epoch)?);
                Ok(())
            }
        }
    }

    fn set_domain(&mut self, domain: &Domain) -> Result<(), Violation> {
        check_name(&domain.name)?;
        self.group(&domain.group).ok_or(Violation::UnknownGroup { id: domain.group })?;
        if self.erased.contains_key(&domain.id) {
            return Err(Violation::Erased { id: domain.id });
        }
        match self.domains.iter_mut().find(|known| known.newest.id == domain.id) {
            Some(known) => {
                if (known.newest.group, known.newest.erasable) != (domain.group, domain.erasable) {
                    return Err(Violation::DomainChanged);
                }
                let expected = known.newest.epoch.saturating_add(1);
                known.rotate(domain.clone(), &domain.recipient, domain.epoch, expected)
            }
            None => {
                self.domains.push(Epochs::first(domain.clone(), &domain.recipient, domain.epoch)?);
                Ok(())
            }
        }
    }

    fn erase(&mut self, erase: &Erase) -> Result<(), Violation> {
        let id = erase.domain;
        let domain = self.domain(&id).ok_or(Violation::UnknownDomain { id })?;
        if !domain.newest.erasable {
            return Err(Violation::NotErasable { id });
        }
        let prefix = format!("keys/erasable/{id}/");
        if !erase.gone.iter().all(|name| name.starts_with(&prefix)) {
            return Err(Violation::KeyObject);
        }
        let left = self.erased.entry(id).or_default();
        left.extend(erase.unproven.iter().filter(|name| name.starts_with(&prefix)).cloned());
        erase.gone.iter().for_each(|name| _ = left.remove(name));
        Ok(())
    }
}

impl<T> Epochs<T> {
    fn first(newest: T, recipient: &Recipient, epoch: u64) -> Result<Self, Violation> {
        if epoch != 0 {
            return Err(Violation::Epoch { found: epoch, expected: 0 });
        }
        Ok(Self { newest, recipients: vec![recipient.clone()] })
    }

    fn rotate(&mut self, next: T, recipient: &Recipient, found: u64, expected: u64) -> Result<(), Violation> {
        if found != expected {
            return Err(Violation::Epoch { found, expected });
        }
        if self.recipients.contains(recipient) {
            return Err(Violation::RecipientReused);
        }
        self.recipients.push(recipient.clone());
        self.newest = next;
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), Violation> {
    let fine = (1..=NAME_MAX_BYTES).contains(&name.len()) && !name.chars().any(char::is_control);
    if fine { Ok(()) } else { Err(Violation::Name) }
}

/// The number in `keys/<member>/<n>`.
fn keyring_number(member: MemberId, keyring: &KeyringRef) -> Result<u64, Violation> {
    let digits = keyring.name.strip_prefix(&format!("keys/{member}/")).ok_or(Violation::KeyObject)?;
    if digits.len() != 10 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Violation::KeyObject);
    }
    digits.parse().map_err(|_| Violation::KeyObject)
}
