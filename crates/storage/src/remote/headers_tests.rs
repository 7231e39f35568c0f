//! What is sent to an S3 service with an upload, and before it.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use super::test_server::{Head, answer, serve, value};
use super::*;
use crate::{Credentials, Key, ThawSpeed};

fn options() -> ConnectOptions {
    let credentials = Credentials {
        access_key: Some("AK".into()),
        secret_key: Some("secret".into()),
        ..Credentials::default()
    };
    ConnectOptions { credentials, ..ConnectOptions::default() }
}

/// What an upload of so many bytes is sent with, given these settings.
async fn head(parameters: &str, key: &str, size: usize) -> Head {
    let (endpoint, heads) = serve(|_| answer("200 OK", "etag: \"x\"\r\n", ""));
    let location: Location = format!("s3://bucket/p?endpoint={endpoint}{parameters}").parse().unwrap();
    let store = crate::connect(&location, &options(), Purpose::Open).await.unwrap();
    let key: Key = key.parse().unwrap();
    store.put_new(&key, Bytes::from(vec![7; size])).await.unwrap();
    let mut heads = heads.lock().unwrap();
    assert_eq!(heads.len(), 1, "{heads:?}");
    heads.remove(0)
}

#[tokio::test]
async fn an_upload_is_signed_conditional_and_proved_by_a_checksum() {
    let sent = head("", "data/x", 3).await;
    assert_eq!(sent[0], "put /bucket/p/data/x http/1.1");
    assert_eq!(value(&sent, "if-none-match"), Some("*"));
    assert!(
        value(&sent, "authorization").is_some_and(|text| text.starts_with("aws4-hmac-sha256 ")),
        "{sent:?}"
    );
    assert!(value(&sent, "x-amz-checksum-crc32c").is_some(), "{sent:?}");
    for absent in ["content-md5", "x-amz-storage-class", "x-amz-server-side-encryption"] {
        assert_eq!(value(&sent, absent), None, "{sent:?}");
    }
}

#[tokio::test]
async fn the_checksum_is_the_one_that_was_chosen() {
    let md5 = head("&checksum=md5", "x", 3).await;
    assert!(
        value(&md5, "content-md5").is_some() && value(&md5, "x-amz-checksum-crc32c").is_none(),
        "{md5:?}"
    );
    let none = head("&checksum=none&conditional-create=true", "x", 3).await;
    assert!(
        value(&none, "content-md5").is_none() && value(&none, "x-amz-checksum-crc32c").is_none(),
        "{none:?}"
    );
}

#[tokio::test]
async fn large_data_packs_go_to_the_cold_class() {
    let classes = "&storage-class=STANDARD_IA&cold-class=GLACIER";
    for (key, size, class) in
        [("data/x", 4 << 20, "glacier"), ("data/x", 3, "standard_ia"), ("meta/x", 4 << 20, "standard_ia")]
    {
        let sent = head(classes, key, size).await;
        assert_eq!(value(&sent, "x-amz-storage-class"), Some(class), "{key} {size}: {sent:?}");
    }
}

#[tokio::test]
async fn the_service_is_asked_to_encrypt() {
    let own = head("&sse=AES256", "x", 3).await;
    assert_eq!(value(&own, "x-amz-server-side-encryption"), Some("aes256"));
    let kms = head("&sse=aws:kms&kms-key=k1", "x", 3).await;
    assert_eq!(value(&kms, "x-amz-server-side-encryption"), Some("aws:kms"));
    assert_eq!(value(&kms, "x-amz-server-side-encryption-aws-kms-key-id"), Some("k1"));
    for alone in ["kms-key=k1", "sse=AES256&kms-key=k1"] {
        let location: Location = format!("s3://bucket?region=eu-1&{alone}").parse().unwrap();
        let refused = crate::connect(&location, &options(), Purpose::Open).await.unwrap_err();
        assert_eq!(refused.kind, crate::StorageErrorKind::Invalid, "{refused}");
        assert!(refused.hint.is_some_and(|hint| hint.contains("sse=aws:kms")), "{alone}");
    }
}

/// A bucket in which there is this object of ours, or none, and in which we may store and list.
fn write_only(listed: &'static str) -> (String, Arc<std::sync::Mutex<Vec<Head>>>) {
    serve(move |head| match head[0].split(' ').next() {
        Some("head") => answer("403 Forbidden", "", ""),
        Some("get") => {
            let contents = match listed {
                "" => String::new(),
                key => format!(
                    "<Contents><Key>p/{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag>\
                     <Size>1</Size></Contents>"
                ),
            };
            let xml =
                format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>");
            answer("200 OK", "content-type: application/xml\r\n", &xml)
        }
        _ => answer("200 OK", "etag: \"x\"\r\n", ""),
    })
}

