//! What is made of a server that redirects, or answers with a page.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;

use super::test_server::{Head, answer, serve, value};
use super::*;
use crate::{Credentials, Key, StorageErrorKind};

const PART_BYTES: usize = 5 << 20;

async fn store(endpoint: &str) -> Arc<dyn ObjectStore> {
    let credentials = Credentials {
        access_key: Some("AK".into()),
        secret_key: Some("secret".into()),
        ..Credentials::default()
    };
    let options = ConnectOptions { credentials, ..ConnectOptions::default() };
    let location: Location = format!("s3://bucket/p?endpoint={endpoint}&part-size-mib=5").parse().unwrap();
    crate::connect(&location, &options, Purpose::Open).await.unwrap()
}

fn key() -> Key {
    "data/x".parse().unwrap()
}

fn method(head: &Head) -> &str {
    head[0].split(' ').next().unwrap()
}

#[tokio::test]
async fn a_page_that_an_upload_is_led_to_is_no_success() {
    let (endpoint, heads) = serve(|head| match method(head) {
        "put" => answer("303 See Other", "location: /login\r\n", ""),
        _ => answer("200 OK", "", "log in, please"),
    });
    let refused = store(&endpoint).await.put_new(&key(), Bytes::from_static(b"pack")).await.unwrap_err();
    assert_ne!(refused.kind, StorageErrorKind::AlreadyExists, "{refused}");
    assert!(refused.to_string().contains("leads to a page"), "{refused}");
    assert!(heads.lock().unwrap().iter().all(|head| method(head) == "put"));
}

#[tokio::test]
async fn a_page_that_the_end_of_an_upload_is_led_to_is_no_success() {
    let (endpoint, _) = serve(|head| match method(head) {
        "post" if head[0].contains("?uploads") => {
            let xml = "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>";
            answer("200 OK", "content-type: application/xml\r\n", xml)
        }
        "post" => answer("302 Found", "location: /login\r\n", ""),
        "put" => answer("200 OK", "etag: \"x\"\r\n", ""),
        "delete" => answer("204 No Content", "", ""),
        _ => answer("200 OK", "", "<html><body>log in, please</body></html>"),
    });
    let body = Bytes::from(vec![7; PART_BYTES + 1]);
    let refused = store(&endpoint).await.put_new(&key(), body).await.unwrap_err();
    assert!(refused.to_string().contains("leads to a page"), "{refused}");
}

#[tokio::test]
async fn a_page_is_neither_an_empty_listing_nor_an_upload_that_is_done() {
    for page in [
        "<html><body>back soon</body></html>",
        "<?xml version=\"1.0\"?><!DOCTYPE html><html xmlns=\"x\"><body/></html>",
    ] {
        let (endpoint, _) = serve(move |_| answer("200 OK", "etag: \"x\"\r\n", page));
        let store = store(&endpoint).await;
        let listed = store.list_page("", None).await;
        assert!(listed.is_err(), "{listed:?}");
        let put = store.put_new(&key(), Bytes::from_static(b"pack")).await;
        assert!(put.is_err_and(|error| error.to_string().contains("answers with a page")), "{page}");
    }
    let long = format!("<html><body>{}</body></html>", "back soon ".repeat(10_000));
    let late = format!("<!--{}--><html/>", " ".repeat(20_000));
    for page in ["<Error><Code>InternalError</Code></Error>".to_owned(), long, late] {
        let (endpoint, _) = serve(move |_| answer("200 OK", "", &page));
        let listed = store(&endpoint).await.list_page("", None).await;
        assert!(listed.is_err(), "{listed:?}");
    }
}

#[tokio::test]
async fn nobody_is_told_the_address_that_led_there() {
    let (endpoint, heads) = serve(|head| match head[0].contains("elsewhere") {
        true => answer("200 OK", "", "pack"),
        false => answer("302 Found", "location: /elsewhere\r\n", ""),
    });
    assert_eq!(store(&endpoint).await.get(&key()).await.unwrap(), "pack");
    let heads = heads.lock().unwrap();
    assert!(heads.iter().any(|head| head[0].contains("elsewhere")), "{heads:?}");
    assert!(heads.iter().all(|head| value(head, "referer").is_none()), "{heads:?}");
}
