//! Signed requests to an S3 service, for what OpenDAL has no call for.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, Method};
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::ProvideCredential;
use url::Url;

use super::xml;
use crate::remote::failure::Site;
use crate::remote::transport::Http;
use crate::signed::{Link, Response, may_pass};
use crate::{Key, StorageError, StorageErrorKind};

/// Where the requests go.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    /// The bucket's URL, with the bucket in its host or its path, ending in `/`.
    pub(crate) url: Url,
    /// Its name, for messages.
    pub(crate) name: String,
    /// What every key begins with; empty, or ending in `/`.
    pub(crate) prefix: String,
    /// The region that requests are signed for.
    pub(crate) region: String,
}

/// Sends signed requests to one bucket.
pub(crate) struct Client {
    link: Link<Credential>,
    pub(super) bucket: Bucket,
}

/// A request: the key and the sub-resource that it is about, and what goes with it.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) operation: &'static str,
    pub(super) method: Method,
    pub(super) key: Option<&'a Key>,
    pub(super) query: Cow<'static, str>,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Bytes,
}

impl<'a> Request<'a> {
    pub(super) fn new(
        operation: &'static str,
        method: Method,
        key: Option<&'a Key>,
        query: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { operation, method, key, query: query.into(), headers: Vec::new(), body: Bytes::new() }
    }
}

impl Request<'_> {
    /// The right that it takes.
    pub(super) fn right(&self) -> &'static str {
        match (&self.method, &*self.query, self.key) {
            (_, "versioning", _) => "s3:GetBucketVersioning",
            (_, "object-lock", _) => "s3:GetBucketObjectLockConfiguration",
            (_, "lifecycle", _) => "s3:GetLifecycleConfiguration",
            (_, "encryption", _) => "s3:GetEncryptionConfiguration",
            (_, "legal-hold", _) => "s3:GetObjectLegalHold",
            (_, "restore", _) => "s3:RestoreObject",
            (&Method::PUT, "retention", _) => "s3:PutObjectRetention",
            (_, "retention", _) => "s3:GetObjectRetention",
            (&Method::PUT, ..) => "s3:PutObject",
            (&Method::DELETE, "", _) => "s3:DeleteObject",
            (&Method::DELETE, ..) => "s3:DeleteObjectVersion",
            (_, _, None) => "s3:ListBucket",
            (_, _, Some(_)) => "s3:GetObject",
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(
        http: Http,
        timeout: Duration,
        bucket: Bucket,
        credentials: impl ProvideCredential<Credential = Credential>,
    ) -> Self {
        let link = Link::new(http, timeout, credentials, RequestSigner::new("s3", &bucket.region));
        Self { link, bucket }
    }

    /// Sends a request, several times if need be; whatever the service answers in the end is an answer.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, StorageError> {
        let subject = self.subject(request.key);
        let mut builder =
            http::Request::builder().method(request.method.clone()).uri(self.url(request).as_str());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        let wire = builder.body(request.body.clone()).map_err(|error| {
            let message = "no such request can be made";
            StorageError::new(StorageErrorKind::Invalid, request.operation, &subject, message)
                .with_source(error)
        })?;
        self.link.send(request.operation, &subject, &wire).await
    }

    /// Sends a request whose answer must be a success.
    pub(super) async fn succeed(&self, request: &Request<'_>) -> Result<Response, StorageError> {
        let response = self.send(request).await?;
        if response.status.is_success() {
            return Ok(response);
        }
        Err(self.refused(request, &response))
    }

    /// The error that an answer means.
    pub(super) fn refused(&self, request: &Request<'_>, response: &Response) -> StorageError {
        let refusal = xml::refusal(&response.body);
        let site = Site::s3(
            &self.bucket.name,
            &self.bucket.prefix,
            self.bucket.url.host_str().unwrap_or("the store"),
            &self.bucket.region,
        );
        let said = (response.status.as_u16(), refusal.code.as_str(), refusal.message.as_str());
        if let Some(error) = site.refusal(request.operation, request.key, request.right(), said) {
            return error;
        }
        let kind = match response.status.as_u16() {
            404 => StorageErrorKind::NotFound,
            409 | 412 if refusal.code == "PreconditionFailed" => StorageErrorKind::AlreadyExists,
            429 => StorageErrorKind::Throttled,
            status if may_pass(response.status) || status == 503 => StorageErrorKind::Unavailable,
            400 | 405 | 409 | 501 => StorageErrorKind::Invalid,
            _ => StorageErrorKind::Other,
        };
        let said = match (refusal.code.as_str(), refusal.message.as_str()) {
            ("", _) => String::new(),
            (code, "") => format!(" ({code})"),
            (code, message) => format!(" ({code}: {})", message.escape_debug()),
        };
        let message = format!("the bucket `{}` answered {}{said}", self.bucket.name, response.status);
        StorageError::new(kind, request.operation, self.subject(request.key), message)
    }

    fn subject(&self, key: Option<&Key>) -> String {
        key.map_or_else(|| format!("s3://{}", self.bucket.name), ToString::to_string)
    }

    fn url(&self, request: &Request<'_>) -> Url {
        let mut url = self.bucket.url.clone();
        if let Some(key) = request.key {
            let path = format!("{}{key}", self.bucket.prefix);
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty().extend(path.split('/'));
            }
        } else if !request.query.is_empty() && url.path() != "/" {
            // `/bucket?lifecycle`; not every server takes `/bucket/?lifecycle`.
            if let Ok(mut segments) = url.path_segments_mut() {
                segments.pop_if_empty();
            }
        }
        url.set_query(Some(&*request.query).filter(|query| !query.is_empty()));
        url
    }
}
