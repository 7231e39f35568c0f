//! Rotation: new keys for everything that is written from now on.

use std::collections::BTreeMap;

use keepwell_crypto::keyring::{DomainKeys, GroupKeys, Keyring};
use keepwell_crypto::trust::{Body, Chain, Domain, Group};
use keepwell_crypto::{DomainId, GroupId, Identity};

use super::{erasable, refuse_without_reader};
use crate::Error;
use crate::repository::Repository;

/// The identities of a new epoch.
struct Epoch {
    groups: BTreeMap<GroupId, Identity>,
    domains: BTreeMap<DomainId, Identity>,
}

impl Epoch {
    fn generate(chain: &Chain) -> Self {
        let live = chain.domains().filter(|domain| !chain.is_erased(&domain.id));
        Self {
            groups: chain.groups().map(|group| (group.id, Identity::generate())).collect(),
            domains: live.map(|domain| (domain.id, Identity::generate())).collect(),
        }
    }

    /// The records that declare it.
    fn bodies(&self, chain: &Chain) -> Vec<Body> {
        let group = |group: &Group| {
            let recipient = self.groups.get(&group.id)?.recipient();
            Some(Body::Group(Group { recipient, epoch: group.epoch + 1, ..group.clone() }))
        };
        let domain = |domain: &Domain| {
            let recipient = self.domains.get(&domain.id)?.recipient();
            Some(Body::Domain(Domain { recipient, epoch: domain.epoch + 1, ..domain.clone() }))
        };
        chain.groups().filter_map(group).chain(chain.domains().filter_map(domain)).collect()
    }

    fn renew(&self, keyring: &mut Keyring) {
        for group in &mut keyring.groups {
            let GroupKeys { id, index_identities, domains } = group;
            index_identities.extend(self.groups.get(id).cloned());
            domains.iter_mut().for_each(|domain| self.renew_domain(domain));
        }
    }

    /// Whoever could read goes on reading; a mere writer learns only where to seal to.
    fn renew_domain(&self, keys: &mut DomainKeys) {
        let Some(identity) = self.domains.get(&keys.id) else { return };
        keys.recipient = identity.recipient();
        if !keys.identities.is_empty() {
            keys.identities.push(identity.clone());
        }
    }
}

impl Repository {
    /// Seals everything that is written from now on to fresh keys, which revoked members and removed owners do not get.
    ///
    /// What is stored stays as it is: who could decrypt it still can, wherever it finds it. Members get the new keys when
    /// they open the repository the next time; nothing is sealed to them before every reader has them. After a crash in
    /// between, call it again. Refused while no member in force can read: the keys that decrypt would be nobody's.
    pub async fn rotate_keys(&self) -> Result<(), Error> {
        const ACTION: &str = "rotate keys";
        let mut chain = self.refreshed_chain().await?;
        refuse_without_reader(&chain)?;
        let epoch = Epoch::generate(&chain);
        let owners = chain.owner_recipients();
        let keyrings = self.reissue(&chain, &owners, ACTION, |keyring| epoch.renew(keyring)).await?;
        if erasable(&chain).next().is_some() {
            self.reissue_erasable(&chain, &owners, |keys| epoch.renew_domain(keys)).await?;
        }
        let epochs = epoch.bodies(&chain);
        for body in keyrings.into_iter().chain(epochs) {
            self.append(&mut chain, ACTION, body).await?;
        }
        Ok(())
    }
}
