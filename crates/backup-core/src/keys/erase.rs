//! Erasable domains: data whose keys stand apart, so that destroying them destroys the data in every copy.

use std::collections::BTreeSet;

use bytes::Bytes;
use keepwell_catalog::names::{self, ObjectName};
use keepwell_catalog::seal_record;
use keepwell_crypto::keyring::DomainKeys;
use keepwell_crypto::trust::{Body, Chain, Domain, Erase, Member};
use keepwell_crypto::{DomainId, MemberId, Recipient};
use keepwell_storage::Key;

use super::{erasable, first_free, in_force, reads, refuse_without_reader};
use crate::Error;
use crate::repository::{Repository, read_erasable};

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
    /// Makes a domain whose data can be erased later, and gives its keys to every member. Refused while no member in force
    /// can read: the keys that decrypt would be nobody's.
    pub async fn create_domain(&self, name: &str) -> Result<DomainId, Error> {
        const ACTION: &str = "create domains";
        self.owner_keys(ACTION)?;
        let mut chain = self.refreshed_chain().await?;
        if erasable(&chain).any(|domain| domain.name == name) {
            return Err(Error::Invalid(format!("there is an erasable domain `{name}` already")));
        }
        refuse_without_reader(&chain)?;
        let keys = DomainKeys::generate();
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
    ///
    /// Where the chain says already that all keys are gone, as in a copy that was brought up to date since, what is still in
    /// this store goes and no record is appended: the chain of a copy has to stay that of its origin.
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
        let is_recorded = chain.is_erased(&domain) && chain.unproven_keys(&domain).next().is_none();
        if !is_recorded {
            self.append(&mut chain, ACTION, record(Vec::new(), &objects, self.now())).await?;
        }
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
        if !is_recorded {
            self.append(&mut chain, ACTION, record(gone.clone(), &BTreeSet::new(), self.now())).await?;
        }
        Ok(Erased { gone, holders })
    }

    /// Destroys what there is of the keys of domains that are erased: who was slower than the owner who erased one may have
    /// stored some of them after all were gone.
    pub(super) async fn destroy_erased(&self) -> Result<(), Error> {
        let chain = self.refreshed_chain().await?;
        let ids = chain.domains().map(|domain| domain.id);
        let erased: Vec<DomainId> = ids.filter(|id| chain.is_erased(id)).collect();
        for domain in erased {
            for info in self.list(&format!("keys/erasable/{domain}/")).await? {
                self.destroy(&info.key).await?;
            }
        }
        Ok(())
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

    /// Gives a new member the keys of every erasable domain of the group.
    pub(super) async fn give_erasable(&self, chain: &Chain, member: &Member) -> Result<(), Error> {
        for domain in erasable(chain).filter(|domain| domain.group == member.group) {
            let objects = self.erasable_objects(domain.id).await?;
            let keys = self.erasable_keys(chain, domain, &objects).await?;
            self.put_erasable(&chain.owner_recipients(), member, &keys, next(&objects, member)).await?;
        }
        Ok(())
    }

    /// Seals the keys of erasable domains anew to every member in force.
    pub(super) async fn reissue_erasable(
        &self,
        chain: &Chain,
        owners: &[Recipient],
        change: impl Fn(&mut DomainKeys),
    ) -> Result<(), Error> {
        for domain in erasable(chain) {
            let objects = self.erasable_objects(domain.id).await?;
            let mut keys = self.erasable_keys(chain, domain, &objects).await?;
            change(&mut keys);
            for member in in_force(chain).filter(|member| member.group == domain.group) {
                self.put_erasable(owners, member, &keys, next(&objects, member)).await?;
            }
        }
        Ok(())
    }

    /// The keys of a domain as readers have them: what a mere writer has, nobody can tell from a forgery.
    async fn erasable_keys(
        &self,
        chain: &Chain,
        domain: &Domain,
        objects: &[(MemberId, u64)],
    ) -> Result<DomainKeys, Error> {
        let identity = &self.owner_keys("read the keys of domains")?.identity;
        let readers = chain.members().filter(|member| member.group == domain.group && reads(member.roles));
        let (in_force, revoked): (Vec<&Member>, Vec<&Member>) =
            readers.partition(|member| chain.revoked_from(&member.id()).is_none());
        for member in in_force.into_iter().chain(revoked) {
            let own = objects.iter().filter(|(whose, _)| *whose == member.id());
            let own: Vec<Key> = own.map(|(member, n)| names::erasable_key(domain.id, *member, *n)).collect();
            if let Some(keys) = read_erasable(self.store(), domain, member, identity, &own).await? {
                return Ok(keys);
            }
        }
        Err(Error::Invalid(format!(
            "no key object opens the erasable domain `{}` any more; erase it, or repair from a copy that has them",
            domain.name
        )))
    }

    /// Whose key objects of a domain there are, with their numbers, ascending.
    async fn erasable_objects(&self, domain: DomainId) -> Result<Vec<(MemberId, u64)>, Error> {
        let mut objects = Vec::new();
        for info in self.list(&format!("keys/erasable/{domain}/")).await? {
            if let Ok(ObjectName::ErasableKey { member, n, .. }) = info.key.as_str().parse() {
                objects.push((member, n));
            }
        }
        Ok(objects)
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

/// The number for a new key object of a member.
fn next(objects: &[(MemberId, u64)], member: &Member) -> u64 {
    let own = objects.iter().filter(|(whose, _)| *whose == member.id());
    first_free(0, &own.map(|(_, n)| *n).collect())
}
