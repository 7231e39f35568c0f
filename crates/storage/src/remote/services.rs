//! The operators of each service.

use std::collections::BTreeMap;

use opendal::Operator;

use super::Service;
use super::failure::Site;
use super::transport::check_protocol;
use crate::amazon::COMMON_PARTITION;
use crate::connect::{ConnectOptions, not_built_in};
use crate::location::{Location, Place, Settings};
use crate::{StorageError, StorageErrorKind};

/// What a location leads to.
pub(super) struct Parts {
    pub(super) site: Site,
    pub(super) hot: Operator,
    /// For objects beneath `data/`, if they are stored otherwise.
    pub(super) cold: Option<Operator>,
}

pub(super) fn parts(
    location: &Location,
    settings: &Settings,
    options: &ConnectOptions,
) -> Result<Parts, StorageError> {
    match &location.place {
        #[cfg(feature = "s3")]
        Place::S3 { bucket, prefix } => s3::parts(location, bucket, prefix, settings, options),
        #[cfg(feature = "gcs")]
        Place::Gcs { bucket, prefix } => gcs::parts(location, bucket, prefix, settings, options),
        #[cfg(feature = "azblob")]
        Place::Azblob { container, prefix } => azblob::parts(location, container, prefix, settings, options),
        #[cfg(feature = "webdav")]
        Place::Webdav { url } => webdav::parts(location, url, settings, options),
        Place::Opendal { scheme, options: parameters } => other(location, scheme, parameters, options),
        _ => Err(not_built_in(location)),
    }
}

/// The operator for `data/`, where its class differs from that of the rest.
fn cold<B: opendal::Builder>(
    location: &Location,
    settings: &Settings,
    builder: impl Fn(Option<&str>) -> B,
) -> Result<(Operator, Option<Operator>), StorageError> {
    let hot = operator(location, builder(settings.storage_class.as_deref()))?;
    let cold = match &settings.cold_class {
        Some(class) => Some(operator(location, builder(Some(class)))?),
        None => None,
    };
    Ok((hot, cold))
}

fn operator(location: &Location, builder: impl opendal::Builder) -> Result<Operator, StorageError> {
    Operator::new(builder).map_err(|error| match error.message() {
        message if message.starts_with("region is missing") => no_region(location),
        message => invalid(location, message),
    })
}

fn no_region(location: &Location) -> StorageError {
    invalid(location, "no region is given").with_hint(
        "Name the region of the bucket: `?region=eu-central-1`; or the `endpoint`, if it is not Amazon's.",
    )
}

fn invalid(location: &Location, message: impl Into<String>) -> StorageError {
    StorageError::new(StorageErrorKind::Invalid, "open", &location.place, message)
}

/// Any other service, by what OpenDAL calls it and its options.
fn other(
    location: &Location,
    scheme: &str,
    parameters: &BTreeMap<String, String>,
    options: &ConnectOptions,
) -> Result<Parts, StorageError> {
    opendal::init_default_registry();
    let secrets =
        options.credentials.options.iter().map(|(key, secret)| (key.clone(), secret.expose().to_owned()));
    let pairs = parameters.clone().into_iter().chain(secrets);
    let hot = Operator::via_iter(scheme, pairs).map_err(|error| match error.kind() {
        opendal::ErrorKind::Unsupported => not_built_in(location),
        _ => invalid(location, error.message()),
    })?;
    Ok(Parts { site: site(Service::Other, scheme, "", scheme), hot, cold: None })
}

fn no_credentials(location: &Location, names: &str) -> StorageError {
    invalid(location, "no credentials were given").with_hint(format!("It takes {names}."))
}

fn site(service: Service, container: &str, prefix: &str, server: &str) -> Site {
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let (container, server) = (container.to_owned(), server.to_owned());
    Site { service, container, prefix, server, partition: COMMON_PARTITION }
}

#[cfg(feature = "s3")]
mod s3 {
    use opendal::services::S3;

