//! What S3 services know beyond storing objects.

mod client;
mod connect;
mod xml;

use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use md5::{Digest, Md5};

use client::{Client, Request};
pub(crate) use connect::client as connect;
use url::form_urlencoded;

use crate::control::{ARCHIVES, Answer, BucketFacts, Control, ObjectLock, ThawSpeed, Tier};
use crate::{Key, StorageError, StorageErrorKind, date};

/// What a refusal is called when the setting was never made.
const UNSET: &[&str] = &[
    "NoSuchLifecycleConfiguration",
    "NoSuchObjectLockConfiguration",
    "ObjectLockConfigurationNotFoundError",
    "ServerSideEncryptionConfigurationNotFoundError",
];

/// In which archive Intelligent-Tiering keeps an object, if it does.
const ARCHIVE_STATUS: &str = "x-amz-archive-status";

/// A legal hold has no end; this is 9999-12-31T23:59:59Z.
const FOR_EVER_SECONDS: u64 = 253_402_300_799;

#[async_trait]
impl Control for Client {
    async fn server_time(&self) -> Result<SystemTime, StorageError> {
        // A refusal carries the time as well.
        let request = Request::new("probe", Method::HEAD, None, "");
        let response = self.send(&request).await?;
        date::of_header(&response.headers, header::DATE.as_str()).ok_or_else(|| {
            StorageError::new(
                StorageErrorKind::Other,
                "probe",
                &self.bucket.name,
                "the store does not say what time it is",
            )
        })
    }

    async fn bucket(&self) -> BucketFacts {
        BucketFacts {
            versioning: self.ask("versioning", xml::versioning, None).await,
            lock: self.ask("object-lock", xml::object_lock, Some(ObjectLock::Off)).await,
            lifecycle: self.ask("lifecycle", xml::lifecycle, Some(Vec::new())).await,
            encryption: self.ask("encryption", xml::encryption, Some(None)).await,
            undelete_days: Answer::Known(0),
            clears_uploads: false,
        }
    }

    async fn overwrite(&self, key: &Key, body: Bytes) -> Result<Option<String>, StorageError> {
        let request = with_body(Request::new("put", Method::PUT, Some(key), ""), body);
        let response = self.succeed(&request).await?;
        let version = response.headers.get("x-amz-version-id").and_then(|id| id.to_str().ok());
        Ok(version.filter(|id| *id != "null").map(str::to_owned))
    }

    async fn delete_version(&self, key: &Key, version: &str) -> Result<(), StorageError> {
        let id: String = form_urlencoded::byte_serialize(version.as_bytes()).collect();
        let request = Request::new("delete", Method::DELETE, Some(key), format!("versionId={id}"));
        self.succeed(&request).await.map(drop)
    }

    async fn retained_until(&self, key: &Key) -> Result<Option<SystemTime>, StorageError> {
        if self.lock_setting("legal-hold", key, xml::legal_hold).await? == Some(true) {
            let end = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(FOR_EVER_SECONDS);
            return Ok(Some(end));
        }
        Ok(self.retention(key).await?.and_then(|(_, until)| until))
    }

    async fn retain_until(&self, key: &Key, until: SystemTime) -> Result<(), StorageError> {
        let present = self.retention(key).await?;
        if let Some((_, Some(end))) = &present
            && *end >= until
        {
            return Ok(());
        }
        let mode = match present.and_then(|(mode, _)| mode) {
            Some(mode) => mode,
            None => self.default_mode(key).await?,
        };
        let date =
            rfc3339(until).ok_or_else(|| self.nonsense("retain", key, "no such time can be written"))?;
        let body = format!(
            "<Retention xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Mode>{mode}</Mode>\
             <RetainUntilDate>{date}</RetainUntilDate></Retention>"
        );
        let request = Request::new("retain", Method::PUT, Some(key), "retention");
        self.succeed(&with_body(request, body.into())).await.map(drop)
    }

