//! What a store's refusal means: which kind of error, which right is missing, what to do.

use std::error::Error as _;

use opendal::ErrorKind;

use super::Service;
use super::transport::{PLAIN_HTTP_HINT, PlainHttp};
#[cfg(feature = "s3")]
use crate::amazon::partition_of;
use crate::{Key, StorageError, StorageErrorKind as Kind};

/// Longest part of a server's own words in a message.
const WORDS_MAX: usize = 300;

const CREDENTIALS_HINT: &str = "Check the access key or token that this machine uses: that of the profile, of the environment, or of the files \
     and services that the vendor's tools use.";

/// Where a store's objects are, for messages.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(super) service: Service,
    /// The bucket or container; for other services the place.
    pub(super) container: String,
    /// What every key begins with; empty, or ending in `/`.
    pub(super) prefix: String,
    /// The server.
    pub(super) server: String,
    /// The partition that ARNs of a bucket of S3 begin with.
    pub(super) partition: &'static str,
}

/// What can be learnt about a failure.
#[derive(Debug, Default, PartialEq, Eq)]
struct Facts {
    status: Option<u16>,
    /// The server's own code for it.
    code: String,
    /// The server's, or the network's, own words.
    words: String,
}

impl Site {
    /// Of a bucket of S3.
    #[cfg(feature = "s3")]
    pub(crate) fn s3(bucket: &str, prefix: &str, server: &str, region: &str) -> Self {
        Self {
            service: Service::S3,
            container: bucket.to_owned(),
            prefix: prefix.to_owned(),
            server: server.to_owned(),
            partition: partition_of(Some(server), Some(region)),
        }
    }

    /// A bucket of S3, as policies name it.
    fn arn(&self) -> String {
        format!("arn:{}:s3:::{}", self.partition, self.container)
    }

    /// Translates the failure of `operation` on `subject`: a key, or the prefix of a listing.
    pub(super) fn failure(
        &self,
        operation: &'static str,
        subject: &str,
        error: &opendal::Error,
    ) -> StorageError {
        tracing::debug!(operation, subject, kind = ?error.kind(), message = error.message(), "the store refused");
        let facts = Facts::of(error);
        let by_code = self.by_code(operation, subject, &facts);
        by_code.unwrap_or_else(|| self.by_kind(operation, subject, error, &facts))
    }

