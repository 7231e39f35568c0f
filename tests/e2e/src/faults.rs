//! Trying every call at which a store can fail.

use std::sync::Arc;

use backup_core::{Cache, Repository};
use keepwell_storage::{Fault, Faulty, Memory};

use crate::world::World;

/// The ways to fail at call `n`.
pub const KINDS: [fn(u64) -> Fault; 4] =
    [Fault::Once, Fault::FromThenOn, Fault::CrashAfter, Fault::LostResponse];

/// Runs `attempt` against a copy of `base` for every kind of failure at every call, until the call is beyond the last;
/// then hands the copy to `verify`, with whether the attempt said that it succeeded.
///
/// Opening the repository counts as part of the attempt. Gives the number of attempts.
pub async fn at_every_call<V: Future<Output = ()>>(
    base: &World,
    attempt: impl AsyncFn(&Repository) -> Result<(), backup_core::Error>,
    verify: impl Fn(World, bool, String) -> V,
) -> u64 {
    from_call(1, true, base, attempt, verify).await
}

/// As [`at_every_call`], without the calls that open the repository: these only read, one for each record of the trust
/// chain, and the operations tried by the other function open it in the same way.
pub async fn at_every_call_once_open<V: Future<Output = ()>>(
    base: &World,
    attempt: impl AsyncFn(&Repository) -> Result<(), backup_core::Error>,
    verify: impl Fn(World, bool, String) -> V,
) -> u64 {
    from_call(calls_to_open(base).await + 1, true, base, attempt, verify).await
}

/// As [`at_every_call_once_open`], for long operations: each call fails in one of the ways, in turn. With
/// `KEEPWELL_E2E_FAULTS=all` in every way.
#[expect(clippy::disallowed_methods, reason = "how long to search is for whoever runs the test to say")]
pub async fn at_every_call_in_turn<V: Future<Output = ()>>(
    base: &World,
    attempt: impl AsyncFn(&Repository) -> Result<(), backup_core::Error>,
    verify: impl Fn(World, bool, String) -> V,
) -> u64 {
    let all = std::env::var("KEEPWELL_E2E_FAULTS").is_ok_and(|value| value == "all");
    from_call(calls_to_open(base).await + 1, all, base, attempt, verify).await
}

async fn calls_to_open(base: &World) -> u64 {
    let store: Arc<Faulty<Memory>> = Arc::new(Faulty::new(base.fork().store, Fault::None));
    base.open_with(store.clone(), Cache::memory()).await.unwrap();
    store.calls()
}

async fn from_call<V: Future<Output = ()>>(
    first: u64,
    in_every_way: bool,
    base: &World,
    attempt: impl AsyncFn(&Repository) -> Result<(), backup_core::Error>,
    verify: impl Fn(World, bool, String) -> V,
) -> u64 {
    let mut attempts = 0;
    for (turn, kind) in (0..).zip(KINDS) {
        for n in (first..).filter(|n| in_every_way || n % KINDS.len() as u64 == turn) {
            let world = base.fork();
            let store: Arc<Faulty<Memory>> = Arc::new(Faulty::new(world.store.clone(), kind(n)));
            let opened = world.open_with(store.clone(), Cache::memory()).await;
            let ended = match opened {
                Ok(repository) => attempt(&repository).await,
                Err(error) => Err(error),
            };
            let what =
                format!("{:?}: {}", kind(n), ended.as_ref().err().map_or("ok".into(), ToString::to_string));
            if !store.fired() {
                assert!(ended.is_ok(), "{what}");
                break;
            }
            attempts += 1;
            verify(world, ended.is_ok(), what).await;
        }
    }
    attempts
}
