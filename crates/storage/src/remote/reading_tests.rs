//! What is made of a server whose answers do not end, or do not come.
#![allow(clippy::unwrap_used)]

use futures_util::stream;
use http::{Request, Response, header};
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter};
use reqsign_aws_v4::{Credential, RequestSigner};
use reqsign_core::{Context, ProvideCredential};

use super::store::OpendalStore;
use super::*;
use crate::signed::Link;
use crate::{Credentials, Key, StorageErrorKind};

/// The length that every answer is said to have.
const SAID_BYTES: u64 = 1 << 30;

fn store(transport: impl HttpTransport) -> OpendalStore {
    let credentials = Credentials {
        access_key: Some("AK".into()),
        secret_key: Some("secret".into()),
        ..Credentials::default()
    };
    let options = ConnectOptions { credentials, ..ConnectOptions::default() };
    let location: Location = "s3://bucket/p?endpoint=http://127.0.0.1:1".parse().unwrap();
    let parts = services::parts(&location, &location.settings, &options).unwrap();
    let limits = Limits::new(Service::S3, &location.settings);
    OpendalStore::new(parts, HttpTransporter::new(transport), limits, location.place.to_string())
}

fn answer(body: HttpBody) -> Response<HttpBody> {
    Response::builder().header(header::CONTENT_LENGTH, SAID_BYTES).body(body).unwrap()
}

fn key() -> Key {
    "commits/x".parse().unwrap()
}

/// Sends without end.
struct Endless;

impl HttpTransport for Endless {
    async fn fetch(&self, _: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let pieces = stream::repeat_with(|| Ok::<_, opendal::Error>(Buffer::from(vec![7; 64 << 10])));
        Ok(answer(HttpBody::new(pieces, None)))
    }
}

/// Sends a byte before each time limit ends, for most of a day.
struct Dripping;

impl HttpTransport for Dripping {
    async fn fetch(&self, _: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let drops = stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_secs(50)).await;
            (sent < 1000).then(|| (Ok::<_, opendal::Error>(Buffer::from("x")), sent + 1))
        });
        Ok(answer(HttpBody::new(Box::pin(drops), None)))
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_drips_is_given_up() {
    let start = tokio::time::Instant::now();
    let refused = store(Dripping).get(&key()).await.unwrap_err();
    assert_eq!(refused.kind, StorageErrorKind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("too slowly"), "{refused}");
    assert!(start.elapsed() < Duration::from_secs(120), "{:?}", start.elapsed());
}

/// Of what a slow line brings, each of two downloads gets so much in a second …
const SLOW_BYTES: usize = 3 << 10;
/// … for so many seconds.
const SLOW_SECONDS: u64 = 400;

struct Slow;

impl HttpTransport for Slow {
    async fn fetch(&self, _: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let pieces = stream::unfold(0, |sent| async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (sent < SLOW_SECONDS)
                .then(|| (Ok::<_, opendal::Error>(Buffer::from(vec![7; SLOW_BYTES])), sent + 1))
        });
        let body = HttpBody::new(Box::pin(pieces), None);
        let length = SLOW_SECONDS * SLOW_BYTES as u64;
        Ok(Response::builder().header(header::CONTENT_LENGTH, length).body(body).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn downloads_that_share_a_slow_line_are_not_given_up() {
    let (store, key, range) = (store(Slow), key(), 0..SLOW_SECONDS * SLOW_BYTES as u64);
    let alone = store.get_range(&key, range.clone()).await.unwrap_err();
    assert!(alone.to_string().contains("too slowly"), "{alone}");
    let both = tokio::join!(store.get_range(&key, range.clone()), store.get_range(&key, range.clone()));
    assert!(both.0.is_ok() && both.1.is_ok(), "{both:?}");
}

#[tokio::test]
async fn of_an_endless_object_no_more_is_held_than_was_allowed() {
    let refused = store(Endless).get_at_most(&key(), 1 << 20).await.unwrap_err();
    assert_eq!(refused.kind, StorageErrorKind::TooLarge, "{refused}");
}

/// Hands out credentials, and does not answer.
#[derive(Debug)]
struct Silent;

impl ProvideCredential for Silent {
    type Credential = Credential;

    async fn provide_credential(&self, _: &Context) -> reqsign_core::Result<Option<Credential>> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_hands_out_no_credentials_is_given_up() {
    let time = Duration::from_secs(60);
    let http = transport::client(&Settings::default(), false, time).unwrap();
    let link = Link::new(http, time, Silent, RequestSigner::new("s3", "eu-1"));
    let request = Request::get("http://127.0.0.1:1/x").body(bytes::Bytes::new()).unwrap();
    let asked = tokio::time::timeout(10 * time, link.send("probe", "bucket", &request)).await;
    assert_eq!(asked.unwrap().unwrap_err().kind, StorageErrorKind::Unavailable);
}
