//! Signed requests to an S3 service, for what OpenDAL has no call for.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, StatusCode};
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::{Context, HttpSend, OsEnv, ProvideCredential, Signer};
use reqsign_file_read_tokio::TokioFileRead;
use url::Url;

use super::xml;
use crate::{Key, StorageError, StorageErrorKind};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Attempts at a request whose failure may pass.
const ATTEMPTS: u32 = 4;
/// The pause after the first of them; it doubles.
const FIRST_DELAY: Duration = Duration::from_millis(200);

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
    http: reqwest::Client,
    /// Longest wait for a whole answer.
    timeout: Duration,
    signer: Signer<Credential>,
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

/// What came back.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Client").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(
        http: reqwest::Client,
        timeout: Duration,
        bucket: Bucket,
        credentials: impl ProvideCredential<Credential = Credential>,
    ) -> Self {
        let context =
            Context::new().with_file_read(TokioFileRead).with_http_send(Sender(http.clone())).with_env(OsEnv);
        let signer = Signer::new(context, credentials, RequestSigner::new("s3", &bucket.region));
        Self { http, timeout, signer, bucket }
    }

    /// Sends a request, several times if need be; whatever the service answers in the end is an answer.
    pub(super) async fn send(&self, request: &Request<'_>) -> Result<Response, StorageError> {
        let mut delay = FIRST_DELAY;
        for attempt in 1.. {
            let result = self.send_once(request).await;
            let passes = match &result {
                Ok(response) => may_pass(response.status),
                Err(error) => error.is_retryable(),
            };
            if !passes || attempt == ATTEMPTS {
                return result;
            }
            tokio::time::sleep(delay).await;
            delay *= 2;
        }
        unreachable!("the last attempt returns")
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
        let kind = match response.status.as_u16() {
            401 | 403 => StorageErrorKind::PermissionDenied,
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
        let subject = self.subject(request.key);
        StorageError::new(
            kind,
            request.operation,
            subject,
            format!("the store answered {}{said}", response.status),
        )
    }

    fn subject(&self, key: Option<&Key>) -> String {
        key.map_or_else(|| format!("s3://{}", self.bucket.name), ToString::to_string)
    }

    async fn send_once(&self, request: &Request<'_>) -> Result<Response, StorageError> {
        let failed = |kind, message: &str, source: Box<dyn std::error::Error + Send + Sync>| {
            StorageError::new(kind, request.operation, self.subject(request.key), message).with_source(source)
        };
        let mut builder =
            http::Request::builder().method(request.method.clone()).uri(self.url(request).as_str());
        for (name, value) in &request.headers {
            builder = builder.header(name, value);
        }
        let (mut parts, ()) = builder
            .body(())
            .map_err(|error| failed(StorageErrorKind::Invalid, "no such request can be made", error.into()))?
            .into_parts();
        self.signer.sign(&mut parts, None).await.map_err(|error| {
            let kind = if error.is_retryable() {
                StorageErrorKind::Unavailable
            } else {
                StorageErrorKind::PermissionDenied
            };
            failed(kind, "no credentials to sign the request with", error.into())
        })?;
        let signed = http::Request::from_parts(parts, request.body.clone());
        let lost = |error: reqwest::Error| {
            // Without the URL, which may hold more than a message should.
            failed(
                StorageErrorKind::Unavailable,
                "the store could not be reached",
                error.without_url().into(),
            )
        };
        let mut signed: reqwest::Request = signed.try_into().map_err(lost)?;
        *signed.timeout_mut() = Some(self.timeout);
        let answer = self.http.execute(signed).await.map_err(lost)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = read_bounded(answer).await.map_err(lost)?;
        Ok(Response { status, headers, body })
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

fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// Reads the beginning of an answer; what is longer than we ever expect is cut, and then does not parse.
async fn read_bounded(mut answer: reqwest::Response) -> Result<Bytes, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        let room = ANSWER_BYTES_MAX - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if chunk.len() > room {
            break;
        }
    }
    Ok(body.into())
}

/// Lets credential providers ask metadata and token services.
#[derive(Clone)]
struct Sender(reqwest::Client);

impl fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sender")
    }
}

impl HttpSend for Sender {
    async fn http_send(&self, request: http::Request<Bytes>) -> reqsign_core::Result<http::Response<Bytes>> {
        let failed = |error: reqwest::Error| {
            reqsign_core::Error::unexpected("the credential service did not answer")
                .with_source(error.without_url())
        };
        let answer = self.0.execute(request.try_into().map_err(failed)?).await.map_err(failed)?;
        let mut response = http::Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            *headers = answer.headers().clone();
        }
        let body = read_bounded(answer).await.map_err(failed)?;
        response
            .body(body)
            .map_err(|_| reqsign_core::Error::unexpected("the credential service answered nonsense"))
    }
}
