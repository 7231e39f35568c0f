//! From a location to a client, on the same rules as the store itself.

use std::time::Duration;

use reqsign_aws_v4::{Credential, DefaultCredentialProvider, StaticCredentialProvider};
use reqsign_core::{Env, OsEnv, ProvideCredentialChain};
use url::Url;

use super::client::{Bucket, Client};
use crate::connect::ConnectOptions;
use crate::location::Settings;
use crate::remote::transport::Http;

/// The region that services with an endpoint of their own mostly do not care for.
const ANY_REGION: &str = "us-east-1";

/// A client for a bucket, or none if it is not known where that is: the store then says so itself.
pub(crate) fn client(
    bucket: &str,
    prefix: &str,
    settings: &Settings,
    options: &ConnectOptions,
    http: Http,
    timeout: Duration,
) -> Option<Client> {
    let ambient = |names: &[&str]| {
        names.iter().find_map(|name| OsEnv.var(name)).filter(|value| options.ambient && !value.is_empty())
    };
    let endpoint = settings
        .endpoint
        .clone()
        .or_else(|| ambient(&["AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_S3_ENDPOINT"]));
    let region = settings
        .region
        .clone()
        .or_else(|| ambient(&["AWS_REGION", "AWS_DEFAULT_REGION"]))
        .or_else(|| endpoint.is_some().then(|| ANY_REGION.to_owned()))?;
    let in_path = settings.path_style.unwrap_or(settings.endpoint.is_some()) || bucket.contains('.');
    let endpoint = endpoint.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let url = bucket_url(&endpoint, bucket, in_path)?;
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let bucket = Bucket { url, name: bucket.to_owned(), prefix, region };
    Some(Client::new(http, timeout, bucket, credentials(settings, options)))
}

fn bucket_url(endpoint: &str, bucket: &str, in_path: bool) -> Option<Url> {
    let mut url = Url::parse(endpoint.trim_end_matches('/')).ok()?;
    if in_path {
        url.path_segments_mut().ok()?.pop_if_empty().push(bucket).push("");
    } else {
        let host = format!("{bucket}.{}", url.host_str()?);
        url.set_host(Some(&host)).ok()?;
    }
    Some(url)
}

fn credentials(settings: &Settings, options: &ConnectOptions) -> ProvideCredentialChain<Credential> {
    let mut chain = ProvideCredentialChain::new();
    let given = &options.credentials;
    if let (Some(id), Some(secret)) = (&given.access_key, &given.secret_key) {
        let mut provider = StaticCredentialProvider::new(id, secret.expose());
        if let Some(token) = &given.session_token {
            provider = provider.with_session_token(token.expose());
        }
        chain = chain.push(provider);
    }
    if options.ambient {
        let mut builder = DefaultCredentialProvider::builder();
        if let Some(profile) = &settings.aws_profile {
            builder = builder.with_profile(profile);
        }
        chain = chain.push(builder.build());
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bucket_stands_in_the_path_or_in_the_host() {
        let url = |endpoint, in_path| bucket_url(endpoint, "b", in_path).unwrap().to_string();
        assert_eq!(url("http://127.0.0.1:9000", true), "http://127.0.0.1:9000/b/");
        assert_eq!(url("https://host/base/", true), "https://host/base/b/");
        assert_eq!(
            url("https://s3.eu-central-1.amazonaws.com", false),
            "https://b.s3.eu-central-1.amazonaws.com/"
        );
        assert_eq!(bucket_url("no url", "b", true), None);
    }
}
