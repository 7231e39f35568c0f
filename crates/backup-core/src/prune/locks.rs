//! What a store keeps from being deleted, and what cannot be read to be moved.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use keepwell_catalog::names::ObjectName;
use keepwell_storage::{Answer, Control, Key, ObjectLock, StorageError, StorageErrorKind};

use super::pack_use::PackId;
use super::scan::{Scan, time};
use crate::Error;
use crate::cache::Cache;
use crate::parallel;
use crate::repository::{Repository, RepositoryHint};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// What has to be there for anything to be read, beside the hint and what the scan knows of. Keys of domains that can be erased are not
/// among it: who keeps them from being deleted keeps them from being erased.
const VITAL: [&str; 3] = ["trust/", "keys/", "index/"];
/// Until when locks last that a prune extended, by key, in seconds since 1970: so that the next prunes need not ask.
const NAME: &str = "locked";

/// Leaves alone what is locked in the store: a delete would only hide it, and it would be paid for all the same. Leaves
/// packs where they are that lie in an archive, since they cannot be read to be moved.
///
/// Costs a few requests, and up to two for each pack that would go. Nothing where the store knows no locks. Fails if the
/// store does not say whether it has locks, or whether one of these packs is locked.
pub(super) async fn respect(repository: &Repository, scan: &mut Scan) -> Result<(), Error> {
    let Some(control) = repository.store().control() else { return Ok(()) };
    if !control.locks_objects() {
        leave_young(&control, scan).await?;
    } else if bucket_lock(&control).await? != ObjectLock::Off {
        let now = control.server_time().await?;
        let ends =
            ask(
                scan.candidates(),
                &control,
                |control, key| async move { control.retained_until(&key).await },
            );
        let mut locked = BTreeSet::new();
        for (key, end) in ends.await? {
            if end.flatten().is_some_and(|end| end > now) {
                locked.insert(key.to_string());
            }
        }
        scan.leave_locked(&locked);
    }
    let tiers = ask(scan.movable(), &control, |control, key| async move { control.tier(&key).await }).await?;
    let archived = tiers.into_iter().filter(|(_, tier)| tier.is_some_and(|tier| !tier.is_readable()));
    scan.leave_archived(&archived.map(|(key, _)| key.to_string()).collect());
    Ok(())
}

/// Locks what is needed for longer, where the bucket locks new objects. What newer snapshots share with old ones stays locked
/// as long as these would be; and so do the commits and manifests of snapshots that are kept for longer than the bucket
/// locks, the index, the trust chain and the keyrings. A lock of which less than half is left is brought to its full length.
/// Gives how many were.
///
/// A few listings, and a request for each such object, none for one that this host has extended lately, also where a request
/// failed later. Packs whose content was `moved` are left out, since they are to go.
pub(super) async fn extend(
    repository: &Repository,
    scan: &Scan,
    moved: &BTreeSet<PackId>,
) -> Result<u64, Error> {
    let Some(control) = repository.store().control() else { return Ok(0) };
    if !control.locks_objects() {
        return Ok(0);
    }
    let ObjectLock::Default { days, .. } = bucket_lock(&control).await? else {
        return forget_default(repository.cache()).map(|()| 0);
    };
    let (now, length) = (control.server_time().await?, DAY * days);
    let until = now + length;
    let Remembered { mut known, default, .. } = load(repository.cache());
    // What was stored under another default is not locked as long as this one says.
    let since = default.filter(|(then, _)| *then == days).map_or(seconds(now), |(_, since)| since);
    let mut short = Vec::new();
    for (key, stored) in scan.needed(moved).chain(vital(repository).await?) {
        let by_default = default_end(stored, since, length);
        let end = known.get(&key).copied().unwrap_or(0).max(by_default);
        if end < seconds(now) + length.as_secs() / 2 {
            short.push(key);
        }
    }
    let keys = short.iter().filter_map(|key| key.parse().ok()).collect();
    let locked = Arc::new(Mutex::new(Vec::new()));
    let lock = |control: Arc<dyn Control>, key: Key| {
        let locked = Arc::clone(&locked);
        async move {
            control.retain_until(&key, until).await?;
            locked.lock().unwrap_or_else(PoisonError::into_inner).push(key);
            Ok::<_, StorageError>(())
        }
    };
    let asked = ask(keys, &control, lock).await;
    // Also where one failed: the next prune need not lock the others again.
    let locked = std::mem::take(&mut *locked.lock().unwrap_or_else(PoisonError::into_inner));
    known.retain(|_, end| *end > seconds(now));
    known.extend(locked.iter().map(|key| (key.to_string(), seconds(until))));
    let extended = asked.is_ok().then(|| seconds(now));
    let remembered = Remembered { known, default: Some((days, since)), extended };
    if let Err(error) = save(repository.cache(), &remembered) {
        let what =
            "the next prune may lock all of it again: the local cache does not keep what this one locked";
        repository.note_useless_cache(what, &error);
    }
    asked?;
    Ok(locked.len() as u64)
}

