//! How requests reach a store: TLS, proxies, redirects, and bounds on what comes back.

use std::fs;
use std::net::Ipv6Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use opendal::{Buffer, Error, ErrorKind, HttpBody, HttpRedirect, HttpTransport, HttpTransporter};
use opendal_http_transport_reqwest::ReqwestTransport;
use reqwest::{Certificate, redirect, tls};
use tokio::time::Instant;
use url::{Host, Url};

use crate::location::{Settings, TlsVersion};
use crate::{StorageError, StorageErrorKind, date};

/// Most bytes of an answer that says what went wrong.
const ERROR_BYTES_MAX: u64 = 1 << 20;
/// Most bytes of an answer that is neither that nor an object: a page of a listing has less than 2 MiB.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// The elements that listings in XML are in, of buckets, of Azure and of WebDAV.
const LISTINGS: [&str; 3] = ["ListBucketResult", "EnumerationResults", "multistatus"];
/// Bytes of an answer that its outermost element is looked for in.
const ROOT_BYTES: usize = 16 << 10;
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const REDIRECTS_MAX: usize = 5;
/// Where Amazon hands out credentials to a machine and to a container.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)];
/// Parts of the query of a request that asks for names, not for an object.
const LISTING_WORDS: &[&str] = &["list-type=", "comp=list", "prefix=", "delimiter=", "maxResults="];

/// What to do about [`PlainHttp`].
pub(crate) const PLAIN_HTTP_HINT: &str = "Use https. Where the network itself is safe, say `allow-http=true`. What is not in the location comes from a variable \
     such as `AWS_ENDPOINT_URL`, from the files of the vendor's tools, or from a server that redirects.";

/// The transport of one store.
pub(super) fn transport(http: Http) -> HttpTransporter {
    HttpTransporter::new(Bounded { inner: ReqwestTransport::new(http.client.clone()), http })
}

/// A request that would go over plain http to another machine, which nobody allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("plain http to `{host}` is refused")]
pub(crate) struct PlainHttp {
    host: String,
}

impl PlainHttp {
    fn to(url: &Url) -> Self {
        Self { host: url.host_str().unwrap_or_default().to_owned() }
    }

    /// Whether that is what a text says that was made of such an error.
    pub(super) fn is_said_by(text: &str) -> bool {
        text.contains("plain http to `")
    }
}

