//! What tree nodes refer to, remembered from prune to prune, so that marking reads only nodes that are new.
//!
//! A node is named by a hash of its content, so what it refers to never changes: remembering it is no opinion about
//! what is live, where anything lies, or what may go. All of that is found anew in every prune, from commits, index and
//! plans. The file lies in the local cache, which is not trusted: it carries a keyed hash that only members of the group can
//! make, and one that does not fit is as good as none.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use hashbrown::HashTable;
use keepwell_catalog::{IndexSet, PackClass, record_extents, walk_nodes};
use keepwell_crypto::{ChunkHasher, ChunkId, ChunkKind};

use crate::Error;
use crate::cache::CachedFile;
use crate::mark::{Visitor, places_of};
use crate::read::Nodes;
use crate::repository::Repository;

const NAME: &str = "nodes";
const MAGIC: &[u8; 8] = b"KWNODE\0\x01";
/// Of the memory limit, this part may be taken by what is remembered.
const MEMORY_SHARE: usize = 4;
/// Bytes in memory per id: itself, and its place in the table of numbers.
const ID_BYTES: usize = 44;
/// Between the file and the hash of it.
const BUFFER_BYTES: usize = 64 << 10;
/// What is remembered ends in a keyed hash.
const MAC_LEN: usize = 32;

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
    /// Where in `ids` an id is.
    numbers: HashTable<u32>,
    refs: Vec<u32>,
    nodes: HashMap<u32, Refs>,
    /// How much may be remembered, in bytes.
    bytes_max: usize,
    /// Nodes that were read because nothing was remembered of them.
    pub nodes_read: u64,
}

impl Remembered {
    /// Takes up what the last prune on this host remembered, if that is sound; with room for all ids of this index, as far
    /// as the limit of memory allows.
    pub fn load(repository: &Repository, index: &IndexSet) -> Self {
        let bytes_max = repository.limits().memory_bytes / MEMORY_SHARE;
        let room = usize::try_from(index.len()).unwrap_or(usize::MAX).min(bytes_max / ID_BYTES);
        let loaded = repository.cache().open(NAME).filter(|file| file.len() <= bytes_max as u64);
        let loaded = loaded.and_then(|file| Self::read(&file, mac_of(repository), room));
        Self { bytes_max, ..loaded.unwrap_or_else(|| Self::with_room(room)) }
    }

    fn with_room(ids: usize) -> Self {
        Self { ids: Vec::with_capacity(ids), numbers: HashTable::with_capacity(ids), ..Self::default() }
    }

    fn read(file: &CachedFile, mac: ChunkHasher, room: usize) -> Option<Self> {
        let body_len = file.len().checked_sub(MAC_LEN as u64)?;
        let mut body = BufReader::with_capacity(BUFFER_BYTES, Hashed(file.reader().take(body_len), mac));
        let found = Self::decode(&mut body, body_len, room).ok()?;
        let mac = body.into_inner().1.finish();
        let stored = file.read_at(body_len, MAC_LEN).ok()?;
        (*mac.as_bytes() == *stored).then_some(found)
    }

