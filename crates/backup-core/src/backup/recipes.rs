//! The recipes of a dataset: in the local cache, and sealed to the writer in `state/`, so that a reinstalled host goes
//! on incrementally.

use std::io::{self, Read};

use keepwell_catalog::{ContentName, MapKey, RecipeReader, RecipeWriter, names};
use keepwell_crypto::{Digest, MemberId, SealWriter};

use super::encoded::Encoded;
use crate::Error;
use crate::cache::{Cache, CacheWriter, CachedFile};
use crate::repository::{Repository, fetch_bounded};
use crate::write::Uploads;

/// Plain bytes per object in `state/`.
const PART_BYTES: usize = 16 << 20;

/// Cache name of a dataset's recipes, and of the note about the commit they belong to.
pub(super) fn cache_name(tag: &[u8; 16]) -> String {
    format!("recipes/{}", hex::encode(tag))
}

/// The commit whose recipes are in the cache, with its number of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Basis {
    pub n: u64,
    pub entries: u64,
}

pub(super) fn read_basis(cache: &Cache, tag: &[u8; 16]) -> Option<Basis> {
    let mut text = String::new();
    cache.open(&format!("{}.basis", cache_name(tag)))?.reader().take(64).read_to_string(&mut text).ok()?;
    let (n, entries) = text.split_once(' ')?;
    Some(Basis { n: n.parse().ok()?, entries: entries.trim().parse().ok()? })
}

pub(super) fn write_basis(cache: &Cache, tag: &[u8; 16], basis: Basis) -> Result<(), Error> {
    cache.store(&format!("{}.basis", cache_name(tag)), format!("{} {}\n", basis.n, basis.entries).as_bytes())
}

/// The recipes of a capture on their way into the cache. As long as they are those of the last capture, record for record,
/// nothing is written: most captures end that way.
pub(super) struct RecipesOut {
    cache: Cache,
    name: String,
    /// The last capture's.
    old: Option<CachedFile>,
    /// Records that are the same as there, from the first one on.
    same: u64,
    writer: Option<RecipeWriter<CacheWriter>>,
    /// Why nothing more is written.
    failed: Option<Error>,
}

impl RecipesOut {
    pub fn new(cache: &Cache, tag: &[u8; 16], old: Option<CachedFile>) -> Self {
        Self { cache: cache.clone(), name: cache_name(tag), old, same: 0, writer: None, failed: None }
    }

    /// Takes an entry. `follows`: it and its sub-key records are what the last capture's have next.
    pub fn push(&mut self, key: &MapKey, encoded: &Encoded, fingerprint: &[u8; 16], follows: bool) {
        if follows && self.writer.is_none() && self.old.is_some() {
            self.same += 1 + encoded.more.len() as u64;
        } else if self.failed.is_none() {
            let written = self.writer().and_then(|writer| Ok(encoded.remember(key, fingerprint, writer)?));
            self.take(written);
        }
    }

    /// Something is not what the last capture's recipes have next: from here on records are written.
    pub fn differ(&mut self) {
        if self.failed.is_none() {
            let begun = self.writer().map(|_| ());
            self.take(begun);
        }
    }

    /// A cache that cannot be written costs the next capture time, and this one nothing.
    fn take(&mut self, written: Result<(), Error>) {
        if let Err(error) = written {
            (self.failed, self.writer) = (Some(error), None);
        }
    }

    /// Puts the recipes under their name; or says what came between, now or earlier.
    pub fn publish(mut self) -> Result<(), Error> {
        self.differ();
        match self.failed {
            Some(error) => Err(error),
            None => self.writer.map_or(Ok(()), |writer| writer.finish()?.publish()),
        }
    }

    /// The writer, with everything so far in it.
    fn writer(&mut self) -> Result<&mut RecipeWriter<CacheWriter>, Error> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let mut writer = RecipeWriter::new(self.cache.create(&self.name)?)?;
                if let Some(old) = &self.old {
                    RecipeReader::new(old.reader())?.copy_first(self.same, &mut writer)?;
                }
                Ok(none.insert(writer))
            }
        }
    }
}

/// Stores the cached recipes in `state/`, in parts.
pub(super) async fn upload(
    repository: &Repository,
    writer: MemberId,
    tag: &[u8; 16],
    uploads: &Uploads,
) -> Result<Vec<ContentName>, Error> {
    let Some(file) = repository.cache().open(&cache_name(tag)) else { return Ok(Vec::new()) };
    let recipients = repository.state_recipients()?;
    let mut names = Vec::new();
    let (mut left, mut reader) = (file.len(), file.reader());
    while left > 0 {
        let part = left.min(PART_BYTES as u64);
        left -= part;
        // Sealed as it is read: nobody holds a part twice.
        let room = part as usize;
        let mut sealed = SealWriter::new(&recipients, Vec::with_capacity(room + room / 2048 + 1024))?;
        let copied = io::copy(&mut (&mut reader).take(part), &mut sealed);
        let sealed = copied.and_then(|_| sealed.finish()).map_err(Error::cache("read recipes"))?;
        let size = sealed.len() as u64;
        let (name, key) = repository.put_content(|name| names::state_key(writer, name), sealed).await?;
        uploads.created(key.to_string(), size);
        names.push(name);
    }
    Ok(names)
}

