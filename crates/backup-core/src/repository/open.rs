//! Opening a repository: hint, trust, keyring.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use keepwell_catalog::names::ObjectName;
use keepwell_crypto::keyfile::{KeyFile, MemberKeys, OwnerKeys};
use keepwell_crypto::keyring::DomainKeys;
use keepwell_crypto::trust::{Chain, Domain};
use keepwell_crypto::{Digest, DomainId, GroupId, Identity, MemberId, Recipient, RepositoryId, StoreId};
use keepwell_storage::{Key, ObjectStore, list_all};
use serde::{Deserialize, Serialize};

use super::access::Accesses;
use super::index::HeldIndex;
use super::records::Records;
use super::trust::{follow_chain, open_chain_at, read_erasable, read_keyring, reading_keyring};
use super::{Access, Inner, Limits, Repository, fetch_bounded};
use crate::Error;
use crate::cache::Cache;
use crate::cancel::{Cancel, CancellableStore};
use crate::env::{Clock, Rng, SystemClock, SystemRng, Timestamp};
use crate::monitor::{Monitor, Silent};
use crate::pack::FRAME_PLAIN_MAX;
use crate::read::{Copies, CopySet};

pub(super) const HINT_KEY: &str = "keepwell.json";
/// Packs grow from this …
const PACK_BYTES_MIN: usize = 16 << 20;
/// … to this, with the size of the repository.
const PACK_BYTES_MAX: usize = 64 << 20;
/// A repository of this many bytes has packs of the smallest size; of four times as many, twice the size.
const PACKS_GROW_FROM: u64 = 64 << 30;

/// `keepwell.json`: for people and for the first request, never an authority.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RepositoryHint {
    /// Format version.
    pub format: u32,
    /// Repository id in hex.
    pub repository: String,
    /// Store id in hex.
    pub store: String,
    /// When it was made.
    pub created: String,
    /// What the last probe of the store found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<serde_json::Value>,
}

impl RepositoryHint {
    pub(crate) fn new(
        repository: RepositoryId,
        store: StoreId,
        now: Timestamp,
        probe: Option<serde_json::Value>,
    ) -> Self {
        let created =
            jiff::Timestamp::from_nanosecond(i128::from(now)).map(|t| t.to_string()).unwrap_or_default();
        Self { format: 1, repository: repository.to_string(), store: store.to_string(), created, probe }
    }

    /// Where the hint is stored.
    pub(crate) fn key() -> Key {
        HINT_KEY.parse().expect("a constant key")
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain strings serialize");
        text.push(b'\n');
        text
    }

    /// Reads the hint of a store; [`Error::NoRepository`] where there is none, and [`Error::Damaged`] where a repository has
    /// lost it. Its ids have the form of ids, and nobody has proved them.
    pub async fn read(store: &dyn ObjectStore) -> Result<Self, Error> {
        let key: Key = HINT_KEY.parse().expect("a constant key");
        let bytes = match fetch_bounded(store, &key).await {
            Ok(bytes) => bytes,
            Err(Error::Storage(error)) if error.is_not_found() => {
                return Err(without_hint(store, &key).await?);
            }
            Err(error) => return Err(error),
        };
        let hint: Self = serde_json::from_slice(&bytes).map_err(|e| Error::damaged(&key, e))?;
        if hint.format != 1 {
            return Err(Error::Invalid(format!(
                "the repository has format {}, and this program knows format 1",
                hint.format
            )));
        }
        // Nobody signs it, and programs look for files by what it says: a text with a path in it leads to any.
        hint.repository.parse::<RepositoryId>().map_err(|e| Error::damaged(&key, e))?;
        hint.store.parse::<StoreId>().map_err(|e| Error::damaged(&key, e))?;
        Ok(hint)
    }
}

/// What is to be said of a store without a hint. Commits show that it was a repository; records of trust alone are what a
/// creation that was interrupted leaves, and no repair finds out which store that was to be.
async fn without_hint(store: &dyn ObjectStore, key: &Key) -> Result<Error, Error> {
    if store.list_page("commits/", None).await?.objects.is_empty() {
        return Ok(Error::NoRepository { place: store.describe() });
    }
    let what = "it is missing, and there are commits; a repair from another copy makes it anew";
    Ok(Error::damaged(key, what))
}

/// Gathers the parts of an open repository.
pub struct Builder {
    store: Arc<dyn ObjectStore>,
    cache: Cache,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    monitor: Arc<dyn Monitor>,
    limits: Limits,
    copies: Option<Box<dyn Copies>>,
    cancel: Cancel,
}

