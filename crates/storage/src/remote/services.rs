//! The operators of each service.

use opendal::Operator;

use super::Service;
use super::failure::Site;
use super::transport::check_protocol;
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

fn no_credentials(location: &Location, names: &str) -> StorageError {
    invalid(location, "no credentials were given").with_hint(format!("It takes {names}."))
}

fn site(service: Service, container: &str, prefix: &str, server: &str) -> Site {
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    Site { service, container: container.to_owned(), prefix, server: server.to_owned() }
}

#[cfg(feature = "s3")]
mod s3 {
    use opendal::services::S3;

    use super::*;
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
        if (credentials.access_key.is_none() || credentials.secret_key.is_none()) && !options.ambient {
            return Err(no_credentials(location, "an access key and its secret key"));
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
        Ok(Parts { site: site(Service::S3, bucket, prefix, server.trim_end_matches('/')), hot, cold })
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
