use opendal::Error;

use super::*;

fn site(service: Service) -> Site {
    let (container, prefix, server) = ("b".into(), "p/".into(), "https://s".into());
    Site { service, container, prefix, server, partition: "aws" }
}

fn s3(code: &str) -> Error {
    let message = format!("S3Error {{ code: \"{code}\", message: \"no \\\"way\\\".\", resource: \"\" }}");
    Error::new(ErrorKind::Unexpected, message)
}

#[test]
fn a_code_says_more_than_a_kind() {
    for (code, kind, part) in [
        ("NoSuchBucket", Kind::Invalid, "the bucket `b` does not exist"),
        ("SlowDown", Kind::Throttled, "slow down (SlowDown, no \"way\")"),
        ("ConditionalRequestConflict", Kind::Unavailable, "now"),
        ("InvalidObjectState", Kind::Archived, "archive"),
        ("QuotaExceeded", Kind::NoSpace, "full"),
        ("ExpiredToken", Kind::PermissionDenied, "expired"),
        ("BadDigest", Kind::Unavailable, "changed on the way"),
        ("NoSuchUpload", Kind::Unavailable, "ended by the store"),
        ("KMS.ThrottlingException", Kind::Throttled, "slow down"),
        ("KMS.KMSInternalException", Kind::Unavailable, "now"),
        ("KMS.KMSInvalidStateException", Kind::PermissionDenied, "key"),
        ("Unheard", Kind::Other, "Unheard"),
    ] {
        let error = site(Service::S3).failure("put", "data/x", &s3(code));
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[test]
fn what_google_and_azure_say_is_understood() {
    let azure = |code: &str| format!("AzblobError {{ code: \"{code}\", message: \"no\\nway\" }}");
    let google = |reason: &str, words: &str| {
        format!("GcsError {{ errors: [GcsErrorDetail {{ message: \"{words}\", reason: \"{reason}\" }}] }}")
    };
    let kms = "Permission denied on Cloud KMS key.";
    for (service, message, kind, part, hint) in [
        (
            Service::Azblob,
            azure("ContainerNotFound"),
            Kind::Invalid,
            "container `b` does not exist",
            "Create",
        ),
        (Service::Azblob, azure("ServerBusy"), Kind::Throttled, "slow down (ServerBusy", ""),
        (Service::Azblob, azure("BlobArchived"), Kind::Archived, "archive", "thawed"),
        (
            Service::Azblob,
            azure("AuthorizationFailure"),
            Kind::PermissionDenied,
            "blobs/add",
            "network rules",
        ),
        (
            Service::Azblob,
            azure("AuthorizationPermissionMismatch"),
            Kind::PermissionDenied,
            "of a SAS",
            "Grant",
        ),
        (
            Service::Azblob,
            azure("KeyBasedAuthenticationNotPermitted"),
            Kind::PermissionDenied,
            "no shared key",
            "Entra",
        ),
        (Service::Azblob, azure("KeyVaultKeyNotFound"), Kind::PermissionDenied, "the key that", "vault"),
        (Service::Azblob, azure("AccountIsDisabled"), Kind::PermissionDenied, "is disabled", "bills"),
        (Service::Gcs, google("userRateLimitExceeded", "slow"), Kind::Throttled, "slow down", ""),
        (Service::Gcs, google("objectUnderActiveHold", "held"), Kind::PermissionDenied, "retains", ""),
        (Service::Gcs, google("forbidden", kms), Kind::PermissionDenied, "the key that", "service agent"),
        (Service::Gcs, google("forbidden", "no"), Kind::PermissionDenied, "storage.objects.create", "Grant"),
        (Service::Gcs, google("authError", "no"), Kind::PermissionDenied, "refuses the credentials", "token"),
        (
            Service::S3,
            s3("KMS.DisabledException").message().to_owned(),
            Kind::PermissionDenied,
            "key",
            "disabled",
        ),
    ] {
        let error = site(service).failure("put", "data/x", &Error::new(ErrorKind::PermissionDenied, message));
        assert_eq!(error.kind, kind, "{error}");
        let given = error.hint.as_deref().unwrap_or_default();
        assert!(error.to_string().contains(part) && given.contains(hint), "{error}: {given}");
    }
}

#[test]
fn a_name_that_nobody_knows_is_said_to_be_wrong() {
    let cause = std::io::Error::other("failed to lookup address information: Name or service not known");
    let error = Error::new(ErrorKind::Unexpected, "send http request").set_temporary().set_source(cause);
    let error = site(Service::S3).failure("list", "commits/", &error);
    assert!(error.is_retryable() && error.to_string().contains("https://s is not found"), "{error}");
    assert!(error.hint.is_some_and(|hint| hint.contains("location")));
}

#[test]
fn a_missing_right_to_a_key_is_told_from_one_to_the_bucket() {
    let words = "User: arn:aws:iam::1:user/x is not authorized to perform: kms:GenerateDataKey on resource: \
                 arn:aws:kms:eu-central-1:1:key/2 because no identity-based policy allows the kms:GenerateDataKey action";
    let message = format!("S3Error {{ code: \"AccessDenied\", message: \"{words}\", resource: \"\" }}");
    let error = site(Service::S3).failure("put", "data/x", &Error::new(ErrorKind::PermissionDenied, message));
    let text = error.to_string();
    assert!(text.contains("lack kms:GenerateDataKey on arn:aws:kms:eu-central-1:1:key/2 ("), "{text}");
    assert!(error.hint.is_some_and(|hint| hint.contains("`kms:Decrypt`")));
    let facts = Facts { words: "no right to kms:Decrypt.".into(), ..Facts::default() };
    assert_eq!(facts.kms_right(), Some(("kms:Decrypt", "the key that the bucket encrypts with")));
    assert_eq!(Facts::default().kms_right(), None);
}

#[cfg(feature = "s3")]
#[test]
fn requests_beyond_objects_are_refused_in_the_same_words() {
    let key: Key = "data/x".parse().unwrap();
    let refusal = |operation, key, status, code| {
        site(Service::S3).refusal(operation, key, "s3:GetObjectRetention", (status, code, "no"))
    };
    let denied = refusal("retention", Some(&key), 403, "AccessDenied").unwrap();
    assert_eq!(denied.kind, Kind::PermissionDenied);
    let text = denied.to_string();
    assert!(
        text.contains("lack s3:GetObjectRetention on arn:aws:s3:::b/p/data/x (AccessDenied, no, HTTP 403)"),
        "{text}"
    );
    assert!(denied.hint.is_some());
    let whole = refusal("probe", None, 403, "").unwrap().to_string();
    assert!(whole.contains("on arn:aws:s3:::b (no, HTTP 403)"), "{whole}");
    let expired = refusal("probe", None, 403, "ExpiredToken").unwrap().to_string();
    assert!(expired.contains("expired"), "{expired}");
    assert_eq!(refusal("thaw", Some(&key), 403, "InvalidObjectState").unwrap().kind, Kind::Invalid);
    assert!(refusal("probe", None, 500, "").is_none());
}

#[test]
fn a_missing_right_is_named_with_its_resource() {
    let denied = Error::new(ErrorKind::PermissionDenied, "");
    for (service, operation, part) in [
        (Service::S3, "put", "s3:PutObject on arn:aws:s3:::b/p/data/x"),
        (Service::S3, "list", "s3:ListBucket on arn:aws:s3:::b"),
        (Service::Gcs, "delete", "storage.objects.delete on `p/data/x` in bucket `b`"),
        (Service::Azblob, "get", "blobs/read (`r` of a SAS) on `p/data/x` in container `b`"),
    ] {
        let error = site(service).failure(operation, "data/x", &denied);
        assert_eq!(error.kind, Kind::PermissionDenied);
        assert!(error.to_string().contains(part) && error.hint.is_some(), "{error}");
    }
}

#[test]
fn a_bucket_is_named_as_the_partition_does_that_it_is_in() {
    let denied = Error::new(ErrorKind::PermissionDenied, "");
    for (operation, part) in [
        ("put", "s3:PutObject on arn:aws-us-gov:s3:::b/p/data/x"),
        ("list", "s3:ListBucket on arn:aws-us-gov:s3:::b"),
    ] {
        let site = Site { partition: "aws-us-gov", ..site(Service::S3) };
        let text = site.failure(operation, "data/x", &denied).to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[cfg(feature = "s3")]
#[test]
fn requests_beyond_objects_name_the_bucket_in_the_same_way() {
    let site = Site::s3("b", "p/", "b.s3.cn-north-1.amazonaws.com.cn", "cn-north-1");
    let whole = site.refusal("probe", None, "s3:GetBucketVersioning", (403, "", "no")).unwrap();
    assert!(whole.to_string().contains("on arn:aws-cn:s3:::b (no, HTTP 403)"), "{whole}");
    let key: Key = "data/x".parse().unwrap();
    let one = site.refusal("retention", Some(&key), "s3:GetObjectRetention", (403, "", "no")).unwrap();
    assert!(one.to_string().contains("on arn:aws-cn:s3:::b/p/data/x ("), "{one}");
}

#[test]
fn the_status_counts_where_there_is_no_code() {
    for (status, kind) in [
        (401, Kind::PermissionDenied),
        (403, Kind::PermissionDenied),
        (408, Kind::Unavailable),
        (416, Kind::OutOfRange),
        (429, Kind::Throttled),
        (502, Kind::Unavailable),
        (507, Kind::NoSpace),
        (418, Kind::Other),
    ] {
        let error = Error::new(ErrorKind::Unexpected, "<html>\n</html>")
            .with_context("response", format!("Parts {{ status: {status}, version: HTTP/1.1 }}"));
        let error = site(Service::Webdav).failure("get", "x", &error);
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.to_string().contains(&status.to_string()) || kind == Kind::OutOfRange, "{error}");
    }
}

#[test]
fn an_upload_that_google_forgot_begins_anew() {
    for (status, kind) in [(404, ErrorKind::NotFound), (410, ErrorKind::Unexpected)] {
        let error = Error::new(kind, "gone")
            .with_context("response", format!("Parts {{ status: {status}, version: HTTP/1.1 }}"));
        assert!(site(Service::Gcs).failure("put", "data/x", &error).is_retryable(), "{status}");
        assert!(!site(Service::Gcs).failure("get", "data/x", &error).is_retryable(), "{status}");
    }
}

#[test]
fn wrong_credentials_are_not_called_a_missing_right() {
    for (service, hint) in [(Service::Webdav, "password"), (Service::Gcs, "token")] {
        let error = Error::new(ErrorKind::Unexpected, "who are you?")
            .with_context("response", "Parts { status: 401, version: HTTP/1.1 }");
        let error = site(service).failure("put", "data/x", &error);
        assert!(error.to_string().contains("`b` refuses the credentials"), "{error}");
        assert!(error.hint.is_some_and(|given| given.contains(hint)), "{service:?}");
    }
}

#[test]
fn our_own_condition_is_told_from_others() {
    let failed = Error::new(ErrorKind::ConditionNotMatch, "");
    assert!(site(Service::S3).failure("put", "x", &failed).is_already_exists());
    assert_eq!(site(Service::S3).failure("get", "x", &failed).kind, Kind::Other);
    let conflict = Error::new(ErrorKind::Conflict, "");
    assert!(site(Service::Azblob).failure("put", "x", &conflict).is_retryable());
    let said_by_head = Error::new(ErrorKind::Unexpected, "")
        .with_context("response", "Parts { status: 409, version: HTTP/1.1 }");
    assert!(site(Service::S3).failure("head", "x", &said_by_head).is_retryable());
}
