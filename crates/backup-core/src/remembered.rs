//! What tree nodes refer to, remembered from prune to prune, so that marking reads only nodes that are new.
//!
//! A node is named by a hash of its content, so what it refers to never changes: remembering it is no opinion about
//! what is live, where anything lies, or what may go. All of that is found anew in every prune, from commits, index and
//! plans. The file lies in the local cache, which is not trusted: it is a row of records, one for each node, and each
//! carries a keyed hash that only members of the group can make, and that is checked when the record is read. One that does
//! not fit is as good as none.
//!
//! In memory are the places of the records, and ids that were met so far, both within bounds: what is beyond them is read,
//! or looked up, again each time it is met.

use std::collections::{HashMap, HashSet};
use std::io::Write;

use keepwell_catalog::{IndexSet, PackClass, record_extents, walk_nodes};
use keepwell_crypto::{ChunkId, ChunkKind};

use crate::Error;
use crate::cache::{CacheWriter, CachedFile};
use crate::mark::{LOOKED_UP_TOGETHER, Visitor, look_up, places_of};
use crate::read::Nodes;
use crate::repository::Repository;

const NAME: &str = "nodes";
const MAGIC: &[u8; 8] = b"KWNODE\0\x02";
/// Of the memory limit, this part is for the places of records, and as much for ids of chunks.
const MEMORY_SHARE: usize = 32;
/// Bytes in memory of a node's id and place, in a table that is about to grow.
const NODE_BYTES: usize = 74;
/// Bytes in memory of a chunk's id in such a table.
const CHUNK_BYTES: usize = 37;
/// In front of the ids in a record: that of the node, and how many children and chunks it has.
const HEAD_LEN: usize = ChunkId::LEN + 8;
/// Behind them: the keyed hash.
const PROOF_LEN: usize = 32;
/// Most bytes of ids in a record: a node has at most 1 MiB, and every id that it refers to is in it.
const IDS_BYTES_MAX: usize = 1 << 20;

/// How much is held.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Nodes of which the place of the record is known.
    nodes: usize,
    /// Ids of chunks that were met.
    chunks: usize,
    /// Bytes of the file.
    file_bytes: u64,
}

impl Bounds {
    fn of(memory_bytes: usize) -> Self {
        let share = memory_bytes / MEMORY_SHARE;
        Self { nodes: share / NODE_BYTES, chunks: share / CHUNK_BYTES, file_bytes: memory_bytes as u64 }
    }
}

/// Where a record lies in the file that the last prune has left.
#[derive(Debug, Clone, Copy)]
struct Place {
    at: u64,
    len: u32,
}

/// What is known of a node.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// It is remembered, and was not met yet.
    Before(Place),
    /// It was met, and is remembered.
    Met(Place),
    /// It was met, and is remembered from now on.
    New,
}

/// By the ids of nodes. Hashed with a key of this process, as chunks below: whoever may write chooses the ids that a tree
/// refers to, so none of their bits are a hash.
type KnownNodes = HashMap<ChunkId, Known>;

/// What a node refers to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Refs {
    children: Vec<ChunkId>,
    chunks: Vec<ChunkId>,
}

/// One marking, by what is remembered.
pub(crate) struct Remembered {
    repository: Repository,
    bounds: Bounds,
    /// What the last prune on this host has left.
    old: Option<CachedFile>,
    /// What this one leaves, if it is kept: records of nodes that were read.
    new: Option<CacheWriter>,
    new_len: u64,
    nodes: KnownNodes,
    /// Chunks that were met. A hostile tree may name a node as content, so these are apart.
    chunks: HashSet<ChunkId>,
    /// Those that are not looked up yet.
    waiting: Vec<ChunkId>,
    /// Nodes that were read because nothing was remembered of them.
    pub nodes_read: u64,
}

impl Remembered {
    /// Takes up what the last prune on this host remembered, as far as memory allows.
    pub fn load(repository: &Repository) -> Self {
        Self::within(repository, Bounds::of(repository.limits().memory_bytes))
    }

    fn within(repository: &Repository, bounds: Bounds) -> Self {
        let old = repository.cache().open(NAME);
        // A cache that cannot be written costs time at the next prune, nothing else.
        let new = repository.cache().create(NAME).ok();
        let new = new.and_then(|mut new| new.write_all(MAGIC).is_ok().then_some(new));
        Self {
            repository: repository.clone(),
            bounds,
            nodes: old.as_ref().map(|old| places(old, bounds.nodes)).unwrap_or_default(),
            old,
            new,
            new_len: MAGIC.len() as u64,
            chunks: HashSet::default(),
            waiting: Vec::new(),
            nodes_read: 0,
        }
    }