/// Whether the bucket locks new objects, and this host has not looked after all locks there for a quarter of that time, or
/// since it was another time: what newer snapshots share with old ones would lapse. Never where the key may not prune.
/// Costs a few requests where the store knows locks.
pub(super) async fn are_due(repository: &Repository) -> Result<bool, Error> {
    if !repository.access().is_keeper() || !repository.can_read() {
        return Ok(false);
    }
    let Some(control) = repository.store().control().filter(|control| control.locks_objects()) else {
        return Ok(false);
    };
    let ObjectLock::Default { days, .. } = bucket_lock(&control).await? else { return Ok(false) };
    let now = seconds(control.server_time().await?);
    let Remembered { default, extended, .. } = load(repository.cache());
    let is_another = default.is_none_or(|(then, _)| then != days);
    Ok(is_another || extended.is_none_or(|then| now.saturating_sub(then) >= (DAY * days).as_secs() / 4))
}

/// What was to go and is needed after all was not looked after: the next prune for the sake of locks is due at once.
pub(super) fn look_again(repository: &Repository) {
    let cache = repository.cache();
    let saved = match load(cache) {
        Remembered { extended: None, .. } => Ok(()),
        remembered => save(cache, &Remembered { extended: None, ..remembered }),
    };
    if let Err(error) = saved {
        let what = "what is needed after all may be looked after late: the local cache does not keep that it was not locked";
        repository.note_useless_cache(what, &error);
    }
}

/// What is stored while the bucket locks nothing by itself is not locked: when it does so again, that counts from then.
fn forget_default(cache: &Cache) -> Result<(), Error> {
    match load(cache) {
        Remembered { default: None, .. } => Ok(()),
        remembered => save(cache, &Remembered { default: None, extended: None, ..remembered }),
    }
}

/// Until when the bucket's default locks an object, in seconds since 1970; 0 where that cannot be told.
fn default_end(stored: Option<SystemTime>, since: u64, length: Duration) -> u64 {
    stored.map(seconds).filter(|stored| *stored >= since).map_or(0, |stored| stored + length.as_secs())
}

/// What a bucket keeps that lets nothing go before it is so old: everything that was stored since.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Young(Option<SystemTime>);

impl Young {
    /// Nothing where the bucket keeps nothing for a time. Where it does not tell, a delete is refused, and the prune says
    /// so. Costs what a store asks for its settings, nothing where it has none.
    pub async fn ask(repository: &Repository) -> Result<Self, Error> {
        match repository.store().control() {
            Some(control) if !control.locks_objects() => Self::of(&control).await,
            _ => Ok(Self::default()),
        }
    }

    async fn of(control: &Arc<dyn Control>) -> Result<Self, Error> {
        let Answer::Known(ObjectLock::Retention { days }) = control.bucket().await.lock else {
            return Ok(Self::default());
        };
        Ok(Self(control.server_time().await?.checked_sub(DAY * days)))
    }

    /// Whether an object is kept that was stored then, by the store's clock; one of which that is not known is.
    pub fn keeps(self, stored: Option<i64>) -> bool {
        self.0.is_some_and(|since| stored.and_then(time).is_none_or(|stored| stored > since))
    }

    /// Whether it keeps anything.
    pub fn is_none(self) -> bool {
        self.0.is_none()
    }
}

/// Leaves alone, of all that would go, what such a bucket keeps.
async fn leave_young(control: &Arc<dyn Control>, scan: &mut Scan) -> Result<(), Error> {
    scan.young = Young::of(control).await?;
    let kept = scan.going().into_iter().filter(|key| scan.young.keeps(scan.stored(key)));
    let kept = kept.map(|key| key.to_string()).collect();
    scan.leave_locked(&kept);
    Ok(())
}

