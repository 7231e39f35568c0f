//! Where a repository is, as a person types it.

mod parse;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub use settings::{Checksum, ServerEncryption, Settings, TlsVersion};

/// Where a repository is: a directory, or a place in a store in the network.
///
/// ```text
/// /srv/backup                    ./backup                     file:///srv/backup
/// s3://bucket/prefix?region=eu-central-1
/// s3://bucket/prefix?endpoint=https://s3.example.org&storage-class=STANDARD_IA
/// gs://bucket/prefix             azblob://container/prefix?account=name
/// sftp://user@host:22/srv/backup (relative to the home: sftp://host/~/backup)
/// webdavs://host/path?user=name  webdav://localhost/path
/// opendal:SCHEME?key=value       any other service of OpenDAL that this build has
/// ```
///
/// Parsing is strict: an unknown parameter is refused, with the known ones and what was probably meant. Secrets are
/// refused: a location is printed, logged and stored; they belong in [`Credentials`](crate::Credentials). Displaying
/// gives a text that parses to the same location.
///
/// ```
/// use keepwell_storage::{Location, Place};
/// let location: Location = "s3://backups/host1?region=eu-central-1".parse()?;
/// assert_eq!(location.settings.region.as_deref(), Some("eu-central-1"));
/// assert!("s3://backups?secret-key=x".parse::<Location>().is_err());
/// # Ok::<(), keepwell_storage::InvalidLocation>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Location {
    /// The kind of store, and the place in it.
    pub place: Place,
    /// What the location says about the store.
    pub settings: Settings,
}

/// The kind of store, and the place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket of an S3-compatible service.
    S3 {
        /// The bucket.
        bucket: String,
        /// What every key begins with; empty, or without `/` at its ends.
        prefix: String,
    },
    /// A bucket of Google Cloud Storage.
    Gcs {
        /// The bucket.
        bucket: String,
        /// As for S3.
        prefix: String,
    },
    /// A container of Azure Blob Storage.
    Azblob {
        /// The container.
        container: String,
        /// As for S3.
        prefix: String,
    },
    /// A directory that an SSH server gives access to.
    Sftp {
        /// Name to log in with, if it is not left to `ssh`.
        user: Option<String>,
        /// The host, or its name in the configuration of `ssh`.
        host: String,
        /// The port, if it is not left to `ssh`.
        port: Option<u16>,
        /// The directory; without `/` at the beginning it is beneath the home of the user.
        path: String,
    },
    /// A directory of a WebDAV server.
    Webdav {
        /// Its URL: `https://host:port/path`.
        url: String,
    },
    /// Another service of OpenDAL.
    Opendal {
        /// Its name there.
        scheme: String,
        /// Its options there.
        options: BTreeMap<String, String>,
    },
}

/// A text that names no place for a repository, and why; never with what may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no place for a repository: {reason}")]
pub struct InvalidLocation {
    /// The text, without what follows a `?` and without a password.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
    /// What may help, as sentences.
    pub hint: Option<String>,
}

impl FromStr for Location {
    type Err = InvalidLocation;

    fn from_str(text: &str) -> Result<Self, InvalidLocation> {
        parse::location(text)
    }
}

impl Location {
    /// A directory.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Directory(path.into()), settings: Settings::default() }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(formatter)?;
        let mut separator = match &self.place {
            Place::Opendal { options, .. } if !options.is_empty() => '&',
            _ => '?',
        };
        for (key, value) in self.settings.pairs() {
            write!(formatter, "{separator}{key}={}", parse::escaped(&value))?;
            separator = '&';
        }
        Ok(())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = |prefix: &str| if prefix.is_empty() { "" } else { "/" };
        match self {
            // What stands before a colon would be taken for a scheme.
            Self::Directory(path) => match path.to_str().and_then(|text| text.split('/').next()) {
                Some(first) if first.contains(':') => write!(formatter, "file:{}", path.display()),
                _ => path.display().fmt(formatter),
            },
            Self::S3 { bucket, prefix } => write!(formatter, "s3://{bucket}{}{prefix}", slash(prefix)),
            Self::Gcs { bucket, prefix } => write!(formatter, "gs://{bucket}{}{prefix}", slash(prefix)),
            Self::Azblob { container, prefix } => {
                write!(formatter, "azblob://{container}{}{prefix}", slash(prefix))
            }
            Self::Sftp { user, host, port, path } => {
                formatter.write_str("sftp://")?;
                if let Some(user) = user {
                    write!(formatter, "{}@", parse::escaped_name(user))?;
                }
                formatter.write_str(host)?;
                if let Some(port) = port {
                    write!(formatter, ":{port}")?;
                }
                let home = if path.starts_with('/') { "" } else { "/~/" };
                write!(formatter, "{home}{}", parse::escaped_path(path))
            }
            Self::Webdav { url } => formatter.write_str(&parse::webdav_scheme(url)),
            Self::Opendal { scheme, options } => {
                write!(formatter, "opendal:{scheme}")?;
                let mut separator = '?';
                for (key, value) in options {
                    write!(formatter, "{separator}{}={}", parse::escaped_name(key), parse::escaped(value))?;
                    separator = '&';
                }
                Ok(())
            }
        }
    }
}
