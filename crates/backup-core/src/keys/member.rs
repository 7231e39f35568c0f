//! Members: enrolling and revoking.

use bytes::Bytes;
use keepwell_catalog::{Commit, names};
use keepwell_crypto::keyfile::{KeyFile, MemberKeys, OwnerKeys};
use keepwell_crypto::keyring::Keyring;
use keepwell_crypto::trust::{Body, Member, Revoke, Roles};
use keepwell_crypto::{Identity, MemberId, Signed, SigningKey};

use super::{in_force, reads};
use crate::Error;
use crate::repository::{Repository, read_own_ends, reading_keyring, seal_keyring};

/// So many numbers that a member has left unused are ended when it is revoked. Sessions that died leave one each.
const UNUSED_MAX: u64 = 1000;

impl Repository {
    /// Makes the credential of a new member of the group. Nothing is stored: save it, for it exists nowhere else, and
    /// then make it count by [`Repository::enroll`].
    ///
    /// A mere writer backs up and deduplicates and cannot decrypt; readers and keepers can. Needs an owner's key.
    pub fn new_member(&self, name: &str, roles: Roles, store_hint: Option<String>) -> Result<KeyFile, Error> {
        self.owner_keys("enroll members")?;
        if in_force(&self.chain()).any(|other| other.name == name) {
            return Err(taken(name));
        }
        let keys = MemberKeys { identity: Identity::generate(), signing: SigningKey::generate(), roles };
        Ok(self.key_file(name, None, Some(keys), store_hint))
    }

    /// Makes the credential of a member count. Names of members in force are given once.
    ///
    /// After a crash in between, call it again with the same credential; for one that counts already it does nothing.
    pub async fn enroll(&self, credential: &KeyFile) -> Result<(), Error> {
        const ACTION: &str = "enroll members";
        let owner = self.owner_keys(ACTION)?;
        let keys = credential.member.as_ref();
        let keys = keys.ok_or_else(|| Error::Invalid("the key file holds no keys of a member".to_owned()))?;
        let mut chain = self.refreshed_chain().await?;
        let (reader, readers) = reading_keyring(&self.records(), &chain, &owner.identity).await?;
        let member = Member {
            name: credential.name.clone(),
            key: keys.signing.verifying_key(),
            recipient: keys.identity.recipient(),
            roles: keys.roles,
            group: reader.group,
        };
        match in_force(&chain).find(|other| other.name == member.name) {
            Some(other) if other.id() == member.id() => return Ok(()),
            Some(_) => return Err(taken(&member.name)),
            None => {}
        }
        let keyring = Keyring { member: member.id(), ..readers };
        let keyring = if reads(member.roles) { keyring } else { keyring.without_read_keys() };
        let n = self.next_keyring(&chain, member.id()).await?;
        let (reference, key, sealed) = seal_keyring(&chain.owner_recipients(), &keyring, &member, n)?;
        self.put_new(&key, Bytes::from(sealed)).await?;
        self.give_erasable(&chain, &member).await?;
        self.append(&mut chain, ACTION, Body::Enrol { member, keyring: reference }).await
    }

    pub(super) fn key_file(
        &self,
        name: &str,
        owner: Option<OwnerKeys>,
        member: Option<MemberKeys>,
        store_hint: Option<String>,
    ) -> KeyFile {
        let genesis = self.chain().fingerprint();
        KeyFile { repository: self.id(), genesis, name: name.to_owned(), owner, member, store_hint }
    }

    /// Refuses the commits of a member from a number on.
    ///
    /// What is dangerous to forget is believed of it whenever it was signed: fences, lists and index segments, and of a keeper
    /// retirements, plans and verdicts. So its access to the store has to be taken away as well.
    ///
    /// `first_refused: None` believes everything that it has committed so far. Numbers below that it has not used are ended,
    /// so that whoever has its key commits nothing there later; [`Error::Invalid`] if they are too many for that, as when
    /// somebody has used a very large one, or when `first_refused` is far above those that it used: the error says from which on
    /// they can be refused at most. What it could decrypt it still can, wherever
    /// it finds it: see [`Repository::rotate_keys`] for what comes after. Gives the first number that is refused, which
    /// may be that of an earlier revocation if that one refuses more.
    pub async fn revoke(
        &self,
        member: MemberId,
        first_refused: Option<u64>,
        reason: &str,
    ) -> Result<u64, Error> {
        const ACTION: &str = "revoke members";
        let owner = self.owner_keys(ACTION)?;
        let mut chain = self.refreshed_chain().await?;
        let refused = chain.revoked_from(&member);
        let first_refused = match (first_refused, refused) {
            (Some(n), _) => n,
            (None, Some(n)) => n,
            (None, None) => self.after_newest_end(member).await?,
        };
        let earlier = refused.filter(|earlier| *earlier <= first_refused);
        let first_refused = earlier.unwrap_or(first_refused);
        let unused = self.unused_below(member, first_refused).await?;
        if earlier.is_none() {
            let revoke = Revoke { member, first_refused, reason: reason.to_owned() };
            self.append(&mut chain, ACTION, Body::Revoke(revoke)).await?;
        }
        for n in unused {
            let fence = Commit::fence(self.store_id(), member, n, self.now());
            let signed = Signed::sign(&owner.root, self.id(), Commit::KIND, fence.encode()).to_bytes();
            self.put_record(&names::commit_key(member, n), signed).await?;
        }
        Ok(first_refused)
    }

    /// The numbers below this one that no end of the member has.
    async fn unused_below(&self, member: MemberId, next: u64) -> Result<Vec<u64>, Error> {
        let mut used = read_own_ends(self, member).await?;
        used.retain(|n| *n < next);
        let count = next - used.len() as u64;
        if count > UNUSED_MAX {
            let unused_before = |(at, n): &(u64, &u64)| **n - *at;
            let below = (0..).zip(&used).take_while(|used| unused_before(used) <= UNUSED_MAX).count();
            return Err(Error::Invalid(format!(
                "member {member} has left {count} numbers below {next} unused, and whoever has its key could still \
                 commit there; its commits can be refused from {} on, or from a lower number",
                UNUSED_MAX + below as u64
            )));
        }
        Ok((0..next).filter(|n| used.binary_search(n).is_err()).collect())
    }

    /// The number after a member's newest end that verifies, and after all that follow it without a gap, damaged or not: far
    /// above these anybody who may create objects can have put something, and everything below would be believed for ever.
    async fn after_newest_end(&self, member: MemberId) -> Result<u64, Error> {
        let numbers = read_own_ends(self, member).await?;
        let mut next = 0;
        for n in numbers.iter().rev() {
            match self.read_end(member, *n).await {
                Ok(_) => {
                    next = n + 1;
                    break;
                }
                Err(Error::Damaged { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        while numbers.binary_search(&next).is_ok() {
            next += 1;
        }
        Ok(next)
    }
}

fn taken(name: &str) -> Error {
    Error::Invalid(format!("there is a member `{name}` already"))
}
