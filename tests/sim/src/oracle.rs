//! Watches one store from outside and knows at every moment what must be in it.
//!
//! A second, small reader of the format: it decodes every object once, when it appears, and from then on only counts.
//! After every change it holds that each chunk of each committed and not retired snapshot has an entry in a segment
//! that exists, for a pack that exists and was proven to hold exactly that chunk there.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use backup_core::pack::{PackDirectory, decode_frame};
use bytes::Bytes;
use keepwell_catalog::names::ObjectName;
use keepwell_catalog::wal::WalName;
use keepwell_catalog::{
    Commit, CommitKind, Extent, Manifest, MapError, MapReader, NodeSource, PackClass, Retired, Segment,
    names, open_record, snapshot_id, walk_nodes,
};
use keepwell_crypto::keyring::{GroupKeys, Keyring};
use keepwell_crypto::trust::{Chain, Roles};
use keepwell_crypto::{ChunkId, ChunkKind, Identity, MemberId, Signed, SnapshotId};
use keepwell_storage::Key;

use crate::log::{Log, Pieces};
use crate::tree::Tree;
use crate::vault::{Change, Vault};

/// Largest record that is decoded.
const RECORD_MAX: usize = 1 << 24;

/// What is wrong, as a sentence.
pub(crate) type Wrong = String;

/// What the processes were given to back up, by the number of the attempt.
pub(crate) type Given = BTreeMap<u64, Tree>;

/// A snapshot that must restore.
#[derive(Debug, Clone)]
pub(crate) struct Promised {
    pub id: SnapshotId,
    /// The attempt that took it.
    pub attempt: u64,
    needs: Vec<ChunkId>,
    manifest: String,
}

/// Where in a pack a chunk lies: its frame, and its place in there.
type Spot = (u32, u32);

#[derive(Debug, Default)]
struct Pack {
    exists: bool,
    chunks: HashMap<Spot, (ChunkId, u32)>,
}

#[derive(Debug, Default)]
struct Index {
    exists: bool,
    entries: Vec<(ChunkId, Key)>,
}

/// What is known of one store.
pub(crate) struct Oracle {
    keys: GroupKeys,
    chain: Chain,
    packs: HashMap<Key, Pack>,
    segments: HashMap<Key, Index>,
    /// Segments and packs in which a chunk was ever found.
    places: HashMap<ChunkId, Vec<(Key, Key)>>,
    bytes: HashMap<ChunkId, Bytes>,
    /// How many promised snapshots need a chunk.
    needed: HashMap<ChunkId, u32>,
    promised: BTreeMap<(MemberId, u64), Promised>,
    /// Commits that nobody believes.
    refused: u32,
    retired: BTreeSet<(MemberId, u64)>,
    /// The database's log, and what is archived of it.
    log: Log,
    pieces: Pieces,
    /// Keys and nonces in headers of sealed objects, which no two different objects share.
    headers: HashMap<[u8; 32], [u8; 32]>,
}

impl Oracle {
    /// Begins with what a new repository consists of.
    pub fn new(vault: &Vault, member: MemberId, identity: &Identity, log: Log) -> Self {
        let chain = load_chain(vault);
        let name = chain.keyring_name(&member).expect("the first member has a keyring");
        let sealed = &vault.objects[&name.parse::<Key>().expect("the chain names keys")];
        let opened =
            open_record(std::slice::from_ref(identity), sealed, RECORD_MAX).expect("our own keyring");
        let keyring = Keyring::from_bytes(&opened).expect("our own keyring");
        Self {
            keys: keyring.groups.into_iter().next().expect("there is a group"),
            chain,
            packs: HashMap::new(),
            segments: HashMap::new(),
            places: HashMap::new(),
            bytes: HashMap::new(),
            needed: HashMap::new(),
            promised: BTreeMap::new(),
            refused: 0,
            retired: BTreeSet::new(),
            log,
            pieces: Pieces::default(),
            headers: HashMap::new(),
        }
    }

    /// Snapshots that are committed and not retired.
    pub fn promised(&self) -> &BTreeMap<(MemberId, u64), Promised> {
        &self.promised
    }

    /// Whether it was retired here.
    pub fn is_retired(&self, place: (MemberId, u64)) -> bool {
        self.retired.contains(&place)
    }

    /// Whether there are commits that nobody believes.
    pub fn has_refused(&self) -> bool {
        self.refused > 0
    }

