//! What GCS and Azure tell and do beyond storing objects.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use opendal::Operator;
use opendal::options::{ReadOptions, WriteOptions};
use url::Url;

use super::Service;
use super::failure::Site;
use crate::control::{Answer, BucketFacts, Control, ThawSpeed, Tier};
use crate::{Key, StorageError, StorageErrorKind, date};

/// Attempts at what may fail for a moment.
const ATTEMPTS: u32 = 4;
/// The pause after the first of them; it doubles. GCS wants a second between two writes of one object.
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// The requests of a store whose service has no locks for single objects.
pub(super) struct CloudControl {
    pub(super) operator: Operator,
    pub(super) site: Site,
    /// Longest wait for an answer.
    pub(super) timeout: Duration,
    pub(super) http: super::transport::Http,
    /// The service's own URL, which anybody may ask for the time.
    pub(super) url: String,
    #[cfg(feature = "gcs")]
    pub(super) bucket: Option<crate::gcs::Client>,
}

impl fmt::Debug for CloudControl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("CloudControl").field("site", &self.site).finish_non_exhaustive()
    }
}

impl CloudControl {
    async fn limited<T>(
        &self,
        operation: &'static str,
        key: &Key,
        call: impl Future<Output = opendal::Result<T>>,
    ) -> Result<T, StorageError> {
        match tokio::time::timeout(self.timeout, call).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(self.site.failure(operation, key.as_str(), &error)),
            Err(_) => Err(self.site.timed_out(operation, key.as_str(), self.timeout.as_secs())),
        }
    }

    /// The same, several times if need be.
    async fn repeated<T, F: Future<Output = opendal::Result<T>>>(
        &self,
        operation: &'static str,
        key: &Key,
        call: impl Fn() -> F,
    ) -> Result<T, StorageError> {
        let mut delay = FIRST_DELAY;
        for attempt in 1.. {
            match self.limited(operation, key, call()).await {
                Err(error) if error.is_retryable() && attempt < ATTEMPTS => {
                    tokio::time::sleep(delay).await;
                    delay *= 2;
                }
                done => return done,
            }
        }
        unreachable!("the last attempt returns")
    }

    /// There is no such request here.
    fn unknown(operation: &'static str, key: &Key, what: &str) -> StorageError {
        StorageError::new(StorageErrorKind::Invalid, operation, key, format!("the store has no {what}"))
    }
}

#[async_trait]
impl Control for CloudControl {
    async fn server_time(&self) -> Result<SystemTime, StorageError> {
        let failed = |kind, message: &str| StorageError::new(kind, "probe", &self.site.server, message);
        let url = Url::parse(&self.url)
            .map_err(|error| failed(StorageErrorKind::Invalid, "its address is no URL").with_source(error))?;
        let mut request = reqwest::Request::new(http::Method::HEAD, url);
        *request.timeout_mut() = Some(self.timeout);
        // A refusal carries the time as well.
        let answer = self.http.execute(request).await.map_err(|error| {
            failed(StorageErrorKind::Unavailable, "the store could not be reached").with_source(error)
        })?;
        date::of_header(answer.headers(), http::header::DATE.as_str())
            .ok_or_else(|| failed(StorageErrorKind::Other, "the store does not say what time it is"))
    }

    async fn bucket(&self) -> BucketFacts {
        #[cfg(feature = "gcs")]
        if let Some(bucket) = &self.bucket {
            return bucket.facts().await;
        }
        elsewhere()
    }

    async fn overwrite(&self, key: &Key, body: Bytes) -> Result<Option<String>, StorageError> {
        let write = || {
            let options = WriteOptions {
                content_type: Some("application/octet-stream".into()),
                ..WriteOptions::default()
            };
            self.operator.write_options(key.as_str(), body.clone(), options)
        };
        self.repeated("put", key, write).await.map(|_| None)
    }

    async fn delete_version(&self, key: &Key, _: &str) -> Result<(), StorageError> {
        Err(Self::unknown("delete", key, "request here that deletes a version"))
    }

    fn locks_objects(&self) -> bool {
        false
    }

    async fn retained_until(&self, key: &Key) -> Result<Option<SystemTime>, StorageError> {
        Err(Self::unknown("retention", key, "locks for single objects"))
    }

    async fn retain_until(&self, key: &Key, _: SystemTime) -> Result<(), StorageError> {
        Err(Self::unknown("retain", key, "locks for single objects"))
    }

    async fn tier(&self, key: &Key) -> Result<Tier, StorageError> {
        if self.site.service == Service::Gcs {
            return Ok(Tier::Ready); // whatever the class
        }
        let read = || {
            let byte = ReadOptions { range: (0_u64..1).into(), ..ReadOptions::default() };
            self.operator.read_options(key.as_str(), byte)
        };
        match self.repeated("get range", key, read).await {
            Ok(_) => Ok(Tier::Ready),
            Err(error) if error.kind == StorageErrorKind::OutOfRange => Ok(Tier::Ready),
            Err(error) if error.kind == StorageErrorKind::Archived => Ok(Tier::Archived),
            Err(error) => Err(error),
        }
    }

    async fn thaw(&self, key: &Key, _: u32, _: ThawSpeed) -> Result<(), StorageError> {
        Err(Self::unknown("thaw", key, "request that thaws an object"))
    }
}

/// Azure answers these questions in its management interface, for which a store's credentials are not made.
fn elsewhere() -> BucketFacts {
    fn ask<T>(command: &str) -> Answer<T> {
        Answer::Unknown(format!(
            "Azure does not tell it to whoever stores objects; ask `az storage {command}`"
        ))
    }
    BucketFacts {
        versioning: ask("account blob-service-properties show"),
        lock: ask("container immutability-policy show"),
        lifecycle: ask("account management-policy show"),
        // Azure encrypts everything, and knows no other state.
        encryption: Answer::Known(Some("AES256".into())),
        undelete_days: ask("account blob-service-properties show"),
        clears_uploads: true,
    }
}

#[cfg(all(test, feature = "azblob"))]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use crate::remote::test_server::{answer, serve};
    use crate::{ConnectOptions, Credentials, Location, Purpose, Tier, connect};

    #[tokio::test]
    async fn a_store_that_does_not_answer_for_a_moment_is_asked_again() {
        let asked = AtomicUsize::new(0);
        let (endpoint, heads) = serve(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
            0 => answer("503 Service Unavailable", "", ""),
            _ => answer("206 Partial Content", "content-range: bytes 0-0/5\r\n", "x"),
        });
        let place = format!("azblob://box/p?account=acme&endpoint={endpoint}");
        let location: Location = place.parse().unwrap();
        let credentials = Credentials { sas_token: Some("sv=1&sig=x".into()), ..Credentials::default() };
        let options = ConnectOptions { credentials, ..ConnectOptions::default() };
        let store = connect(&location, &options, Purpose::Open).await.unwrap();
        let tier = store.control().unwrap().tier(&"data/x".parse().unwrap()).await;
        assert_eq!(tier.unwrap(), Tier::Ready);
        assert_eq!(heads.lock().unwrap().len(), 2);
    }
}