/// Fetches recipes from `state/` into the cache.
pub(super) async fn download(
    repository: &Repository,
    writer: MemberId,
    tag: &[u8; 16],
    parts: &[ContentName],
) -> Result<(), Error> {
    let identity =
        repository.access().state.as_ref().ok_or_else(|| repository.access().cannot("read its state"))?;
    let mut out = repository.cache().create(&cache_name(tag))?;
    for name in parts {
        let key = names::state_key(writer, name);
        let sealed = fetch_bounded(repository.store(), &key).await?;
        // Anybody can seal something to us. That this is what we once wrote, only the hash in our signed commit tells.
        if Digest::of(&sealed) != name.digest() {
            return Err(Error::damaged(&key, "its bytes do not have the hash in its name"));
        }
        let plain = keepwell_crypto::open(std::slice::from_ref(identity), &sealed, 2 * PART_BYTES as u64)
            .map_err(|e| Error::damaged(&key, e))?;
        io::Write::write_all(&mut out, &plain).map_err(Error::cache("write recipes"))?;
    }
    out.publish()
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;
    use std::sync::Arc;

    use super::*;
    use crate::source::{Found, Item, Opened, Preflight, Source, SourceError};
    use crate::testing::{
        MemorySource, Thing, TreeModel, World, assert_same, back_up, block_on, noise, options, restored,
        snapshot_of,
    };
    use crate::{BackupOptions, Repository};

    /// A source of which one thing cannot be opened.
    struct Shut(MemorySource, &'static str);

    impl Source for Shut {
        fn kind(&self) -> &str {
            self.0.kind()
        }

        fn paths(&self) -> Vec<Vec<u8>> {
            self.0.paths()
        }

        fn preflight(&self) -> Result<Preflight, SourceError> {
            self.0.preflight()
        }

        fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
            self.0.walk(visit)
        }

        fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
            match item.key.display_path() == self.1 {
                true => Err(SourceError::Other("shut".into())),
                false => self.0.open(item),
            }
        }
    }

    async fn capture(repository: &Repository, tree: &TreeModel, shut: &'static str, options: BackupOptions) {
        let source = Shut(MemorySource::new(tree.clone()), shut);
        repository.backup(Arc::new(source), options).await.unwrap();
    }

    fn cached(repository: &Repository) -> Vec<u8> {
        let tag = keepwell_catalog::dataset_tag(&repository.domain().id_key, "data");
        repository.cache().read(&cache_name(&tag)).unwrap().to_vec()
    }

    /// One of many small contents, so that recipes have sub-key records as well.
    fn tree() -> TreeModel {
        let large = TreeModel::default().with("d/large", Thing::file(noise(9, 60_000)));
        (0..30).fold(large, |tree, n| tree.with(&format!("d/{n:02}"), Thing::file(noise(n, 2000))))
    }

    #[test]
    fn recipes_are_those_of_a_capture_that_read_everything_whatever_has_changed() {
        let (old, same) = (tree(), |tree: TreeModel| tree);
        type Change = fn(TreeModel) -> TreeModel;
        let changes: [(Change, &'static str); 8] = [
            (same, ""),
            (|tree| tree.with("d/00", Thing::file("first")), ""),
            (|tree| tree.with("d/15", Thing::file("middle")), ""),
            (|tree| tree.with("d/zz", Thing::file("new, and last")), ""),
            (|tree| tree.with("a", Thing::file("new, and first")), ""),
            (|tree| tree.without("d/29"), ""),
            (|tree| tree.without("d/large").without("d/03"), ""),
            (|tree| tree.with("d/07", Thing::file("cannot be read")), "d/07"),
        ];
        for (number, (change, shut)) in changes.into_iter().enumerate() {
            block_on(async {
                let world = World::new().await;
                let now = change(old.clone());
                capture(&world.repository, &old, "", options("data")).await;
                let before = cached(&world.repository);
                capture(&world.repository, &now, shut, options("data")).await;
                let fresh = world.open(&world.key).await;
                let reread = BackupOptions { reread: true, ..options("data") };
                capture(&fresh, &now, shut, reread).await;
                assert_eq!(cached(&world.repository), cached(&fresh), "change {number}");
                assert_eq!(cached(&world.repository) == before, number == 0, "change {number}");
            });
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_keeps_nobody_from_a_backup() {
        block_on(async {
            let world = World::new().await;
            let file = tempfile::NamedTempFile::new().unwrap();
            let repository = world.open_cached(&world.key, Cache::directory(file.path())).await;
            for tree in [tree(), tree().with("d/15", Thing::file("changed"))] {
                let report = back_up(&repository, &tree).await;
                let snapshot = snapshot_of(&repository, &report).await;
                assert!(snapshot.commit.complete && snapshot.commit.state.is_empty());
                assert_same(&restored(&repository, &snapshot).await, &tree.as_restored());
            }
        });
    }
}