impl Repository {
    /// Starts to open the repository in a store. Without further calls it uses the machine's clock and randomness, a
    /// cache in memory and no monitor.
    pub fn builder(store: Arc<dyn ObjectStore>) -> Builder {
        Builder {
            store,
            cache: Cache::memory(),
            clock: Arc::new(SystemClock),
            rng: Arc::new(SystemRng),
            monitor: Arc::new(Silent),
            limits: Limits::default(),
            copies: None,
            cancel: Cancel::default(),
        }
    }

    /// Takes in what owners appended since this was opened, and the keys that came with it. Gives the chain as it is now.
    pub(crate) async fn refresh_trust(&self) -> Result<Chain, Error> {
        let chain = self.refreshed_chain().await?;
        if self.access().as_of != chain.head().0 {
            let (owner, member) = (self.access().owner.clone(), self.access().member_keys());
            self.renew_access(open_access(&self.records(), &chain, owner, member).await?);
        }
        Ok(chain)
    }

    /// The keys of the domain that new content is sealed to.
    pub(crate) fn domain_for(&self, domain: Option<DomainId>) -> Result<&DomainKeys, Error> {
        domain.map_or_else(|| Ok(self.domain()), |id| self.domain_keys(id))
    }

    /// Who can open `state/`: this member, and the owners.
    pub(crate) fn state_recipients(&self) -> Result<Vec<Recipient>, Error> {
        let own = self.access().state.as_ref().ok_or_else(|| self.access().cannot("keep state"))?;
        let mut recipients = vec![own.recipient()];
        recipients
            .extend(self.chain_lock().read().unwrap_or_else(PoisonError::into_inner).owner_recipients());
        Ok(recipients)
    }

    /// At which size packs should be finished: larger for larger repositories.
    pub(crate) fn wanted_pack_bytes(&self) -> usize {
        let segments = self.index().segments();
        let sizes = segments.iter().flat_map(|(_, segment)| segment.packs().iter().map(|pack| pack.size));
        let stored = sizes.fold(0, u64::saturating_add); // anybody who writes may say of a pack what they like
        let doublings = (stored / PACKS_GROW_FROM).checked_ilog2().unwrap_or(0) / 2;
        (PACK_BYTES_MIN << doublings.min(2)).min(PACK_BYTES_MAX)
    }

    /// Likewise for one thread that moves chunks, within the limit of memory: a few are on their way, one is read.
    pub(crate) fn pack_bytes(&self) -> usize {
        self.wanted_pack_bytes().min(self.limits().memory_bytes / 10).max(4 << 20)
    }

    /// How many threads may hold a frame at a time, as stored and decoded, in a quarter of the limit; at least one.
    pub(crate) fn frames_at_once(&self) -> usize {
        (self.limits().memory_bytes / 4 / FRAME_PLAIN_MAX).max(1)
    }

    /// How many packs of up to so many bytes may be in memory at once, as they are stored; at least one. They take half of
    /// the limit: a host with many threads, or one that reads what another with more memory wrote, has no room for one each.
    pub(crate) fn packs_at_once(&self, largest_bytes: u64) -> usize {
        let room = self.limits().memory_bytes as u64 / 2 / largest_bytes.max(1);
        usize::try_from(room).unwrap_or(usize::MAX).max(1)
    }
}

impl Builder {
    /// Keeps cached files here.
    #[must_use]
    pub fn cache(mut self, cache: Cache) -> Self {
        self.cache = cache;
        self
    }

    /// Tells the time.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Gives random suffixes.
    #[must_use]
    pub fn rng(mut self, rng: Arc<dyn Rng>) -> Self {
        self.rng = rng;
        self
    }

    /// Receives progress.
    #[must_use]
    pub fn monitor(mut self, monitor: Arc<dyn Monitor>) -> Self {
        self.monitor = monitor;
        self
    }

    /// Bounds threads and memory.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where to look for chunks that this store has lost, or does not give because it does not answer any more. For
    /// restoring and reading; check, repair and prune must see the store as it is and be opened without.
    #[must_use]
    pub fn copies(mut self, copies: Box<dyn Copies>) -> Self {
        self.copies = Some(copies);
        self
    }

    /// Heeds this wish to end.
    #[must_use]
    pub fn cancel(mut self, cancel: Cancel) -> Self {
        self.cancel = cancel;
        self
    }