#[tokio::test]
async fn without_the_condition_somebody_who_may_not_read_looks_into_the_listing() {
    for (listed, taken) in [("", false), ("data/x", true), ("data/xx", false)] {
        let (endpoint, heads) = write_only(listed);
        let place = format!("s3://bucket/p?endpoint={endpoint}&conditional-create=false");
        let location: Location = place.parse().unwrap();
        let store = crate::connect(&location, &options(), Purpose::Open).await.unwrap();
        let put = store.put_new(&"data/x".parse().unwrap(), Bytes::from_static(b"pack")).await;
        assert_eq!(put.is_err_and(|error| error.is_already_exists()), taken, "{listed}");
        let puts = heads.lock().unwrap().iter().filter(|head| head[0].starts_with("put ")).count();
        assert_eq!(puts, usize::from(!taken), "{listed}");
    }
}

#[tokio::test]
async fn what_intelligent_tiering_archived_is_asked_for_without_days() {
    for (archived, thaws) in [("x-amz-archive-status: ARCHIVE_ACCESS\r\n", true), ("", false)] {
        let posts = AtomicUsize::new(0);
        let (endpoint, heads) = serve(move |head| match head[0].split(' ').next() {
            Some("post") if posts.fetch_add(1, Ordering::SeqCst) == 0 => {
                answer("400 Bad Request", "", "<Error><Code>InvalidArgument</Code></Error>")
            }
            Some("post") => answer("202 Accepted", "", ""),
            _ => answer("200 OK", archived, ""),
        });
        let location: Location = format!("s3://bucket/p?endpoint={endpoint}").parse().unwrap();
        let store = crate::connect(&location, &options(), Purpose::Open).await.unwrap();
        let control = store.control().unwrap();
        let asked = control.thaw(&"data/x".parse().unwrap(), 7, ThawSpeed::Standard).await;
        assert_eq!(asked.is_ok(), thaws, "{asked:?}");
        let heads = heads.lock().unwrap();
        let lengths: Vec<usize> = heads
            .iter()
            .filter(|head| head[0].starts_with("post /bucket/p/data/x?restore "))
            .map(|head| value(head, "content-length").unwrap().parse().unwrap())
            .collect();
        let days = if thaws { lengths[0] - lengths[1] } else { "<Days>7</Days>".len() };
        assert_eq!((lengths.len(), days), (1 + usize::from(thaws), "<Days>7</Days>".len()), "{lengths:?}");
    }
}

#[tokio::test]
async fn a_listing_of_names_that_nobody_asked_for_makes_no_sense() {
    let (endpoint, _) = serve(|_| {
        let contents = "<Contents><Key>x</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>x</ETag>\
            <Size>1</Size></Contents>";
        let xml = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>");
        answer("200 OK", "content-type: application/xml\r\n", &xml)
    });
    let location: Location = format!("s3://bucket/long/prefix?endpoint={endpoint}").parse().unwrap();
    let store = crate::connect(&location, &options(), Purpose::Open).await.unwrap();
    let error = store.list_page("", None).await.unwrap_err();
    assert_eq!(error.kind, crate::StorageErrorKind::Other, "{error}");
    assert!(error.to_string().contains("makes no sense"), "{error}");
}

#[tokio::test]
async fn an_object_that_was_compressed_on_the_way_is_not_taken_for_a_damaged_one() {
    for (encoding, taken) in [("gzip", false), ("BR", false), ("identity", true), ("aws-chunked", true)] {
        let headers = format!("content-encoding: {encoding}\r\n");
        let (endpoint, _) = serve(move |_| answer("200 OK", &headers, "bytes"));
        let location: Location = format!("s3://bucket/p?endpoint={endpoint}").parse().unwrap();
        let store = crate::connect(&location, &options(), Purpose::Open).await.unwrap();
        let got = store.get(&"data/x".parse().unwrap()).await;
        assert_eq!(got.is_ok(), taken, "{encoding}: {got:?}");
    }
}

#[tokio::test]
async fn what_appears_between_two_questions_is_asked_for_again() {
    for (status, range) in [
        ("206 Partial Content", "content-range: bytes 0-0/1\r\n"),
        ("416 Range Not Satisfiable", "content-range: bytes */0\r\n"),
    ] {
        let body = if status.starts_with("206") { "x" } else { "" };
        let (endpoint, _) = serve(move |head| match head[0].starts_with("head ") {
            true => answer("404 Not Found", "", ""),
            false => answer(status, range, body),
        });
        let location: Location = format!("s3://bucket/p?endpoint={endpoint}").parse().unwrap();
        let store = crate::connect(&location, &options(), Purpose::Open).await.unwrap();
        let error = store.head(&"commits/x".parse().unwrap()).await.unwrap_err();
        assert!(error.is_retryable(), "{status}: {error}");
    }
}
