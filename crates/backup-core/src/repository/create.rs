//! Making a repository.

use bytes::Bytes;
use keepwell_catalog::{names, seal_record};
use keepwell_crypto::keyfile::{KeyFile, MemberKeys, OwnerKeys};
use keepwell_crypto::keyring::{DomainKeys, GroupKeys, Keyring};
use keepwell_crypto::trust::{Body, Chain, Domain, Group, KeyringRef, Member, Owner, Roles};
use keepwell_crypto::{Digest, GroupId, Identity, Recipient, RepositoryId, SigningKey, StoreId};
use keepwell_storage::{Key, ObjectStore};

use super::open::{HINT_KEY, RepositoryHint};
use crate::Error;
use crate::env::Timestamp;

/// What a new repository is told about itself.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Name of the owner, for people.
    pub owner: String,
    /// Name of the first member, usually the host.
    pub member: String,
    /// Where the repository is, to be written into the key file.
    pub store_hint: Option<String>,
    /// What a probe of the store found, kept in `keepwell.json`.
    pub probe: Option<serde_json::Value>,
}

/// A repository that exists only in memory so far: its key file can be saved before anything is stored.
pub struct Created {
    key_file: KeyFile,
    objects: Vec<(Key, Bytes)>,
}

impl Created {
    /// Generates keys and the first objects. Nothing is stored.
    pub fn generate(options: &CreateOptions, now: Timestamp) -> Result<Self, Error> {
        let root = SigningKey::generate();
        let owner_identity = Identity::generate();
        let repository = RepositoryId::generate();
        let owner = Owner {
            name: options.owner.clone(),
            recipient: owner_identity.recipient(),
            key: root.verifying_key(),
        };
        let mut objects = Vec::new();
        let (mut chain, genesis) = Chain::genesis(&root, now, repository, vec![owner])?;
        let mut push = |key: Key, bytes: Vec<u8>| objects.push((key, Bytes::from(bytes)));
        push(names::trust_key(0), genesis);

        let group = new_group();
        let domain = &group.domains[0];
        let index = group.index_identities[0].recipient();
        let body = Body::Group(Group { id: group.id, name: "default".into(), recipient: index, epoch: 0 });
        push(names::trust_key(1), chain.append(&root, now, body)?);
        let body = Body::Domain(Domain {
            id: domain.id,
            group: group.id,
            name: "default".into(),
            recipient: domain.recipient.clone(),
            erasable: false,
            epoch: 0,
        });
        push(names::trust_key(2), chain.append(&root, now, body)?);

        let roles = Roles::WRITER | Roles::READER | Roles::KEEPER;
        let member = MemberKeys { identity: Identity::generate(), signing: SigningKey::generate(), roles };
        let record = Member {
            name: options.member.clone(),
            key: member.signing.verifying_key(),
            recipient: member.identity.recipient(),
            roles,
            group: group.id,
        };
        let keyring = Keyring { repository, member: record.id(), groups: vec![group] };
        let (reference, key, sealed) = seal_keyring(&chain.owner_recipients(), &keyring, &record, 0)?;
        push(key, sealed);
        let body = Body::Enrol { member: record, keyring: reference };
        push(names::trust_key(3), chain.append(&root, now, body)?);
        let hint = RepositoryHint::new(repository, StoreId::generate(), now, options.probe.clone());
        push(HINT_KEY.parse().expect("a constant key"), hint.to_bytes());

        let key_file = KeyFile {
            repository,
            genesis: chain.fingerprint(),
            name: options.member.clone(),
            owner: Some(OwnerKeys { identity: owner_identity, root }),
            member: Some(member),
            store_hint: options.store_hint.clone(),
        };
        Ok(Self { key_file, objects })
    }

    /// The only key to the repository: save it before [`Created::store`].
    pub fn key_file(&self) -> &KeyFile {
        &self.key_file
    }

    /// Stores the repository; `keepwell.json` comes last. A crash leaves an object or two of no use under names that
    /// this call then refuses; such a half-made repository holds nothing and can be removed by hand.
    pub async fn store(self, store: &dyn ObjectStore) -> Result<KeyFile, Error> {
        refuse_existing(store).await?;
        for (key, bytes) in self.objects {
            store.put_new(&key, bytes).await?;
        }
        Ok(self.key_file)
    }
}

async fn refuse_existing(store: &dyn ObjectStore) -> Result<(), Error> {
    for key in [HINT_KEY.parse().expect("a constant key"), names::trust_key(0)] {
        match store.head(&key).await {
            Ok(_) => return Err(Error::RepositoryExists { place: store.describe() }),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn new_group() -> GroupKeys {
    GroupKeys {
        id: GroupId::generate(),
        index_identities: vec![Identity::generate()],
        domains: vec![DomainKeys::generate()],
    }
}

/// Seals a keyring to its member and to the owners; gives the reference for the chain, the key and the bytes.
pub(crate) fn seal_keyring(
    owners: &[Recipient],
    keyring: &Keyring,
    member: &Member,
    n: u64,
) -> Result<(KeyringRef, Key, Vec<u8>), Error> {
    let recipients: Vec<Recipient> = owners.iter().chain([&member.recipient]).cloned().collect();
    let sealed = seal_record(&recipients, &keyring.to_bytes())?;
    let key = names::keyring_key(member.id(), n);
    Ok((KeyringRef { name: key.to_string(), digest: Digest::of(&sealed) }, key, sealed))
}
