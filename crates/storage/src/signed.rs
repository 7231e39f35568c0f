//! Signed requests to what a service knows beyond objects, for which OpenDAL has no call.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use reqsign_core::{Context, HttpSend, OsEnv, ProvideCredential, SignRequest, Signer, SigningCredential};
use reqsign_file_read_tokio::TokioFileRead;

use crate::remote::transport::{Http, NoAnswer, PLAIN_HTTP_HINT};
use crate::{StorageError, StorageErrorKind};

/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Attempts at a request whose failure may pass.
const ATTEMPTS: u32 = 4;
/// The pause after the first of them; it doubles.
const FIRST_DELAY: Duration = Duration::from_millis(200);

/// Signs requests, and sends them.
pub(crate) struct Link<C: SigningCredential> {
    http: Http,
    /// Longest wait for a whole answer.
    timeout: Duration,
    signer: Signer<C>,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl<C: SigningCredential> Link<C> {
    pub(crate) fn new(
        http: Http,
        timeout: Duration,
        credentials: impl ProvideCredential<Credential = C>,
        signer: impl SignRequest<Credential = C>,
    ) -> Self {
        let context =
            Context::new().with_file_read(TokioFileRead).with_http_send(Sender(http.clone())).with_env(OsEnv);
        Self { http, timeout, signer: Signer::new(context, credentials, signer) }
    }

    /// Sends a request, several times if need be; whatever the service answers in the end is an answer.
    ///
    /// `operation` and `subject` are for the message of a failure.
    pub(crate) async fn send(
        &self,
        operation: &'static str,
        subject: &str,
        request: &Request<Bytes>,
    ) -> Result<Response, StorageError> {
        let mut delay = FIRST_DELAY;
        for attempt in 1.. {
            let result = self.send_once(operation, subject, request).await;
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

    async fn send_once(
        &self,
        operation: &'static str,
        subject: &str,
        request: &Request<Bytes>,
    ) -> Result<Response, StorageError> {
        let failed = |kind, message: &str, source: Box<dyn std::error::Error + Send + Sync>| {
            StorageError::new(kind, operation, subject, message).with_source(source)
        };
        let (mut parts, body) = request.clone().into_parts();
        // It may ask a service of the machine or the cloud for credentials.
        let signing = tokio::time::timeout(self.timeout, self.signer.sign(&mut parts, None));
        let signed = signing.await.map_err(|late| {
            failed(StorageErrorKind::Unavailable, "nobody handed out credentials in time", late.into())
        })?;
        signed.map_err(|error| {
            let kind = if error.is_retryable() {
                StorageErrorKind::Unavailable
            } else {
                StorageErrorKind::PermissionDenied
            };
            failed(kind, "no credentials to sign the request with", error.into())
        })?;
        let lost = |error: NoAnswer| match error {
            NoAnswer::Plain(plain) => {
                let message = plain.to_string();
                failed(StorageErrorKind::Invalid, &message, plain.into()).with_hint(PLAIN_HTTP_HINT)
            }
            NoAnswer::Lost(error) => {
                failed(StorageErrorKind::Unavailable, "the store could not be reached", error.into())
            }
        };
        let made = reqwest::Request::try_from(Request::from_parts(parts, body));
        let mut signed = made.map_err(|error| lost(error.into()))?;
        *signed.timeout_mut() = Some(self.timeout);
        let answer = self.http.execute(signed).await.map_err(lost)?;
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = read_bounded(answer).await.map_err(|error| lost(error.into()))?;
        Ok(Response { status, headers, body })
    }
}

/// Whether a request that is answered so may succeed a little later.
pub(crate) fn may_pass(status: StatusCode) -> bool {
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
struct Sender(Http);

impl fmt::Debug for Sender {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Sender")
    }
}

impl HttpSend for Sender {
    async fn http_send(&self, request: Request<Bytes>) -> reqsign_core::Result<http::Response<Bytes>> {
        let failed = |error: NoAnswer| {
            reqsign_core::Error::unexpected("the credential service did not answer").with_source(error)
        };
        let request = request.try_into().map_err(|error: reqwest::Error| failed(error.into()))?;
        let answer = self.0.execute(request).await.map_err(failed)?;
        let mut response = http::Response::builder().status(answer.status());
        if let Some(headers) = response.headers_mut() {
            *headers = answer.headers().clone();
        }
        let body = read_bounded(answer).await.map_err(|error| failed(error.into()))?;
        response
            .body(body)
            .map_err(|_| reqsign_core::Error::unexpected("the credential service answered nonsense"))
    }
}
