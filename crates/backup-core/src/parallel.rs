//! Several requests at a time, with their answers in order.

use std::future::Future;

use tokio::task::JoinSet;

use crate::Error;

/// Small records that are asked for at once: with 20 ms to a store, 1,000 of them take little more than a second.
const AT_ONCE: usize = 16;

/// Runs every future, 16 at a time, and gives what they gave in the order of the futures. The first error ends it; what
/// is under way then is dropped.
pub(crate) async fn all<T, F>(futures: impl IntoIterator<Item = F>) -> Result<Vec<T>, Error>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Error>> + Send + 'static,
{
    let mut running: JoinSet<(usize, Result<T, Error>)> = JoinSet::new();
    let mut done: Vec<Option<T>> = Vec::new();
    for (at, future) in futures.into_iter().enumerate() {
        done.push(None);
        if running.len() >= AT_ONCE {
            take_one(&mut running, &mut done).await?;
        }
        running.spawn(async move { (at, future.await) });
    }
    while !running.is_empty() {
        take_one(&mut running, &mut done).await?;
    }
    Ok(done.into_iter().flatten().collect())
}

async fn take_one<T: 'static>(
    running: &mut JoinSet<(usize, Result<T, Error>)>,
    done: &mut [Option<T>],
) -> Result<(), Error> {
    if let Some(ended) = running.join_next().await {
        let (at, result) = ended.map_err(|e| Error::Task(e.to_string()))?;
        done[at] = Some(result?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn answers_keep_their_order_and_no_more_than_the_limit_are_under_way() {
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let futures = (0..100u64).map(|n| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..(n * 7) % 11 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                Ok(n)
            }
        });
        assert_eq!(all(futures).await.unwrap(), (0..100).collect::<Vec<_>>());
        assert_eq!(most.load(Ordering::SeqCst), AT_ONCE);
    }

    #[tokio::test]
    async fn the_first_error_is_what_the_caller_gets() {
        let futures = (0..40).map(|n| async move { if n == 20 { Err(Error::Cancelled) } else { Ok(n) } });
        assert!(matches!(all(futures).await, Err(Error::Cancelled)));
    }
}