    /// Takes in what a call has changed.
    pub fn observe(&mut self, change: &Change, vault: &Vault, given: &Given) -> Result<(), Wrong> {
        let (Change::Created(key, _) | Change::Deleted(key)) = change;
        if key.first_component() == "probe" {
            return Ok(()); // what a prune tries the store with
        }
        if key.first_component() == "wal" {
            return self
                .log_changed(key, change)
                .map_err(|wrong| format!("{wrong}; after {} of `{key}`", verb(change)));
        }
        let name: ObjectName =
            key.as_str().parse().map_err(|_| format!("`{key}` is no name of this format"))?;
        match change {
            Change::Created(_, body) => self.created(key, name, body, vault, given),
            Change::Deleted(_) => self.deleted(key, name),
        }
        .map_err(|wrong| format!("{wrong}; after {} of `{key}`", verb(change)))
    }

    fn log_changed(&mut self, key: &Key, change: &Change) -> Result<(), Wrong> {
        let Ok(name) = key.as_str().parse::<WalName>() else {
            return match change {
                Change::Created(..) => Ok(()), // which cluster a dataset is bound to
                Change::Deleted(_) => Err("it must never be deleted".to_owned()),
            };
        };
        match change {
            Change::Created(_, body) => {
                self.pieces.created(&name);
                self.sealed_once(body)
            }
            Change::Deleted(_) => {
                let begun = self.promised.values().filter_map(|p| self.log.begun(p.attempt));
                self.pieces.deleted(&name, begun.min())
            }
        }
    }

