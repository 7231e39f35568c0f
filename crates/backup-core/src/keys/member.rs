//! Members: enrolling and revoking.

use bytes::Bytes;
use keepwell_catalog::names::ObjectName;
use keepwell_crypto::keyfile::{KeyFile, MemberKeys};
use keepwell_crypto::keyring::{GroupKeys, Keyring};
use keepwell_crypto::trust::{Body, Chain, Member, Revoke, Roles};
use keepwell_crypto::{Identity, MemberId, SigningKey};

use super::{in_force, reads};
use crate::Error;
use crate::repository::{Repository, seal_keyring};

impl Repository {
    /// Makes a credential for a new member of the group.
    ///
    /// A mere writer backs up and deduplicates and cannot decrypt; readers and keepers can. Needs an owner's key. The key
    /// file exists nowhere else: save it. The member counts from the moment that this returns.
    pub async fn enroll(
        &self,
        name: &str,
        roles: Roles,
        store_hint: Option<String>,
    ) -> Result<KeyFile, Error> {
        const ACTION: &str = "enroll members";
        self.owner_keys(ACTION)?;
        let mut chain = self.refreshed_chain().await?;
        if in_force(&chain).any(|member| member.name == name) {
            return Err(Error::Invalid(format!("there is a member `{name}` already")));
        }
        let keys = MemberKeys { identity: Identity::generate(), signing: SigningKey::generate(), roles };
        let member = Member {
            name: name.to_owned(),
            key: keys.signing.verifying_key(),
            recipient: keys.identity.recipient(),
            roles,
            group: self.group(),
        };
        let keyring = self.keyring_for(&chain, &member)?;
        let (reference, key, sealed) = seal_keyring(&chain, &keyring, &member, 0)?;
        self.put_new(&key, Bytes::from(sealed)).await?;
        self.give_erasable(&chain, &member).await?;
        self.append(&mut chain, ACTION, Body::Enrol { member, keyring: reference }).await?;
        Ok(KeyFile {
            repository: self.id(),
            genesis: chain.fingerprint(),
            name: name.to_owned(),
            owner: None,
            member: Some(keys),
            store_hint,
        })
    }

    /// What a member of our group gets: everything of it but erasable domains, without what decrypts unless it may read.
    fn keyring_for(&self, chain: &Chain, member: &Member) -> Result<Keyring, Error> {
        let own = self.access().group();
        let mut domains = own.domains.clone();
        domains.retain(|domain| chain.domain(&domain.id).is_some_and(|d| !d.erasable));
        if reads(member.roles) && domains.iter().any(|domain| domain.identities.is_empty()) {
            return Err(self.access().cannot("enroll a member that can decrypt"));
        }
        let group = GroupKeys { id: own.id, index_identities: own.index_identities.clone(), domains };
        let keyring = Keyring { repository: self.id(), member: member.id(), groups: vec![group] };
        Ok(if reads(member.roles) { keyring } else { keyring.without_read_keys() })
    }

    /// Refuses the commits of a member from a number on, and from now on takes its word for nothing else.
    ///
    /// `first_refused: None` believes everything that it has committed so far. What it could decrypt it still can, wherever
    /// it finds it: see [`Repository::rotate_keys`] for what comes after. Gives the first number that is refused.
    pub async fn revoke(
        &self,
        member: MemberId,
        first_refused: Option<u64>,
        reason: &str,
    ) -> Result<u64, Error> {
        const ACTION: &str = "revoke members";
        self.owner_keys(ACTION)?;
        let mut chain = self.refreshed_chain().await?;
        let first_refused = match first_refused {
            Some(n) => n,
            None => self.after_newest_end(member).await?,
        };
        let revoke = Revoke { member, first_refused, reason: reason.to_owned() };
        self.append(&mut chain, ACTION, Body::Revoke(revoke)).await?;
        Ok(first_refused)
    }

    async fn after_newest_end(&self, member: MemberId) -> Result<u64, Error> {
        let mut next = 0;
        for info in self.list(&format!("commits/{member}/")).await? {
            if let Ok(ObjectName::Commit(_, n)) = info.key.as_str().parse() {
                next = next.max(n + 1);
            }
        }
        Ok(next)
    }
}