    /// Keeps it for the next prune: of nodes that were met, the others are forgotten.
    pub fn save(self) {
        let (Some(mut new), mut len) = (self.new, self.new_len) else { return };
        let met = |known: &Known| if let Known::Met(place) = known { Some(*place) } else { None };
        let mut met: Vec<Place> = self.nodes.values().filter_map(met).collect();
        met.sort_unstable_by_key(|place| place.at);
        for place in met {
            len += u64::from(place.len);
            if len > self.bounds.file_bytes {
                break;
            }
            let read = self.old.as_ref().and_then(|old| old.read_at(place.at, place.len as usize).ok());
            let Some(record) = read else { return };
            if new.write_all(&record).is_err() {
                return;
            }
        }
        let _ = new.publish();
    }

    /// Visits everything that the roots reach, as [`crate::mark::visit`] does, but without fetching nodes that are
    /// remembered, and most chunks once, however many roots reach them.
    pub fn visit(
        &mut self,
        nodes: &Nodes,
        index: &IndexSet,
        roots: &[ChunkId],
        visitor: &mut dyn Visitor,
    ) -> Result<(), Error> {
        let mut stack: Vec<ChunkId> = roots.iter().rev().copied().collect();
        while let Some(id) = stack.pop() {
            let was_met = matches!(self.nodes.get(&id), Some(Known::Met(_) | Known::New));
            if was_met || !visitor.reached(&id, &places_of(index, PackClass::Meta, &id)?) {
                continue;
            }
            let refs = match self.recall(&id) {
                Some(refs) => refs,
                None => match read_refs(nodes, &id) {
                    Ok(refs) => {
                        self.nodes_read += 1;
                        self.remember(id, &refs);
                        refs
                    }
                    Err(error) => {
                        visitor.broken(error)?;
                        continue;
                    }
                },
            };
            self.gather(refs.chunks);
            if self.waiting.len() >= LOOKED_UP_TOGETHER {
                look_up(index, &mut self.waiting, visitor)?;
            }
            stack.extend(refs.children);
        }
        look_up(index, &mut self.waiting, visitor)
    }

    /// What is remembered of a node; if that does not hold, it is forgotten.
    fn recall(&mut self, id: &ChunkId) -> Option<Refs> {
        let Some(Known::Before(place)) = self.nodes.get(id).copied() else { return None };
        let read = self.old.as_ref().and_then(|old| old.read_at(place.at, place.len as usize).ok());
        let refs = read.and_then(|record| decode(&self.repository, id, &record));
        match refs {
            Some(_) => _ = self.nodes.insert(*id, Known::Met(place)),
            None => _ = self.nodes.remove(id),
        }
        refs
    }

    fn remember(&mut self, id: ChunkId, refs: &Refs) {
        let Some(record) = encode(&self.repository, &id, refs) else { return };
        let len = self.new_len + record.len() as u64;
        if self.nodes.len() >= self.bounds.nodes || len > self.bounds.file_bytes {
            return;
        }
        let Some(new) = &mut self.new else { return };
        if new.write_all(&record).is_err() {
            self.new = None;
            return;
        }
        self.new_len = len;
        self.nodes.insert(id, Known::New);
    }

    /// Of these chunks those that are not known to have been met wait to be looked up.
    fn gather(&mut self, chunks: Vec<ChunkId>) {
        for chunk in chunks {
            let is_new = match self.chunks.len() < self.bounds.chunks {
                true => self.chunks.insert(chunk),
                false => !self.chunks.contains(&chunk),
            };
            if is_new {
                self.waiting.push(chunk);
            }
        }
    }
}

/// Where the records of a file lie, from the first on. Nothing is believed of them before they are read.
fn places(file: &CachedFile, most: usize) -> KnownNodes {
    let mut places = KnownNodes::default();
    if file.read_at(0, MAGIC.len()).is_ok_and(|magic| magic[..] == MAGIC[..]) {
        let mut at = MAGIC.len() as u64;
        while places.len() < most
            && let Ok(head) = file.read_at(at, HEAD_LEN)
            && let Some((id, ids)) = head_of(&head)
            && let Some(len) = record_len(ids)
        {
            places.insert(id, Known::Before(Place { at, len: len as u32 }));
            at += len as u64;
        }
    }
    places
}

/// The node of a record, and its numbers of children and chunks.
fn head_of(record: &[u8]) -> Option<(ChunkId, (u32, u32))> {
    let (id, rest) = record.split_first_chunk()?;
    let (children, rest) = rest.split_first_chunk()?;
    let chunks = rest.first_chunk()?;
    Some((ChunkId::from_bytes(*id), (u32::from_le_bytes(*children), u32::from_le_bytes(*chunks))))
}