    use super::*;
    use crate::amazon::partition_of;
    use crate::location::{Checksum, ServerEncryption};

    /// The region that services with an endpoint of their own mostly do not care for.
    const ANY_REGION: &str = "us-east-1";

    pub(super) fn parts(
        location: &Location,
        bucket: &str,
        prefix: &str,
        settings: &Settings,
        options: &ConnectOptions,
    ) -> Result<Parts, StorageError> {
        let credentials = &options.credentials;
        if credentials.access_key.is_some() != credentials.secret_key.is_some() {
            return Err(invalid(
                location,
                "an access key and its secret key are given together or not at all",
            ));
        }
        if credentials.session_token.is_some() && credentials.access_key.is_none() {
            return Err(invalid(location, "a session token belongs to an access key, and none is given"));
        }
        if credentials.access_key.is_none() && !options.ambient {
            return Err(no_credentials(location, "an access key and its secret key"));
        }
        if settings.kms_key.is_some() && settings.sse != Some(ServerEncryption::Kms) {
            return Err(invalid(location, "`kms-key` is for encryption by the key service")
                .with_hint("Say `sse=aws:kms` as well, or leave the key to the bucket."));
        }
        let region =
            settings.region.clone().or_else(|| settings.endpoint.is_some().then(|| ANY_REGION.into()));
        if region.is_none() && !options.ambient {
            return Err(no_region(location));
        }
        let server = match &settings.endpoint {
            Some(endpoint) => check_protocol(endpoint, settings)?.to_string(),
            None => "Amazon S3".to_owned(),
        };
        let build =
            |class: Option<&str>| builder(bucket, prefix, region.as_deref(), class, settings, options);
        let (hot, cold) = cold(location, settings, build)?;
        let site = site(Service::S3, bucket, prefix, server.trim_end_matches('/'));
        let partition = partition_of(settings.endpoint.as_deref(), region.as_deref());
        Ok(Parts { site: Site { partition, ..site }, hot, cold })
    }

    fn builder(
        bucket: &str,
        prefix: &str,
        region: Option<&str>,
        class: Option<&str>,
        settings: &Settings,
        options: &ConnectOptions,
    ) -> S3 {
        let mut builder = S3::default().bucket(bucket).root(prefix);
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.endpoint(endpoint);
        }
        // A name with dots matches no wildcard certificate.
        let path_style = settings.path_style.unwrap_or(settings.endpoint.is_some()) || bucket.contains('.');
        if !path_style {
            builder = builder.enable_virtual_host_style();
        }
        builder = builder
            .region(region.unwrap_or_default())
            .default_storage_class(class.unwrap_or_default())
            .server_side_encryption(match settings.sse {
                Some(ServerEncryption::Aes256) => "AES256",
                Some(ServerEncryption::Kms) => "aws:kms",
                None => "",
            })
            .server_side_encryption_aws_kms_key_id(settings.kms_key.as_deref().unwrap_or_default())
            .profile(settings.aws_profile.as_deref().unwrap_or_default());
        builder = match settings.checksum.unwrap_or(Checksum::Crc32c) {
            Checksum::Crc32c => builder.checksum_algorithm("crc32c"),
            Checksum::Md5 => builder.checksum_algorithm("md5"),
            Checksum::None => builder,
        };
        let credentials = &options.credentials;
        if let (Some(id), Some(secret)) = (&credentials.access_key, &credentials.secret_key) {
            builder = builder.access_key_id(id).secret_access_key(secret.expose());
            builder =
                builder.session_token(credentials.session_token.as_ref().map_or("", |token| token.expose()));
        }
        if !options.ambient {
            builder = builder.disable_config_load().disable_ec2_metadata();
        }
        builder
    }
}

#[cfg(feature = "gcs")]
mod gcs {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use opendal::services::Gcs;

    use super::*;

