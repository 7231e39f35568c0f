//! Erasable domains: data whose keys stand apart, so that destroying them destroys the data in every copy.

use std::collections::BTreeSet;

use bytes::Bytes;
use keepwell_catalog::names;
use keepwell_catalog::{open_record, seal_record};
use keepwell_crypto::keyring::DomainKeys;
use keepwell_crypto::trust::{Body, Chain, Domain, Erase, Member};
use keepwell_crypto::{DomainId, IdKey, Identity, MemberId, Recipient};
use keepwell_storage::Key;

use super::{erasable, in_force, reads};
use crate::Error;
use crate::repository::Repository;

/// Largest key object that is decoded.
const KEYS_MAX: usize = 1 << 20;

/// How often the keys of a domain are listed that is being erased.
const LISTINGS_MAX: usize = 20;

/// What became of the keys of a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Erased {
    /// Key objects that are proven gone from this store.
    pub gone: Vec<String>,
    /// Members and owners who held the keys; nothing proves what they kept.
    pub holders: Vec<String>,
}

impl Repository {
    /// Makes a domain whose data can be erased later, and gives its keys to every member.
    pub async fn create_domain(&self, name: &str) -> Result<DomainId, Error> {
        const ACTION: &str = "create domains";
        self.owner_keys(ACTION)?;
        let mut chain = self.refreshed_chain().await?;
        if erasable(&chain).any(|domain| domain.name == name) {
            return Err(Error::Invalid(format!("there is an erasable domain `{name}` already")));
        }
        let data = Identity::generate();
        let keys = DomainKeys {
            id: DomainId::generate(),
            id_key: IdKey::generate(),
            recipient: data.recipient(),
            identities: vec![data],
        };
        let owners = chain.owner_recipients();
        for member in in_force(&chain).filter(|member| member.group == self.group()) {
            self.put_erasable(&owners, member, &keys, 0).await?;
        }
        let domain = Domain {
            id: keys.id,
            group: self.group(),
            name: name.to_owned(),
            recipient: keys.recipient.clone(),
            erasable: true,
            epoch: 0,
        };
        self.append(&mut chain, ACTION, Body::Domain(domain)).await?;
        Ok(keys.id)
    }

    /// Destroys the keys of a domain in this store: nobody can decrypt what was sealed to it, in any copy.
    ///
    /// The first record says that the domain is erased, so that nobody uses it any more, and which key objects are to go;
    /// the second, which are proven gone. `unproven` are further holders that are known, such as other copies of the
    /// repository. After a crash in between, call it again. There is no way back.
    pub async fn erase_domain(&self, domain: DomainId, unproven: &[String]) -> Result<Erased, Error> {
        const ACTION: &str = "erase domains";
        self.owner_keys(ACTION)?;
        let mut chain = self.refreshed_chain().await?;
        let prefix = format!("keys/erasable/{domain}/");
        let listed = self.list(&prefix).await?;
        let mut objects: BTreeSet<String> = listed.into_iter().map(|info| info.key.to_string()).collect();
        objects.extend(chain.unproven_keys(&domain).map(str::to_owned)); // what an interrupted call deleted counts too
        let had = |member: &&Member| {
            let of_member = format!("{prefix}{}-", member.id());
            objects.iter().any(|name| name.starts_with(&of_member))
        };
        let members = chain.members().filter(had).map(|m| (&m.name, m.id()));
        let owners = chain.owners().map(|o| (&o.name, o.id()));
        let holders: Vec<String> = members.chain(owners).map(|(name, id)| format!("{name} ({id})")).collect();
        let record = |gone: Vec<String>, to_go: &BTreeSet<String>, time| {
            let unproven = to_go.iter().chain(&holders).chain(unproven).cloned().collect();
            Body::Erase(Erase { domain, time, gone, unproven })
        };
        self.append(&mut chain, ACTION, record(Vec::new(), &objects, self.now())).await?;
        let mut left = objects.clone();
        for _ in 0..LISTINGS_MAX {
            for name in &left {
                self.destroy(&name.parse().map_err(|e| Error::damaged(name, e))?).await?;
            }
            // Another owner may have stored keys meanwhile, for a domain that was not erased when they began.
            left = self.list(&prefix).await?.into_iter().map(|info| info.key.to_string()).collect();
            if left.is_empty() {
                break;
            }
            objects.extend(left.iter().cloned());
        }
        if !left.is_empty() {
            return Err(Error::Invalid(format!("keys appear in `{prefix}` as fast as they are destroyed")));
        }
        let gone: Vec<String> = objects.into_iter().collect();
        self.append(&mut chain, ACTION, record(gone.clone(), &BTreeSet::new(), self.now())).await?;
        Ok(Erased { gone, holders })
    }