/// The connections of one store. Whatever configured an address, nothing goes over plain http to another machine unless
/// `allow-http` was given.
#[derive(Clone)]
pub(crate) struct Http {
    client: reqwest::Client,
    allow_http: bool,
    gate: Arc<Gate>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoAnswer {
    /// The request was not sent, or not to where the server redirected it.
    #[error(transparent)]
    Plain(#[from] PlainHttp),
    /// The network. The message has no URL, which may hold more than a message should.
    #[error("{0}")]
    Lost(#[source] reqwest::Error),
}

impl From<reqwest::Error> for NoAnswer {
    fn from(error: reqwest::Error) -> Self {
        let mut cause = std::error::Error::source(&error);
        while let Some(deeper) = cause {
            if let Some(plain) = deeper.downcast_ref::<PlainHttp>() {
                return Self::Plain(plain.clone());
            }
            cause = deeper.source();
        }
        Self::Lost(error.without_url())
    }
}

impl Http {
    #[cfg(any(feature = "s3", feature = "gcs", feature = "azblob"))]
    pub(crate) async fn execute(&self, request: reqwest::Request) -> Result<reqwest::Response, NoAnswer> {
        check_plain(request.url(), self.allow_http)?;
        self.gate.pass().await;
        let response = self.client.execute(request).await?;
        self.gate.heed(response.status(), response.headers());
        Ok(response)
    }
}

/// The connections of one store.
pub(super) fn client(settings: &Settings, ambient: bool, timeout: Duration) -> Result<Http, StorageError> {
    let allow_http = settings.allow_http == Some(true);
    let version = match settings.tls_min {
        Some(TlsVersion::Tls13) => tls::Version::TLS_1_3,
        Some(TlsVersion::Tls12) | None => tls::Version::TLS_1_2,
    };
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("keepwell/", env!("CARGO_PKG_VERSION")))
        .tls_version_min(version)
        .redirect(redirect::Policy::custom(move |attempt| follow(attempt, allow_http)))
        .referer(false) // the address that was asked may hold a shared access signature
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .tcp_user_timeout(timeout) // a peer that died while we send: nothing else notices for a quarter of an hour
        .tcp_nodelay(true);
    if !ambient {
        builder = builder.no_proxy();
    }
    if let Some(file) = &settings.ca_file {
        builder = builder.tls_certs_merge(certificates(file)?);
    }
    let client = builder.build().map_err(|error| invalid("the connection cannot be set up", &error))?;
    let gate = Gate { longest: timeout / 2, opens: Mutex::default() };
    Ok(Http { client, allow_http, gate: Arc::new(gate) })
}

/// Refuses plain http, but to this host, or if it was asked for.
pub(super) fn check_protocol(url: &str, settings: &Settings) -> Result<Url, StorageError> {
    let parsed = Url::parse(url).map_err(|error| invalid(&format!("`{url}` is no URL"), &error))?;
    if !parsed.username().is_empty() || parsed.password().is_some() {
        let message = "its address holds a user or a password, and addresses are shown and logged";
        return Err(StorageError::new(StorageErrorKind::Invalid, "open", "the store", message)
            .with_hint("Put them into the table `credentials`."));
    }
    match parsed.scheme() {
        "https" => Ok(parsed),
        "http" if settings.allow_http == Some(true) || is_here(&parsed) => Ok(parsed),
        "http" => {
            let plain = PlainHttp::to(&parsed).to_string();
            Err(StorageError::new(StorageErrorKind::Invalid, "open", url, plain).with_hint(PLAIN_HTTP_HINT))
        }
        other => {
            let message = format!("`{other}` is neither https nor http");
            Err(StorageError::new(StorageErrorKind::Invalid, "open", url, message))
        }
    }
}

/// Refuses plain http to another machine. The services that hand out credentials to a virtual machine or a container are
/// not another machine: they speak nothing else, at addresses that no router passes on. They are no store.
fn check_plain(url: &Url, allow_http: bool) -> Result<(), PlainHttp> {
    if url.scheme() != "http" || allow_http || is_here(url) || hands_out_credentials(url) {
        return Ok(());
    }
    Err(PlainHttp::to(url))
}

fn is_here(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.to_canonical().is_loopback(),
        None => false,
    }
}

fn hands_out_credentials(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.trim_end_matches('.') == "metadata.google.internal",
        Some(Host::Ipv4(address)) => address.is_link_local(),
        Some(Host::Ipv6(address)) => METADATA_V6.contains(&address),
        None => false,
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

/// Follows a few redirects, never from https to http, nor to another machine over plain http.
fn follow(attempt: redirect::Attempt<'_>, allow_http: bool) -> redirect::Action {
    let was_safe = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if was_safe && attempt.url().scheme() != "https" {
        return attempt.error("the server redirects from https to http");
    }
    if let Err(plain) = check_plain(attempt.url(), allow_http) {
        return attempt.error(plain);
    }
    // It means "now fetch that page", whatever was asked: one that says "log in" would be taken for the success of an upload.
    if attempt.status() == StatusCode::SEE_OTHER {
        return attempt.error("the server leads to a page instead of answering (HTTP 303)");
    }
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("the server redirects too often");
    }
    attempt.follow()
}

/// Bounds what a server can make us hold in memory, and where requests go. Objects are bounded by who reads them.
struct Bounded {
    inner: ReqwestTransport,
    http: Http,
}

/// Holds all requests to a store back while it asks for that with `Retry-After`.
struct Gate {
    /// The longest pause that is heeded: it counts against the time that a request may take.
    longest: Duration,
    opens: Mutex<Option<Instant>>,
}

impl Gate {
    async fn pass(&self) {
        let opens = *self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opens) = opens {
            tokio::time::sleep_until(opens).await;
        }
    }

    fn heed(&self, status: StatusCode, headers: &HeaderMap) {
        if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            return;
        }
        let Some(pause) = pause_asked(headers) else { return };
        let opens = Instant::now() + pause.min(self.longest);
        let mut latest = self.opens.lock().unwrap_or_else(PoisonError::into_inner);
        *latest = Some(latest.map_or(opens, |before| before.max(opens)));
    }
}

/// How long a store wants to be left alone: in seconds, or until a date, which is counted from the date of its answer, since
/// its clock may not be ours.
fn pause_asked(headers: &HeaderMap) -> Option<Duration> {
    let asked = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = asked.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let answered = date::of_header(headers, header::DATE.as_str())?;
    date::parse(asked)?.duration_since(answered).ok()
}