/// Length of a record with so many children and chunks, unless that is more than any has.
fn record_len((children, chunks): (u32, u32)) -> Option<usize> {
    let ids = (children as usize).checked_add(chunks as usize)?.checked_mul(ChunkId::LEN)?;
    (ids <= IDS_BYTES_MAX).then(|| HEAD_LEN + ids + PROOF_LEN)
}

fn encode(repository: &Repository, id: &ChunkId, refs: &Refs) -> Option<Vec<u8>> {
    let children = u32::try_from(refs.children.len()).ok()?;
    let chunks = u32::try_from(refs.chunks.len()).ok()?;
    let mut record = Vec::with_capacity(record_len((children, chunks))?);
    record.extend_from_slice(id.as_bytes());
    record.extend_from_slice(&children.to_le_bytes());
    record.extend_from_slice(&chunks.to_le_bytes());
    for id in refs.children.iter().chain(&refs.chunks) {
        record.extend_from_slice(id.as_bytes());
    }
    let proof = proof_of(repository, &record);
    record.extend_from_slice(&proof);
    Some(record)
}

fn decode(repository: &Repository, id: &ChunkId, record: &[u8]) -> Option<Refs> {
    let (body, proof) = record.split_last_chunk::<PROOF_LEN>()?;
    let (of, (children, chunks)) = head_of(body)?;
    if of != *id
        || *proof != proof_of(repository, body)
        || record_len((children, chunks)) != Some(record.len())
    {
        return None;
    }
    let ids = body[HEAD_LEN..].chunks_exact(ChunkId::LEN);
    let mut ids =
        ids.filter_map(|id| id.first_chunk::<{ ChunkId::LEN }>()).map(|id| ChunkId::from_bytes(*id));
    Some(Refs { children: ids.by_ref().take(children as usize).collect(), chunks: ids.collect() })
}

/// No node begins with the bytes of the file, so the hash is never the id of one.
fn proof_of(repository: &Repository, body: &[u8]) -> [u8; PROOF_LEN] {
    let mut hasher = repository.domain().id_key.hasher(ChunkKind::Node);
    hasher.update(MAGIC);
    hasher.update(body);
    *hasher.finish().as_bytes()
}

