//! Keyrings: what a member can open and where its data goes.
//!
//! The bytes made here are secret. They are stored compressed and sealed to the member and to every owner.

use std::fmt;

use minicbor::{Decoder, Encoder};
use zeroize::Zeroizing;

use crate::cbor::{self, CborError, Decoded, fields, items, need};
use crate::chunk::IdKey;
use crate::ids::{DomainId, GroupId, MemberId, RepositoryId};
use crate::recipient::{Identity, Recipient};
use crate::secret::Secret;

/// A keyring that does not decode. Says where, never what.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the keyring is malformed")]
pub struct KeyringError(#[source] CborError);

/// The keys of one member.
/// ```
/// use keepwell_crypto::keyring::{DomainKeys, GroupKeys, Keyring};
/// use keepwell_crypto::{GroupId, Identity, RepositoryId, SigningKey};
///
/// let (index, domain) = (Identity::generate(), DomainKeys::generate());
/// let group = GroupId::generate();
/// let keyring = Keyring {
///     repository: RepositoryId::generate(),
///     member: SigningKey::generate().member_id(),
///     groups: vec![GroupKeys { id: group, index_identities: vec![index], domains: vec![domain] }],
/// };
///
/// // What a host gets that only backs up: it can seal, and cannot open what it sealed.
/// let stored = keyring.without_read_keys().to_bytes();
/// let of_writer = Keyring::from_bytes(&stored)?;
/// let domain = &of_writer.group(&group).expect("its group").domains[0];
/// assert!(domain.identities.is_empty());
/// # Ok::<(), keepwell_crypto::keyring::KeyringError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Keyring {
    /// The repository that the keys belong to; compare it with that of the trust chain.
    pub repository: RepositoryId,
    /// Whose keyring this is.
    pub member: MemberId,
    /// One for each group that the member takes part in.
    pub groups: Vec<GroupKeys>,
}

/// The keys of one group.
#[derive(Debug, Clone)]
pub struct GroupKeys {
    /// Which group.
    pub id: GroupId,
    /// Open the index segments of all epochs, newest last.
    pub index_identities: Vec<Identity>,
    /// One for each domain of the group that is not erasable; keys of erasable ones are objects of their own.
    pub domains: Vec<DomainKeys>,
}

/// The keys of one domain.
#[derive(Clone)]
pub struct DomainKeys {
    /// Which domain.
    pub id: DomainId,
    /// Keys the chunk ids.
    pub id_key: IdKey,
    /// Packs are sealed to it: that of the newest epoch.
    pub recipient: Recipient,
    /// Open the packs of all epochs, newest last. Empty for a member that only writes.
    pub identities: Vec<Identity>,
}

impl Keyring {
    /// The CBOR form. Wiped when dropped; compress and seal it at once.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        encode(|e| {
            e.map(3)?.u8(0)?.encode(self.repository)?.u8(1)?.encode(self.member)?;
            e.u8(2)?.array(self.groups.len() as u64)?;
            self.groups.iter().try_for_each(|group| encode_group(e, group))
        })
    }

    /// Decodes the CBOR form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyringError> {
        decode(bytes, decode_keyring)
    }

    /// The keys of a group.
    pub fn group(&self, id: &GroupId) -> Option<&GroupKeys> {
        self.groups.iter().find(|group| group.id == *id)
    }

    /// The same without what reads data: what a member gets that only writes.
    ///
    /// It still deduplicates (index identities, id keys) and seals (recipients).
    #[must_use]
    pub fn without_read_keys(&self) -> Self {
        let mut keyring = self.clone();
        for domain in keyring.groups.iter_mut().flat_map(|group| &mut group.domains) {
            domain.identities.clear();
        }
        keyring
    }
}

impl GroupKeys {
    /// The keys of a domain.
    pub fn domain(&self, id: &DomainId) -> Option<&DomainKeys> {
        self.domains.iter().find(|domain| domain.id == *id)
    }
}

impl DomainKeys {
    /// The keys of a new domain.
    pub fn generate() -> Self {
        let data = Identity::generate();
        Self {
            id: DomainId::generate(),
            id_key: IdKey::generate(),
            recipient: data.recipient(),
            identities: vec![data],
        }
    }

    /// The CBOR form: the object of an erasable domain. Wiped when dropped; compress and seal it at once.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        encode(|e| encode_domain(e, self))
    }

    /// Decodes the CBOR form.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, KeyringError> {
        decode(bytes, decode_domain)
    }
}

impl fmt::Debug for DomainKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("DomainKeys");
        debug.field("id", &self.id).field("recipient", &self.recipient);
        debug.field("identities", &self.identities.len()).finish_non_exhaustive()
    }
}

