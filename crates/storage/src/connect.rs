//! From a location to its store.

use std::sync::Arc;

use crate::location::{Location, Place, Settings};
use crate::{Credentials, LocalFs, LocalOptions, ObjectStore, StorageError};

/// What a store is opened with, beside its location.
#[derive(Clone, Debug, Default)]
pub struct ConnectOptions {
    /// What the location does not say itself.
    pub settings: Settings,
    /// Who we are.
    pub credentials: Credentials,
    /// Whether to look around for what is not given here. Credentials: the environment variables, files and metadata
    /// services that the vendor's own tools look at. The proxy: `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY`.
    pub ambient: bool,
    /// For directories.
    pub local: LocalOptions,
}

/// What a store is connected for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// It is there already: a directory that does not exist is `NotFound`.
    Open,
    /// A new repository: missing directories are made. A bucket must exist.
    Create,
}

/// Opens the store at a location.
///
/// Buckets are not asked anything yet: whether they exist and we may use them shows at the first operation. SFTP and
/// WebDAV are spoken to, because their directory must exist, or is made.
///
/// Fails with `Invalid` if settings or credentials make no sense or are missing, and if this build does not know the
/// kind of store; it is then of no use to try again. The store does not try again by itself: wrap it in
/// [`Retrying`](crate::Retrying).
/// ```
/// use keepwell_storage::{ConnectOptions, Location, Purpose, connect};
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// let dir = tempfile::tempdir()?;
/// let location = Location::directory(dir.path().join("new")); // from people: `"s3://bucket/prefix".parse()`
/// let store = connect(&location, &ConnectOptions::default(), Purpose::Create).await?;
/// store.put_new(&"data/pack".parse()?, "bytes".into()).await?;
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
pub async fn connect(
    location: &Location,
    options: &ConnectOptions,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    if let Place::Directory(path) = &location.place {
        return Ok(match purpose {
            Purpose::Open => Arc::new(LocalFs::open(path, &options.local).await?),
            Purpose::Create => Arc::new(LocalFs::create(path, &options.local).await?),
        });
    }
    let settings = location.settings.clone().or(&options.settings);
    #[cfg(feature = "sftp")]
    if matches!(location.place, Place::Sftp { .. }) {
        return crate::sftp::open(location, &settings, purpose).await;
    }
    remote(location, &settings, options, purpose).await
}

#[cfg(feature = "remote")]
async fn remote(
    location: &Location,
    settings: &Settings,
    options: &ConnectOptions,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    crate::remote::open(location, settings, options, purpose).await
}

#[cfg(not(feature = "remote"))]
async fn remote(
    location: &Location,
    _: &Settings,
    _: &ConnectOptions,
    _: Purpose,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    Err(not_built_in(location))
}

/// The kind of store was left out of this build.
pub(crate) fn not_built_in(location: &Location) -> StorageError {
    let (message, hint) = match &location.place {
        Place::Opendal { scheme, .. } => (
            format!("this build has no service `{scheme}` of OpenDAL"),
            "A usual build has s3, gcs, azblob, webdav and memory. With the features b2, cos, obs, oss and swift, or \
             `all-services`, it has these as well. A directory is named by its path, a server of SSH by `sftp://`.",
        ),
        _ => (
            "this build has no support for such stores".to_owned(),
            "Build keepwell-storage with the feature for it: s3, gcs, azblob, webdav or sftp.",
        ),
    };
    StorageError::new(crate::StorageErrorKind::Invalid, "open", &location.place, message).with_hint(hint)
}
