//! Index segments on their way into the local cache.

use std::io::{self, Read, Write};

use bytes::Bytes;
use keepwell_catalog::{ContentName, names};
use keepwell_crypto::{Digest, DigestHasher, OpenReader};
use keepwell_storage::Key;
use tokio::sync::Mutex;

use super::index::DIRECTORY;
use super::{Repository, fetch_at_most};
use crate::Error;
use crate::cache::{CacheWriter, CachedFile};

/// A larger segment comes in parts of this size.
const PART_BYTES: u64 = 16 << 20;
/// Plaintext that is on its way into the cache.
const BLOCK_BYTES: usize = 64 << 10;

impl Repository {
    /// Fetches and decrypts a segment of this size into the cache, when it is proved that it has the bytes its name says, and
    /// that every entry of it can be read: who signs a segment may put anything into its blocks, and whoever looks something up
    /// later could do no more than fail.
    ///
    /// Costs a request, or one for every 16 MiB, and of memory one such part and the tables of the segment, whatever else its
    /// size: unless the cache cannot be written. Of those that are fetched at the same time with one `turn`, one after the
    /// other is proved.
    pub(super) async fn fetch_segment(
        &self,
        name: &ContentName,
        size: u64,
        turn: &Mutex<()>,
    ) -> Result<CachedFile, Error> {
        let key = names::index_key(self.group(), name);
        let sealed = match self.fetch_in_parts(&key, name, size).await? {
            Some(sealed) => sealed,
            None => CachedFile::Memory(self.fetch_whole(&key, name, size).await?),
        };
        let (repository, name) = (self.clone(), *name);
        let _turn = turn.lock().await;
        let task = tokio::task::spawn_blocking(move || repository.keep_segment(&key, &name, &sealed));
        task.await.map_err(|e| Error::Task(e.to_string()))?
    }

    /// Decrypts a segment and reads it through. Under its name in the cache nobody finds what is not proved: not another
    /// process, and not this one if it ends amid this.
    fn keep_segment(&self, key: &Key, name: &ContentName, sealed: &CachedFile) -> Result<CachedFile, Error> {
        let damaged = |error: &dyn std::fmt::Display| Error::damaged(key, error);
        let open = || {
            let identities = self.access().index_identities();
            OpenReader::new(identities, sealed.reader()).map_err(|error| damaged(&error))
        };
        let failure = match self.write_into_cache(name, open()?).map_err(|error| damaged(&error))? {
            Ok((writer, file)) => {
                self.prove_entries(&file)?;
                match writer.publish() {
                    Ok(()) => return Ok(self.cache().open(&cached_name(name)).unwrap_or(file)),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        self.hold_in_memory(name, &failure);
        let mut plain = Vec::new();
        open()?.read_to_end(&mut plain).map_err(|error| damaged(&error))?;
        let file = CachedFile::Memory(plain.into());
        self.prove_entries(&file)?;
        Ok(file)
    }

    fn prove_entries(&self, file: &CachedFile) -> Result<(), Error> {
        let segment = self.open_segment(Box::new(file.clone()))?;
        Ok(segment.iter().try_for_each(|entry| entry.map(|_| ()))?)
    }

    async fn fetch_whole(&self, key: &Key, name: &ContentName, size: u64) -> Result<Bytes, Error> {
        let sealed = fetch_at_most(self.store(), key, size).await?;
        prove(key, name, Digest::of(&sealed))?;
        Ok(sealed)
    }

    /// The sealed bytes in a file without a name; `None` if they fit one part, or where there is no room for such a file.
    async fn fetch_in_parts(
        &self,
        key: &Key,
        name: &ContentName,
        size: u64,
    ) -> Result<Option<CachedFile>, Error> {
        if size <= PART_BYTES {
            return Ok(None);
        }
        let Ok(mut file) = self.cache().create(&format!("{DIRECTORY}/{name}.sealed")) else {
            return Ok(None);
        };
        let mut hasher = DigestHasher::new();
        let mut start = 0;
        while start < size {
            let end = size.min(start + PART_BYTES);
            let part = self.store().get_range(key, start..end).await?;
            hasher.update(&part);
            if file.write_all(&part).is_err() {
                return Ok(None);
            }
            start = end;
        }
        prove(key, name, hasher.finish())?;
        Ok(file.unnamed().ok())
    }

    /// Gives a file that has no name yet, for reading. Fails as reading does; what fails inside is the cache.
    fn write_into_cache(
        &self,
        name: &ContentName,
        mut plain: impl Read,
    ) -> io::Result<Result<(CacheWriter, CachedFile), Error>> {
        let mut writer = match self.cache().create(&cached_name(name)) {
            Ok(writer) => writer,
            Err(error) => return Ok(Err(error)),
        };
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = plain.read(&mut block)?;
            if count == 0 {
                break;
            }
            if let Err(error) = writer.write_all(&block[..count]) {
                return Ok(Err(Error::cache("write")(error)));
            }
        }
        Ok(writer.written().map(|file| (writer, file)))
    }

    /// Takes a segment of our own into the cache; where that cannot be written it stays in memory.
    pub(super) fn cache_segment(&self, name: &ContentName, plain: Bytes) -> CachedFile {
        let cached = cached_name(name);
        if let Err(error) = self.cache().store(&cached, &plain) {
            self.hold_in_memory(name, &error);
        }
        self.cache().open(&cached).unwrap_or(CachedFile::Memory(plain))
    }

    fn hold_in_memory(&self, name: &ContentName, error: &Error) {
        self.note_useless_cache("the index is held in memory: the local cache is of no use", error);
        self.cache().remove(&cached_name(name));
    }
}

fn cached_name(name: &ContentName) -> String {
    format!("{DIRECTORY}/{name}")
}

fn prove(key: &Key, name: &ContentName, digest: Digest) -> Result<(), Error> {
    if digest == name.digest() {
        return Ok(());
    }
    Err(Error::damaged(key, "its bytes do not have the hash in its name"))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use keepwell_catalog::names::ObjectName;
    use keepwell_storage::list_all;

    use crate::testing::{Thing, TreeModel, World, back_up};

    use super::*;

    /// The proof needs the trust chain, of which somebody else has hold until the cache was looked at. For this, the runtime
    /// of one thread must be free meanwhile; where it is not, the other lets go in the end, and the cache has it all.
    #[tokio::test]
    async fn a_segment_is_proved_beside_other_work_and_before_the_cache_has_it() {
        let world = World::new().await;
        back_up(&world.repository, &TreeModel::default().with("a", Thing::file("a"))).await;
        let listed = list_all(&*world.store, "index/").await.unwrap();
        let Ok(ObjectName::Index(_, name)) = listed[0].key.as_str().parse() else { panic!("{listed:?}") };
        let repository = world.open(&world.key).await;
        let ((held, is_held), (let_go, may_go)) = (mpsc::channel(), mpsc::channel::<()>());
        let other = repository.clone();
        let holding = std::thread::spawn(move || {
            let _chain = other.chain_lock().write().unwrap();
            held.send(()).unwrap();
            let _ = may_go.recv_timeout(Duration::from_secs(10));
        });
        is_held.recv().unwrap();
        let look = async {
            let cached = repository.cache().open(&cached_name(&name)).is_some();
            let _ = let_go.send(());
            cached
        };
        let turn = Mutex::new(());
        let (fetched, was_cached) =
            tokio::join!(repository.fetch_segment(&name, listed[0].size, &turn), look);
        fetched.unwrap();
        holding.join().unwrap();
        assert!(!was_cached, "it was in the cache before it was proved");
        assert!(repository.cache().open(&cached_name(&name)).is_some());
    }
}