type Out = Encoder<ZeroizingWriter>;
type Encoded = Result<(), minicbor::encode::Error<std::convert::Infallible>>;

fn encode(write: impl FnOnce(&mut Out) -> Encoded) -> Zeroizing<Vec<u8>> {
    let mut e = Encoder::new(ZeroizingWriter(Zeroizing::new(Vec::new())));
    cbor::infallible(|| write(&mut e));
    e.into_writer().0
}

fn encode_group(e: &mut Out, group: &GroupKeys) -> Encoded {
    e.map(3)?.u8(0)?.encode(group.id)?.u8(1)?;
    encode_identities(e, &group.index_identities)?;
    e.u8(2)?.array(group.domains.len() as u64)?;
    group.domains.iter().try_for_each(|domain| encode_domain(e, domain))
}

fn encode_domain(e: &mut Out, domain: &DomainKeys) -> Encoded {
    e.map(4)?.u8(0)?.encode(domain.id)?.u8(1)?.bytes(domain.id_key.expose())?;
    e.u8(2)?.str(&domain.recipient.to_string())?.u8(3)?;
    encode_identities(e, &domain.identities)
}

fn encode_identities(e: &mut Out, identities: &[Identity]) -> Encoded {
    // What stays in a device cannot be handed on.
    let secrets: Vec<Secret> = identities.iter().filter_map(Identity::to_secret_string).collect();
    e.array(secrets.len() as u64)?;
    secrets.iter().try_for_each(|secret| e.str(secret.expose())?.ok())
}

fn decode<T>(bytes: &[u8], read: impl FnOnce(&mut Decoder<'_>) -> Decoded<T>) -> Result<T, KeyringError> {
    cbor::check(bytes).map_err(KeyringError)?;
    let mut d = Decoder::new(bytes);
    let decoded = read(&mut d);
    let at = |e: minicbor::decode::Error| e.position().unwrap_or(d.position());
    decoded.map_err(|e| KeyringError(CborError { at: at(e), reason: "a field is missing or invalid" }))
}

fn decode_keyring(d: &mut Decoder<'_>) -> Decoded<Keyring> {
    let (mut repository, mut member, mut groups) = (None, None, None);
    fields(d, |key, d| {
        match key {
            0 => repository = Some(d.decode()?),
            1 => member = Some(d.decode()?),
            2 => groups = Some(items(d, decode_group)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(Keyring { repository: need(repository, 0)?, member: need(member, 1)?, groups: need(groups, 2)? })
}

fn decode_group(d: &mut Decoder<'_>) -> Decoded<GroupKeys> {
    let (mut id, mut index_identities, mut domains) = (None, None, None);
    fields(d, |key, d| {
        match key {
            0 => id = Some(d.decode()?),
            1 => index_identities = Some(items(d, decode_identity)?),
            2 => domains = Some(items(d, decode_domain)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (id, index_identities) = (need(id, 0)?, need(index_identities, 1)?);
    Ok(GroupKeys { id, index_identities, domains: need(domains, 2)? })
}

fn decode_domain(d: &mut Decoder<'_>) -> Decoded<DomainKeys> {
    let (mut id, mut id_key, mut recipient, mut identities) = (None, None, None, None);
    fields(d, |key, d| {
        match key {
            0 => id = Some(d.decode()?),
            1 => id_key = Some(decode_id_key(d)?),
            2 => recipient = Some(d.str()?.parse().map_err(|_| invalid())?),
            3 => identities = Some(items(d, decode_identity)?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let (id, id_key, recipient) = (need(id, 0)?, need(id_key, 1)?, need(recipient, 2)?);
    Ok(DomainKeys { id, id_key, recipient, identities: need(identities, 3)? })
}

fn decode_identity(d: &mut Decoder<'_>) -> Decoded<Identity> {
    Identity::parse(d.str()?).map_err(|_| invalid())
}

fn decode_id_key(d: &mut Decoder<'_>) -> Decoded<IdKey> {
    d.bytes()?.try_into().map(IdKey::from_bytes).map_err(|_| invalid())
}

fn invalid() -> minicbor::decode::Error {
    minicbor::decode::Error::message("invalid value")
}

/// Grows by copying into a fresh buffer, so that outgrown ones are wiped as well.
struct ZeroizingWriter(Zeroizing<Vec<u8>>);

impl minicbor::encode::Write for ZeroizingWriter {
    type Error = std::convert::Infallible;

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        if self.0.capacity() - self.0.len() < bytes.len() {
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * (self.0.len() + bytes.len()).max(1024)));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}