    fn by_code(&self, operation: &'static str, subject: &str, facts: &Facts) -> Option<StorageError> {
        let container = &self.container;
        let noun = self.service.container_noun();
        let new = |kind, message: String| StorageError::new(kind, operation, subject, message);
        let said = facts.said();
        Some(match facts.code.as_str() {
            "NoSuchBucket" | "ContainerNotFound" => {
                new(Kind::Invalid, format!("the {noun} `{container}` does not exist"))
                    .with_hint(format!("Create the {noun}, or correct the location."))
            }
            "notFound" if facts.words.contains("bucket") => {
                new(Kind::Invalid, format!("the {noun} `{container}` does not exist"))
                    .with_hint(format!("Create the {noun}, or correct the location."))
            }
            "RequestTimeTooSkewed" => new(Kind::PermissionDenied, format!("the clocks differ too much{said}"))
                .with_hint("Set the clock of this machine."),
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AuthenticationFailed" | "InvalidToken"
            | "InvalidAuthenticationInfo" | "authError" => {
                new(Kind::PermissionDenied, format!("the {noun} `{container}` refuses the credentials{said}"))
                    .with_hint(CREDENTIALS_HINT)
            }
            "ExpiredToken" | "TokenRefreshRequired" => {
                new(Kind::PermissionDenied, format!("the credentials have expired{said}"))
                    .with_hint(CREDENTIALS_HINT)
            }
            "KeyBasedAuthenticationNotPermitted" => {
                new(Kind::PermissionDenied, format!("the account of the {noun} `{container}` takes no shared key{said}"))
                    .with_hint("Use an identity of Entra, or a shared access signature that one delegated.")
            }
            "AccountIsDisabled" | "AllAccessDisabled" | "AccountProblem" | "UserProjectAccountProblem"
            | "accountDisabled" => {
                new(Kind::PermissionDenied, format!("the account of the {noun} `{container}` is disabled{said}"))
                    .with_hint("Look at the account, and whether its bills are paid.")
            }
            "InvalidObjectState" if operation == "thaw" => {
                new(Kind::Invalid, format!("the object is in no class that must be thawed{said}"))
            }
            "InvalidObjectState" | "BlobArchived" | "BlobBeingRehydrated" => {
                new(Kind::Archived, "the object is in an archive class".into())
                    .with_hint("It must be thawed before it can be read.")
            }
            "BlobImmutableDueToPolicy" | "BlobImmutableDueToLegalHold" | "ObjectLocked" | "retentionPolicyNotMet"
            | "objectUnderActiveHold" => {
                new(Kind::PermissionDenied, format!("the {noun} `{container}` retains the object{said}"))
            }
            "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "AccountQuotaExceeded" => {
                new(Kind::NoSpace, format!("the {noun} `{container}` is full{said}"))
            }
            "SlowDown" | "ServerBusy" | "TooManyRequests" | "RequestLimitExceeded" | "rateLimitExceeded"
            | "userRateLimitExceeded" | "KMS.ThrottlingException" => {
                new(Kind::Throttled, format!("the {noun} `{container}` asks to slow down{said}"))
            }
            "InvalidRange" => new(Kind::OutOfRange, "the object is shorter".into()),
            "BadDigest" | "Md5Mismatch" | "XAmzContentChecksumMismatch" | "XAmzContentSHA256Mismatch" => {
                new(Kind::Unavailable, format!("the bytes changed on the way{said}"))
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException" => {
                new(Kind::Invalid, format!("the {noun} `{container}` is in another region{said}"))
                    .with_hint("Name its region in the location: `?region=…`.")
            }
            "NotImplemented" if operation == "put" => {
                new(Kind::Invalid, format!("the {noun} `{container}` does not support the request{said}")).with_hint(
                    "If the store cannot create objects only where there are none, say `conditional-create=false`; \
                     if it knows no checksums, `checksum=none`.",
                )
            }
            "RequestTimeout" | "OperationTimedOut" | "InternalError" | "ConditionalRequestConflict"
            | "OperationAborted" | "KMS.KMSInternalException" | "KMS.DependencyTimeoutException"
            | "KMS.KeyUnavailableException" => {
                new(Kind::Unavailable, format!("the {noun} `{container}` could not do it now{said}"))
            }
            // Parts that a rule removed, or an end whose answer was lost: another attempt begins anew, or finds it done.
            "NoSuchUpload" => new(Kind::Unavailable, format!("the upload was ended by the store{said}")),
            _ => return self.key_trouble(operation, subject, facts),
        })
    }

    /// The service cannot use the key that the bucket is encrypted with. That is not for us to do, but on Amazon, where a
    /// right may be missing as well ([`Facts::kms_right`]).
    fn key_trouble(&self, operation: &'static str, subject: &str, facts: &Facts) -> Option<StorageError> {
        let hint = match self.service {
            Service::S3 if facts.code.starts_with("KMS.") => {
                "Look at the key in the key service: it may be disabled, or about to be deleted."
            }
            Service::Gcs if facts.words.contains("Cloud KMS") => {
                "Let the service agent of Cloud Storage use the key (`roles/cloudkms.cryptoKeyEncrypterDecrypter`); these \
                 credentials need no right to it."
            }
            Service::Azblob if facts.code.starts_with("KeyVault") => {
                "Let the identity of the storage account use the key in its vault; these credentials need no right to it."
            }
            _ => return None,
        };
        let (noun, container) = (self.service.container_noun(), &self.container);
        let message =
            format!("the key that the {noun} `{container}` is encrypted with cannot be used{}", facts.said());
        Some(StorageError::new(Kind::PermissionDenied, operation, subject, message).with_hint(hint))
    }

    fn by_kind(
        &self,
        operation: &'static str,
        subject: &str,
        error: &opendal::Error,
        facts: &Facts,
    ) -> StorageError {
        let said = facts.said();
        let new = |kind, message: String| StorageError::new(kind, operation, subject, message);
        let place = format!("{} `{}`", self.service.container_noun(), self.container);
        let denied = matches!(facts.status, Some(403 | 407));
        if PlainHttp::is_said_by(&facts.words) {
            return new(Kind::Invalid, facts.words.clone()).with_hint(PLAIN_HTTP_HINT);
        }
        match error.kind() {
            _ if facts.status == Some(401) => {
                let hint = match self.service {
                    Service::Webdav | Service::Other => "Check the user and the password, or the token.",
                    Service::S3 | Service::Gcs | Service::Azblob => CREDENTIALS_HINT,
                };
                new(Kind::PermissionDenied, format!("the {place} refuses the credentials{said}"))
                    .with_hint(hint)
            }
            // Google may forget an upload that is under way; it asks to begin anew then. A missing bucket has a code.
            _ if operation == "put"
                && self.service == Service::Gcs
                && matches!(facts.status, Some(404 | 410)) =>
            {
                new(Kind::Unavailable, format!("the upload was ended by the store{said}"))
            }
            ErrorKind::NotFound => new(Kind::NotFound, "no such object".into()),
            ErrorKind::ConditionNotMatch | ErrorKind::AlreadyExists if operation == "put" => {
                new(Kind::AlreadyExists, "the object exists already".into())
            }
            ErrorKind::RangeNotSatisfied => new(Kind::OutOfRange, "the object is shorter".into()),
            _ if facts.status == Some(416) => new(Kind::OutOfRange, "the object is shorter".into()),
            _ if operation == "get range" && error.message().contains("too little data") => {
                new(Kind::OutOfRange, "the object is shorter".into())
            }
            kind if kind == ErrorKind::RateLimited || facts.status == Some(429) => {
                new(Kind::Throttled, format!("the {place} asks to slow down{said}"))
            }
            ErrorKind::PermissionDenied => self.denied(operation, subject, facts),
            ErrorKind::Unexpected if denied => self.denied(operation, subject, facts),
            ErrorKind::Conflict if operation == "put" => new(
                Kind::Unavailable,
                format!("another write of this object is under way in the {place}{said}"),
            ),
            // An answer to a HEAD has no body that could say more.
            _ if facts.status == Some(409) && facts.code.is_empty() => {
                new(Kind::Unavailable, format!("the {place} could not do it now{said}"))
            }
            ErrorKind::ConfigInvalid | ErrorKind::Unsupported => {
                new(Kind::Invalid, format!("the {place} cannot be used like this{said}"))
            }
            _ if facts.status == Some(507) => new(Kind::NoSpace, format!("the {place} is full{said}")),
            _ if error.message().contains("signing http request")
                || error.message().contains("loading credential") =>
            {
                new(Kind::PermissionDenied, format!("there are no usable credentials for the {place}{said}"))
                    .with_hint(CREDENTIALS_HINT)
            }
            _ if facts.words.contains("certificate") => {
                new(Kind::Other, format!("{} cannot be trusted{said}", self.server))
                    .with_hint("If its certificate is of your own authority, name that with `ca-file=FILE`.")
            }
            _ if facts.words.contains("failed to lookup address") => {
                new(Kind::Unavailable, format!("{} is not found{said}", self.server))
                    .with_hint("Check the name in the location, and whether this machine can look names up.")
            }
            _ if error.is_temporary()
                || facts.status.is_some_and(|status| status == 408 || status >= 500) =>
            {
                new(Kind::Unavailable, format!("{} did not do it{said}", self.server))
            }
            _ => new(Kind::Other, format!("the {place} refused{said}")),
        }
    }

    /// The error that an answer means to a request that OpenDAL does not know, `None` if it says nothing special. `right`
    /// is what the request takes, on the object `subject` or, if that is none, on the whole bucket.
    #[cfg(feature = "s3")]
    pub(crate) fn refusal(
        &self,
        operation: &'static str,
        subject: Option<&Key>,
        right: &str,
        (status, code, words): (u16, &str, &str),
    ) -> Option<StorageError> {
        let facts = Facts { status: Some(status), code: code.to_owned(), words: one_line(words) };
        let shown = subject.map_or_else(|| format!("s3://{}", self.container), ToString::to_string);
        let by_code = self.by_code(operation, &shown, &facts);
        by_code.or_else(|| {
            let resource = match subject {
                Some(key) => format!("{}/{}{key}", self.arn(), self.prefix),
                None => self.arn(),
            };
            matches!(status, 401 | 403).then(|| self.lacks(operation, &shown, (right, &resource), &facts))
        })
    }

    /// A right is missing: says which one.
    fn denied(&self, operation: &'static str, subject: &str, facts: &Facts) -> StorageError {
        let right = self.service.right(operation);
        let object = format!("{}{subject}", self.prefix);
        let resource = match (self.service, operation) {
            (Service::S3, "list") => self.arn(),
            (Service::S3, _) => format!("{}/{object}", self.arn()),
            (_, "list") => format!("{} `{}`", self.service.container_noun(), self.container),
            _ => format!("`{object}` in {} `{}`", self.service.container_noun(), self.container),
        };
        self.lacks(operation, subject, (right, &resource), facts)
    }

    fn lacks(
        &self,
        operation: &'static str,
        subject: &str,
        (right, resource): (&str, &str),
        facts: &Facts,
    ) -> StorageError {
        // The key that the bucket encrypts with has rights of its own, and only the answer tells.
        let (right, resource) = facts.kms_right().unwrap_or((right, resource));
        let message = format!("the credentials lack {right} on {resource}{}", facts.said());
        let hint = match self.service {
            Service::S3 if right.starts_with("kms:") => {
                "Grant `kms:GenerateDataKey` (to store) and `kms:Decrypt` (to read, and for uploads in parts) on the key, \
                 in the policy of these credentials or of the key."
            }
            Service::Azblob if facts.code == "AuthorizationFailure" => {
                "Grant it to these credentials, or let this machine in by the network rules of the storage account."
            }
            Service::S3 | Service::Gcs | Service::Azblob => {
                "Grant it in the policy of these credentials or of the bucket, or use others."
            }
            Service::Webdav | Service::Other => {
                "Check the user, the password, and what the server lets this user do."
            }
        };
        StorageError::new(Kind::PermissionDenied, operation, subject, message).with_hint(hint)
    }

    /// Nothing came within the time.
    pub(super) fn timed_out(&self, operation: &'static str, subject: &str, seconds: u64) -> StorageError {
        let message = format!("{} did not answer within {seconds} s", self.server);
        StorageError::new(Kind::Unavailable, operation, subject, message)
    }

    /// An answer comes so slowly that it is none.
    pub(super) fn too_slow(&self, operation: &'static str, key: &Key) -> StorageError {
        let message = format!("{} sends too slowly", self.server);
        StorageError::new(Kind::Unavailable, operation, key, message)
    }

    /// What the store did makes no sense.
    pub(super) fn strange(&self, operation: &'static str, key: &Key, what: &str) -> StorageError {
        StorageError::new(Kind::Other, operation, key, format!("{} {what}", self.server))
    }
}