    pub(super) fn parts(
        location: &Location,
        bucket: &str,
        prefix: &str,
        settings: &Settings,
        options: &ConnectOptions,
    ) -> Result<Parts, StorageError> {
        let credentials = &options.credentials;
        if credentials.service_account.is_none() && credentials.token.is_none() && !options.ambient {
            return Err(no_credentials(location, "a service account or a token"));
        }
        let server = match &settings.endpoint {
            Some(endpoint) => check_protocol(endpoint, settings)?.to_string(),
            None => "Google Cloud Storage".to_owned(),
        };
        let build = |class: Option<&str>| {
            let mut builder = Gcs::default().bucket(bucket).root(prefix);
            builder = builder.default_storage_class(class.unwrap_or_default());
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.endpoint(endpoint);
            }
            if let Some(account) = &credentials.service_account {
                builder = builder.credential(&BASE64_STANDARD.encode(account.expose()));
            }
            if let Some(token) = &credentials.token {
                builder = builder.token(token.expose().to_owned());
            }
            if !options.ambient {
                builder = builder.disable_config_load().disable_vm_metadata();
            }
            builder
        };
        let (hot, cold) = cold(location, settings, build)?;
        Ok(Parts { site: site(Service::Gcs, bucket, prefix, server.trim_end_matches('/')), hot, cold })
    }
}

#[cfg(feature = "azblob")]
mod azblob {
    use opendal::services::Azblob;

    use super::*;

    pub(super) fn parts(
        location: &Location,
        container: &str,
        prefix: &str,
        settings: &Settings,
        options: &ConnectOptions,
    ) -> Result<Parts, StorageError> {
        let credentials = &options.credentials;
        if credentials.account_key.is_none() && credentials.sas_token.is_none() && !options.ambient {
            return Err(no_credentials(location, "an account key or a shared access signature"));
        }
        let endpoint = match (&settings.endpoint, &settings.account) {
            (Some(endpoint), _) => check_protocol(endpoint, settings)?.to_string(),
            (None, Some(account)) => format!("https://{account}.blob.core.windows.net"),
            (None, None) => {
                return Err(
                    invalid(location, "no storage account is given").with_hint("Name it: `?account=…`.")
                );
            }
        };
        let endpoint = endpoint.trim_end_matches('/');
        let mut builder = Azblob::default().container(container).root(prefix).endpoint(endpoint);
        builder = builder.account_name(settings.account.as_deref().unwrap_or_default());
        if let Some(key) = &credentials.account_key {
            builder = builder.account_key(key.expose());
        }
        if let Some(token) = &credentials.sas_token {
            builder = builder.sas_token(token.expose().trim_start_matches('?'));
        }
        let hot = operator(location, builder)?;
        Ok(Parts { site: site(Service::Azblob, container, prefix, endpoint), hot, cold: None })
    }
}

/// OpenDAL escapes paths itself.
#[cfg(feature = "webdav")]
fn percent_decoded(path: &str) -> String {
    let form = path.replace('+', "%2B").replace('&', "%26").replace('=', "%3D");
    url::form_urlencoded::parse(form.as_bytes()).next().map(|(path, _)| path.into_owned()).unwrap_or_default()
}

#[cfg(feature = "webdav")]
mod webdav {
    use opendal::services::Webdav;

    use super::*;

    pub(super) fn parts(
        location: &Location,
        url: &str,
        settings: &Settings,
        options: &ConnectOptions,
    ) -> Result<Parts, StorageError> {
        let parsed = check_protocol(url, settings)?;
        let credentials = &options.credentials;
        // Directories above the repository's are made as well, so they are not part of the endpoint.
        let origin = parsed.origin().ascii_serialization();
        let mut builder = Webdav::default().endpoint(&origin).root(&percent_decoded(parsed.path()));
        if let Some(user) = &settings.user {
            builder = builder.username(user);
            builder =
                builder.password(credentials.password.as_ref().map_or("", |password| password.expose()));
        }
        if let Some(token) = &credentials.token {
            builder = builder.token(token.expose());
        }
        let hot = operator(location, builder)?;
        Ok(Parts { site: site(Service::Webdav, url, "", url), hot, cold: None })
    }
}
