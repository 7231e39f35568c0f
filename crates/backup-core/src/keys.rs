//! Who may do what: members, owners, rotation, erasable domains.
//!
//! Everything here is signed by an owner and appended to the trust chain. An open [`Repository`] keeps the keys that it
//! was opened with: what changes here counts for it when it is opened again, or copied.
//!
//! Objects are stored before the record that names them, so a crash leaves keyrings that nobody looks at, never a record
//! without its keyring; and what makes a change count comes last, so that until then everybody goes on as before. Each of
//! these calls completes what an interrupted one of its kind began. Two owners who act at the same moment cannot both
//! win: the slower one gets an error and has changed nothing that counts.

mod erase;
mod member;
mod owner;
mod rotate;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::PoisonError;

use bytes::Bytes;
use keepwell_catalog::names::{self, ObjectName};
use keepwell_crypto::keyfile::OwnerKeys;
use keepwell_crypto::trust::{Body, Chain, Group, Member, Roles};
use keepwell_crypto::{MemberId, Recipient};

use crate::Error;
use crate::repository::{Repository, advance_chain, read_keyring, remember_head, seal_keyring};

pub use erase::Erased;

/// Whether somebody with these roles gets the keys that decrypt.
fn reads(roles: Roles) -> bool {
    roles.intersects(Roles::READER | Roles::KEEPER)
}

impl Repository {
    fn owner_keys(&self, action: &'static str) -> Result<&OwnerKeys, Error> {
        self.access().owner.as_ref().ok_or_else(|| self.access().cannot(action))
    }

    /// Takes in what other owners appended meanwhile; gives the chain as it is now.
    pub(crate) async fn refreshed_chain(&self) -> Result<Chain, Error> {
        let mut chain = self.chain();
        advance_chain(&self.records(), &mut chain).await?;
        self.set_chain(chain.clone());
        Ok(chain)
    }

    fn set_chain(&self, chain: Chain) {
        *self.chain_lock().write().unwrap_or_else(PoisonError::into_inner) = chain;
    }

    /// Signs a record, stores it, and takes it into `chain` and into this repository's.
    async fn append(&self, chain: &mut Chain, action: &'static str, body: Body) -> Result<(), Error> {
        let mut next = chain.clone();
        let bytes = next.append(&self.owner_keys(action)?.root, self.now(), body)?;
        if !self.put_record(&names::trust_key(next.head().0), bytes).await? {
            self.destroy_erased().await?;
            return Err(Error::Invalid(
                "another owner changed the keys at the same moment; nothing of yours counts yet, try again"
                    .to_owned(),
            ));
        }
        remember_head(self.cache(), &next);
        self.set_chain(next.clone());
        *chain = next;
        Ok(())
    }

    /// The number for a new keyring of a member: above that of the one in force, and one that no object has.
    async fn next_keyring(&self, chain: &Chain, member: MemberId) -> Result<u64, Error> {
        let number = |key: &str| match key.parse() {
            Ok(ObjectName::Keyring { n, .. }) => Some(n),
            _ => None,
        };
        let listed = self.list(&format!("keys/{member}/")).await?;
        let taken: BTreeSet<u64> = listed.iter().filter_map(|info| number(info.key.as_str())).collect();
        let newest = chain.keyring(&member).and_then(|keyring| number(&keyring.name));
        Ok(first_free(newest.map_or(0, |n| n + 1), &taken))
    }

    /// Gives every member that is not revoked a new keyring: as it is, changed by `change`, sealed to `owners`.
    ///
    /// The objects are stored at once. Gives the records that make them count, for the caller to append.
    async fn reissue(
        &self,
        chain: &Chain,
        owners: &[Recipient],
        action: &'static str,
        change: impl Fn(&mut keepwell_crypto::keyring::Keyring),
    ) -> Result<Vec<Body>, Error> {
        let identity = &self.owner_keys(action)?.identity;
        let mut bodies = Vec::new();
        for member in in_force(chain) {
            let mut keyring = read_keyring(&self.records(), chain, member.id(), identity).await?;
            change(&mut keyring);
            let n = self.next_keyring(chain, member.id()).await?;
            let (keyring, key, sealed) = seal_keyring(owners, &keyring, member, n)?;
            self.put_new(&key, Bytes::from(sealed)).await?;
            bodies.push(Body::Keyring { member: member.id(), keyring });
        }
        Ok(bodies)
    }
}

/// The first number from there on that is not taken. Not the one above all: whoever may create objects can have given away the
/// largest that a name can carry, and nobody finds an object by a name with a larger one.
fn first_free(from: u64, taken: &BTreeSet<u64>) -> u64 {
    (from..).find(|n| !taken.contains(n)).unwrap_or(u64::MAX)
}

/// Members that are not revoked.
fn in_force(chain: &Chain) -> impl Iterator<Item = &Member> {
    chain.members().filter(|member| chain.revoked_from(&member.id()).is_none())
}

/// Erasable domains whose keys still exist.
fn erasable(chain: &Chain) -> impl Iterator<Item = &keepwell_crypto::trust::Domain> {
    chain.domains().filter(|domain| domain.erasable && !chain.is_erased(&domain.id))
}

/// Keyrings are the only place of the keys that decrypt, and only those of readers have them: what is sealed to new keys
/// would be lost, and an owner who joins would open nothing.
fn refuse_without_reader(chain: &Chain) -> Result<(), Error> {
    let read = |group: &Group| in_force(chain).any(|m| m.group == group.id && reads(m.roles));
    match chain.groups().find(|group| !read(group)) {
        None => Ok(()),
        Some(group) => Err(Error::Invalid(format!(
            "no member of group `{}` can read any more, and the keys that decrypt lie only in the keyrings of those who do; \
             enroll a reader first",
            group.name
        ))),
    }
}
