//! Stores in the network, through OpenDAL. Nothing outside this module names it.

#[cfg(all(test, any(feature = "gcs", feature = "azblob")))]
mod checksum_tests;
#[cfg(any(feature = "gcs", feature = "azblob"))]
mod control;
pub(crate) mod failure;
#[cfg(all(test, feature = "s3"))]
mod headers_tests;
mod listing;
#[cfg(all(test, feature = "s3"))]
mod reading_tests;
#[cfg(all(test, feature = "s3"))]
mod redirect_tests;
mod services;
mod store;
#[cfg(all(test, any(feature = "s3", feature = "gcs", feature = "azblob", feature = "webdav")))]
mod test_server;
pub(crate) mod transport;

use std::sync::Arc;
use std::time::Duration;

use crate::connect::{ConnectOptions, Purpose};
use crate::location::{Location, Place, Settings};
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

    /// Whether it refuses a create under a taken name for the right to replace it that is missing, instead of for our
    /// condition.
    fn looks_at_rights_first(self) -> bool {
        matches!(self, Self::Gcs | Self::Azblob)
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
    /// Azure counts an upload in parts as a right to replace, which backup hosts should not have.
    const AZURE_PART_MIB: u32 = 256;
    const PARALLEL_PARTS: u32 = 4;

    fn new(service: Service, settings: &Settings) -> Self {
        let part_mib = if service == Service::Azblob { Self::AZURE_PART_MIB } else { Self::PART_MIB };
        let parallel = settings.parallel_parts.unwrap_or(Self::PARALLEL_PARTS).clamp(1, 64);
        Self {
            timeout: Duration::from_secs(
                settings.timeout_seconds.unwrap_or(Self::TIMEOUT_SECONDS).max(1).into(),
            ),
            part_bytes: u64::from(settings.part_size_mib.unwrap_or(part_mib).clamp(5, 5120)) << 20,
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
    let transport = transport::transport(client.clone());
    let store = store::OpendalStore::new(parts, transport, limits, location.place.to_string());
    let control = control(&store, location, settings, options, client);
    let store = store.with_control(control);
    if service == Service::Webdav {
        store.check_root(purpose).await?;
    }
    Ok(Arc::new(store))
}

/// What the service knows beyond objects.
#[cfg_attr(not(any(feature = "s3", feature = "gcs", feature = "azblob")), expect(unused_variables))]
fn control(
    store: &store::OpendalStore,
    location: &Location,
    settings: &Settings,
    options: &ConnectOptions,
    client: transport::Http,
) -> Option<Arc<dyn Control>> {
    match &location.place {
        #[cfg(feature = "s3")]
        Place::S3 { bucket, prefix } => {
            let client = crate::s3::connect(bucket, prefix, settings, options, client, store.limits.timeout)?;
            Some(Arc::new(client))
        }
        #[cfg(feature = "gcs")]
        Place::Gcs { bucket, .. } => {
            let url = settings.endpoint.as_deref().unwrap_or(crate::gcs::ENDPOINT).to_owned();
            let asked =
                crate::gcs::Client::new(bucket, settings, options, client.clone(), store.limits.timeout);
            Some(Arc::new(control::CloudControl { bucket: asked, ..store.cloud_control(client, url) }))
        }
        #[cfg(feature = "azblob")]
        Place::Azblob { .. } => {
            let url = store.site.server.clone();
            Some(Arc::new(store.cloud_control(client, url)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn open(place: &str) -> Result<Arc<dyn ObjectStore>, StorageError> {
        let location: Location = place.parse().unwrap();
        crate::connect(&location, &ConnectOptions::default(), Purpose::Create).await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_service_is_opened_by_its_name_in_opendal() {
        let store = open("opendal:memory").await.unwrap();
        let key: crate::Key = "data/x".parse().unwrap();
        store.put_new(&key, bytes::Bytes::from_static(b"hello")).await.unwrap();
        assert_eq!(&store.get(&key).await.unwrap()[..], b"hello");
        assert_eq!(&store.get_range(&key, 1..3).await.unwrap()[..], b"el");
        store.delete(&key).await.unwrap();
        assert_eq!(store.get(&key).await.unwrap_err().kind, crate::StorageErrorKind::NotFound);
    }

    #[tokio::test]
    async fn what_the_build_has_not_is_named_with_what_would_help() {
        let error = open("opendal:fs?root=x").await.unwrap_err();
        assert_eq!(error.kind, crate::StorageErrorKind::Invalid, "{error}");
        assert!(error.to_string().contains("no service `fs`"), "{error}");
        assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("all-services")), "{error:?}");
    }

    #[cfg(feature = "webdav")]
    #[tokio::test]
    async fn a_webdav_server_is_asked_for_the_directory() {
        const THERE: &str = "<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\"><D:response><D:href>/backup/</D:href>\
            <D:propstat><D:prop><D:getlastmodified>Sat, 07 May 2022 06:39:47 GMT</D:getlastmodified>\
            <D:resourcetype><D:collection/></D:resourcetype></D:prop><D:status>HTTP/1.1 200 OK</D:status></D:propstat>\
            </D:response></D:multistatus>";
        for (status, body, expected) in [
            ("207 Multi-Status", THERE, None),
            ("404 Not Found", "", Some(crate::StorageErrorKind::NotFound)),
            ("401 Unauthorized", "", Some(crate::StorageErrorKind::PermissionDenied)),
            ("200 OK", "<html><body>log in</body></html>", Some(crate::StorageErrorKind::Other)),
        ] {
            let headers = "content-type: application/xml\r\n";
            let (endpoint, heads) = test_server::serve(move |_| test_server::answer(status, headers, body));
            let place = format!("{}/backup", endpoint.replace("http://", "webdav://"));
            let location: Location = place.parse().unwrap();
            let opened = crate::connect(&location, &ConnectOptions::default(), Purpose::Open).await;
            assert_eq!(opened.err().map(|error| error.kind), expected, "{status}");
            let heads = heads.lock().unwrap();
            assert!(heads.len() == 1 && heads[0][0].starts_with("propfind /backup"), "{heads:?}");
        }
    }

    #[cfg(feature = "webdav")]
    #[tokio::test]
    async fn a_webdav_directory_under_another_path_is_not_an_empty_one() {
        for paths in [&["/backup/trust/"][..], &["/inside/backup/", "/inside/backup/trust/"][..]] {
            let response = |path: &&str| {
                format!(
                    "<D:response><D:href>{path}</D:href><D:propstat><D:prop>\
                     <D:getlastmodified>Sat, 07 May 2022 06:39:47 GMT</D:getlastmodified>\
                     <D:resourcetype><D:collection/></D:resourcetype></D:prop><D:status>HTTP/1.1 200 OK</D:status>\
                     </D:propstat></D:response>"
                )
            };
            let listed: String = paths.iter().map(response).collect();
            let body =
                format!("<?xml version=\"1.0\"?><D:multistatus xmlns:D=\"DAV:\">{listed}</D:multistatus>");
            let headers = "content-type: application/xml\r\n";
            let (endpoint, _) =
                test_server::serve(move |_| test_server::answer("207 Multi-Status", headers, &body));
            let place = format!("{}/backup", endpoint.replace("http://", "webdav://"));
            let opened =
                crate::connect(&place.parse().unwrap(), &ConnectOptions::default(), Purpose::Open).await;
            let Ok(store) = opened else { continue };
            // Of what is in another directory nothing seems to be beneath the one that was asked for.
            for prefix in ["", "commits/"] {
                let listed = store.list_page(prefix, None).await;
                assert!(listed.is_err(), "`{prefix}`: {listed:?}");
            }
        }
    }

    #[cfg(feature = "webdav")]
    #[tokio::test]
    async fn no_option_of_a_service_leads_to_plain_http() {
        let location: Location = "opendal:webdav?endpoint=http://192.0.2.2:9".parse().unwrap();
        let store = crate::connect(&location, &ConnectOptions::default(), Purpose::Create).await.unwrap();
        let refused = store.get(&"keepwell.json".parse().unwrap()).await.unwrap_err();
        assert_eq!(refused.kind, crate::StorageErrorKind::Invalid, "{refused}");
        assert!(refused.to_string().contains("plain http to `192.0.2.2` is refused"), "{refused}");
        assert!(refused.hint.as_deref().is_some_and(|hint| hint.contains("allow-http")), "{refused:?}");
    }
}
