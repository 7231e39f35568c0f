//! What tree nodes refer to, remembered from prune to prune, so that marking reads only nodes that are new.
//!
//! A node is named by a hash of its content, so what it refers to never changes: remembering it is no opinion about
//! what is live, where anything lies, or what may go. All of that is found anew in every prune, from commits, index and
//! plans. The file lies in the local cache, which is not trusted: it carries a keyed hash that only members of the group can
//! make, and one that does not fit is as good as none.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use keepwell_catalog::{IndexSet, record_extents, walk_nodes};
use keepwell_crypto::{ChunkId, ChunkKind};

use crate::Error;
use crate::mark::Visitor;
use crate::read::Nodes;
use crate::repository::Repository;
use crate::write::IdHasher;

const NAME: &str = "nodes";
const MAGIC: &[u8; 8] = b"KWNODE\0\x01";
/// Of the memory limit, this part may be taken by what is remembered.
const MEMORY_SHARE: usize = 3;
/// Bytes in memory per id: itself, and its place in the table of numbers.
const ID_BYTES: usize = 56;

/// What one node refers to: numbers of ids, children first.
#[derive(Debug, Clone, Copy)]
struct Refs {
    start: u32,
    children: u32,
    chunks: u32,
}

/// Ids get numbers in the order in which they are met; everything else is in numbers.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    ids: Vec<ChunkId>,
    /// By the first eight bytes of the id. Of two ids that begin alike, the second has no number.
    numbers: HashMap<u64, u32, BuildHasherDefault<IdHasher>>,
    refs: Vec<u32>,
    nodes: HashMap<u32, Refs>,
    /// How much may be remembered, in bytes.
    bytes_max: usize,
    /// Nodes that were read because nothing was remembered of them.
    pub nodes_read: u64,
}

impl Remembered {
    /// Takes up what the last prune on this host remembered, if that is sound.
    pub fn load(repository: &Repository) -> Self {
        let bytes_max = repository.limits().memory_bytes / MEMORY_SHARE;
        let empty = || Self { bytes_max, ..Self::default() };
        let Some(file) = repository.cache().open(NAME) else { return empty() };
        let len = usize::try_from(file.len()).unwrap_or(usize::MAX);
        if len > bytes_max {
            return empty();
        }
        let Ok(bytes) = file.read_at(0, len) else { return empty() };
        let decoded = bytes.split_last_chunk::<32>().and_then(|(body, mac)| {
            let sound = mac_of(repository, body).as_bytes() == mac;
            sound.then(|| Self::decode(body)).flatten()
        });
        decoded.map_or_else(empty, |found| Self { bytes_max, ..found })
    }

    /// Keeps it for the next prune: of nodes reached since `reached` was empty, the others are forgotten.
    pub fn save(&self, repository: &Repository, reached: &Reached) {
        let mut body = self.encode(reached);
        let mac = mac_of(repository, &body);
        body.extend_from_slice(mac.as_bytes());
        // A cache that cannot be written costs time at the next prune, nothing else.
        let _ = repository.cache().store(NAME, &body);
    }

    /// Visits everything that the root reaches, as [`crate::mark::visit`] does, but each chunk once per `reached`, and
    /// without fetching nodes that are remembered.
    pub fn visit(
        &mut self,
        nodes: &Nodes,
        index: &IndexSet,
        root: &ChunkId,
        reached: &mut Reached,
        visitor: &mut dyn Visitor,
    ) -> Result<(), Error> {
        let mut stack = vec![*root];
        while let Some(id) = stack.pop() {
            let number = self.number(&id);
            if !reached.set(number) || !visitor.reached(&id, &index.find(&id)?) {
                continue;
            }
            let (children, chunks) = match self.of(number) {
                Some(known) => known,
                None => match read_refs(nodes, &id) {
                    Ok(read) => {
                        self.nodes_read += 1;
                        self.remember(number, &read);
                        read
                    }
                    Err(error) => return visitor.broken(error),
                },
            };
            for chunk in chunks {
                let number = self.number(&chunk);
                if reached.set(number) {
                    visitor.reached(&chunk, &index.find(&chunk)?);
                }
            }
            stack.extend(children);
        }
        Ok(())
    }

    fn number(&mut self, id: &ChunkId) -> u32 {
        if let Some(number) = self.numbers.get(&prefix_of(id)) {
            return if self.ids[*number as usize] == *id { *number } else { u32::MAX };
        }
        if self.bytes() >= self.bytes_max || self.ids.len() >= u32::MAX as usize {
            return u32::MAX; // too many to number: visited at every reference, and not remembered
        }
        let number = self.ids.len() as u32;
        self.ids.push(*id);
        self.numbers.insert(prefix_of(id), number);
        number
    }