/// Whether the bucket locks objects. A refusal is no "no": who takes it for one hides what is locked and extends nothing.
async fn bucket_lock(control: &Arc<dyn Control>) -> Result<ObjectLock, Error> {
    let (kind, why, hint) = match control.bucket().await.lock {
        Answer::Known(lock) => return Ok(lock),
        Answer::Denied(right) => (
            StorageErrorKind::PermissionDenied,
            "these credentials may not ask whether the bucket locks objects".to_owned(),
            format!(
                "Nothing was deleted. Grant `{right}` on the bucket to these credentials; `keepwell policy` prints all that a \
                 keeper needs."
            ),
        ),
        Answer::Unknown(why) => (
            StorageErrorKind::Unavailable,
            format!("the store does not say whether it locks objects: {why}"),
            "Nothing was deleted. Try again; `keepwell doctor` shows what the store answers.".to_owned(),
        ),
    };
    Err(StorageError::new(kind, "probe", "the bucket", why).with_hint(hint).into())
}

async fn vital(repository: &Repository) -> Result<Vec<(String, Option<SystemTime>)>, Error> {
    let mut found = Vec::new();
    for prefix in VITAL {
        for info in repository.list(prefix).await? {
            let name = info.key.as_str().parse();
            if matches!(name, Ok(ObjectName::Trust(_) | ObjectName::Keyring { .. } | ObjectName::Index(..))) {
                found.push((info.key.to_string(), info.modified.and_then(time)));
            }
        }
    }
    // No listing tells when the hint was stored: with the first of the trust chain, which is listed first.
    let made = found.first().and_then(|(_, stored)| *stored);
    found.push((RepositoryHint::key().to_string(), made));
    Ok(found)
}

/// Asks something about each key. `None` for one that is gone.
async fn ask<T: Send + 'static, F: Future<Output = Result<T, StorageError>> + Send + 'static>(
    keys: Vec<Key>,
    control: &Arc<dyn Control>,
    question: impl Fn(Arc<dyn Control>, Key) -> F,
) -> Result<Vec<(Key, Option<T>)>, Error> {
    let asked = keys.into_iter().map(|key| {
        let asked = question(Arc::clone(control), key.clone());
        async move {
            match asked.await {
                Ok(answer) => Ok((key, Some(answer))),
                Err(error) if error.kind == StorageErrorKind::NotFound => Ok((key, None)),
                Err(error) => Err(error.into()),
            }
        }
    });
    parallel::all(asked).await
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What prunes of this host know of locks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Remembered {
    /// Ends of locks that were extended, by key.
    known: BTreeMap<String, u64>,
    /// For how many days the bucket locks new objects, and since when, at the latest, it is so many.
    default: Option<(u32, u64)>,
    /// When all locks had last been looked after, in seconds since 1970.
    extended: Option<u64>,
}

/// Stands for a key in the line that tells the default; no key is called so.
const DEFAULT: &str = "default";
/// The same for when locks were last looked after.
const EXTENDED: &str = "extended";

fn load(cache: &Cache) -> Remembered {
    let mut text = String::new();
    if let Some(file) = cache.open(NAME) {
        // A file that cannot be read means that everything is extended once more.
        let _ = file.reader().read_to_string(&mut text);
    }
    let mut remembered = Remembered::default();
    for line in text.lines() {
        match *line.split(' ').collect::<Vec<_>>() {
            [DEFAULT, days, since] => remembered.default = days.parse().ok().zip(since.parse().ok()),
            [EXTENDED, then] => remembered.extended = then.parse().ok(),
            [name, end] => _ = end.parse().map(|end| remembered.known.insert(name.to_owned(), end)),
            _ => {}
        }
    }
    remembered
}

fn save(cache: &Cache, remembered: &Remembered) -> Result<(), Error> {
    let default = remembered.default.iter().map(|(days, since)| format!("{DEFAULT} {days} {since}\n"));
    let known = remembered.known.iter().map(|(name, end)| format!("{name} {end}\n"));
    let extended = remembered.extended.iter().map(|then| format!("{EXTENDED} {then}\n"));
    let text: String = default.chain(extended).chain(known).collect();
    cache.store(NAME, text.as_bytes())
}

#[cfg(test)]
mod tests;