impl Service {
    fn container_noun(self) -> &'static str {
        match self {
            Self::S3 | Self::Gcs => "bucket",
            Self::Azblob => "container",
            Self::Webdav | Self::Other => "store",
        }
    }

    /// The right that an operation needs, as the service's policies call it.
    fn right(self, operation: &str) -> &'static str {
        match (self, operation) {
            (Self::S3, "put") => "s3:PutObject",
            (Self::S3, "delete") => "s3:DeleteObject",
            (Self::S3, "list") => "s3:ListBucket",
            (Self::S3, _) => "s3:GetObject",
            (Self::Gcs, "put") => "storage.objects.create",
            (Self::Gcs, "delete") => "storage.objects.delete",
            (Self::Gcs, "list") => "storage.objects.list",
            (Self::Gcs, _) => "storage.objects.get",
            (Self::Azblob, "put") => "blobs/add or blobs/write (`c` or `w` of a SAS)",
            (Self::Azblob, "delete") => "blobs/delete (`d` of a SAS)",
            (Self::Azblob, "list") => "blobs/read on the container (`l` of a SAS)",
            (Self::Azblob, _) => "blobs/read (`r` of a SAS)",
            (_, "put") => "the right to write",
            (_, "delete") => "the right to delete",
            (_, "list") => "the right to list",
            (_, _) => "the right to read",
        }
    }
}

