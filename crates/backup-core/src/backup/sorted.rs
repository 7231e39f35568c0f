//! Entries of a source without an order: gathered, sorted at the end, and completed from the last capture.

use std::cmp::Ordering;

use keepwell_catalog::{Entry, Extent, MapKey, RecipeReader, RecipeRef, RecipeWriter, Statistics};

use super::encoded::Encoded;
use super::runs::KEPT;
use super::worker::{Novelty, count_kind};
use crate::Error;
use crate::cache::{Cache, CachedFile, CachedReader};
use crate::source::{Previous, Source};
use crate::write::Known;

/// An entry that waits for its turn.
#[derive(Debug)]
pub(super) struct Item {
    pub key: MapKey,
    pub entry: Encoded,
    pub fingerprint: [u8; 16],
}

/// Gathers entries in any order. What goes beyond the ceiling waits in the cache, in sorted runs.
#[derive(Debug)]
pub(super) struct Sorter {
    cache: Cache,
    items: Vec<Item>,
    bytes: usize,
    ceiling: usize,
    /// They have no names: nobody else can meet them, and they go with the process.
    runs: Vec<CachedFile>,
}

enum Run {
    Memory(std::vec::IntoIter<Item>),
    Cached(Box<RecipeReader<CachedReader>>),
}

impl Run {
    fn next(&mut self) -> Result<Option<Item>, Error> {
        match self {
            Self::Memory(items) => Ok(items.next()),
            Self::Cached(reader) => {
                let Some((key, recipe)) = reader.next_entry()? else { return Ok(None) };
                let key = MapKey::from_bytes(key)?;
                Ok(Some(Item { key, entry: Encoded::of_recipe(&recipe), fingerprint: recipe.fingerprint }))
            }
        }
    }
}

impl Sorter {
    /// Keeps at most about `ceiling` bytes in memory.
    pub fn new(cache: &Cache, ceiling: usize) -> Self {
        Self { cache: cache.clone(), items: Vec::new(), bytes: 0, ceiling, runs: Vec::new() }
    }

    pub fn push(&mut self, item: Item) -> Result<(), Error> {
        let more: usize =
            item.entry.more.iter().map(|record| record.key.len() + record.value.len() + 48).sum();
        self.bytes += item.key.as_bytes().len() + item.entry.value.len() + more + 128;
        self.items.push(item);
        if self.bytes > self.ceiling { self.spill() } else { Ok(()) }
    }

    fn spill(&mut self) -> Result<(), Error> {
        let mut writer = RecipeWriter::new(self.cache.create("sorted/run")?)?;
        for item in self.take_sorted() {
            item.entry.remember(&item.key, &item.fingerprint, &mut writer)?;
        }
        self.bytes = 0;
        self.runs.push(writer.finish()?.unnamed()?);
        Ok(())
    }

    fn take_sorted(&mut self) -> Vec<Item> {
        let mut items = std::mem::take(&mut self.items);
        items.sort_by(|a, b| a.key.cmp(&b.key));
        items
    }

    /// Hands out everything in ascending order of keys.
    pub fn finish(mut self, each: &mut dyn FnMut(Item) -> Result<(), Error>) -> Result<(), Error> {
        let mut runs = vec![Run::Memory(self.take_sorted().into_iter())];
        for file in &self.runs {
            runs.push(Run::Cached(Box::new(RecipeReader::new(file.reader())?)));
        }
        let mut heads = runs.iter_mut().map(Run::next).collect::<Result<Vec<_>, _>>()?;
        loop {
            let key = |at: &usize| heads[*at].as_ref().map(|item| &item.key);
            let Some(least) = (0..heads.len()).filter(|at| key(at).is_some()).min_by_key(key) else {
                return Ok(());
            };
            let next = runs[least].next()?;
            if let Some(item) = std::mem::replace(&mut heads[least], next) {
                each(item)?;
            }
        }
    }
}