    fn bytes(&self) -> usize {
        self.ids.len() * ID_BYTES + self.refs.len() * 4
    }

    fn of(&self, number: u32) -> Option<(Vec<ChunkId>, Vec<ChunkId>)> {
        let refs = self.nodes.get(&number)?;
        let (start, children) = (refs.start as usize, refs.children as usize);
        let all = self.refs.get(start..start + children + refs.chunks as usize)?;
        let ids: Vec<ChunkId> = all.iter().map(|n| self.ids[*n as usize]).collect();
        let (children, chunks) = ids.split_at(children);
        Some((children.to_vec(), chunks.to_vec()))
    }

    fn remember(&mut self, number: u32, (children, chunks): &(Vec<ChunkId>, Vec<ChunkId>)) {
        let start = self.refs.len();
        if number == u32::MAX || self.bytes() >= self.bytes_max || u32::try_from(start).is_err() {
            return;
        }
        for id in children.iter().chain(chunks) {
            match self.number(id) {
                u32::MAX => return self.refs.truncate(start),
                known => self.refs.push(known),
            }
        }
        let (children, chunks) = (children.len() as u32, chunks.len() as u32);
        self.nodes.insert(number, Refs { start: start as u32, children, chunks });
    }

    fn encode(&self, reached: &Reached) -> Vec<u8> {
        let kept: Vec<(u32, Refs)> =
            self.nodes.iter().filter(|(n, _)| reached.get(**n)).map(|(n, refs)| (*n, *refs)).collect();
        let mut renumbered: HashMap<u32, u32> = HashMap::new();
        let mut ids = Vec::new();
        let mut table = Vec::new();
        let mut renumber = |number: u32| {
            *renumbered.entry(number).or_insert_with(|| {
                ids.extend_from_slice(self.ids[number as usize].as_bytes());
                (ids.len() / 32 - 1) as u32
            })
        };
        for (number, refs) in &kept {
            for word in [renumber(*number), refs.children, refs.chunks] {
                table.extend_from_slice(&word.to_le_bytes());
            }
            let start = refs.start as usize;
            for to in &self.refs[start..start + refs.children as usize + refs.chunks as usize] {
                table.extend_from_slice(&renumber(*to).to_le_bytes());
            }
        }
        let mut body = MAGIC.to_vec();
        body.extend_from_slice(&((ids.len() / 32) as u32).to_le_bytes());
        body.extend_from_slice(&ids);
        body.extend_from_slice(&table);
        body
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let rest = body.strip_prefix(MAGIC)?;
        let (count, rest) = rest.split_first_chunk::<4>()?;
        let count = u32::from_le_bytes(*count) as usize;
        let ids = rest.get(..count.checked_mul(32)?)?;
        let mut words =
            rest.get(count * 32..)?.chunks_exact(4).map(|w| u32::from_le_bytes([w[0], w[1], w[2], w[3]]));
        let mut found = Self::default();
        for id in ids.as_chunks::<32>().0 {
            let id = ChunkId::from_bytes(*id);
            found.numbers.insert(prefix_of(&id), found.ids.len() as u32);
            found.ids.push(id);
        }
        while let Some(number) = words.next() {
            let (children, chunks) = (words.next()?, words.next()?);
            let start = u32::try_from(found.refs.len()).ok()?;
            for _ in 0..children.checked_add(chunks)? {
                found.refs.push(words.next().filter(|n| (*n as usize) < count)?);
            }
            found.nodes.insert(number, Refs { start, children, chunks });
        }
        Some(found)
    }
}

/// Which ids one marking has come to.
#[derive(Debug, Default)]
pub(crate) struct Reached(Vec<u64>);

impl Reached {
    /// `true` if it was not reached before, and always for ids without a number.
    fn set(&mut self, number: u32) -> bool {
        if number == u32::MAX {
            return true;
        }
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if self.0.len() <= word {
            self.0.resize((word + 1).next_power_of_two(), 0);
        }
        let fresh = self.0[word] & bit == 0;
        self.0[word] |= bit;
        fresh
    }

    fn get(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

fn prefix_of(id: &ChunkId) -> u64 {
    id.as_bytes().first_chunk::<8>().map_or(0, |first| u64::from_le_bytes(*first))
}

fn mac_of(repository: &Repository, body: &[u8]) -> ChunkId {
    // No node begins with these bytes, so the hash is never the id of one.
    repository.domain().id_key.chunk_id(ChunkKind::Node, body)
}

/// The children and the chunks of one node.
fn read_refs(nodes: &Nodes, id: &ChunkId) -> Result<(Vec<ChunkId>, Vec<ChunkId>), Error> {
    let (mut children, mut chunks) = (Vec::new(), Vec::new());
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
    Ok((children, chunks))
}