impl Facts {
    /// Reads them from the error's texts: its parts are private.
    fn of(error: &opendal::Error) -> Self {
        let message = error.message();
        let status = error.to_string().split_once("status: ").and_then(|(_, rest)| {
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        let code = quoted(message, "code: \"").or_else(|| quoted(message, "reason: \"")).unwrap_or_default();
        let words = match (quoted(message, "message: \""), deepest_cause(error)) {
            (Some(words), _) => words,
            (None, Some(cause)) => cause,
            (None, None) => message.to_owned(),
        };
        Self { status, code, words: one_line(&words) }
    }

    /// The right to use a key of the key service, and the key, if that is what the words say is missing.
    fn kms_right(&self) -> Option<(&str, &str)> {
        let mut words =
            self.words.split(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | '(' | ')'));
        let right = words.clone().find(|word| word.starts_with("kms:"))?;
        let key = words.find(|word| word.starts_with("arn:") && word.contains(":kms:"));
        Some((right.trim_end_matches(['.', ':']), key.unwrap_or("the key that the bucket encrypts with")))
    }

    /// What the server said, in brackets.
    fn said(&self) -> String {
        let status = self.status.map(|status| format!("HTTP {status}")).unwrap_or_default();
        let parts = [self.code.as_str(), self.words.as_str(), status.as_str()];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
    }
}

/// The text between `start` and the next `"`, as `{:?}` wrote it.
fn quoted(text: &str, start: &str) -> Option<String> {
    let (_, rest) = text.split_once(start)?;
    let mut found = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return Some(found).filter(|found| !found.is_empty()),
            '\\' => found.extend(chars.next().map(|c| if c == 'n' { ' ' } else { c })),
            c => found.push(c),
        }
    }
}

fn deepest_cause(error: &opendal::Error) -> Option<String> {
    let mut cause = error.source()?;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    Some(cause.to_string())
}

fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let text = text.trim().trim_end_matches('.');
    text[..text.floor_char_boundary(WORDS_MAX)].to_owned()
}

#[cfg(test)]
mod tests;