    async fn tier(&self, key: &Key) -> Result<Tier, StorageError> {
        let response = self.succeed(&Request::new("head", Method::HEAD, Some(key), "")).await?;
        Ok(tier(&response.headers))
    }

    async fn thaw(&self, key: &Key, days: u32, speed: ThawSpeed) -> Result<(), StorageError> {
        let asked = self.ask_to_thaw(key, Some(days), speed).await;
        // What Intelligent-Tiering has archived comes back for good, so that a number of days is refused.
        let refused = asked.as_ref().is_err_and(|error| error.kind == StorageErrorKind::Invalid);
        if refused && self.is_tiered(key).await.unwrap_or(false) {
            return self.ask_to_thaw(key, None, speed).await;
        }
        asked
    }
}

impl Client {
    async fn ask_to_thaw(&self, key: &Key, days: Option<u32>, speed: ThawSpeed) -> Result<(), StorageError> {
        let days = days.map_or_else(String::new, |days| format!("<Days>{days}</Days>"));
        let body = format!(
            "<RestoreRequest xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{days}\
             <GlacierJobParameters><Tier>{}</Tier></GlacierJobParameters></RestoreRequest>",
            speed.as_str()
        );
        let request = with_body(Request::new("thaw", Method::POST, Some(key), "restore"), body.into());
        let response = self.send(&request).await?;
        let on_its_way = response.status == StatusCode::CONFLICT
            && xml::refusal(&response.body).code == "RestoreAlreadyInProgress";
        if response.status.is_success() || on_its_way {
            return Ok(());
        }
        Err(self.refused(&request, &response))
    }

    /// Whether Intelligent-Tiering has archived an object, by the time that it was not read.
    async fn is_tiered(&self, key: &Key) -> Result<bool, StorageError> {
        let response = self.succeed(&Request::new("head", Method::HEAD, Some(key), "")).await?;
        Ok(response.headers.contains_key(ARCHIVE_STATUS))
    }

    /// Asks for a setting of the bucket; `unset` is what it means that it was never made.
    async fn ask<T>(
        &self,
        query: &'static str,
        read: fn(&[u8]) -> Result<T, String>,
        unset: Option<T>,
    ) -> Answer<T> {
        let request = Request::new("probe", Method::GET, None, query);
        let response = match self.send(&request).await {
            Ok(response) => response,
            Err(error) => return Answer::Unknown(error.message),
        };
        if response.status.is_success() {
            return read(&response.body).map_or_else(Answer::Unknown, Answer::Known);
        }
        let refusal = xml::refusal(&response.body);
        // A service that does not know locks cannot have any. Of other settings it may have its own.
        let no_locks = query == "object-lock"
            && matches!(response.status, StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED);
        match unset {
            Some(unset) if no_locks || UNSET.contains(&refusal.code.as_str()) => Answer::Known(unset),
            _ if response.status == StatusCode::FORBIDDEN => Answer::Denied(request.right()),
            _ => Answer::Unknown(self.refused(&request, &response).message),
        }
    }

    /// Asks for a lock of an object; `None` where there is none, also where the bucket cannot have one.
    async fn lock_setting<T>(
        &self,
        query: &'static str,
        key: &Key,
        read: fn(&[u8]) -> Result<T, String>,
    ) -> Result<Option<T>, StorageError> {
        let request = Request::new("retention", Method::GET, Some(key), query);
        let response = self.send(&request).await?;
        if response.status.is_success() {
            let setting = read(&response.body);
            return setting.map(Some).map_err(|error| self.nonsense("retention", key, &error));
        }
        let refusal = xml::refusal(&response.body);
        // `InvalidRequest`: the bucket has no object lock.
        if UNSET.contains(&refusal.code.as_str()) || refusal.code == "InvalidRequest" {
            return Ok(None);
        }
        Err(self.refused(&request, &response))
    }

