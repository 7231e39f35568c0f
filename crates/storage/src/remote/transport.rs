//! How requests reach a store: TLS, proxies, redirects, and bounds on what comes back.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use http::{Method, Request, Response};
use opendal::{Buffer, Error, ErrorKind, HttpBody, HttpTransport, HttpTransporter};
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::{Certificate, redirect, tls};
use url::{Host, Url};

use crate::location::{Settings, TlsVersion};
use crate::{StorageError, StorageErrorKind};

/// Most bytes of an answer that says what went wrong.
const ERROR_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of an answer that is neither that nor an object: a page of a listing has less than 2 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const REDIRECTS_MAX: usize = 5;
/// Parts of the query of a request that asks for names, not for an object.
const LISTING_WORDS: &[&str] = &["list-type=", "comp=list", "prefix=", "delimiter=", "maxResults="];

/// The transport of one store.
pub(super) fn transport(client: reqwest::Client) -> HttpTransporter {
    HttpTransporter::new(Bounded(ReqwestTransport::new(client)))
}

/// The connections of one store.
pub(super) fn client(
    settings: &Settings,
    ambient: bool,
    timeout: Duration,
) -> Result<reqwest::Client, StorageError> {
    let version = match settings.tls_min {
        Some(TlsVersion::Tls13) => tls::Version::TLS_1_3,
        Some(TlsVersion::Tls12) | None => tls::Version::TLS_1_2,
    };
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("keepwell/", env!("CARGO_PKG_VERSION")))
        .tls_version_min(version)
        .redirect(redirect::Policy::custom(follow))
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .tcp_user_timeout(timeout) // a peer that died while we send: nothing else notices for a quarter of an hour
        .tcp_nodelay(true);
    if !ambient {
        builder = builder.no_proxy();
    }
    if let Some(file) = &settings.ca_file {
        builder = builder.tls_certs_merge(certificates(file)?);
    }
    builder.build().map_err(|error| invalid("the connection cannot be set up", &error))
}

/// Refuses plain http, but to this host, or if it was asked for.
pub(super) fn check_protocol(url: &str, settings: &Settings) -> Result<Url, StorageError> {
    let parsed = Url::parse(url).map_err(|error| invalid(&format!("`{url}` is no URL"), &error))?;
    let is_loopback = match parsed.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => IpAddr::V4(address).is_loopback(),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).is_loopback(),
        None => false,
    };
    match parsed.scheme() {
        "https" => Ok(parsed),
        "http" if is_loopback || settings.allow_http == Some(true) => Ok(parsed),
        "http" => Err(StorageError::new(StorageErrorKind::Invalid, "open", url, "plain http is refused")
            .with_hint("Use https. Where the network itself is safe, say `allow-http=true`.")),
        other => {
            let message = format!("`{other}` is neither https nor http");
            Err(StorageError::new(StorageErrorKind::Invalid, "open", url, message))
        }
    }
}

fn certificates(file: &Path) -> Result<Vec<Certificate>, StorageError> {
    let shown = file.display();
    let fail = |why: &dyn std::fmt::Display| {
        let message = format!("the certificates in it cannot be used: {why}");
        StorageError::new(StorageErrorKind::Invalid, "open", &shown, message)
    };
    let pem = fs::read(file).map_err(|error| fail(&error))?;
    let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| fail(&error))?;
    if certificates.is_empty() { Err(fail(&"there is none in PEM form")) } else { Ok(certificates) }
}

fn invalid(message: &str, error: &dyn std::error::Error) -> StorageError {
    StorageError::new(StorageErrorKind::Invalid, "open", "the store", format!("{message}: {error}"))
}

/// Follows a few redirects, never from https to http.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let was_safe = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_safe && attempt.url().scheme() != "https" {
        return attempt.error("the server redirects from https to http");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("the server redirects too often");
    }
    attempt.follow()
}

/// Bounds what a server can make us hold in memory. Objects are bounded by who reads them.
struct Bounded(ReqwestTransport);

impl HttpTransport for Bounded {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let is_object = asks_for_object(&request);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.0.fetch(request).await?;
        let status = response.status();
        tracing::trace!(%method, %path, status = status.as_u16(), "request");
        let limit = match (status.is_success(), is_object) {
            (false, _) => ERROR_BYTES_MAX,
            (true, true) => return Ok(response),
            (true, false) => ANSWER_BYTES_MAX,
        };
        Ok(response.map(|body| bounded(body, limit)))
    }
}

fn asks_for_object(request: &Request<Buffer>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() == Method::GET && !LISTING_WORDS.iter().any(|word| query.contains(word))
}

fn bounded(body: HttpBody, limit: u64) -> HttpBody {
    body.map_inner(|stream| {
        let mut seen = 0;
        Box::new(stream.map(move |piece| {
            let piece = piece?;
            seen += piece.len() as u64;
            if seen > limit {
                return Err(Error::new(ErrorKind::Unexpected, "the answer of the server is far too long"));
            }
            Ok(piece)
        }))
    })
}
