//! Owners: joining and leaving.

use keepwell_crypto::keyfile::{KeyFile, OwnerKeys};
use keepwell_crypto::trust::{Body, Owner};
use keepwell_crypto::{Identity, MemberId, SigningKey};

use super::refuse_without_reader;
use crate::Error;
use crate::repository::Repository;

impl Repository {
    /// Makes the credential of a further owner, who may do everything that this one may. Nothing is stored: save it, for
    /// it exists nowhere else, and then make it count by [`Repository::add_owner`].
    pub fn new_owner(&self, name: &str, store_hint: Option<String>) -> Result<KeyFile, Error> {
        self.owner_keys("add owners")?;
        let keys = OwnerKeys { identity: Identity::generate(), root: SigningKey::generate() };
        Ok(self.key_file(name, Some(keys), None, store_hint))
    }

    /// Makes the credential of an owner count.
    ///
    /// Every keyring in force is sealed anew before, so that the owner opens all of them from the first moment. After a crash
    /// in between, call it again with the same credential; for one that counts already it does nothing. Refused while no
    /// member in force can read: nobody seals the keyrings of revoked members anew.
    pub async fn add_owner(&self, credential: &KeyFile) -> Result<(), Error> {
        const ACTION: &str = "add owners";
        self.owner_keys(ACTION)?;
        let keys = credential.owner.as_ref();
        let keys = keys.ok_or_else(|| Error::Invalid("the key file holds no keys of an owner".to_owned()))?;
        let mut chain = self.refreshed_chain().await?;
        let owner = Owner {
            name: credential.name.clone(),
            recipient: keys.identity.recipient(),
            key: keys.root.verifying_key(),
        };
        if chain.owners().any(|known| known.id() == owner.id()) {
            return Ok(());
        }
        refuse_without_reader(&chain)?;
        let mut owners = chain.owner_recipients();
        owners.push(owner.recipient.clone());
        let keyrings = self.reissue(&chain, &owners, ACTION, |_| {}).await?;
        self.reissue_erasable(&chain, &owners, |_| {}).await?;
        for body in keyrings.into_iter().chain([Body::AddOwner(owner)]) {
            self.append(&mut chain, ACTION, body).await?;
        }
        Ok(())
    }

    /// Takes an owner's rights away and rotates all keys. The last owner cannot leave. After a crash in between, call it
    /// again.
    pub async fn remove_owner(&self, owner: MemberId) -> Result<(), Error> {
        const ACTION: &str = "remove owners";
        if self.owner_keys(ACTION)?.root.member_id() == owner {
            return Err(Error::Invalid("an owner cannot remove itself; another one must".to_owned()));
        }
        let mut chain = self.refreshed_chain().await?;
        if !chain.former_owners().any(|former| former.id() == owner) {
            self.append(&mut chain, ACTION, Body::RemoveOwner(owner)).await?;
        }
        self.rotate_keys().await
    }
}
