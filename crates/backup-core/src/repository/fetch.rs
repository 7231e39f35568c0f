//! Index segments on their way into the local cache.

use std::io::{self, Read, Write};

use bytes::Bytes;
use keepwell_catalog::{ContentName, names};
use keepwell_crypto::{Digest, DigestHasher, OpenReader};
use keepwell_storage::Key;

use super::Repository;
use super::index::DIRECTORY;
use crate::Error;
use crate::cache::CachedFile;

/// A larger segment comes in parts of this size.
const PART_BYTES: u64 = 16 << 20;
/// Plaintext that is on its way into the cache.
const BLOCK_BYTES: usize = 64 << 10;

impl Repository {
    /// Fetches and decrypts a segment of this size into the cache, proving that it has the bytes its name says, and that
    /// every entry of it can be read: who signs a segment may put anything into its blocks, and whoever looks something up
    /// later could do no more than fail.
    ///
    /// Costs a request, or one for every 16 MiB, and of memory no more than one such part, whatever the size: unless the cache
    /// cannot be written.
    pub(super) async fn fetch_segment(&self, name: &ContentName, size: u64) -> Result<CachedFile, Error> {
        let file = self.fetch_plain(name, size).await?;
        let proved = self.prove_entries(&file);
        if proved.is_err() {
            self.cache().remove(&cached_name(name));
        }
        proved.map(|()| file)
    }

    fn prove_entries(&self, file: &CachedFile) -> Result<(), Error> {
        let segment = self.open_segment(Box::new(file.clone()))?;
        Ok(segment.iter().try_for_each(|entry| entry.map(|_| ()))?)
    }

    async fn fetch_plain(&self, name: &ContentName, size: u64) -> Result<CachedFile, Error> {
        let key = names::index_key(self.group(), name);
        let sealed = match self.fetch_in_parts(&key, name, size).await? {
            Some(sealed) => sealed,
            None => CachedFile::Memory(self.fetch_whole(&key, name).await?),
        };
        let damaged = |error: &dyn std::fmt::Display| Error::damaged(&key, error);
        let open = || {
            let identities = self.access().index_identities();
            OpenReader::new(identities, sealed.reader()).map_err(|error| damaged(&error))
        };
        match self.copy_into_cache(name, open()?).map_err(|error| damaged(&error))? {
            Ok(file) => Ok(file),
            Err(error) => {
                self.note_useless_cache(name, &error);
                let mut plain = Vec::new();
                open()?.read_to_end(&mut plain).map_err(|error| damaged(&error))?;
                Ok(CachedFile::Memory(plain.into()))
            }
        }
    }

    async fn fetch_whole(&self, key: &Key, name: &ContentName) -> Result<Bytes, Error> {
        let sealed = self.store().get(key).await?;
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

    /// Fails as reading does; what fails inside is the cache.
    fn copy_into_cache(
        &self,
        name: &ContentName,
        mut plain: impl Read,
    ) -> io::Result<Result<CachedFile, Error>> {
        let cached = cached_name(name);
        let mut file = match self.cache().create(&cached) {
            Ok(file) => file,
            Err(error) => return Ok(Err(error)),
        };
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            let count = plain.read(&mut block)?;
            if count == 0 {
                break;
            }
            if let Err(error) = file.write_all(&block[..count]) {
                return Ok(Err(Error::cache("write")(error)));
            }
        }
        let published = file.publish();
        let vanished = || Error::cache("open")(io::ErrorKind::NotFound.into());
        Ok(published.and_then(|()| self.cache().open(&cached).ok_or_else(vanished)))
    }

    /// Takes a segment of our own into the cache; where that cannot be written it stays in memory.
    pub(super) fn cache_segment(&self, name: &ContentName, plain: Bytes) -> CachedFile {
        let cached = cached_name(name);
        if let Err(error) = self.cache().store(&cached, &plain) {
            self.note_useless_cache(name, &error);
        }
        self.cache().open(&cached).unwrap_or(CachedFile::Memory(plain))
    }

    fn note_useless_cache(&self, name: &ContentName, error: &Error) {
        let reason = crate::error::one_line(error);
        self.monitor().note(&format!("the index is held in memory: the local cache is of no use ({reason})"));
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