    /// Opens the repository with a credential.
    ///
    /// Fails with [`Error::NoRepository`], [`Error::WrongKey`], or [`Error::Trust`] when the trust chain is broken or
    /// does not begin with the genesis that the key file pins; with [`Error::TrustSetBack`] when the store shows less of it
    /// than this host has seen. Costs a request and a listing, and one request per record of the chain and for the keyring
    /// where the cache does not hold them.
    pub async fn open(self, key: KeyFile) -> Result<Repository, Error> {
        let store: Arc<dyn ObjectStore> = Arc::new(CancellableStore::new(self.store, self.cancel.clone()));
        let hint = RepositoryHint::read(&*store).await?;
        let store_id = hint.store.parse().map_err(|e| Error::damaged(HINT_KEY, e))?;
        let cache = self.cache.below(&format!("{store_id}"));
        let records = Records { store: &*store, cache: &cache };
        let place = Digest::of(format!("{} {}", key.repository, store.describe()).as_bytes()).to_string();
        let place = self.cache.below(&place[..32]);
        let chain = open_chain_at(&records, &place, Some(key.genesis)).await?;
        if chain.repository_id() != key.repository {
            return Err(Error::WrongKey(format!(
                "it belongs to repository {}, this is {}",
                key.repository,
                chain.repository_id()
            )));
        }
        let access = open_access(&records, &chain, key.owner, key.member).await?;
        let index = RwLock::new(HeldIndex::empty(self.limits.memory_bytes));
        Ok(Repository(Arc::new(Inner {
            store,
            store_id,
            chain: RwLock::new(chain),
            access: Accesses::new(access),
            index,
            gone: RwLock::default(),
            cache,
            cache_notes: Mutex::default(),
            clock: self.clock,
            rng: self.rng,
            monitor: self.monitor,
            limits: self.limits,
            copies: CopySet::new(self.copies),
            cancel: self.cancel,
        })))
    }
}

async fn open_access(
    records: &Records<'_>,
    chain: &Chain,
    owner: Option<OwnerKeys>,
    member: Option<MemberKeys>,
) -> Result<Access, Error> {
    let mut access = Access {
        repository: chain.repository_id(),
        member: None,
        roles: None,
        signing: None,
        state: None,
        owner,
        group: keepwell_crypto::GroupId::from_bytes([0; 4]),
        groups: Vec::new(),
        as_of: chain.head().0,
    };
    let (keyring_of, identity) = match (member, &access.owner) {
        (Some(member), _) => {
            let id = member.signing.member_id();
            let known =
                chain.member(&id).ok_or_else(|| Error::WrongKey(format!("member {id} is not enrolled")))?;
            access.member = Some(id);
            access.roles = Some(known.roles);
            access.group = known.group;
            access.signing = Some(member.signing);
            let identity = member.identity;
            access.groups = read_keyring(records, chain, id, &identity).await?.groups;
            access.state = Some(identity);
            (id, access.state.as_ref())
        }
        (None, Some(owner)) => {
            let (reader, keyring) = reading_keyring(records, chain, &owner.identity).await?;
            access.group = reader.group;
            access.groups = keyring.groups;
            (reader.id(), Some(&owner.identity))
        }
        (None, None) => return Err(Error::WrongKey("it holds no keys".into())),
    };
    let erasable = match identity {
        Some(identity) => open_erasable(records.store, chain, keyring_of, identity).await?,
        None => Vec::new(),
    };
    for (group, keys) in erasable {
        if let Some(group) = access.groups.iter_mut().find(|g| g.id == group) {
            group.domains.push(keys);
        }
    }
    check_groups(&access)?;
    follow_chain(chain, &mut access.groups);
    Ok(access)
}

fn check_groups(access: &Access) -> Result<(), Error> {
    let group = access.groups.iter().find(|g| g.id == access.group);
    match group {
        Some(group) if !group.domains.is_empty() && !group.index_identities.is_empty() => Ok(()),
        _ => Err(Error::WrongKey(format!("its keyring lacks the keys of group {}", access.group))),
    }
}

/// The member's keys of every erasable domain that was not erased.
async fn open_erasable(
    store: &dyn ObjectStore,
    chain: &Chain,
    member: MemberId,
    identity: &Identity,
) -> Result<Vec<(GroupId, DomainKeys)>, Error> {
    let mut found = Vec::new();
    let domains: Vec<&Domain> =
        chain.domains().filter(|domain| domain.erasable && !chain.is_erased(&domain.id)).collect();
    let Some(member) = chain.member(&member).filter(|_| !domains.is_empty()) else { return Ok(found) };
    let listed = list_all(store, "keys/erasable/").await?;
    for domain in domains {
        let mut keys = Vec::new();
        for info in &listed {
            if let Ok(ObjectName::ErasableKey { domain: of, member: whose, .. }) = info.key.as_str().parse()
                && (of, whose) == (domain.id, member.id())
            {
                keys.push(info.key.clone());
            }
        }
        let opened = read_erasable(store, domain, member, identity, &keys).await?;
        found.extend(opened.map(|keys| (domain.group, keys)));
    }
    Ok(found)
}