    /// Deletes an object and proves that it is gone.
    async fn destroy(&self, key: &Key) -> Result<(), Error> {
        self.store().delete(key).await?;
        match self.store().head(key).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error.into()),
            Ok(_) => Err(Error::Invalid(format!("the store keeps `{key}` although it was deleted"))),
        }
    }

    /// Gives a new member the keys of every erasable domain of the group, as a reader has them.
    pub(super) async fn give_erasable(
        &self,
        chain: &Chain,
        reader: MemberId,
        member: &Member,
    ) -> Result<(), Error> {
        for domain in erasable(chain).filter(|domain| domain.group == member.group) {
            let numbers = self.erasable_numbers(domain.id, reader).await?;
            let keys = self.newest_erasable(domain, reader, &numbers).await?.ok_or_else(|| {
                Error::Invalid(format!("the keys of the erasable domain `{}` are not at hand", domain.name))
            })?;
            let next = self.erasable_numbers(domain.id, member.id()).await?.last().map_or(0, |n| n + 1);
            self.put_erasable(&chain.owner_recipients(), member, &keys, next).await?;
        }
        Ok(())
    }

    /// Seals the erasable keys of every member in force anew.
    pub(super) async fn reissue_erasable(
        &self,
        chain: &Chain,
        owners: &[Recipient],
        change: impl Fn(&mut DomainKeys),
    ) -> Result<(), Error> {
        for domain in erasable(chain) {
            for member in in_force(chain).filter(|member| member.group == domain.group) {
                let numbers = self.erasable_numbers(domain.id, member.id()).await?;
                let newest = self.newest_erasable(domain, member.id(), &numbers).await?;
                let (Some(mut keys), Some(last)) = (newest, numbers.last()) else { continue };
                change(&mut keys);
                self.put_erasable(owners, member, &keys, last + 1).await?;
            }
        }
        Ok(())
    }

    /// The newest keys of these numbers that seal to what the chain names: others were forged, or never came into force.
    async fn newest_erasable(
        &self,
        domain: &Domain,
        member: MemberId,
        numbers: &[u64],
    ) -> Result<Option<DomainKeys>, Error> {
        let identity = &self.owner_keys("read the keys of domains")?.identity;
        for n in numbers.iter().rev() {
            let key = names::erasable_key(domain.id, member, *n);
            let sealed = self.store().get(&key).await?;
            let opened = open_record(std::slice::from_ref(identity), &sealed, KEYS_MAX);
            if let Some(keys) = opened.ok().and_then(|bytes| DomainKeys::from_bytes(&bytes).ok())
                && keys.id == domain.id
                && keys.recipient == domain.recipient
            {
                return Ok(Some(keys));
            }
        }
        Ok(None)
    }

    async fn put_erasable(
        &self,
        owners: &[Recipient],
        member: &Member,
        keys: &DomainKeys,
        n: u64,
    ) -> Result<(), Error> {
        let mut keys = keys.clone();
        if !reads(member.roles) {
            keys.identities.clear();
        }
        let recipients: Vec<Recipient> = owners.iter().chain([&member.recipient]).cloned().collect();
        let sealed = seal_record(&recipients, &keys.to_bytes())?;
        let key: Key = names::erasable_key(keys.id, member.id(), n);
        self.put_new(&key, Bytes::from(sealed)).await
    }
}
