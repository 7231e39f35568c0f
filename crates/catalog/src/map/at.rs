//! Extents in the middle of a file.

use super::reader::MapReader;
use super::record_extents;
use super::split::TAG_EXTENTS;
use crate::error::MapError;
use crate::extent::Extent;
use crate::key::split_sub_key;
use crate::{Entry, MapKey};

/// A stretch of a file's extents: all of those that one record holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRun {
    /// Where in the file the first of them begins, in bytes.
    pub start: u64,
    /// One behind the other, without gaps; at least one.
    pub extents: Vec<Extent>,
}

impl ExtentRun {
    /// Where in the file the last of them ends.
    pub fn end(&self) -> u64 {
        self.extents.iter().map(Extent::length).fold(self.start, u64::saturating_add)
    }
}

impl MapReader<'_> {
    /// The extents around byte `offset` of the entry at `key`, be it whole or a head; `None` at and behind its end.
    ///
    /// Where the records of a long file begin is known only by looking: it looks near `offset` first and further back
    /// each time, so that a read at random costs a few nodes however long the file. Fails when no record covers `offset`.
    pub fn extents_at(
        &self,
        key: &MapKey,
        entry: &Entry,
        offset: u64,
    ) -> Result<Option<ExtentRun>, MapError> {
        if offset >= entry.size {
            return Ok(None);
        }
        let inline = ExtentRun { start: 0, extents: entry.content.clone() };
        let first = inline.end();
        if offset < first {
            return Ok(Some(inline));
        }
        let mean = entry.size.saturating_sub(first) / u64::from(entry.more_extents.max(1));
        let mut back = mean.max(1);
        loop {
            let from = offset.saturating_sub(back).max(first);
            if let Some(run) = self.last_run(key, from, offset)? {
                let fits = run.end() > offset && run.end() <= entry.size;
                return if fits { Ok(Some(run)) } else { Err(missing(key)) };
            }
            if from == first {
                return Err(missing(key));
            }
            back = back.saturating_mul(4);
        }
    }

    /// The last record that begins in `from..=to`.
    fn last_run(&self, key: &MapKey, from: u64, to: u64) -> Result<Option<ExtentRun>, MapError> {
        let mut cursor = self.cursor_from(&key.sub_key(TAG_EXTENTS, from))?;
        let mut found = None;
        while let Some((raw, value)) = cursor.next_record()? {
            match split_sub_key(raw) {
                (of, Some((TAG_EXTENTS, start))) if of == key.as_bytes() && start <= to => {
                    found = Some((start, raw.to_vec(), value.to_vec()));
                }
                _ => break,
            }
        }
        let Some((start, raw, value)) = found else { return Ok(None) };
        Ok(Some(ExtentRun { start, extents: record_extents(&raw, &value)? }))
    }
}

fn missing(key: &MapKey) -> MapError {
    MapError::Entry { what: "a record of its extents is missing" }.at(key)
}

#[cfg(test)]
mod tests {
    use keepwell_crypto::{ChunkId, IdKey};

    use super::*;
    use crate::{EntryKind, MapBuilder, MemoryNodes, push_entry};

    /// A file of this many extents, each of another length.
    fn file(extents: u64) -> Entry {
        let extent = |n: u64| {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
            let length = u32::try_from(1000 + n * n % 700_000).unwrap();
            if n % 7 == 3 {
                return Extent::Hole { length: u64::from(length) };
            }
            Extent::Chunk { id: ChunkId::from_bytes(id), offset: 0, length }
        };
        let content: Vec<Extent> = (0..extents).map(extent).collect();
        let size = content.iter().map(Extent::length).sum();
        Entry { content, size, ..Entry::new(EntryKind::File) }
    }

    #[test]
    fn any_byte_of_a_file_is_found_in_the_record_that_covers_it() {
        for count in [0, 1, 32, 33, 40_000] {
            let id_key = IdKey::from_bytes([7; 32]);
            let mut nodes = MemoryNodes::new(id_key.clone());
            let mut builder = MapBuilder::new(id_key.boundary());
            let key = MapKey::from_components(["b"]).unwrap();
            let whole = file(count);
            for (name, entry) in [("a", file(50)), ("b", whole.clone()), ("c", file(50))] {
                let key = MapKey::from_components([name]).unwrap();
                push_entry(&mut builder, &key, &entry, &mut nodes).unwrap();
            }
            let root = builder.finish(&mut nodes).unwrap();
            let reader = MapReader::new(&nodes, root.id);
            let head = Entry::decode(&reader.get(key.as_bytes()).unwrap().unwrap()).unwrap();
            let mut at = 0;
            let step = count / 97 + 1;
            for (n, extent) in (0u64..).zip(&whole.content) {
                for offset in [at, at + extent.length() - 1] {
                    if n % step != 0 {
                        break;
                    }
                    let run = reader.extents_at(&key, &head, offset).unwrap().unwrap();
                    let mut start = run.start;
                    let covers = run.extents.iter().find(|e| {
                        start += e.length();
                        start > offset
                    });
                    assert_eq!(covers, Some(extent), "{count} extents, byte {offset}");
                }
                at += extent.length();
            }
            assert_eq!(reader.extents_at(&key, &head, whole.size).unwrap(), None);
            assert_eq!(reader.extents_at(&key, &head, u64::MAX).unwrap(), None);
        }
    }

    /// An entry may claim any size, and that one record covers it.
    #[test]
    fn a_file_without_end_is_looked_for_and_not_found() {
        let id_key = IdKey::from_bytes([7; 32]);
        let mut nodes = MemoryNodes::new(id_key.clone());
        let mut builder = MapBuilder::new(id_key.boundary());
        let key = MapKey::from_components(["b"]).unwrap();
        let head = Entry { size: u64::MAX, more_extents: 1, ..Entry::new(EntryKind::File) };
        builder.push(key.as_bytes(), &head.encode().unwrap(), &mut nodes).unwrap();
        let root = builder.finish(&mut nodes).unwrap();
        let reader = MapReader::new(&nodes, root.id);
        for offset in [0, 1, u64::MAX - 1] {
            assert!(reader.extents_at(&key, &head, offset).is_err(), "byte {offset}");
        }
    }

    #[test]
    fn a_record_that_is_missing_is_no_zeros() {
        let id_key = IdKey::from_bytes([7; 32]);
        let mut nodes = MemoryNodes::new(id_key.clone());
        let mut builder = MapBuilder::new(id_key.boundary());
        let key = MapKey::from_components(["b"]).unwrap();
        let mut records = Vec::new();
        crate::for_each_record(&key, &file(5000), |key, value| {
            records.push((key.to_vec(), value.to_vec()));
            Ok::<_, MapError>(())
        })
        .unwrap();
        let head = Entry::decode(&records[0].1).unwrap();
        let (_, Some((_, lost))) = split_sub_key(&records[2].0) else { panic!("a record of extents") };
        records.remove(2);
        for (key, value) in &records {
            builder.push(key, value, &mut nodes).unwrap();
        }
        let root = builder.finish(&mut nodes).unwrap();
        let reader = MapReader::new(&nodes, root.id);
        assert!(reader.extents_at(&key, &head, lost).is_err());
        assert!(reader.extents_at(&key, &head, lost - 1).is_ok());
    }
}
