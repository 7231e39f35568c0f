//! What a store keeps from being deleted, and what cannot be read to be moved.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use keepwell_catalog::names::ObjectName;
use keepwell_storage::{Answer, Control, Key, ObjectLock, StorageError, StorageErrorKind};
use tokio::task::JoinSet;

use super::scan::{Scan, time};
use crate::Error;
use crate::cache::Cache;
use crate::repository::{Repository, RepositoryHint};

/// Requests at a time.
const PARALLEL: usize = 16;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// What has to be there for anything to be read, beside the hint and what the scan knows of. Keys of domains that can be erased are not
/// among it: who keeps them from being deleted keeps them from being erased.
const VITAL: [&str; 3] = ["trust/", "keys/", "index/"];
/// Until when locks last that a prune extended, by key, in seconds since 1970: so that the next prunes need not ask.
const NAME: &str = "locked";

/// Leaves alone what is locked in the store: a delete would only hide it, and it would be paid for all the same. Leaves
/// packs where they are that lie in an archive, since they cannot be read to be moved.
///
/// Costs a few requests, and up to two for each pack that would go. Nothing where the store knows no locks.
pub(super) async fn respect(repository: &Repository, scan: &mut Scan) -> Result<(), Error> {
    let Some(control) = repository.store().control() else { return Ok(()) };
    let locks =
        matches!(control.bucket().await.lock, Answer::Known(ObjectLock::On | ObjectLock::Default { .. }));
    if locks {
        let now = control.server_time().await?;
        let ends =
            ask(
                scan.candidates(),
                &control,
                |control, key| async move { control.retained_until(&key).await },
            );
        for (key, end) in ends.await? {
            if end.flatten().is_some_and(|end| end > now) {
                scan.leave_locked(&key);
            }
        }
    }
    let tiers = ask(scan.movable(), &control, |control, key| async move { control.tier(&key).await }).await?;
    for (key, tier) in tiers {
        if tier.is_some_and(|tier| !tier.is_readable()) {
            scan.leave_archived(&key);
        }
    }
    Ok(())
}

/// Locks what is needed for longer, where the bucket locks new objects. What newer snapshots share with old ones stays locked
/// as long as these would be; and so do the commits and manifests of snapshots that are kept for longer than the bucket
/// locks, the index, the trust chain and the keyrings. A lock of which less than half is left is brought to its full length.
/// Gives how many were.
///
/// A few listings, and a request for each such object, none for one that this host has extended lately.
pub(super) async fn extend(repository: &Repository, scan: &Scan) -> Result<u64, Error> {
    let Some(control) = repository.store().control() else { return Ok(0) };
    let Answer::Known(ObjectLock::Default { days, .. }) = control.bucket().await.lock else { return Ok(0) };
    let (now, length) = (control.server_time().await?, DAY * days);
    let until = now + length;
    let mut known = load(repository.cache());
    let mut short = Vec::new();
    for (key, stored) in scan.needed().chain(vital(repository).await?) {
        let by_default = stored.map_or(0, |stored| seconds(stored) + length.as_secs());
        let end = known.get(&key).copied().unwrap_or(0).max(by_default);
        if end < seconds(now) + length.as_secs() / 2 {
            short.push(key);
        }
    }
    let keys = short.iter().filter_map(|key| key.parse().ok()).collect();
    let extended =
        ask(keys, &control, move |control, key| async move { control.retain_until(&key, until).await });
    let extended = extended.await?.into_iter().filter(|(_, done)| done.is_some()).count() as u64;
    if extended > 0 {
        known.retain(|_, end| *end > seconds(now));
        known.extend(short.into_iter().map(|key| (key, seconds(until))));
        save(repository.cache(), &known)?;
    }
    Ok(extended)
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
    let (mut running, mut answers) = (JoinSet::new(), Vec::with_capacity(keys.len()));
    let mut keys = keys.into_iter();
    loop {
        while running.len() < PARALLEL
            && let Some(key) = keys.next()
        {
            let asked = question(Arc::clone(control), key.clone());
            running.spawn(async move { (key, asked.await) });
        }
        let Some(ended) = running.join_next().await else { return Ok(answers) };
        let (key, answer) = ended.map_err(|error| Error::Task(error.to_string()))?;
        match answer {
            Ok(answer) => answers.push((key, Some(answer))),
            Err(error) if error.kind == StorageErrorKind::NotFound => answers.push((key, None)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn load(cache: &Cache) -> BTreeMap<String, u64> {
    let mut text = String::new();
    if let Some(file) = cache.open(NAME) {
        // A file that cannot be read means that everything is extended once more.
        let _ = file.reader().read_to_string(&mut text);
    }
    let parse = |line: &str| {
        let (name, end) = line.split_once(' ')?;
        Some((name.to_owned(), end.parse().ok()?))
    };
    text.lines().filter_map(parse).collect()
}

fn save(cache: &Cache, known: &BTreeMap<String, u64>) -> Result<(), Error> {
    let text: String = known.iter().map(|(name, end)| format!("{name} {end}\n")).collect();
    cache.store(NAME, text.as_bytes())
}