    /// Mode and end of an object's retention.
    async fn retention(
        &self,
        key: &Key,
    ) -> Result<Option<(Option<String>, Option<SystemTime>)>, StorageError> {
        let Some(retention) = self.lock_setting("retention", key, xml::retention).await? else {
            return Ok(None);
        };
        let until = match &retention.retain_until_date {
            None => None,
            Some(text) => Some(
                text.parse::<jiff::Timestamp>()
                    .map_err(|error| self.nonsense("retention", key, &error.to_string()))?
                    .into(),
            ),
        };
        Ok(Some((retention.mode.filter(|mode| mode.bytes().all(|b| b.is_ascii_uppercase())), until)))
    }

    /// The mode that the bucket locks new objects in.
    async fn default_mode(&self, key: &Key) -> Result<String, StorageError> {
        match self.ask("object-lock", xml::object_lock, Some(ObjectLock::Off)).await {
            Answer::Known(ObjectLock::Default { mode, .. }) if mode == "COMPLIANCE" => Ok(mode),
            Answer::Known(ObjectLock::Off) => {
                Err(self.nonsense("retain", key, "the bucket has no object lock"))
            }
            _ => Ok("GOVERNANCE".into()),
        }
    }

    fn nonsense(&self, operation: &'static str, key: &Key, message: &str) -> StorageError {
        StorageError::new(StorageErrorKind::Invalid, operation, key, message)
    }
}

/// Adds a body, and its MD5, which services want with everything about locks.
fn with_body(mut request: Request<'_>, body: Bytes) -> Request<'_> {
    let digest = BASE64.encode(Md5::digest(&body));
    request.headers.push((HeaderName::from_static("content-md5"), digest));
    request.body = body;
    request
}

fn tier(headers: &HeaderMap) -> Tier {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let archived = text("x-amz-storage-class").is_some_and(|class| ARCHIVES.contains(&class))
        || text(ARCHIVE_STATUS).is_some();
    match text("x-amz-restore") {
        _ if !archived => Tier::Ready,
        None => Tier::Archived,
        Some(restore) if restore.contains("ongoing-request=\"true\"") => Tier::Thawing,
        Some(restore) => {
            let expiry = restore.split("expiry-date=\"").nth(1).and_then(|rest| rest.split('"').next());
            Tier::Thawed(expiry.and_then(date::parse))
        }
    }
}

fn rfc3339(time: SystemTime) -> Option<String> {
    let timestamp = jiff::Timestamp::try_from(time).ok()?;
    jiff::Timestamp::from_second(timestamp.as_second()).ok().map(|whole| whole.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_tier_follows_from_class_and_restore_state() {
        let class = ("x-amz-storage-class", "GLACIER");
        let expiry = "ongoing-request=\"false\", expiry-date=\"Sat, 21 Nov 2026 00:00:00 GMT\"";
        let until = date::parse("Sat, 21 Nov 2026 00:00:00 GMT");
        assert!(until.is_some());
        let cases: [(&[_], _); 7] = [
            (&[], Tier::Ready),
            (&[("x-amz-storage-class", "STANDARD_IA")], Tier::Ready),
            (&[("x-amz-storage-class", "GLACIER_IR")], Tier::Ready),
            (&[class], Tier::Archived),
            (&[class, ("x-amz-restore", "ongoing-request=\"true\"")], Tier::Thawing),
            (&[class, ("x-amz-restore", expiry)], Tier::Thawed(until)),
            (
                &[("x-amz-storage-class", "INTELLIGENT_TIERING"), ("x-amz-archive-status", "ARCHIVE_ACCESS")],
                Tier::Archived,
            ),
        ];
        for (given, expected) in cases {
            assert_eq!(tier(&headers(given)), expected, "{given:?}");
        }
    }

    #[test]
    fn times_are_written_in_whole_seconds() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_795_000_000_999);
        assert_eq!(rfc3339(time).as_deref(), Some("2026-11-18T11:06:40Z"));
        let date = headers(&[("date", "Wed, 18 Nov 2026 11:06:40 GMT")]);
        let parsed = date::of_header(&date, "date").unwrap();
        assert_eq!(rfc3339(parsed).as_deref(), Some("2026-11-18T11:06:40Z"));
    }
}