/// Tells the source what the last capture holds. `false` when that cannot be read, and so cannot be built on.
pub(super) fn tell(
    source: &dyn Source,
    mut recipes: RecipeReader<CachedReader>,
    known: &Known,
) -> Result<bool, Error> {
    let mut entries = Vec::new();
    loop {
        let (key, entry, extents) = match recipes.next_entry() {
            Ok(Some((key, recipe))) => {
                let key = MapKey::from_bytes(key)?;
                let encoded = Encoded::of_recipe(&recipe);
                let extents = encoded.extents(&key)?;
                (key, Entry::decode(&encoded.value)?, extents)
            }
            Ok(None) => break,
            Err(_) => return Ok(false),
        };
        let mut whole = true;
        for extent in &extents {
            if let Extent::Chunk { id, .. } = extent {
                whole = whole && known.contains(id)?;
            }
        }
        entries.push(Previous {
            key,
            kind: entry.kind,
            size: entry.size,
            attributes: entry.attributes,
            extents: extents.len(),
            whole,
        });
    }
    source.previous(entries);
    Ok(true)
}

/// Completes an entry from that of the last capture, and counts it.
pub(super) fn complete(
    item: Item,
    previous: Option<RecipeRef<'_>>,
    counts: &mut Statistics,
) -> Result<Item, Error> {
    let before = match previous {
        Some(recipe) => Some(Encoded::of_recipe(&recipe).extents(&item.key)?),
        None => None,
    };
    let mut extents = item.entry.extents(&item.key)?;
    let mut entry = Entry::decode(&item.entry.value)?;
    let mut item = item;
    if extents.iter().any(is_kept) {
        let none = || Error::Invalid(format!("the last capture does not hold `{}`", item.key.display_path()));
        extents = resolve(&extents, before.as_deref().ok_or_else(none)?).ok_or_else(none)?;
        (entry.content, entry.more_extents) = (extents.clone(), 0);
        item.entry = Encoded::new(&item.key, &entry)?;
    }
    let novelty = match before {
        None => Novelty::New,
        Some(before) if before == extents => Novelty::Unchanged,
        Some(_) => Novelty::Changed,
    };
    count_kind(counts, &entry, novelty);
    Ok(item)
}

fn is_kept(extent: &Extent) -> bool {
    matches!(extent, Extent::Chunk { id, .. } if *id == KEPT)
}

/// Puts the parts of the old content in the places that refer to it. `None` if it is shorter.
fn resolve(extents: &[Extent], before: &[Extent]) -> Option<Vec<Extent>> {
    let mut resolved: Vec<Extent> = Vec::with_capacity(extents.len());
    let (mut at, mut old_at, mut old) = (0u64, 0u64, before.iter().peekable());
    for extent in extents {
        let end = at + extent.length();
        if !is_kept(extent) {
            join(&mut resolved, *extent);
            at = end;
            continue;
        }
        while at < end {
            let current = **old.peek()?;
            let old_end = old_at + current.length();
            match old_end.cmp(&at) {
                Ordering::Less | Ordering::Equal => {
                    old.next();
                    old_at = old_end;
                }
                Ordering::Greater => {
                    let upto = end.min(old_end);
                    join(&mut resolved, part(current, at - old_at, upto - at)?);
                    at = upto;
                }
            }
        }
    }
    Some(resolved)
}

/// The part of an extent from `skip` on.
fn part(extent: Extent, skip: u64, bytes: u64) -> Option<Extent> {
    Some(match extent {
        Extent::Hole { .. } => Extent::Hole { length: bytes },
        Extent::Chunk { id, offset, .. } => Extent::Chunk {
            id,
            offset: offset.checked_add(u32::try_from(skip).ok()?)?,
            length: u32::try_from(bytes).ok()?,
        },
    })
}

/// Appends, as one extent with the last where they adjoin.
fn join(extents: &mut Vec<Extent>, next: Extent) {
    match (extents.last_mut(), next) {
        (
            Some(Extent::Chunk { id, offset, length }),
            Extent::Chunk { id: next_id, offset: next_offset, length: more },
        ) if *id == next_id && u64::from(*offset) + u64::from(*length) == u64::from(next_offset) => {
            *length += more;
        }
        (Some(Extent::Hole { length }), Extent::Hole { length: more }) => *length += more,
        (_, next) => extents.push(next),
    }
}

