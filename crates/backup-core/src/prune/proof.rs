//! Whether the store keeps the one promise that a prune beside others rests on: of several creates of a name, exactly
//! one succeeds.

use bytes::Bytes;
use keepwell_storage::{Key, StorageError, StorageErrorKind};

use super::locks::Young;
use super::verdict::delete_all;
use crate::Error;
use crate::repository::Repository;

/// Refuses where the store cannot promise exclusive creates, or breaks that promise now. Costs seven requests.
pub(crate) async fn demand_exclusive_create(repository: &Repository) -> Result<(), Error> {
    let reason = if repository.store().capabilities().conditional_create {
        match race(repository).await? {
            true => return Ok(()),
            false => "it let several create the same object just now",
        }
    } else {
        "it has no conditional create"
    };
    Err(Error::Invalid(format!(
        "{} cannot be pruned beside others: {reason}. `--exclusive` prunes it all the same: then you vouch that no \
         backup, copy, repair or other prune of this repository is running or suspended anywhere",
        repository.store().describe()
    )))
}

/// Four create the same name at once, then a fifth; one must win, and its bytes must stay.
async fn race(repository: &Repository) -> Result<bool, Error> {
    let store = repository.store();
    let random = [repository.random_suffix(), repository.random_suffix()].concat();
    let key: Key =
        format!("probe/{}", hex::encode(random)).parse().map_err(|e| Error::damaged("probe", e))?;
    let body = |racer: u8| Bytes::from(vec![racer; 16]);
    let put = |racer| store.put_new(&key, body(racer));
    let (a, b, c, d) = tokio::join!(put(1), put(2), put(3), put(4));
    let outcome = async {
        let mut winners = Vec::new();
        for (racer, result) in (1..).zip([a, b, c, d]) {
            if won(result)? {
                winners.push(racer);
            }
        }
        let again = won(put(5).await)?;
        let stored = store.get(&key).await?;
        Ok::<_, StorageError>(!again && winners.len() == 1 && stored == body(winners[0]))
    };
    let outcome = outcome.await;
    match store.delete(&key).await {
        Err(refused) if refused.kind == StorageErrorKind::PermissionDenied => {
            leave(repository, refused).await?
        }
        deleted => deleted?,
    }
    Ok(outcome?)
}

/// A bucket that keeps everything for a time keeps the probe too. Those of earlier prunes go, as soon as it lets them.
async fn leave(repository: &Repository, refused: StorageError) -> Result<(), Error> {
    let young = Young::ask(repository).await?;
    if young.is_none() {
        return Err(refused.into());
    }
    let probes = repository.list("probe/").await?.into_iter().filter(|info| !young.keeps(info.modified));
    let old: Vec<String> = probes.map(|info| info.key.to_string()).collect();
    delete_all(repository, &old).await.map(|_| ())
}

fn won(result: Result<(), StorageError>) -> Result<bool, StorageError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.is_already_exists() => Ok(false),
        Err(error) => Err(error),
    }
}