impl Bounded {
    fn check(&self, request: &Request<Buffer>) -> opendal::Result<()> {
        let redirected = request.extensions().get::<HttpRedirect>();
        let targets =
            [Some(request.uri().to_string()), redirected.map(|to| to.uri().original_uri().to_owned())];
        for target in targets.into_iter().flatten() {
            // What is no URL is not sent either, and the sender says so.
            let Ok(url) = Url::parse(&target) else { continue };
            check_plain(&url, self.http.allow_http)
                .map_err(|plain| Error::new(ErrorKind::ConfigInvalid, plain.to_string()))?;
        }
        Ok(())
    }
}

impl HttpTransport for Bounded {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        self.check(&request)?;
        let is_object = asks_for_object(&request);
        let posted = (request.method() == Method::POST).then(|| request.uri().to_string());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        self.http.gate.pass().await;
        let response = self.inner.fetch(request).await?;
        if posted.is_some_and(|url| is_from_elsewhere(&url, &response)) {
            return Err(Error::new(ErrorKind::Unexpected, "the server leads to a page instead of answering"));
        }
        let status = response.status();
        self.http.gate.heed(status, response.headers());
        tracing::trace!(%method, %path, status = status.as_u16(), "request");
        let limit = match (status.is_success(), is_object) {
            (false, _) => ERROR_BYTES_MAX,
            (true, true) if is_compressed(response.headers()) => {
                return Err(Error::new(ErrorKind::Unexpected, "something on the way compresses objects"));
            }
            (true, true) => return Ok(response),
            (true, false) => ANSWER_BYTES_MAX,
        };
        let response = response.map(|body| bounded(body, limit));
        let is_listing = matches!(method.as_str(), "GET" | "PROPFIND");
        // Apache says with a page of its own that it has created something; its status is another.
        let may_mislead = status == StatusCode::OK || is_listing && status.is_success();
        if may_mislead { refuse_page(response, is_listing).await } else { Ok(response) }
    }
}

/// Reads an answer, as who asked does in any case, and refuses one that answers something else. OpenDAL takes a page for
/// people ("log in", "back soon") for a success without details: an empty listing, or an upload that is done.
async fn refuse_page(response: Response<HttpBody>, is_listing: bool) -> opendal::Result<Response<HttpBody>> {
    let (parts, mut body) = response.into_parts();
    let whole = body.to_buffer().await?;
    let beginning = whole.slice(..whole.len().min(ROOT_BYTES)).to_bytes();
    let is_answer = match root(&String::from_utf8_lossy(&beginning)) {
        Some(root) if is_listing => LISTINGS.contains(&root),
        Some(root) => !root.eq_ignore_ascii_case("html"),
        None => true,
    };
    if !is_answer {
        return Err(Error::new(ErrorKind::Unexpected, "the server answers with a page about something else"));
    }
    Ok(Response::from_parts(parts, HttpBody::new(stream::iter([Ok(whole)]), None)))
}

/// The name of the outermost element of a document in XML or HTML, without one where none begins; `None` for other documents.
fn root(text: &str) -> Option<&str> {
    let mut rest = text.trim_start_matches('\u{feff}').trim_start();
    loop {
        let end = match rest {
            _ if rest.starts_with("<!--") => "-->",
            _ if rest.starts_with("<?") => "?>",
            _ if rest.starts_with("<!") => ">",
            _ => break,
        };
        let Some((_, behind)) = rest.split_once(end) else { return Some("") };
        rest = behind.trim_start();
    }
    let name = rest.strip_prefix('<')?.split([' ', '\t', '\r', '\n', '/', '>']).next()?;
    Some(name.rsplit_once(':').map_or(name, |(_, local)| local))
}

/// Whether an answer came from another address than was asked. A `POST` that is redirected becomes a `GET`, as of old, and
/// its answer says nothing of what was to be done.
fn is_from_elsewhere(asked: &str, response: &Response<HttpBody>) -> bool {
    let came_from = response.extensions().get::<HttpRedirect>();
    // What was asked is compared as it was sent: without a port that goes without saying, and the like.
    came_from.is_some_and(|from| Url::parse(asked).is_ok_and(|url| url.as_str() != from.uri().original_uri()))
}

fn asks_for_object(request: &Request<Buffer>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.method() == Method::GET && !LISTING_WORDS.iter().any(|word| query.contains(word))
}