#[cfg(test)]
mod tests {
    use keepwell_catalog::EntryKind;
    use keepwell_crypto::ChunkId;

    use super::*;

    fn chunk(byte: u8, offset: u32, length: u32) -> Extent {
        Extent::Chunk { id: ChunkId::from_bytes([byte; 32]), offset, length }
    }

    fn kept(length: u32) -> Extent {
        Extent::Chunk { id: KEPT, offset: 0, length }
    }

    #[test]
    fn kept_stretches_become_parts_of_the_old_content() {
        let before = [chunk(1, 0, 10), Extent::Hole { length: 5 }, chunk(2, 3, 10)];
        assert_eq!(resolve(&[kept(25)], &before), Some(before.to_vec()));
        assert_eq!(resolve(&[kept(4), kept(6)], &before), Some(vec![chunk(1, 0, 10)]), "they join again");
        let found = resolve(&[kept(2), chunk(9, 0, 3), kept(7), chunk(9, 3, 1), kept(4)], &before);
        let expected = vec![
            chunk(1, 0, 2),
            chunk(9, 0, 3),
            chunk(1, 5, 5),
            Extent::Hole { length: 2 },
            chunk(9, 3, 1),
            Extent::Hole { length: 2 },
            chunk(2, 3, 2),
        ];
        assert_eq!(found, Some(expected));
        assert_eq!(resolve(&[kept(26)], &before), None, "the old content is shorter");
        assert_eq!(resolve(&[chunk(9, 0, 25), kept(1)], &before), None);
    }

    #[test]
    fn entries_come_back_in_order_also_from_the_cache() {
        let directory = tempfile::tempdir().unwrap();
        for (ceiling, cache) in [0, 2000, 1 << 20].into_iter().flat_map(|ceiling| {
            [Cache::memory(), Cache::directory(directory.path())].map(|cache| (ceiling, cache))
        }) {
            let mut sorter = Sorter::new(&cache, ceiling);
            for number in (0..100u16).map(|n| (n * 37 % 100) as u8) {
                let key = MapKey::from_components([[number + 1]]).unwrap();
                let content = (0..40).map(|n| chunk(number + 1, 2 * n, 1)).collect();
                let entry = Entry { size: 40, content, ..Entry::new(EntryKind::File) };
                let entry = Encoded::new(&key, &entry).unwrap();
                sorter.push(Item { key, entry, fingerprint: [number; 16] }).unwrap();
            }
            assert_eq!(sorter.runs.is_empty(), ceiling == 1 << 20);
            let mut seen = Vec::new();
            let mut each = |item: Item| {
                assert_eq!(item.entry.extents(&item.key).unwrap().len(), 40);
                seen.push(item.fingerprint[0]);
                Ok(())
            };
            sorter.finish(&mut each).unwrap();
            assert_eq!(seen, (0..100).collect::<Vec<_>>(), "ceiling {ceiling}");
        }
    }

    /// As of two captures in one process, or in two containers whose processes have the same number.
    #[test]
    fn two_captures_with_one_cache_do_not_take_each_others_entries() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::directory(directory.path());
        let mut sorters = [(1u8, Sorter::new(&cache, 0)), (2, Sorter::new(&cache, 0))];
        for number in 1..20u8 {
            for (which, sorter) in &mut sorters {
                let key = MapKey::from_components([[number]]).unwrap();
                let entry = Encoded::new(&key, &Entry::new(EntryKind::Directory)).unwrap();
                sorter.push(Item { key, entry, fingerprint: [*which; 16] }).unwrap();
            }
        }
        for (which, sorter) in sorters {
            let mut count = 0;
            let mut each = |item: Item| {
                assert_eq!(item.fingerprint, [which; 16]);
                count += 1;
                Ok(())
            };
            sorter.finish(&mut each).unwrap();
            assert_eq!(count, 19);
        }
    }
}
