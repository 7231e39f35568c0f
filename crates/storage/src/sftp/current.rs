//! A connection that is made anew when it broke.

use std::sync::Arc;

use tokio::time::Instant;

/// The connection that calls use.
pub(super) struct Current<T> {
    pub(super) value: Arc<T>,
    /// When a connection was last tried for in vain.
    failed_at: Option<Instant>,
}

impl<T> Current<T> {
    pub(super) fn new(value: T) -> Self {
        Self { value: Arc::new(value), failed_at: None }
    }

    /// Replaces the connection with which a call failed that began at `begun`. Of many such calls one tries: each would
    /// wait for a server that is away, one after the other.
    pub(super) async fn renew<E, F: Future<Output = Result<T, E>>>(
        &mut self,
        broken: &Arc<T>,
        begun: Instant,
        connect: impl FnOnce() -> F,
    ) {
        if !Arc::ptr_eq(&self.value, broken) || self.failed_at.is_some_and(|at| at >= begun) {
            return;
        }
        match connect().await {
            Ok(new) => *self = Self::new(new),
            Err(_) => self.failed_at = Some(Instant::now()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use tokio::sync::Mutex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn of_many_calls_that_fail_together_one_tries_to_connect() {
        let (current, tries) = (Mutex::new(Current::new(0)), AtomicU32::new(0));
        let (broken, begun) = (Arc::clone(&current.lock().await.value), Instant::now());
        let fail = || async {
            tries.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_secs(20)).await;
            Err::<u32, ()>(())
        };
        let renew = || async { current.lock().await.renew(&broken, begun, fail).await };
        tokio::join!(renew(), renew(), renew());
        assert_eq!((tries.load(Ordering::SeqCst), begun.elapsed().as_secs()), (1, 20));

        tokio::time::advance(Duration::from_secs(1)).await;
        for (connection, expected) in [(7, 7), (8, 7)] {
            let connect = || async move { Ok::<u32, ()>(connection) };
            current.lock().await.renew(&broken, Instant::now(), connect).await;
            assert_eq!(*current.lock().await.value, expected, "what broke is replaced once");
        }
    }
}