/// Whether what comes are other bytes than were stored: we store nothing under an encoding, and ask for none. They would be
/// taken for damage.
fn is_compressed(headers: &HeaderMap) -> bool {
    let encoding = headers.get(header::CONTENT_ENCODING).map_or(&b""[..], |value| value.as_bytes());
    ["gzip", "x-gzip", "deflate", "br", "zstd"]
        .iter()
        .any(|name| encoding.eq_ignore_ascii_case(name.as_bytes()))
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// A documentation address: nobody is there, and nobody is asked.
    const FOREIGN: &str = "http://192.0.2.2:9";

    fn settings(allow_http: bool) -> Settings {
        Settings { allow_http: Some(allow_http), ..Settings::default() }
    }

    fn http(allow_http: bool) -> Http {
        client(&settings(allow_http), false, Duration::from_secs(5)).unwrap()
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        let here = [
            "http://localhost:1",
            "http://s3.localhost",
            "http://127.0.0.1:9000",
            "http://127.9.9.9",
            "http://[::1]:80",
            "http://[::ffff:127.0.0.1]",
            "https://192.0.2.2",
            "https://example.org",
        ];
        let elsewhere = [
            FOREIGN,
            "http://example.org",
            "http://localhost.example.org",
            "http://10.0.0.1",
            "http://[2001:db8::1]",
            "http://xlocalhost",
            "http://[::ffff:192.0.2.2]",
            "http://0.0.0.0",
            "HTTP://EXAMPLE.ORG",
        ];
        for url in here {
            assert!(check_protocol(url, &settings(false)).is_ok(), "{url}");
        }
        for url in elsewhere {
            let refused = check_protocol(url, &settings(false)).unwrap_err();
            assert_eq!(refused.kind, StorageErrorKind::Invalid, "{refused}");
            assert!(PlainHttp::is_said_by(&refused.to_string()), "{refused}");
            assert!(check_protocol(url, &settings(true)).is_ok(), "{url}");
        }
        // Credentials are asked for there; nothing is stored.
        for url in [
            "http://169.254.169.254/latest",
            "http://169.254.7.7:9000",
            "http://[fd00:ec2::254]/latest",
            "http://metadata.google.internal/x",
        ] {
            assert_eq!(check_plain(&Url::parse(url).unwrap(), false), Ok(()), "{url}");
            assert!(check_protocol(url, &settings(false)).is_err(), "{url}");
            assert!(check_protocol(url, &settings(true)).is_ok(), "{url}");
        }
        assert!(check_protocol("ftp://localhost", &settings(true)).is_err());
        for url in ["https://me:hunter2@example.org", "https://hunter2@example.org"] {
            let refused = check_protocol(url, &settings(true)).unwrap_err();
            assert!(!format!("{refused:?}").contains("hunter2"), "{refused:?}");
        }
        assert!(check_protocol("localhost:9000", &settings(true)).is_err());
    }

    #[test]
    fn a_document_is_known_by_its_outermost_element() {
        for (text, name) in [
            ("<ListBucketResult/>", Some("ListBucketResult")),
            ("\u{feff}<?xml version=\"1.0\"?>\n<EnumerationResults a=\"b\">", Some("EnumerationResults")),
            ("<?xml version=\"1.0\"?><!-- a > b --><D:multistatus xmlns:D=\"DAV:\">", Some("multistatus")),
            ("\r\n <!DOCTYPE html>\n<HTML>", Some("HTML")),
            ("{\"items\": [\"<html>\"]}", None),
            ("<!-- without an end", Some("")),
            ("<", Some("")),
            ("", None),
        ] {
            assert_eq!(root(text), name, "{text}");
        }
    }

    fn read_head(stream: &mut TcpStream) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap() == 1 {
            head.push(byte[0]);
        }
    }

    /// Answers every request with a redirect to `target`, and counts them.
    fn redirecting(target: String) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                read_head(&mut stream);
                counter.fetch_add(1, Ordering::SeqCst);
                let answer = format!(
                    "HTTP/1.1 307 Temporary Redirect\r\nlocation: {target}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                );
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        (url, seen)
    }

    fn get(url: &str) -> Request<Buffer> {
        Request::get(url).body(Buffer::new()).unwrap()
    }

    #[tokio::test]
    async fn the_transport_refuses_plain_http_to_others() {
        let transport = transport(http(false));
        let error = transport.fetch(get(FOREIGN)).await.map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConfigInvalid);
        assert!(PlainHttp::is_said_by(error.message()), "{error}");
        // A destination that an earlier redirect led to.
        let mut again = get("http://127.0.0.1:1/x");
        again.extensions_mut().insert(HttpRedirect::new(FOREIGN.parse().unwrap()));
        let error = transport.fetch(again).await.map(drop).unwrap_err();
        assert!(PlainHttp::is_said_by(error.message()), "{error}");
    }

    #[tokio::test]
    async fn a_redirect_to_plain_http_elsewhere_is_not_followed() {
        let (url, seen) = redirecting(format!("{FOREIGN}/x"));
        let error = transport(http(false)).fetch(get(&url)).await.map(drop).unwrap_err();
        assert!(format!("{error:?}").contains("plain http to `192.0.2.2` is refused"), "{error:?}");
        assert_eq!(seen.load(Ordering::SeqCst), 1);
        // On this machine it is followed, up to a bound.
        let (near, _) = redirecting(format!("{FOREIGN}/x"));
        let (first, first_seen) = redirecting(near);
        let error = transport(http(false)).fetch(get(&first)).await.map(drop).unwrap_err();
        assert!(format!("{error:?}").contains("plain http to `192.0.2.2` is refused"), "{error:?}");
        assert_eq!(first_seen.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_asks_for_a_pause_gets_it() {
        let gate = Gate { longest: Duration::from_secs(30), opens: Mutex::default() };
        let after = |text: &str| HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
        let waited = async || {
            let start = Instant::now();
            gate.pass().await;
            start.elapsed().as_secs()
        };
        assert_eq!(waited().await, 0);
        gate.heed(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new());
        gate.heed(StatusCode::OK, &after("5"));
        assert_eq!(waited().await, 0);
        gate.heed(StatusCode::SERVICE_UNAVAILABLE, &after("7"));
        gate.heed(StatusCode::TOO_MANY_REQUESTS, &after("2"));
        assert_eq!(waited().await, 7, "the later end counts");
        assert_eq!(waited().await, 0, "once");
        gate.heed(StatusCode::TOO_MANY_REQUESTS, &after("18446744073709551615"));
        assert_eq!(waited().await, 30, "no longer than a request may wait");
    }

    #[test]
    fn a_date_until_which_to_wait_is_counted_from_the_date_of_the_answer() {
        let asked = |after: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, after.parse().unwrap());
            if let Some(date) = date {
                headers.insert(header::DATE, date.parse().unwrap());
            }
            pause_asked(&headers).map(|pause| pause.as_secs())
        };
        let (begin, end) = ("Wed, 21 Oct 2026 07:27:48 GMT", "Wed, 21 Oct 2026 07:28:00 GMT");
        assert_eq!(asked(end, Some(begin)), Some(12));
        assert_eq!(asked(begin, Some(end)), None, "it is over");
        assert_eq!(asked(end, None), None, "nobody knows what time it is there");
        assert_eq!(asked("soon", Some(begin)), None);
        assert_eq!(asked(" 7 ", None), Some(7));
    }

    #[cfg(feature = "s3")]
    #[tokio::test(start_paused = true)]
    async fn requests_of_every_kind_keep_one_pause() {
        let http = http(false);
        let transport = transport(http.clone());
        // Nobody listens there any more: a request ends as soon as it is sent.
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("http://{closed}/x");
        let asked = HeaderMap::from_iter([(header::RETRY_AFTER, "2".parse().unwrap())]);
        let start = Instant::now();
        http.gate.heed(StatusCode::SERVICE_UNAVAILABLE, &asked);
        assert!(transport.fetch(get(&url)).await.is_err());
        assert!(start.elapsed() >= Duration::from_secs(2), "what OpenDAL sends");
        let start = Instant::now();
        http.gate.heed(StatusCode::SERVICE_UNAVAILABLE, &asked);
        let request = reqwest::Request::new(Method::GET, Url::parse(&url).unwrap());
        assert!(http.execute(request).await.is_err());
        assert!(start.elapsed() >= Duration::from_secs(2), "what it does not know");
    }

    #[cfg(feature = "s3")]
    #[tokio::test]
    async fn what_is_asked_outside_the_transport_is_heeded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            read_head(&mut stream);
            let answer =
                "HTTP/1.1 429 Slow\r\nretry-after: 2\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let http = http(false);
        let request = reqwest::Request::new(Method::GET, Url::parse(&url).unwrap());
        assert_eq!(http.execute(request).await.unwrap().status(), StatusCode::TOO_MANY_REQUESTS);
        assert!(http.gate.opens.lock().unwrap().is_some());
        answering.join().unwrap();
    }

    #[cfg(feature = "s3")]
    #[tokio::test]
    async fn requests_outside_the_transport_follow_the_same_rule() {
        let request = |url: &str| reqwest::Request::new(Method::GET, Url::parse(url).unwrap());
        let (url, _) = redirecting(format!("{FOREIGN}/x"));
        for url in [FOREIGN, &url] {
            let refused = http(false).execute(request(url)).await.unwrap_err();
            assert!(matches!(&refused, NoAnswer::Plain(plain) if plain.host == "192.0.2.2"), "{refused:?}");
        }
    }
}
