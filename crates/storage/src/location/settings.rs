//! What can be set about a store in the network, in its location or beside it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

/// Defines [`Settings`] with one name for each field, in locations and in files.
macro_rules! settings {
    ($($(#[doc = $doc:literal])* $field:ident: $type:ty = $key:literal,)*) => {
        /// Settings of a store in the network; what is `None` has a default.
        ///
        /// The same names, in kebab case, stand in a location (`s3://bucket?path-style=true`) and in a configuration
        /// file. No setting is a secret; those are [`Credentials`](crate::Credentials).
        #[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
        pub struct Settings {
            $($(#[doc = $doc])* pub $field: Option<$type>,)*
        }

        impl Settings {
            /// Sets one by its name. The error says what is wrong with the value; an unknown name is `Ok(false)`.
            pub(super) fn set(&mut self, key: &str, value: &str) -> Result<bool, String> {
                match key {
                    $($key => self.$field = Some(Value::read(value)?),)*
                    _ => return Ok(false),
                }
                Ok(true)
            }

            /// Those that are set, by name, in a fixed order.
            pub(super) fn pairs(&self) -> Vec<(&'static str, String)> {
                let mut pairs = Vec::new();
                $(pairs.extend(self.$field.as_ref().map(|value| ($key, value.show())));)*
                pairs
            }

            /// These settings, and where one is not set, that of `others`.
            pub fn or(self, others: &Self) -> Self {
                Self { $($field: self.$field.or_else(|| others.$field.clone()),)* }
            }
        }
    };
}

settings! {
    /// Base URL of the service, where it is not the vendor's own: `https://minio.example.org:9000`.
    endpoint: String = "endpoint",
    /// Region of an S3 bucket.
    region: String = "region",
    /// Whether an S3 bucket stands in the path instead of the host name. Default: with an `endpoint`, or where the name of the bucket has a dot.
    path_style: bool = "path-style",
    /// Storage class of new objects (S3, GCS). Default: the bucket's.
    storage_class: String = "storage-class",
    /// Storage class of new data packs of 4 MiB or more (beneath `data/`), which only restores read. Default: `storage_class`.
    cold_class: String = "cold-class",
    /// Encryption by the S3 service, beside our own.
    sse: ServerEncryption = "sse",
    /// Key id of `sse = "aws:kms"`. Default: the account's own key for S3.
    kms_key: String = "kms-key",
    /// The profile of the AWS configuration files that ambient credentials are taken from.
    aws_profile: String = "aws-profile",
    /// Checksum that an S3 service proves each upload by. Default: crc32c.
    checksum: Checksum = "checksum",
    /// Whether the store creates an object only if there is none of this name, as one step. Default: yes for S3, GCS and
    /// Azure. `false` is for services that cannot; then only one maintainer may work on the repository at a time.
    conditional_create: bool = "conditional-create",
    /// Storage account (Azure).
    account: String = "account",
    /// Name to log in with (WebDAV).
    user: String = "user",
    /// File with the private key to log in with (SFTP). Default: what `ssh` uses for the host.
    identity_file: PathBuf = "identity-file",
    /// File with the known host keys (SFTP). Default: that of `ssh`.
    known_hosts_file: PathBuf = "known-hosts-file",
    /// PEM file with certificates to trust beside the system's.
    ca_file: PathBuf = "ca-file",
    /// Oldest version of TLS to speak. Default: 1.2.
    tls_min: TlsVersion = "tls-min",
    /// Allows plain http also to hosts other than this one. Default: no.
    allow_http: bool = "allow-http",
    /// Objects above this size are uploaded in parts of it; at least 5. Default: 64, on Azure 256.
    part_size_mib: u32 = "part-size-mib",
    /// Parts of one object on their way at a time. Default: 4.
    parallel_parts: u32 = "parallel-parts",
    /// Seconds to wait for an answer; an upload gets a second more for every 32 KiB, a download for every 4 of all. Default: 60.
    timeout_seconds: u32 = "timeout-seconds",
}

/// A setting as text.
trait Value: Sized {
    fn read(text: &str) -> Result<Self, String>;
    fn show(&self) -> String;
}

impl Value for String {
    fn read(text: &str) -> Result<Self, String> {
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err("it is empty or has control characters".into());
        }
        Ok(text.to_owned())
    }

    fn show(&self) -> String {
        self.clone()
    }
}

impl Value for PathBuf {
    fn read(text: &str) -> Result<Self, String> {
        String::read(text).map(Self::from)
    }

    fn show(&self) -> String {
        self.display().to_string()
    }
}

impl Value for bool {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "it is neither `true` nor `false`".into())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Value for u32 {
    fn read(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| "it is no number".into())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Defines an enum that is written as one of a few words.
macro_rules! words {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $variant_doc:literal])* $variant:ident = $word:literal,)* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        #[serde(try_from = "String")]
        pub enum $name {
            $($(#[doc = $variant_doc])* $variant,)*
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    _ => Err(format!("`{text}` is none of {}", [$(concat!("`", $word, "`")),*].join(", "))),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(match self {
                    $(Self::$variant => $word,)*
                })
            }
        }

        impl Value for $name {
            fn read(text: &str) -> Result<Self, String> {
                text.parse()
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    };
}

words! {
    /// A version of TLS.
    TlsVersion {
        /// TLS 1.2.
        Tls12 = "1.2",
        /// TLS 1.3.
        Tls13 = "1.3",
    }
}

words! {
    /// Encryption at rest by an S3 service, with keys that it holds.
    ServerEncryption {
        /// SSE-S3: a key of the service.
        Aes256 = "AES256",
        /// SSE-KMS: a key of the account's key service.
        Kms = "aws:kms",
    }
}

words! {
    /// The checksum that an S3 service compares uploads with.
    Checksum {
        /// CRC-32C in `x-amz-checksum-crc32c`, also for every part.
        Crc32c = "crc32c",
        /// `Content-MD5`; not for objects in parts.
        Md5 = "md5",
        /// None, for services that refuse both.
        None = "none",
    }
}