    /// Keeps it for the next prune: of nodes reached since `reached` was empty, the others are forgotten.
    pub fn save(&self, repository: &Repository, reached: &Reached) {
        // A cache that cannot be written costs time at the next prune, nothing else.
        let Ok(file) = repository.cache().create(NAME) else { return };
        let mut body = BufWriter::with_capacity(BUFFER_BYTES, Hashed(file, mac_of(repository)));
        if self.encode(reached, &mut body).is_err() {
            return;
        }
        let Ok(Hashed(mut file, mac)) = body.into_inner() else { return };
        if file.write_all(mac.finish().as_bytes()).is_ok() {
            let _ = file.publish();
        }
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
            if !reached.nodes.set(number) || !visitor.reached(&id, &places_of(index, PackClass::Meta, &id)?) {
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
                if reached.chunks.set(number) {
                    visitor.reached(&chunk, &places_of(index, PackClass::Data, &chunk)?);
                }
            }
            stack.extend(children);
        }
        Ok(())
    }

    fn number(&mut self, id: &ChunkId) -> u32 {
        if let Some(number) = self.numbers.find(hash_of(id), |number| self.ids[*number as usize] == *id) {
            return *number;
        }
        if self.bytes() >= self.bytes_max || self.ids.len() >= u32::MAX as usize {
            return u32::MAX; // too many to number: visited at every reference, and not remembered
        }
        self.push(*id)
    }

    /// Gives an id that has none a number.
    fn push(&mut self, id: ChunkId) -> u32 {
        let number = self.ids.len() as u32;
        self.ids.push(id);
        let ids = &self.ids;
        self.numbers.insert_unique(hash_of(&id), number, |number| hash_of(&ids[*number as usize]));
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

    fn encode(&self, reached: &Reached, out: &mut impl Write) -> io::Result<()> {
        let kept = || self.nodes.iter().filter(|(number, _)| reached.nodes.get(**number));
        let refs_of = |refs: &Refs| {
            let start = refs.start as usize;
            &self.refs[start..start + refs.children as usize + refs.chunks as usize]
        };
        let mut renumbered = vec![u32::MAX; self.ids.len()];
        let mut order: Vec<u32> = Vec::new();
        for number in kept().flat_map(|(number, refs)| std::iter::once(number).chain(refs_of(refs))) {
            let new = &mut renumbered[*number as usize];
            if *new == u32::MAX {
                *new = order.len() as u32;
                order.push(*number);
            }
        }
        out.write_all(MAGIC)?;
        out.write_all(&(order.len() as u32).to_le_bytes())?;
        for number in order {
            out.write_all(self.ids[number as usize].as_bytes())?;
        }
        for (number, refs) in kept() {
            for word in [renumbered[*number as usize], refs.children, refs.chunks] {
                out.write_all(&word.to_le_bytes())?;
            }
            for to in refs_of(refs) {
                out.write_all(&renumbered[*to as usize].to_le_bytes())?;
            }
        }
        Ok(())
    }

    fn decode(body: &mut impl BufRead, len: u64, room: usize) -> io::Result<Self> {
        let unsound = || io::Error::from(io::ErrorKind::InvalidData);
        let magic: [u8; 8] = take(body)?;
        let count = u32::from_le_bytes(take(body)?);
        if magic != *MAGIC || u64::from(count) * 32 > len {
            return Err(unsound());
        }
        let mut found = Self::with_room(room.max(count as usize));
        for _ in 0..count {
            found.push(ChunkId::from_bytes(take(body)?));
        }
        while !body.fill_buf()?.is_empty() {
            let mut word = || Ok::<_, io::Error>(u32::from_le_bytes(take(body)?));
            let (number, children, chunks) = (word()?, word()?, word()?);
            let start = u32::try_from(found.refs.len()).map_err(|_| unsound())?;
            for _ in 0..children.checked_add(chunks).ok_or_else(unsound)? {
                found.refs.push(word().ok().filter(|to| *to < count).ok_or_else(unsound)?);
            }
            found.nodes.insert(number, Refs { start, children, chunks });
        }
        Ok(found)
    }
}

fn take<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Hashes what passes.
struct Hashed<T>(T, ChunkHasher);

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        self.1.update(&buffer[..count]);
        Ok(count)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.0.write(bytes)?;
        self.1.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Which ids one marking has come to, as nodes and as chunks of content: a hostile tree may name a node as content.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    nodes: Numbers,
    chunks: Numbers,
}

/// A set of numbers.
#[derive(Debug, Default)]
struct Numbers(Vec<u64>);

impl Numbers {
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

/// Ids are keyed hashes already.
fn hash_of(id: &ChunkId) -> u64 {
    id.as_bytes().first_chunk::<8>().map_or(0, |first| u64::from_le_bytes(*first))
}

/// No node begins with the bytes of the file, so the hash is never the id of one.
fn mac_of(repository: &Repository) -> ChunkHasher {
    repository.domain().id_key.hasher(ChunkKind::Node)
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
