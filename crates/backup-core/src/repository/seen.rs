//! Reading records through the cache as a listing shows them.
//!
//! A record never changes under its name, so its cached copy is good as long as the store is the one it was read from.
//! A store that was set back to an older state, from a backup of the bucket say, can come to hold another record under
//! the same name, validly signed: another commit, another retirement, another verdict. A listing shows it: the object has another
//! time or size. So a cached record counts where it was read from an object that looked as the listed one does, and
//! reading costs what is new. Where a store tells no times, what is cached is believed, but not by a prune that is about to
//! decide: that reads everything again, and never deletes on the word of the cache alone.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use keepwell_crypto::Digest;
use keepwell_storage::ObjectInfo;

use super::Repository;
use crate::Error;
use crate::cache::Cache;

/// The records below one prefix, on their way from a listing.
#[derive(Debug)]
pub(crate) struct Reading {
    file: String,
    before: Seen,
    now: Mutex<Seen>,
    /// Believe the cache where the store tells no times.
    believes: bool,
}

impl Reading {
    /// For what deletes nothing.
    pub fn of(repository: &Repository, prefix: &str) -> Self {
        let file = format!("seen-{prefix}");
        let before = Seen::load(repository.cache(), &file);
        Self { file, before, now: Mutex::default(), believes: true }
    }

    /// For what deletes.
    pub fn anew(repository: &Repository, prefix: &str) -> Self {
        Self { believes: false, ..Self::of(repository, prefix) }
    }

    /// What `prove` makes of a listed record.
    pub async fn read<T>(
        &self,
        repository: &Repository,
        info: &ObjectInfo,
        prove: impl Fn(&[u8]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let prove = |bytes: &[u8]| Ok((prove(bytes)?, Digest::of(bytes)));
        if let Some((proved, digest)) = repository.records().cached(&info.key, prove) {
            match self.before.knows(info, &digest) {
                Some(true) => {
                    self.add(info, &digest);
                    return Ok(proved);
                }
                None if self.believes => return Ok(proved),
                _ => {}
            }
        }
        let (proved, digest) = repository.records().fetch(info, prove).await?;
        self.add(info, &digest);
        Ok(proved)
    }

    /// Remembers how what was read looked, and drops what was cached of records that are no longer there. A cache that
    /// cannot be written costs requests, no more.
    pub fn end(&self, repository: &Repository) {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        if *now != self.before {
            for name in self.before.0.keys().filter(|name| !now.0.contains_key(*name)) {
                repository.records().drop_cached(name);
            }
            now.save(repository.cache(), &self.file);
        }
    }

    fn add(&self, info: &ObjectInfo, digest: &Digest) {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).add(info, digest);
    }
}

/// How a listing showed an object, and the SHA-256 of the bytes that were then read.
type Look = (u64, i64, Digest);

/// By the name of the object.
#[derive(Debug, Default, PartialEq)]
struct Seen(BTreeMap<String, Look>);

impl Seen {
    /// What this host remembers; nothing where that is damaged.
    fn load(cache: &Cache, file: &str) -> Self {
        let bytes = cache.read(file).unwrap_or_default();
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let name = words.next()?.to_owned();
            let look =
                (words.next()?.parse().ok()?, words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            words.next().is_none().then_some((name, look))
        };
        Self(text.lines().filter_map(parse).collect())
    }

    fn save(&self, cache: &Cache, file: &str) {
        let line = |(name, (size, modified, digest)): (&String, &Look)| {
            format!("{name} {size} {modified} {digest}\n")
        };
        let _ = cache.store(file, self.0.iter().map(line).collect::<String>().as_bytes());
    }

    /// Whether bytes with this hash were read when the object looked as it is listed now. `None`: the store tells no times.
    fn knows(&self, info: &ObjectInfo, digest: &Digest) -> Option<bool> {
        look(info, digest).map(|now| self.0.get(info.key.as_str()) == Some(&now))
    }

    /// Takes in bytes that were read from the store after it listed the object so.
    fn add(&mut self, info: &ObjectInfo, digest: &Digest) {
        if let Some(look) = look(info, digest) {
            self.0.insert(info.key.to_string(), look);
        }
    }
}

fn look(info: &ObjectInfo, digest: &Digest) -> Option<Look> {
    info.modified.map(|modified| (info.size, modified, *digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(size: u64, modified: Option<i64>) -> ObjectInfo {
        ObjectInfo { key: "commits/0102030405060708/0000000001".parse().unwrap(), size, modified }
    }

    #[test]
    fn only_an_object_that_looks_the_same_is_the_same() {
        let (ours, other) = (Digest::of(b"ours"), Digest::of(b"other"));
        let mut seen = Seen::default();
        assert_eq!(seen.knows(&info(4, Some(7)), &ours), Some(false));
        seen.add(&info(4, Some(7)), &ours);
        assert_eq!(seen.knows(&info(4, Some(7)), &ours), Some(true));
        assert_eq!(seen.knows(&info(4, Some(7)), &other), Some(false));
        assert_eq!(seen.knows(&info(4, Some(8)), &ours), Some(false));
        assert_eq!(seen.knows(&info(5, Some(7)), &ours), Some(false));
        assert_eq!(seen.knows(&info(4, None), &ours), None);
    }

    #[test]
    fn a_store_that_tells_no_times_vouches_for_nothing() {
        let mut seen = Seen::default();
        seen.add(&info(4, None), &Digest::of(b"ours"));
        assert_eq!(seen.knows(&info(4, None), &Digest::of(b"ours")), None);
    }

    #[test]
    fn it_is_remembered_and_damage_makes_it_forget() {
        let cache = Cache::memory();
        let mut seen = Seen::default();
        seen.add(&info(4, Some(-7)), &Digest::of(b"ours"));
        seen.save(&cache, "seen");
        assert_eq!(Seen::load(&cache, "seen"), seen);
        for damage in ["", "x", "a b c d\n", "a 1 2 3\n", "a 1 2"] {
            cache.store("seen", damage.as_bytes()).unwrap();
            assert_eq!(Seen::load(&cache, "seen"), Seen::default(), "{damage}");
        }
        cache.store("seen", b"\xff\xfe").unwrap();
        assert_eq!(Seen::load(&cache, "seen"), Seen::default());
    }
}
