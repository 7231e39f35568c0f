//! Owners: joining and leaving.

use keepwell_crypto::keyfile::{KeyFile, OwnerKeys};
use keepwell_crypto::trust::{Body, Owner};
use keepwell_crypto::{Identity, MemberId, SigningKey};

use crate::Error;
use crate::repository::Repository;

impl Repository {
    /// Makes the credential of a further owner, who may do everything that this one may.
    ///
    /// Every keyring is sealed anew, so that it opens them; until the last record is stored, a crash leaves an owner that
    /// cannot open all of them yet, and calling [`Repository::rotate_keys`] completes it.
    pub async fn add_owner(&self, name: &str, store_hint: Option<String>) -> Result<KeyFile, Error> {
        const ACTION: &str = "add owners";
        self.owner_keys(ACTION)?;
        let mut chain = self.refreshed_chain().await?;
        let keys = OwnerKeys { identity: Identity::generate(), root: SigningKey::generate() };
        let owner = Owner {
            name: name.to_owned(),
            recipient: keys.identity.recipient(),
            key: keys.root.verifying_key(),
        };
        self.append(&mut chain, ACTION, Body::AddOwner(owner)).await?;
        for body in self.reissue(&chain, ACTION, |_| {}).await? {
            self.append(&mut chain, ACTION, body).await?;
        }
        self.reissue_erasable(&chain, |_| {}).await?;
        Ok(KeyFile {
            repository: self.id(),
            genesis: chain.fingerprint(),
            name: name.to_owned(),
            owner: Some(keys),
            member: None,
            store_hint,
        })
    }

    /// Takes an owner's rights away and rotates all keys. The last owner cannot leave.
    pub async fn remove_owner(&self, owner: MemberId) -> Result<(), Error> {
        const ACTION: &str = "remove owners";
        if self.owner_keys(ACTION)?.root.member_id() == owner {
            return Err(Error::Invalid("an owner cannot remove itself; another one must".to_owned()));
        }
        let mut chain = self.refreshed_chain().await?;
        self.append(&mut chain, ACTION, Body::RemoveOwner(owner)).await?;
        self.rotate_keys().await
    }
}
