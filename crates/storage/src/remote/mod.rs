//! Stores in the network, through OpenDAL. Nothing outside this module names it.

mod failure;
mod listing;
mod services;
mod store;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use crate::connect::{ConnectOptions, Purpose};
#[cfg(feature = "s3")]
use crate::location::Place;
use crate::location::{Location, Settings};
use crate::{Control, ObjectStore, StorageError};

/// What speaks on the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    S3,
    Gcs,
    Azblob,
    Webdav,
    Other,
}

impl Service {
    /// Whether it creates an object only where there is none, whole and in one step.
    fn creates_conditionally(self) -> bool {
        matches!(self, Self::S3 | Self::Gcs | Self::Azblob)
    }

    /// Whether it has directories, which are no objects.
    fn has_directories(self) -> bool {
        matches!(self, Self::Webdav | Self::Other)
    }
}

/// Bounds of transfers.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Longest wait for an answer, or for the next piece of one.
    timeout: Duration,
    /// Size of a part; smaller objects are put at once.
    part_bytes: u64,
    /// Parts of an object on their way at a time.
    parallel_parts: usize,
    /// The store is trusted to create only where there is nothing.
    conditional_create: bool,
}

impl Limits {
    const TIMEOUT_SECONDS: u32 = 60;
    const PART_MIB: u32 = 64;
    const PARALLEL_PARTS: u32 = 4;

    fn new(service: Service, settings: &Settings) -> Self {
        let parallel = settings.parallel_parts.unwrap_or(Self::PARALLEL_PARTS).clamp(1, 64);
        Self {
            timeout: Duration::from_secs(
                settings.timeout_seconds.unwrap_or(Self::TIMEOUT_SECONDS).max(1).into(),
            ),
            part_bytes: u64::from(settings.part_size_mib.unwrap_or(Self::PART_MIB).clamp(5, 5120)) << 20,
            parallel_parts: parallel as usize,
            conditional_create: service.creates_conditionally()
                && settings.conditional_create.unwrap_or(true),
        }
    }
}

/// Opens a store in the network.
pub(crate) async fn open(
    location: &Location,
    settings: &Settings,
    options: &ConnectOptions,
    purpose: Purpose,
) -> Result<Arc<dyn ObjectStore>, StorageError> {
    let parts = services::parts(location, settings, options)?;
    let service = parts.site.service;
    let limits = Limits::new(service, settings);
    let client = transport::client(settings, options.ambient, limits.timeout)?;
    let control = control(location, settings, options, &client, limits.timeout);
    let transport = transport::transport(client);
    let store =
        store::OpendalStore::new(parts, transport, limits, location.place.to_string()).with_control(control);
    if service.has_directories() {
        store.check_root(purpose).await?;
    }
    Ok(Arc::new(store))
}

/// What the service knows beyond objects.
#[cfg(feature = "s3")]
fn control(
    location: &Location,
    settings: &Settings,
    options: &ConnectOptions,
    client: &reqwest::Client,
    timeout: Duration,
) -> Option<Arc<dyn Control>> {
    match &location.place {
        Place::S3 { bucket, prefix } => {
            let client = crate::s3::connect(bucket, prefix, settings, options, client.clone(), timeout)?;
            Some(Arc::new(client))
        }
        _ => None,
    }
}

#[cfg(not(feature = "s3"))]
fn control(
    _: &Location,
    _: &Settings,
    _: &ConnectOptions,
    _: &reqwest::Client,
    _: Duration,
) -> Option<Arc<dyn Control>> {
    None
}
