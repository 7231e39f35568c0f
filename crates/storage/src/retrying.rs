//! Trying again.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::planted::planted;
use crate::{Capabilities, Control, Key, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind};

/// How often and after which pauses [`Retrying`] tries again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts in all, the first included; 0 counts as 1.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with every further one.
    pub first_delay: Duration,
    /// The longest pause.
    pub max_delay: Duration,
}

impl Default for RetryPolicy {
    /// Eight attempts in about half a minute: longer than a server takes to restart.
    fn default() -> Self {
        Self { attempts: 8, first_delay: Duration::from_millis(250), max_delay: Duration::from_secs(15) }
    }
}

type Random = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A store that tries again after errors that may pass ([`StorageError::is_retryable`]).
///
/// A put whose answer was lost may have stored the object, and then finds its own name taken. So after a failed
/// attempt, `AlreadyExists` is settled by reading the object back: if it holds our bytes, the put has succeeded.
/// Two writers who store *the same* bytes under one name may then both be told that they won; writers that compete
/// must make their bytes differ. Where the object cannot be read, its length in the listing decides.
///
/// Reading back costs one `get` of the object. Other errors are passed on at once.
/// ```
/// use std::time::Duration;
/// use keepwell_storage::{Fault, Faulty, Memory, ObjectStore, Operation, RetryPolicy, Retrying};
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// // The first put is stored, and its answer is lost.
/// let unsure = Faulty::new(Memory::new(), Fault::LostResponse(1));
/// let policy = RetryPolicy { first_delay: Duration::from_millis(1), ..RetryPolicy::default() };
/// let store = Retrying::new(unsure, policy);
/// store.put_new(&"data/pack".parse()?, "bytes".into()).await?;
/// assert_eq!(store.get(&"data/pack".parse()?).await?, "bytes");
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub struct Retrying<S> {
    inner: S,
    policy: RetryPolicy,
    random: Option<Random>,
}

impl<S: ObjectStore> Retrying<S> {
    /// Wraps a store; pauses are exact, so that tests can foretell them.
    pub fn new(inner: S, policy: RetryPolicy) -> Self {
        Self { inner, policy, random: None }
    }

    /// Makes every pause last between half and all of its length, by `random`, which gives any number equally often: so
    /// that many clients do not come back at the same moment.
    pub fn with_jitter(mut self, random: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        self.random = Some(Arc::new(random));
        self
    }

    /// The wrapped store.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    async fn retry<T, F: Future<Output = Result<T, StorageError>>>(
        &self,
        call: impl Fn() -> F,
    ) -> Result<T, StorageError> {
        let mut attempt = 1;
        loop {
            match call().await {
                Err(error) => self.pause_or_give_up(attempt, error).await?,
                done => return done,
            }
            attempt += 1;
        }
    }

    /// Waits before the next attempt; passes the error on if there is none.
    async fn pause_or_give_up(&self, attempt: u32, error: StorageError) -> Result<(), StorageError> {
        if attempt >= self.policy.attempts || !error.is_retryable() {
            return Err(error);
        }
        let delay = self.delay(attempt);
        tracing::debug!(%error, attempt, ?delay, "trying again");
        tokio::time::sleep(delay).await;
        Ok(())
    }

    fn delay(&self, attempt: u32) -> Duration {
        let doubled = self.policy.first_delay.saturating_mul(2u32.saturating_pow(attempt - 1));
        let delay = doubled.min(self.policy.max_delay);
        let Some(random) = &self.random else { return delay };
        let half = delay / 2;
        let share = (half.as_nanos() * u128::from(random())) >> u64::BITS;
        half + Duration::from_nanos(u64::try_from(share).unwrap_or(0))
    }

    /// Decides whether an object that exists after a lost answer is the one that we put.
    async fn settle(&self, key: &Key, body: &Bytes, taken: StorageError) -> Result<(), StorageError> {
        match self.get_at_most(key, body.len() as u64).await {
            _ if planted("retry-412-is-ours") => Ok(()),
            Ok(stored) if stored == *body => Ok(()),
            Ok(_) => Err(taken),
            Err(error) if error.kind == StorageErrorKind::TooLarge => Err(taken),
            Err(error)
                if matches!(error.kind, StorageErrorKind::PermissionDenied | StorageErrorKind::Archived) =>
            {
                self.settle_unread(key, body, taken).await
            }
            Err(error) => Err(error),
        }
    }

    /// Decides it where we may not read what we stored, as a backup host may not, or cannot, as a pack that goes to an
    /// archive at once: by the length in the listing. Nobody competes for such a key: what is not read has a name that is
    /// random.
    async fn settle_unread(&self, key: &Key, body: &Bytes, taken: StorageError) -> Result<(), StorageError> {
        let directory = key.as_str().rfind('/').map_or("", |slash| &key.as_str()[..=slash]);
        let mut after = None;
        loop {
            let page = self.list_page(directory, after.as_ref()).await?;
            if let Some(found) = page.objects.iter().find(|info| info.key == *key) {
                return if found.size == body.len() as u64 { Ok(()) } else { Err(taken) };
            }
            after = page.objects.last().map(|info| info.key.clone());
            if !page.more || after.as_ref().is_none_or(|last| last > key) {
                return Err(taken);
            }
        }
    }
}