/// What one node refers to.
fn read_refs(nodes: &Nodes, id: &ChunkId) -> Result<Refs, Error> {
    let mut refs = Refs::default();
    let Refs { children, chunks } = &mut refs;
    let mut failed = None;
    let mut at_top = true;
    let walked = walk_nodes(
        nodes,
        id,
        &mut |node| {
            if !std::mem::take(&mut at_top) {
                children.push(*node);
                return false;
            }
            true
        },
        &mut |key, value| match record_extents(key, value) {
            Ok(extents) => chunks.extend(extents.iter().filter_map(|extent| extent.chunk().copied())),
            Err(error) => _ = failed.get_or_insert(Error::from(error)),
        },
    );
    if let Some(error) = failed {
        return Err(error);
    }
    walked?;
    chunks.sort_unstable();
    chunks.dedup();
    Ok(refs)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::hash::BuildHasher;

    use keepwell_catalog::Location;

    use super::*;
    use crate::mark;
    use crate::testing::{Thing, TreeModel, World, back_up, block_on, noise, snapshot_of};

    /// What a marking comes to.
    #[derive(Default)]
    struct Ids(BTreeSet<ChunkId>, u64);

    impl Visitor for Ids {
        fn reached(&mut self, id: &ChunkId, locations: &[Location]) -> bool {
            assert_eq!(locations.len(), 1);
            self.1 += 1;
            self.0.insert(*id)
        }

        fn broken(&mut self, error: Error) -> Result<(), Error> {
            Err(error)
        }
    }

    /// Small files, of which `round` changes one.
    fn tree(round: u64) -> TreeModel {
        let name = |i: u64| format!("d/{i:04}");
        let of = |tree: TreeModel, i: u64| tree.with(&name(i), Thing::file(noise(i, 30)));
        (0..3000).fold(TreeModel::default(), of).with(&name(1500), Thing::file(noise(9000 + round, 30)))
    }

    async fn roots(repository: &Repository, snapshots: u64) -> Vec<ChunkId> {
        let mut roots = Vec::new();
        for round in 0..snapshots {
            let report = back_up(repository, &tree(round)).await;
            roots.push(snapshot_of(repository, &report).await.manifest().unwrap().root);
        }
        repository.refresh_index().await.unwrap();
        roots
    }

    /// Runs on a thread that may wait for the store.
    async fn on_a_thread<T: Send + 'static>(
        repository: &Repository,
        run: impl FnOnce(&Repository, &Nodes, &IndexSet) -> T + Send + 'static,
    ) -> T {
        let (repository, nodes) = (repository.clone(), Nodes::new(repository));
        let task = tokio::task::spawn_blocking(move || {
            let index: &IndexSet = &repository.index();
            run(&repository, &nodes, index)
        });
        task.await.unwrap()
    }

    /// One after the other, each with what the one before has left.
    #[test]
    fn however_little_is_held_everything_is_reached() {
        block_on(async {
            let world = World::new().await;
            let roots = roots(&world.repository, 4).await;
            on_a_thread(&world.repository, move |repository, nodes, index| {
                let mut all = Ids::default();
                roots.iter().try_for_each(|root| mark::visit(nodes, index, root, &mut all)).unwrap();
                assert!(all.0.len() > 3000);
                for (nodes_max, chunks_max, file_bytes) in
                    [(0, 0, 0), (3, 10, 1 << 20), (1000, 1000, 40_000), (1000, 1 << 20, 1 << 20)]
                {
                    let bounds = Bounds { nodes: nodes_max, chunks: chunks_max, file_bytes };
                    for _ in 0..3 {
                        let (mut ids, mut remembered) =
                            (Ids::default(), Remembered::within(repository, bounds));
                        for root in &roots {
                            remembered.visit(nodes, index, std::slice::from_ref(root), &mut ids).unwrap();
                            assert!(
                                remembered.nodes.len() <= nodes_max && remembered.chunks.len() <= chunks_max
                            );
                            assert!(remembered.waiting.is_empty());
                        }
                        assert!(ids.0 == all.0, "within {bounds:?}");
                        remembered.save();
                        let len = repository.cache().open(NAME).unwrap().len();
                        assert!(len <= file_bytes.max(MAGIC.len() as u64), "{len} bytes within {bounds:?}");
                    }
                }
            })
            .await;
        });
    }

    #[test]
    fn many_snapshots_are_marked_in_the_memory_of_one() {
        block_on(async {
            let world = World::new().await;
            let roots = roots(&world.repository, 10).await;
            let held = on_a_thread(&world.repository, move |repository, nodes, index| {
                let (mut ids, mut remembered) = (Ids::default(), Remembered::load(repository));
                remembered.visit(nodes, index, &roots, &mut ids).unwrap();
                assert_eq!(ids.1, ids.0.len() as u64, "each is looked up once");
                (remembered.nodes.len(), remembered.chunks.len())
            });
            let (nodes, chunks) = held.await;
            // Each changes one chunk, and the nodes on the way to it.
            assert!(chunks < 3000 + 20 && nodes < 300, "{chunks} chunks, {nodes} nodes");
        });
    }

    #[test]
    fn ids_that_begin_alike_do_not_fall_together() {
        let remembered = block_on(async { Remembered::load(&World::new().await.repository) });
        let [one, other] = [1, 2].map(|last| {
            let mut id = [7; ChunkId::LEN];
            id[ChunkId::LEN - 1] = last;
            ChunkId::from_bytes(id)
        });
        let (nodes, chunks) = (remembered.nodes.hasher(), remembered.chunks.hasher());
        assert_ne!(nodes.hash_one(one), nodes.hash_one(other));
        assert_ne!(chunks.hash_one(one), chunks.hash_one(other));
    }

    #[test]
    fn only_a_whole_record_of_the_node_that_is_meant_counts() {
        block_on(async {
            let repository = World::new().await.repository;
            let ids: Vec<ChunkId> = (0..5).map(|n| ChunkId::from_bytes([n; 32])).collect();
            let refs = Refs { children: ids[..2].to_vec(), chunks: ids[2..].to_vec() };
            let record = encode(&repository, &ids[0], &refs).unwrap();
            assert_eq!(decode(&repository, &ids[0], &record), Some(refs));
            assert_eq!(decode(&repository, &ids[1], &record), None);
            for at in 0..record.len() {
                let mut damaged = record.clone();
                damaged[at] ^= 1;
                assert_eq!(decode(&repository, &ids[0], &damaged), None, "byte {at}");
                assert_eq!(decode(&repository, &ids[0], &record[..at]), None, "cut at {at}");
            }
            let other = World::new().await.repository;
            assert_eq!(decode(&other, &ids[0], &record), None, "of another group");
            let huge =
                encode(&repository, &ids[0], &Refs { children: Vec::new(), chunks: vec![ids[0]; 40_000] });
            assert!(huge.is_none(), "no node has so many");
        });
    }
}
