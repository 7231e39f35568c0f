//! Waiting for the sessions that were open when the plan was made, or ending them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use keepwell_catalog::names::ObjectName;
use keepwell_crypto::MemberId;

use super::locks::Young;
use super::verdict::delete_all;
use crate::Error;
use crate::alive;
use crate::planted::planted;
use crate::repository::Repository;
use crate::write::fence;

/// How often an open session is looked at.
const POLL: Duration = Duration::from_secs(5);

type Open = BTreeMap<(MemberId, u64), u64>;

/// For how long a session that shows signs of life is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Until it has ended.
    Ended,
    /// Until its next sign of life.
    Alive,
}

/// Returns when every session that is open now has an end. A session whose process is known to be dead is fenced at
/// once, another after it has shown no new beat for `fence_after` on our own monotonic clock. Gives how many were fenced.
pub(crate) async fn settle_sessions(repository: &Repository, fence_after: Duration) -> Result<u64, Error> {
    settle(repository, fence_after, Patience::Ended).await
}

/// The same without waiting for sessions that show a new beat meanwhile: only the dead are ended.
pub(super) async fn end_dead_sessions(repository: &Repository, fence_after: Duration) -> Result<u64, Error> {
    settle(repository, fence_after, Patience::Alive).await
}

async fn settle(repository: &Repository, fence_after: Duration, patience: Patience) -> Result<u64, Error> {
    if planted("skip-fence") {
        return Ok(0);
    }
    let mut fenced = 0;
    let first = open_sessions(repository).await?;
    let mut waiting: BTreeMap<(MemberId, u64), (u64, Duration)> = BTreeMap::new();
    let begun = repository.clock().monotonic();
    for (session, beats) in first {
        waiting.insert(session, (beats, begun));
    }
    while !waiting.is_empty() {
        let now = repository.clock().monotonic();
        let mut silent = Vec::new();
        for (&(writer, n), (_, since)) in &waiting {
            if alive::is_known_dead(repository.cache(), writer, n)
                || now.saturating_sub(*since) >= fence_after
            {
                silent.push((writer, n));
            }
        }
        for (writer, n) in silent {
            fenced += u64::from(fence(repository, writer, n, Vec::new()).await?);
            waiting.remove(&(writer, n));
        }
        if waiting.is_empty() {
            break;
        }
        repository.monitor().note(&format!("waiting for {} running backup(s)", waiting.len()));
        // What is read below are last words, which no interrupt ends.
        let pause = tokio::time::sleep(POLL.min(fence_after));
        repository
            .until_cancelled(async {
                pause.await;
                Ok(())
            })
            .await?;
        let open = open_sessions(repository).await?;
        let now = repository.clock().monotonic();
        waiting.retain(|session, (beats, _)| {
            let listed = open.get(session);
            listed.is_some_and(|listed| patience == Patience::Ended || listed == beats)
        });
        for (session, (beats, since)) in &mut waiting {
            if let Some(listed) = open.get(session).filter(|listed| **listed > *beats) {
                (*beats, *since) = (*listed, now);
            }
        }
    }
    Ok(fenced)
}

/// Removes the claims and beats of sessions that have an end; ends stay (docs/pruning.md), and so does what the bucket
/// keeps for a time. Gives how many went.
pub(crate) async fn sweep(repository: &Repository) -> Result<u64, Error> {
    let mut claims = Vec::new();
    for info in repository.list("sessions/").await? {
        if let Ok(ObjectName::Session { writer, n, .. }) = info.key.as_str().parse() {
            claims.push(((writer, n), info));
        }
    }
    if claims.is_empty() {
        return Ok(0);
    }
    let young = Young::ask(repository).await?;
    let mut ended = BTreeSet::new();
    for info in repository.list("commits/").await? {
        if let Ok(ObjectName::Commit(writer, n)) = info.key.as_str().parse() {
            ended.insert((writer, n));
        }
    }
    let done =
        claims.into_iter().filter(|(session, info)| ended.contains(session) && !young.keeps(info.modified));
    delete_all(repository, &done.map(|(_, info)| info.key.to_string()).collect::<Vec<_>>()).await
}

/// Sessions without an end, each with the number of its signs of life. Not with the largest: whoever may create objects could
/// have taken that, and no later beat would count.
pub(crate) async fn open_sessions(repository: &Repository) -> Result<Open, Error> {
    let mut open = Open::new();
    for info in repository.list("sessions/").await? {
        if let Ok(ObjectName::Session { writer, n, .. }) = info.key.as_str().parse() {
            *open.entry((writer, n)).or_default() += 1;
        }
    }
    for info in repository.list("commits/").await? {
        if let Ok(ObjectName::Commit(writer, n)) = info.key.as_str().parse() {
            open.remove(&(writer, n));
        }
    }
    Ok(open)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use keepwell_catalog::names;
    use keepwell_storage::ObjectStore;

    use super::*;
    use crate::testing::World;
    use crate::write::Session;

    #[tokio::test]
    async fn a_beat_under_the_largest_number_hides_no_later_one() {
        let world = World::new().await;
        let session = Session::claim(&world.repository).await.unwrap();
        let place = (session.writer(), session.n());
        let signs_of_life = async |k: u64| {
            let key = names::session_key(place.0, place.1, k);
            world.store.put_new(&key, Bytes::from_static(b"beat")).await.unwrap();
            open_sessions(&world.repository).await.unwrap()[&place]
        };
        let planted = signs_of_life(names::NUMBER_MAX).await;
        assert!(signs_of_life(1).await > planted);
    }
}
