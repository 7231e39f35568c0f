//! Which packs a restore reads, and whether they can be read now: for stores that keep data packs in an archive.

use std::collections::BTreeMap;
use std::sync::Arc;

use keepwell_catalog::{ContentName, Entry, EntryKind, MapKey, MapReader, PackClass, names};
use keepwell_storage::{Key, ObjectStore, StorageError, StorageErrorKind, ThawSpeed, Tier};

use super::tree::{Visit, visit};
use super::{RestoreOptions, is_fatal};
use crate::Error;
use crate::parallel;
use crate::read::Nodes;
use crate::repository::{Repository, Snapshot};

/// A data pack that a restore fetches from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededPack {
    /// Its object.
    pub key: Key,
    /// Its stored length in bytes.
    pub size: u64,
    /// Whether it can be read now.
    pub tier: Tier,
}

impl Repository {
    /// The data packs that a restore into an empty target fetches from, by name, and whether they can be read now.
    ///
    /// Reads the whole tree that is to be restored, and sends a request for each pack. Of a store that cannot be asked, a
    /// byte of each is read. What the index does not know is left out: the restore will name it.
    pub async fn packs_needed(
        &self,
        snapshot: &Snapshot,
        options: RestoreOptions,
    ) -> Result<Vec<NeededPack>, Error> {
        self.unless_cancelled(self.find_packs(snapshot, options)).await
    }

    async fn find_packs(
        &self,
        snapshot: &Snapshot,
        options: RestoreOptions,
    ) -> Result<Vec<NeededPack>, Error> {
        self.refresh_index_for(&options).await?;
        self.note_dead_packs().await;
        let root = snapshot.manifest()?.root;
        let (nodes, repository, name) = (Nodes::new(self), self.clone(), snapshot.short());
        let task = tokio::task::spawn_blocking(move || {
            let (reader, content_of) = (MapReader::new(&nodes, root), MapReader::new(&nodes, root));
            let mut packs = BTreeMap::new();
            visit(&reader, &options, &name, &mut |step| {
                let (source, entry) = match step {
                    Visit::Entry { source, entry, .. } => (source, entry),
                    Visit::Unread { error, .. } if is_fatal(&error) => return Err(error),
                    _ => return Ok(()),
                };
                note(&repository, &content_of, source, entry, &mut packs)?;
                match &entry.hard_link {
                    // Its first name may not be among what is restored.
                    Some(first) if entry.kind == EntryKind::HardLink => {
                        match content_of.heads_below(first)?.next() {
                            Some(Ok((key, head))) if key == *first => {
                                note(&repository, &content_of, first, &head, &mut packs)
                            }
                            _ => Ok(()),
                        }
                    }
                    _ => Ok(()),
                }
            })?;
            Ok::<_, Error>(packs)
        });
        let packs = task.await.map_err(|e| Error::Task(e.to_string()))??;
        let packs = packs.into_iter().map(|(name, size)| (names::pack_key(PackClass::Data, &name), size));
        self.tiers(packs.collect()).await
    }

    /// Asks for archived packs to be made readable for `days` days; it takes minutes to days. Asking for one that is on
    /// its way, or readable, does no harm. A request for each pack.
    ///
    /// Fails with `Invalid` on a store that has no such request.
    pub async fn thaw(&self, packs: &[NeededPack], days: u32, speed: ThawSpeed) -> Result<(), Error> {
        let Some(control) = self.store().control() else {
            let message = "the store has no request that thaws an object";
            let error =
                StorageError::new(StorageErrorKind::Invalid, "thaw", self.store().describe(), message);
            return Err(error.into());
        };
        let cold = packs.iter().filter(|pack| !pack.tier.is_readable());
        let cold: Vec<Key> = cold.map(|pack| pack.key.clone()).collect();
        let thaws = cold.into_iter().map(|key| {
            let control = Arc::clone(&control);
            async move { Ok(control.thaw(&key, days, speed).await?) }
        });
        parallel::all(thaws).await.map(|_| ())
    }

    async fn tiers(&self, packs: Vec<(Key, u64)>) -> Result<Vec<NeededPack>, Error> {
        let asked = packs.into_iter().map(|(key, size)| {
            let repository = self.clone();
            async move {
                let tier = tier_of(repository.store(), &key).await?;
                Ok(NeededPack { key, size, tier })
            }
        });
        parallel::all(asked).await
    }
}

/// Notes the packs that a file's content lies in, as far as the tree can be read.
fn note(
    repository: &Repository,
    tree: &MapReader<'_>,
    key: &MapKey,
    entry: &Entry,
    packs: &mut BTreeMap<ContentName, u64>,
) -> Result<(), Error> {
    for extent in tree.extents(key, entry)?.map_while(Result::ok) {
        if let Some(id) = extent.chunk()
            && let Some(location) = repository.locate(id)?.first()
        {
            packs.insert(location.pack.name, location.pack.size);
        }
    }
    Ok(())
}

/// A pack that is gone counts as readable: the restore finds its content elsewhere, or names what is lost.
async fn tier_of(store: &dyn ObjectStore, key: &Key) -> Result<Tier, StorageError> {
    let asked = match store.control() {
        Some(control) => control.tier(key).await,
        None => store.get_range(key, 0..1).await.map(|_| Tier::Ready),
    };
    match asked {
        Err(error) if error.kind == StorageErrorKind::Archived => Ok(Tier::Archived),
        Err(error) if error.is_not_found() => Ok(Tier::Ready),
        asked => asked,
    }
}
