//! Does the store let one writer, and only one, create an object?

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::{ProbeReport, Role, fresh_key};
use crate::{Key, ObjectStore, StorageError, StorageErrorKind};

/// Writers that race for one name.
const RACERS: u32 = 16;
/// Names that they race for, one after the other.
const RACES: u32 = 4;

/// What came of a race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Race {
    /// Exactly one writer was told that it created the object, and the object has its bytes.
    exclusive: bool,
    /// A later writer was refused, and the object kept its bytes.
    overwrite_refused: bool,
    /// The object could be read; if not, its bytes are not in what the others say.
    readable: bool,
}

/// Runs the races, unless the store itself says that it promises nothing: one that looks and then stores has one winner by luck.
pub(super) async fn examine(
    store: &Arc<dyn ObjectStore>,
    role: Role,
    report: &mut ProbeReport,
) -> Result<(), StorageError> {
    if !store.capabilities().conditional_create {
        (report.exclusive_create, report.overwrite_refused) = (false, false);
        report.notes.push(
            "This store cannot create an object only where there is none, or its location says so: a prune needs this \
             repository for itself alone, and asks for `--exclusive`."
                .into(),
        );
        return Ok(());
    }
    // Each race of somebody who cannot delete leaves an object.
    report.races = if role == Role::Writer { 1 } else { RACES };
    report.racers = RACERS;
    let mut readable = true;
    for _ in 0..report.races {
        let key = fresh_key(store)?;
        let race = race(store, &key).await;
        let cleaned = store.delete(&key).await;
        let race = race?;
        report.exclusive_create &= race.exclusive;
        report.overwrite_refused &= race.overwrite_refused;
        readable &= race.readable;
        refusal(cleaned)?;
    }
    describe(report, readable);
    Ok(())
}

/// Whether something was done or refused; other failures are failures.
pub(super) fn refusal<T>(result: Result<T, StorageError>) -> Result<Option<T>, StorageError> {
    match result {
        Ok(done) => Ok(Some(done)),
        Err(error) if error.kind == StorageErrorKind::PermissionDenied => Ok(None),
        Err(error) => Err(error),
    }
}

async fn race(store: &Arc<dyn ObjectStore>, key: &Key) -> Result<Race, StorageError> {
    let mut tasks = JoinSet::new();
    for racer in 0..RACERS {
        let (store, key) = (Arc::clone(store), key.clone());
        tasks.spawn(async move { (racer, store.put_new(&key, racer_body(racer)).await) });
    }
    let mut winners = Vec::new();
    for (racer, result) in tasks.join_all().await {
        match result {
            Ok(()) => winners.push(racer),
            Err(error) if error.is_already_exists() => {}
            Err(error) => return Err(error),
        }
    }
    let stored = refusal(store.get(key).await)?;
    let holds_winner = |bytes: &Bytes| winners.first().is_some_and(|winner| *bytes == racer_body(*winner));
    let late = store.put_new(key, racer_body(RACERS)).await;
    let after = refusal(store.get(key).await)?;
    Ok(Race {
        exclusive: winners.len() == 1 && stored.as_ref().is_none_or(holds_winner),
        overwrite_refused: late.is_err_and(|error| error.is_already_exists()) && after == stored,
        readable: stored.is_some(),
    })
}

fn racer_body(racer: u32) -> Bytes {
    format!("racer {racer}").into()
}

fn describe(report: &mut ProbeReport, readable: bool) {
    let times = if report.races == 1 { "once".into() } else { format!("{} times", report.races) };
    if report.exclusive_create {
        report.findings.push(format!(
            "Of {RACERS} writers that raced for one name exactly one won ({times}): several keepers may work on this \
             repository at a time."
        ));
    } else {
        report.problems.push(
            "Several writers, or none, believed they had created the same object: the store, or the bucket in its present \
             state, ignores `If-None-Match`. Only one keeper at a time may work on this repository; `prune` asks for that."
                .into(),
        );
    }
    if report.overwrite_refused {
        report.findings.push("Storing under a name that is taken was refused.".into());
    } else {
        report.problems.push(
            "An object could be replaced by one that was to be stored only if its name is free: two writers can destroy \
             each other's commits in this store."
                .into(),
        );
    }
    if !readable {
        report.notes.push("What the winner had stored could not be read back with these credentials.".into());
    }
}
