//! What is made of a server whose answers do not end.
#![allow(clippy::unwrap_used)]

use futures_util::stream;
use http::{Request, Response, header};
use opendal::{Buffer, HttpBody, HttpTransport, HttpTransporter};

use super::store::OpendalStore;
use super::*;
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

#[tokio::test]
async fn of_an_endless_object_no_more_is_held_than_was_allowed() {
    let refused = store(Endless).get_at_most(&key(), 1 << 20).await.unwrap_err();
    assert_eq!(refused.kind, StorageErrorKind::TooLarge, "{refused}");
}