    fn created(
        &mut self,
        key: &Key,
        name: ObjectName,
        body: &Bytes,
        vault: &Vault,
        given: &Given,
    ) -> Result<(), Wrong> {
        match name {
            ObjectName::Pack(class, _) => {
                self.sealed_once(body)?;
                self.pack(key, class, body)
            }
            ObjectName::Index(..) => {
                self.sealed_once(body)?;
                self.segment(key, body)
            }
            ObjectName::State(..) | ObjectName::Manifest(_) => self.sealed_once(body),
            ObjectName::Commit(writer, n) => self.commit(writer, n, body, vault, given),
            ObjectName::Retired(_) => self.retirement(body),
            ObjectName::Trust(_) => {
                self.chain = load_chain(vault);
                self.forget_refused();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn deleted(&mut self, key: &Key, name: ObjectName) -> Result<(), Wrong> {
        let touched: Vec<ChunkId> = match name {
            ObjectName::Pack(..) => {
                let pack = self.packs.entry(key.clone()).or_default();
                pack.exists = false;
                pack.chunks.values().map(|(id, _)| *id).collect()
            }
            ObjectName::Index(..) => {
                let segment = self.segments.entry(key.clone()).or_default();
                segment.exists = false;
                segment.entries.iter().map(|(id, _)| *id).collect()
            }
            ObjectName::Manifest(name) => return self.manifest_needed(vault_name(&name)),
            // Decisions stay; claims and beats of sessions that have ended, merged plans and older ledgers go.
            ObjectName::Plan(_)
            | ObjectName::State(..)
            | ObjectName::Session { .. }
            | ObjectName::Ledger(..) => Vec::new(),
            _ => return Err("it must never be deleted".to_owned()),
        };
        let lost = touched.iter().find(|id| self.needed.contains_key(*id) && !self.resolves(id));
        match lost {
            None => Ok(()),
            Some(id) => Err(format!("LOST: chunk {id} of {}", self.who_needs(id))),
        }
    }

    fn manifest_needed(&self, key: String) -> Result<(), Wrong> {
        let needs = self.promised.values().find(|p| p.manifest == key);
        needs.map_or(Ok(()), |p| Err(format!("LOST: the manifest of attempt {}", p.attempt)))
    }

    fn resolves(&self, id: &ChunkId) -> bool {
        let exists = |(segment, pack): &(Key, Key)| {
            self.segments.get(segment).is_some_and(|s| s.exists)
                && self.packs.get(pack).is_some_and(|p| p.exists)
        };
        self.places.get(id).is_some_and(|places| places.iter().any(exists))
    }

    fn who_needs(&self, id: &ChunkId) -> String {
        let needs = self.promised.iter().find(|(_, p)| p.needs.contains(id));
        needs.map_or("nobody".to_owned(), |((writer, n), p)| {
            format!("snapshot {writer}/{n}, attempt {}", p.attempt)
        })
    }

    /// No two sealed objects share a file key, an ephemeral key or a nonce: that would reveal both.
    fn sealed_once(&mut self, body: &Bytes) -> Result<(), Wrong> {
        let header = keepwell_crypto::header_len(body).map_err(|e| format!("it is not sealed: {e}"))?;
        let nonce = body.get(header..header + keepwell_crypto::NONCE_BYTES).ok_or("it ends in its header")?;
        let whole = *blake3::hash(body).as_bytes();
        let shares =
            body[..header].split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"-> X25519 "));
        for part in shares.chain([nonce]) {
            let known = self.headers.entry(*blake3::hash(part).as_bytes()).or_insert(whole);
            if *known != whole {
                return Err("it shares a key or a nonce with another object".to_owned());
            }
        }
        Ok(())
    }

    fn pack(&mut self, key: &Key, class: PackClass, body: &Bytes) -> Result<(), Wrong> {
        if let Some(pack) = self.packs.get_mut(key) {
            pack.exists = true; // a request that came twice, or late
            return Ok(());
        }
        let domain = &self.keys.domains[0];
        let kind = if class == PackClass::Data { ChunkKind::Content } else { ChunkKind::Node };
        let plain = keepwell_crypto::open(&domain.identities, body, body.len() as u64);
        let plain = plain.map_err(|e| format!("the pack does not open: {e}"))?;
        let directory = PackDirectory::of_plaintext(&plain).map_err(|e| format!("its directory: {e}"))?;
        let mut pack = Pack { exists: true, chunks: HashMap::new() };
        let mut frame_at = 0u32;
        for frame in &directory.frames {
            let stored = &plain[frame_at as usize..][..frame.stored as usize];
            let decoded = decode_frame(stored, None).map_err(|e| format!("a frame of it: {e}"))?;
            let mut at = 0u32;
            for (id, length) in &frame.chunks {
                let chunk = &decoded[at as usize..][..*length as usize];
                if domain.id_key.chunk_id(kind, chunk) != *id {
                    return Err(format!("chunk {id} in it is something else"));
                }
                self.bytes.entry(*id).or_insert_with(|| Bytes::copy_from_slice(chunk));
                pack.chunks.insert((frame_at, at), (*id, *length));
                at += length;
            }
            frame_at += frame.stored;
        }
        self.packs.insert(key.clone(), pack);
        Ok(())
    }

    fn segment(&mut self, key: &Key, body: &Bytes) -> Result<(), Wrong> {
        if let Some(segment) = self.segments.get_mut(key) {
            segment.exists = true;
            return Ok(());
        }
        let plain = keepwell_crypto::open(&self.keys.index_identities, body, body.len() as u64);
        let plain = Bytes::from(plain.map_err(|e| format!("the segment does not open: {e}"))?);
        let verify = |signer: &MemberId, tables: &[u8], signature: &[u8; 64]| {
            let roles = Roles::WRITER | Roles::KEEPER;
            self.chain
                .verify_detached(*signer, "index", roles, tables, signature)
                .map(|_| ())
                .map_err(Into::into)
        };
        let segment = Segment::open(Box::new(plain), &verify).map_err(|e| format!("the segment: {e}"))?;
        let mut index = Index { exists: true, entries: Vec::new() };
        for item in segment.iter() {
            let (_, entry) = item.map_err(|e| format!("the segment: {e}"))?;
            let name = &segment.packs()[entry.pack as usize].name;
            let pack_key = names::pack_key(segment.class(), name);
            let pack = self.packs.get(&pack_key);
            let pack = pack.ok_or_else(|| format!("it names pack `{pack_key}`, which was never stored"))?;
            if pack.chunks.get(&(entry.frame_offset, entry.offset)) != Some(&(entry.id, entry.length)) {
                return Err(format!("it has chunk {} where pack `{pack_key}` has not", entry.id));
            }
            self.places.entry(entry.id).or_default().push((key.clone(), pack_key.clone()));
            index.entries.push((entry.id, pack_key));
        }
        self.segments.insert(key.clone(), index);
        Ok(())
    }

    fn commit(
        &mut self,
        writer: MemberId,
        n: u64,
        body: &Bytes,
        vault: &Vault,
        given: &Given,
    ) -> Result<(), Wrong> {
        let signed = Signed::from_bytes(body).map_err(|e| format!("the commit: {e}"))?;
        let commit = Commit::decode(&signed.payload).map_err(|e| format!("the commit: {e}"))?;
        if commit.kind != CommitKind::Snapshot {
            return Ok(());
        }
        let roles = Roles::WRITER | Roles::KEEPER;
        if self.chain.verify_member(&signed, Commit::KIND, roles, Some((writer, n))).is_err() {
            self.refused += 1; // nobody believes it: its writer was revoked
            return Ok(());
        }
        let name = commit.manifest.ok_or("a snapshot names no manifest")?;
        let sealed = vault.objects.get(&names::manifest_key(&name)).ok_or("its manifest is not there")?;
        let cbor = open_record(&self.keys.domains[0].identities, sealed, RECORD_MAX);
        let cbor = cbor.map_err(|e| format!("its manifest: {e}"))?;
        let id = snapshot_id(&cbor);
        if commit.snapshot != Some(id) {
            return Err("its manifest is another one".to_owned());
        }
        let manifest = Manifest::decode(&cbor).map_err(|e| format!("its manifest: {e}"))?;
        let attempt: u64 = manifest.description.parse().map_err(|_| "nobody took it".to_owned())?;
        let wanted = given.get(&attempt).ok_or("nobody took it")?;
        let needs = self.needs(&manifest.root)?;
        self.compare(&manifest.root, wanted).map_err(|wrong| format!("attempt {attempt}: {wrong}"))?;
        if self.retired.contains(&(writer, n)) {
            return Err("it was retired before it was committed".to_owned());
        }
        if let Some(floor) = self.log.begun(attempt) {
            self.pieces.whole_from(floor)?;
        }
        for id in &needs {
            *self.needed.entry(*id).or_default() += 1;
        }
        let manifest = vault_name(&name);
        self.promised.insert((writer, n), Promised { id, attempt, needs, manifest });
        Ok(())
    }

    /// Every chunk under a root, each of which must resolve now.
    fn needs(&self, root: &ChunkId) -> Result<Vec<ChunkId>, Wrong> {
        let mut found = BTreeSet::new();
        let mut values: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut node = |id: &ChunkId| found.insert(*id);
        let mut record = |key: &[u8], value: &[u8]| values.push((key.to_vec(), value.to_vec()));
        walk_nodes(self, root, &mut node, &mut record).map_err(|e| format!("its tree: {e}"))?;
        for (key, value) in values {
            for extent in
                keepwell_catalog::record_extents(&key, &value).map_err(|e| format!("its tree: {e}"))?
            {
                if let Extent::Chunk { id, .. } = extent {
                    found.insert(id);
                }
            }
        }
        match found.iter().find(|id| !self.resolves(id)) {
            None => Ok(found.into_iter().collect()),
            Some(id) => Err(format!("LOST: it needs chunk {id}, which does not resolve")),
        }
    }

    /// Whether the tree under a root is the one that was given.
    fn compare(&self, root: &ChunkId, wanted: &Tree) -> Result<(), Wrong> {
        let reader = MapReader::new(self, *root);
        let mut tree = Tree::default();
        for entry in reader.entries().map_err(|e| format!("its tree: {e}"))? {
            let (key, entry) = entry.map_err(|e| format!("its tree: {e}"))?;
            let mut content = Vec::new();
            for extent in &entry.content {
                match extent {
                    Extent::Hole { length } => content.resize(content.len() + *length as usize, 0),
                    Extent::Chunk { id, offset, length } => {
                        let bytes = self.bytes.get(id).ok_or("a chunk was never stored")?;
                        let piece = bytes.get(*offset as usize..(*offset + *length) as usize);
                        content.extend_from_slice(piece.ok_or("an extent reaches past its chunk")?);
                    }
                }
            }
            tree.0.insert(key, Tree::node(&entry, content));
        }
        tree.difference(wanted).map_or(Ok(()), |differs| Err(format!("it is not what was given: {differs}")))
    }

    /// What a writer committed that was revoked is believed up to a number only.
    fn forget_refused(&mut self) {
        let refused =
            |(writer, n): &(MemberId, u64)| self.chain.revoked_from(writer).is_some_and(|from| *n >= from);
        for place in self.promised.keys().copied().filter(refused).collect::<Vec<_>>() {
            self.release(place);
            self.refused += 1;
        }
    }

    /// A snapshot is promised no longer.
    fn release(&mut self, place: (MemberId, u64)) {
        for id in self.promised.remove(&place).map(|p| p.needs).unwrap_or_default() {
            if let std::collections::hash_map::Entry::Occupied(mut count) = self.needed.entry(id) {
                *count.get_mut() -= 1;
                if *count.get() == 0 {
                    count.remove();
                }
            }
        }
    }

    fn retirement(&mut self, body: &Bytes) -> Result<(), Wrong> {
        let signed = Signed::from_bytes(body).map_err(|e| format!("the retirement: {e}"))?;
        self.chain
            .verify_author(&signed, Retired::KIND, Roles::KEEPER)
            .map_err(|e| format!("the retirement: {e}"))?;
        let record = Retired::decode(&signed.payload).map_err(|e| format!("the retirement: {e}"))?;
        for snapshot in record.snapshots {
            let place = (snapshot.writer, snapshot.seq);
            self.retired.insert(place);
            self.release(place);
        }
        Ok(())
    }
}

impl NodeSource for Oracle {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        let missing = || MapError::Read { node: *id, source: "the node was never stored".into() };
        self.bytes.get(id).cloned().ok_or_else(missing)
    }
}

fn vault_name(name: &keepwell_catalog::ContentName) -> String {
    names::manifest_key(name).to_string()
}

fn verb(change: &Change) -> &'static str {
    match change {
        Change::Created(..) => "creation",
        Change::Deleted(_) => "deletion",
    }
}

fn load_chain(vault: &Vault) -> Chain {
    let records = vault.objects.iter().filter(|(key, _)| key.first_component() == "trust");
    Chain::load(records.map(|(_, body)| body.clone()).collect::<Vec<_>>(), None).expect("owners are honest")
}
