//! What Google and Azure say they got is compared with what was sent.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::test_server::{Head, answer, serve};
use super::*;
use crate::{Credentials, StorageErrorKind};

const BODY: &[u8] = b"hello";
const MD5: &str = "XUFAKrxLKna5cZ2REBfFkg==";
/// Of nothing.
const OTHER_MD5: &str = "1B2M2Y8AsgTpgAmY7PhCfg==";

async fn put(place: &str, credentials: Credentials) -> Result<(), StorageError> {
    let location: Location = place.parse().unwrap();
    let options = ConnectOptions { credentials, ..ConnectOptions::default() };
    let store = crate::connect(&location, &options, Purpose::Open).await.unwrap();
    store.put_new(&"data/x".parse().unwrap(), Bytes::from_static(BODY)).await
}

fn method(head: &Head) -> &str {
    head[0].split(' ').next().unwrap()
}

#[cfg(feature = "azblob")]
mod azure {
    use super::*;

    /// Puts once to a server that says it got content with this MD5, and answers a delete with a status. Gives the methods of
    /// the requests as well.
    async fn put_where(md5: &'static str, delete: &'static str) -> (Result<(), StorageError>, Vec<String>) {
        let (endpoint, heads) = serve(move |head| match method(head) {
            "put" => answer("201 Created", &format!("etag: \"x\"\r\ncontent-md5: {md5}\r\n"), ""),
            _ => answer(delete, "", ""),
        });
        let credentials = Credentials { sas_token: Some("sv=1&sig=x".into()), ..Credentials::default() };
        let done = put(&format!("azblob://box/p?endpoint={endpoint}&account=acme"), credentials).await;
        let methods = heads.lock().unwrap().iter().map(|head| method(head).to_owned()).collect();
        (done, methods)
    }

    #[tokio::test]
    async fn what_arrived_whole_is_stored() {
        let (done, methods) = put_where(MD5, "202 Accepted").await;
        done.unwrap();
        assert_eq!(methods, ["put"]);
    }

    #[tokio::test]
    async fn what_changed_on_the_way_is_removed_and_may_be_put_again() {
        let (done, methods) = put_where(OTHER_MD5, "202 Accepted").await;
        let error = done.unwrap_err();
        assert!(error.is_retryable() && error.to_string().contains("changed on the way"), "{error}");
        assert_eq!(methods, ["put", "delete"]);
    }

    #[tokio::test]
    async fn what_cannot_be_removed_again_is_not_taken_for_ours() {
        let (done, methods) = put_where(OTHER_MD5, "403 Forbidden").await;
        let error = done.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Other, "{error}");
        assert!(error.to_string().contains("could not be removed again"), "{error}");
        assert_eq!(methods, ["put", "delete"]);
    }
}

#[cfg(feature = "gcs")]
mod google {
    use super::super::test_server::value;
    use super::*;

    async fn put_where(md5: &'static str) -> Result<(), StorageError> {
        let (endpoint, _) = serve(move |head| match method(head) {
            "post" => {
                let host = value(head, "host").unwrap();
                answer("200 OK", &format!("location: http://{host}/session\r\n"), "")
            }
            "put" => {
                let said = format!(
                    r#"{{"size": "5", "etag": "x", "updated": "2026-01-01T00:00:00Z", "md5Hash": "{md5}"}}"#
                );
                answer("200 OK", "content-type: application/json\r\n", &said)
            }
            _ => answer("204 No Content", "", ""),
        });
        let credentials = Credentials { token: Some("any".into()), ..Credentials::default() };
        put(&format!("gs://box/p?endpoint={endpoint}"), credentials).await
    }

    #[tokio::test]
    async fn an_object_is_compared_as_a_whole() {
        put_where(MD5).await.unwrap();
        let error = put_where(OTHER_MD5).await.unwrap_err();
        assert_eq!(error.kind, StorageErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("changed on the way"), "{error}");
    }
}