#[async_trait]
impl<S: ObjectStore> ObjectStore for Retrying<S> {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        let mut attempt = 1;
        loop {
            match self.inner.put_new(key, body.clone()).await {
                Ok(()) => return Ok(()),
                Err(full) if full.kind == StorageErrorKind::NoSpace && planted("swallow-full") => {
                    return Ok(());
                }
                Err(taken) if taken.is_already_exists() && attempt > 1 && !planted("retry-412-fails") => {
                    return self.settle(key, &body, taken).await;
                }
                Err(error) => self.pause_or_give_up(attempt, error).await?,
            }
            attempt += 1;
        }
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.retry(|| self.inner.get(key)).await
    }

    async fn get_at_most(&self, key: &Key, most: u64) -> Result<Bytes, StorageError> {
        self.retry(|| self.inner.get_at_most(key, most)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.retry(|| self.inner.get_range(key, range.clone())).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.retry(|| self.inner.head(key)).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.retry(|| self.inner.list_page(prefix, after)).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.retry(|| self.inner.delete(key)).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }

    fn control(&self) -> Option<Arc<dyn Control>> {
        self.inner.control()
    }
}

impl<S: ObjectStore> fmt::Debug for Retrying<S> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Retrying({:?})", self.inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fault, Faulty, Memory, Operation, Recording};

    /// A store from which nothing can be read.
    #[derive(Debug)]
    struct Unreadable {
        memory: Memory,
        why: StorageErrorKind,
    }

    #[async_trait]
    impl ObjectStore for Unreadable {
        async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
            self.memory.put_new(key, body).await
        }

        async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
            Err(StorageError::new(self.why, "get", key, "no"))
        }

        async fn get_range(&self, key: &Key, _: Range<u64>) -> Result<Bytes, StorageError> {
            self.get(key).await
        }

        async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
            self.memory.head(key).await
        }

        async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
            self.memory.list_page(prefix, after).await
        }

        async fn delete(&self, key: &Key) -> Result<(), StorageError> {
            self.memory.delete(key).await
        }

        fn capabilities(&self) -> Capabilities {
            self.memory.capabilities()
        }

        fn describe(&self) -> String {
            "unreadable".into()
        }
    }

    fn key() -> Key {
        "a".parse().unwrap()
    }

    fn retrying(memory: &Memory, fault: Fault) -> Retrying<Faulty<Memory>> {
        Retrying::new(Faulty::new(memory.clone(), fault), RetryPolicy::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_put_whose_answer_was_lost_succeeds_by_reading_back() {
        let memory = Memory::new();
        let store = retrying(&memory, Fault::LostResponse(1));
        store.put_new(&key(), "ours".into()).await.unwrap();
        assert_eq!(store.inner().calls(), 3, "put, put again, read back");
        assert_eq!(memory.get(&key()).await.unwrap(), "ours");
    }

    #[tokio::test(start_paused = true)]
    async fn an_object_of_another_writer_is_not_taken_for_ours() {
        let memory = Memory::new();
        memory.put_new(&key(), "theirs".into()).await.unwrap();
        let store = retrying(&memory, Fault::Once(1));
        let error = store.put_new(&key(), "ours".into()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::AlreadyExists);
        assert_eq!(store.inner().calls(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn of_what_stands_under_the_name_no_more_is_read_than_was_put() {
        let memory = Memory::new();
        memory.put_new(&key(), "ours, and much more".into()).await.unwrap();
        let store =
            Retrying::new(Recording::new(Faulty::new(memory, Fault::Once(1))), RetryPolicy::default());
        assert!(store.put_new(&key(), "ours".into()).await.unwrap_err().is_already_exists());
        let read = store.inner().snapshot().count(Operation::Get);
        assert_eq!((read.calls, read.failures), (1, 1), "{read:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_taken_name_at_the_first_attempt_is_not_read_back() {
        let memory = Memory::new();
        memory.put_new(&key(), "same".into()).await.unwrap();
        let store = retrying(&memory, Fault::None);
        assert!(store.put_new(&key(), "same".into()).await.unwrap_err().is_already_exists());
        assert_eq!(store.inner().calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_read_back_is_known_by_its_length() {
        for why in [StorageErrorKind::PermissionDenied, StorageErrorKind::Archived] {
            for (there, ours) in [(None, true), (Some("theirs"), false)] {
                let memory = Memory::new();
                let fault = match there {
                    Some(body) => {
                        memory.put_new(&key(), body.into()).await.unwrap();
                        Fault::Once(1)
                    }
                    None => Fault::LostResponse(1),
                };
                let store = Faulty::new(Unreadable { memory, why }, fault);
                let put = Retrying::new(store, RetryPolicy::default()).put_new(&key(), "ours".into()).await;
                assert_eq!(put.is_ok(), ours, "{why:?}: {put:?}");
                assert!(put.err().is_none_or(|error| error.is_already_exists()), "{why:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_the_longest_and_attempts_are_bounded() {
        let policy = RetryPolicy {
            attempts: 5,
            first_delay: Duration::from_secs(1),
            max_delay: Duration::from_secs(3),
        };
        let store = Retrying::new(Faulty::new(Memory::new(), Fault::FromThenOn(1)), policy);
        let start = tokio::time::Instant::now();
        let error = store.get(&key()).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Unavailable);
        assert_eq!(store.inner().calls(), 5);
        assert_eq!(start.elapsed().as_secs(), 1 + 2 + 3 + 3);

        for (random, millis) in [(0, 4500), (1 << 63, 6750)] {
            let faulty = Faulty::new(Memory::new(), Fault::FromThenOn(1));
            let store = Retrying::new(faulty, policy).with_jitter(move || random);
            let start = tokio::time::Instant::now();
            store.delete(&key()).await.unwrap_err();
            assert_eq!(start.elapsed().as_millis(), millis);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn errors_that_stay_are_passed_on_at_once() {
        let store = retrying(&Memory::new(), Fault::None);
        assert!(store.get(&key()).await.unwrap_err().is_not_found());
        assert_eq!(store.inner().calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn every_operation_survives_one_failure() {
        for fault in [Fault::Once(1), Fault::LostResponse(1)] {
            let memory = Memory::new();
            memory.put_new(&key(), "bytes".into()).await.unwrap();
            assert_eq!(retrying(&memory, fault).get(&key()).await.unwrap(), "bytes");
            assert_eq!(retrying(&memory, fault).get_range(&key(), 1..3).await.unwrap(), "yt");
            assert_eq!(retrying(&memory, fault).head(&key()).await.unwrap().size, 5);
            assert_eq!(retrying(&memory, fault).list_page("", None).await.unwrap().objects.len(), 1);
            retrying(&memory, fault).delete(&key()).await.unwrap();
            assert!(memory.is_empty());
        }
    }
}
