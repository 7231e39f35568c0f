//! When this host last proved each pack: remembered in the local cache, so that regular checks share the work.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::time::Duration;

use keepwell_catalog::ContentName;
use keepwell_crypto::SnapshotId;

use crate::Error;
use crate::cache::Cache;
use crate::env::Timestamp;
use crate::repository::Repository;

pub(crate) const NAME: &str = "proved";
/// A file that is there while the last check has found that snapshots lack something, with the id of each on a line. It
/// may lie in no pack that anybody knows of. The packs that were read and found damaged follow.
pub(crate) const DAMAGE: &str = "damage-found";
/// Begins the line of such a pack.
const PACK: &str = "pack ";
/// What a check has found out so far is written down this often.
const SAVE_EVERY: Duration = Duration::from_secs(180);

pub(crate) fn load(cache: &Cache) -> BTreeMap<ContentName, Timestamp> {
    let mut text = String::new();
    if let Some(file) = cache.open(NAME) {
        // A file that cannot be read means that everything counts as never proved.
        let _ = file.reader().read_to_string(&mut text);
    }
    let parse = |line: &str| {
        let (name, time) = line.split_once(' ')?;
        Some((name.parse().ok()?, time.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

/// Whether the last check of this host found damaged snapshots.
pub(crate) fn found_damage(cache: &Cache) -> bool {
    cache.open(DAMAGE).is_some()
}

/// The snapshots that the last check of this host found damaged.
pub(crate) fn damaged(cache: &Cache) -> BTreeSet<SnapshotId> {
    let noted = cache.read(DAMAGE).unwrap_or_default();
    String::from_utf8_lossy(&noted).lines().filter_map(|line| line.parse().ok()).collect()
}

/// The packs in which the last check of this host found that damage. The next one reads them again, however little else it
/// reads: one that does not look must not take them for sound.
pub(super) fn suspects(cache: &Cache) -> BTreeSet<ContentName> {
    let noted = cache.read(DAMAGE).unwrap_or_default();
    let packs = |line: &str| line.strip_prefix(PACK)?.parse().ok();
    String::from_utf8_lossy(&noted).lines().filter_map(packs).collect()
}

/// Remembers which snapshots a check found damaged, and the packs in which. Where some that the last check found could not be
/// read now (`unread`), what it said stands.
pub(super) fn note_damage(
    repository: &Repository,
    found: &BTreeSet<String>,
    suspect: &[ContentName],
    unread: &[ContentName],
) {
    let cache = repository.cache();
    let mut ids = found.clone();
    if !unread.is_empty() {
        ids.extend(damaged(cache).iter().map(SnapshotId::to_string));
    }
    match ids.is_empty() {
        true => cache.remove(DAMAGE),
        false => {
            let ids = ids.iter().map(|id| format!("{id}\n"));
            let packs = suspect.iter().chain(unread).map(|pack| format!("{PACK}{pack}\n"));
            let text: String = ids.chain(packs).collect();
            note_failure(repository, cache.store(DAMAGE, text.as_bytes()));
        }
    }
}

/// A cache that cannot be written hides no damage.
fn note_failure(repository: &Repository, written: Result<(), Error>) {
    if let Err(error) = written {
        let message = format!("what a check found cannot be remembered: {}", crate::error::one_line(&error));
        repository.monitor().note(&message);
    }
}

/// What a check finds out about packs, written down as it goes on: what was proved, and what counts as proved no more.
#[derive(Debug)]
pub(super) struct Proofs {
    repository: Repository,
    /// When the check began: what it proves was sound then or later.
    at: Timestamp,
    proved: BTreeSet<ContentName>,
    doubted: BTreeSet<ContentName>,
    saved: Duration,
}

impl Proofs {
    pub fn new(repository: &Repository) -> Self {
        Self {
            repository: repository.clone(),
            at: repository.now(),
            proved: BTreeSet::new(),
            doubted: BTreeSet::new(),
            saved: repository.clock().monotonic(),
        }
    }

    /// A pack was read whole, and is sound.
    pub fn prove(&mut self, pack: ContentName) {
        self.doubted.remove(&pack);
        self.proved.insert(pack);
        self.save_in_time();
    }

    /// Whatever was proved of a pack once, it is missing or damaged.
    pub fn doubt(&mut self, pack: ContentName) {
        self.proved.remove(&pack);
        self.doubted.insert(pack);
        self.save_in_time();
    }

    fn save_in_time(&mut self) {
        if self.repository.clock().monotonic().saturating_sub(self.saved) >= SAVE_EVERY {
            // The last one says what is wrong with the cache.
            let _ = self.write();
        }
    }

    /// Writes down what is new.
    pub fn save(&mut self) {
        let written = self.write();
        note_failure(&self.repository, written);
    }

    /// Others who check meanwhile lose nothing but what they write at the same instant.
    fn write(&mut self) -> Result<(), Error> {
        self.saved = self.repository.clock().monotonic();
        let cache = self.repository.cache();
        let mut all = load(cache);
        let before = all.len();
        all.retain(|name, _| !self.doubted.contains(name));
        if self.proved.is_empty() && all.len() == before {
            return Ok(());
        }
        all.extend(self.proved.iter().map(|name| (*name, self.at)));
        let text: String = all.iter().map(|(name, time)| format!("{name} {time}\n")).collect();
        cache.store(NAME, text.as_bytes())?;
        self.proved.clear();
        self.doubted.clear();
        Ok(())
    }
}
