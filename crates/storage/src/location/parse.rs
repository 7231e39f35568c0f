//! From text to location.

use std::collections::BTreeMap;
use std::path::PathBuf;

use url::{Host, Url, form_urlencoded};

use super::{InvalidLocation, Location, Place, Settings};
use crate::Key;

const SCHEMES: &[&str] = &["s3", "gs", "azblob", "sftp", "webdav", "webdavs", "file"];
/// What every store in the network understands.
const COMMON: &[&str] = &["ca-file", "tls-min", "allow-http", "timeout-seconds"];
const S3: &[&str] = &[
    "endpoint",
    "region",
    "path-style",
    "storage-class",
    "cold-class",
    "sse",
    "kms-key",
    "aws-profile",
    "checksum",
    "conditional-create",
    "part-size-mib",
    "parallel-parts",
];
const GCS: &[&str] = &["endpoint", "storage-class", "cold-class", "part-size-mib", "parallel-parts"];
const AZBLOB: &[&str] = &["endpoint", "account", "part-size-mib", "parallel-parts"];
const SFTP: &[&str] = &["identity-file", "known-hosts-file", "timeout-seconds"];
const WEBDAV: &[&str] = &["user"];

/// Parts of names of parameters that would hold a secret.
const SECRET_WORDS: &[&str] =
    &["secret", "password", "passwd", "token", "key", "credential", "sas", "sig", "connection-string"];

const SECRETS_BELONG: &str = "Secrets do not belong in a location, which is printed and stored: put them into a file or a command that \
     the table `[profile.NAME.credentials]` names, or into the environment variables of the service.";

pub(super) fn location(text: &str) -> Result<Location, InvalidLocation> {
    let shown = shown(text);
    let fail = |reason: String| InvalidLocation { text: shown.clone(), reason, hint: None };
    if text.is_empty() {
        return Err(fail("it is empty".into()));
    }
    if let Some(rest) = text.strip_prefix("opendal:") {
        return opendal(rest, &fail);
    }
    let Some((scheme, _)) = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) else {
        return path(text, &fail);
    };
    if scheme == "file" {
        return Ok(Location::directory(file_path(text, &fail)?));
    }
    let known: &[&str] = match scheme {
        "s3" => S3,
        "gs" | "gcs" => GCS,
        "azblob" | "az" => AZBLOB,
        "sftp" => SFTP,
        "webdav" | "webdavs" => WEBDAV,
        _ => return Err(unknown_scheme(scheme, fail)),
    };
    let url = Url::parse(text).map_err(|error| fail(error.to_string()))?;
    if url.password().is_some() {
        return Err(InvalidLocation {
            hint: Some(SECRETS_BELONG.into()),
            ..fail("it holds a password".into())
        });
    }
    if url.fragment().is_some() {
        return Err(fail("it has a `#`; write it as `%23`".into()));
    }
    if has_dots(text) {
        return Err(fail("a directory in it is `.` or `..`".into()));
    }
    let place = place(scheme, &url, &fail)?;
    let common = if scheme == "sftp" { &[][..] } else { COMMON };
    let settings = settings(&url, known, common, &fail)?;
    Ok(Location { place, settings })
}

fn path(text: &str, fail: &dyn Fn(String) -> InvalidLocation) -> Result<Location, InvalidLocation> {
    let path = text.strip_prefix("file:").unwrap_or(text);
    if path.is_empty() {
        return Err(fail("it has no path".into()));
    }
    // As other programs write it: `s3:https://host/bucket`. Nobody means a directory of this name.
    match path.split_once(':') {
        Some((scheme, _)) if SCHEMES.contains(&scheme) => {
            let hint = format!("Write `{scheme}://…`; the server of a bucket is the parameter `endpoint`.");
            Err(InvalidLocation { hint: Some(hint), ..fail(format!("`{scheme}:` is followed by `//`")) })
        }
        _ => Ok(Location::directory(path)),
    }
}

fn place(
    scheme: &str,
    url: &Url,
    fail: &dyn Fn(String) -> InvalidLocation,
) -> Result<Place, InvalidLocation> {
    if scheme.starts_with("webdav") {
        return webdav(scheme, url, fail);
    }
    if scheme == "sftp" {
        return sftp(url, fail);
    }
    if !url.username().is_empty() || url.port().is_some() {
        return Err(fail(
            "a bucket has neither user nor port; the server is the parameter `endpoint`".into(),
        ));
    }
    let bucket = url.host_str().unwrap_or_default().to_owned();
    if !is_name(&bucket, b"-._$") {
        return Err(fail("it does not name a bucket".into()));
    }
    let prefix = decoded(url.path(), fail)?;
    let prefix = prefix.trim_matches('/').to_owned();
    if !prefix.is_empty() {
        Key::new(&prefix).map_err(|error| fail(format!("the prefix cannot be used: {}", error.reason)))?;
    }
    Ok(match scheme {
        "s3" => Place::S3 { bucket, prefix },
        "gs" | "gcs" => Place::Gcs { bucket, prefix },
        _ => Place::Azblob { container: bucket, prefix },
    })
}

fn sftp(url: &Url, fail: &dyn Fn(String) -> InvalidLocation) -> Result<Place, InvalidLocation> {
    // A `-` at the beginning would be an option of `ssh`.
    let user = decoded(url.username(), fail)?;
    if url.host_str().is_some_and(|host| host.starts_with('-')) || user.starts_with('-') {
        return Err(fail("the name of a host or user begins with `-`".into()));
    }
    let host = match url.host() {
        Some(Host::Domain(host)) if is_name(host, b"-._") => host.to_owned(),
        Some(Host::Ipv4(address)) => address.to_string(),
        Some(Host::Ipv6(address)) => format!("[{address}]"),
        _ => return Err(fail("it does not name a host".into())),
    };
    let path = decoded(url.path(), fail)?;
    let path = path.strip_prefix("/~/").unwrap_or(&path).trim_end_matches('/').to_owned();
    if path.is_empty() || path.split('/').any(|component| matches!(component, "." | "..")) {
        return Err(fail("it does not name a directory, or with `.` or `..`".into()));
    }
    Ok(Place::Sftp { user: Some(user).filter(|user| !user.is_empty()), host, port: url.port(), path })
}

fn webdav(
    scheme: &str,
    url: &Url,
    fail: &dyn Fn(String) -> InvalidLocation,
) -> Result<Place, InvalidLocation> {
    if !url.username().is_empty() {
        return Err(fail("the user is the parameter `user`".into()));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(fail("it does not name a host".into()));
    }
    let mut plain = url.clone();
    plain.set_query(None);
    let rest = plain.as_str().split_once("://").map_or("", |(_, rest)| rest).trim_end_matches('/').to_owned();
    let protocol = if scheme == "webdavs" { "https" } else { "http" };
    Ok(Place::Webdav { url: format!("{protocol}://{rest}") })
}

/// A WebDAV URL as location.
pub(super) fn webdav_scheme(url: &str) -> String {
    match url.split_once("://") {
        Some(("https", rest)) => format!("webdavs://{rest}"),
        Some((_, rest)) => format!("webdav://{rest}"),
        None => url.to_owned(),
    }
}

fn opendal(rest: &str, fail: &dyn Fn(String) -> InvalidLocation) -> Result<Location, InvalidLocation> {
    let (scheme, query) = rest.split_once('?').unwrap_or((rest, ""));
    if !is_scheme(scheme) {
        return Err(fail("it does not name a service".into()));
    }
    let mut options = BTreeMap::new();
    let mut settings = Settings::default();
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if COMMON.contains(&&*key) {
            set(&mut settings, &key, &value, fail)?;
        } else if is_secret(&key.replace('_', "-")) && !key.ends_with("_id") {
            return Err(secret(&key, fail));
        } else if has_login(&value) {
            return Err(login(&key, fail));
        } else {
            options.insert(key.into_owned(), value.into_owned());
        }
    }
    Ok(Location { place: Place::Opendal { scheme: scheme.to_owned(), options }, settings })
}

fn settings(
    url: &Url,
    known: &[&str],
    common: &[&str],
    fail: &dyn Fn(String) -> InvalidLocation,
) -> Result<Settings, InvalidLocation> {
    let mut settings = Settings::default();
    for (key, value) in url.query_pairs() {
        let all = || known.iter().chain(common).copied();
        if all().any(|name| name == key) && has_login(&value) {
            return Err(login(&key, fail));
        } else if all().any(|name| name == key) {
            set(&mut settings, &key, &value, fail)?;
        } else if is_secret(&key) {
            return Err(secret(&key, fail));
        } else {
            let mut names: Vec<&str> = all().collect();
            names.sort_unstable();
            let hint = match closest(&key, &names) {
                Some(name) => format!("Did you mean `{name}`?"),
                None => format!("Known here: {}.", names.join(", ")),
            };
            let reason = format!("the parameter `{}` is unknown", key.escape_debug());
            return Err(InvalidLocation { hint: Some(hint), ..fail(reason) });
        }
    }
    Ok(settings)
}

fn set(
    settings: &mut Settings,
    key: &str,
    value: &str,
    fail: &dyn Fn(String) -> InvalidLocation,
) -> Result<(), InvalidLocation> {
    let before = settings.clone();
    settings.set(key, value).map_err(|why| fail(format!("the parameter `{key}` cannot be used: {why}")))?;
    if before.pairs().iter().any(|(name, _)| *name == key) {
        return Err(fail(format!("the parameter `{key}` stands there twice")));
    }
    Ok(())
}

fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase().replace('_', "-");
    SECRET_WORDS.iter().any(|word| key.contains(word))
}

fn secret(key: &str, fail: &dyn Fn(String) -> InvalidLocation) -> InvalidLocation {
    let reason = format!("the parameter `{}` looks like a secret", key.escape_debug());
    InvalidLocation { hint: Some(SECRETS_BELONG.into()), ..fail(reason) }
}

/// Whether a value is a URL with a user or a password in it.
fn has_login(value: &str) -> bool {
    Url::parse(value).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
}

fn login(key: &str, fail: &dyn Fn(String) -> InvalidLocation) -> InvalidLocation {
    let reason = format!("the parameter `{}` holds a user or a password", key.escape_debug());
    InvalidLocation { hint: Some(SECRETS_BELONG.into()), ..fail(reason) }
}

fn unknown_scheme(scheme: &str, fail: impl Fn(String) -> InvalidLocation) -> InvalidLocation {
    let hint = match closest(scheme, SCHEMES) {
        Some(name) => format!("Did you mean `{name}://`?"),
        None => format!(
            "Known: a path, {}://, and `opendal:SCHEME?key=value` for other services.",
            SCHEMES.join("://, ")
        ),
    };
    InvalidLocation { hint: Some(hint), ..fail(format!("there are no stores at `{scheme}://`")) }
}

/// The word that was probably meant.
fn closest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let (distance, word) = known.iter().map(|word| (strsim::levenshtein(given, word), *word)).min()?;
    (distance <= 1 + given.len() / 4).then_some(word)
}

/// Whether a component is `.` or `..`, also escaped: a parser of URLs takes them away without a word.
fn has_dots(text: &str) -> bool {
    let path = text.split(['?', '#']).next().unwrap_or_default();
    path.split('/').any(|part| matches!(part.to_ascii_lowercase().replace("%2e", ".").as_str(), "." | ".."))
}

/// Names of hosts and buckets are plain: whatever else stands there would need escapes, which nothing that resolves such
/// names knows.
fn is_name(text: &str, others: &[u8]) -> bool {
    !text.starts_with('.')
        && !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || others.contains(&b))
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-+._".contains(&b))
}

fn file_path(text: &str, fail: &dyn Fn(String) -> InvalidLocation) -> Result<PathBuf, InvalidLocation> {
    let path = text.trim_start_matches("file://");
    if path.is_empty() {
        return Err(fail("it has no path".into()));
    }
    if !path.starts_with('/') {
        return Err(fail("`file://` is followed by a path that begins with `/`".into()));
    }
    Ok(path.into())
}

/// Decodes `%41`; refuses what is no text, or has control characters.
fn decoded(text: &str, fail: &dyn Fn(String) -> InvalidLocation) -> Result<String, InvalidLocation> {
    // As a form, in which `+` would be a space; so it is escaped first.
    let form = format!("x={}", text.replace('+', "%2B").replace('&', "%26"));
    let decoded = form_urlencoded::parse(form.as_bytes()).next().map(|(_, value)| value.into_owned());
    let decoded = decoded.unwrap_or_default();
    if decoded.chars().any(|c| c.is_control() || c == char::REPLACEMENT_CHARACTER) {
        return Err(fail("it has control characters, or is not UTF-8".into()));
    }
    Ok(decoded)
}

/// The value of a parameter, escaped where it must be and legible otherwise.
pub(super) fn escaped(value: &str) -> String {
    escape(value, |byte| b"-._~:/@,".contains(&byte))
}

pub(super) fn escaped_path(path: &str) -> String {
    escape(path, |byte| b"-._~/@,:+=".contains(&byte))
}

/// The name of a user before an `@`, or of an option.
pub(super) fn escaped_name(name: &str) -> String {
    escape(name, |byte| b"-._~".contains(&byte))
}

fn escape(text: &str, legible: impl Fn(u8) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || legible(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

/// The text without what may be secret: parameters and the password.
fn shown(text: &str) -> String {
    let text = text.split(['?', '#']).next().unwrap_or_default();
    let safe = match text.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            match authority.rsplit_once('@') {
                Some((login, host)) => {
                    let user = login.split(':').next().unwrap_or_default();
                    format!("{scheme}://{user}@{host}{path}")
                }
                None => text.to_owned(),
            }
        }
        None => text.to_owned(),
    };
    safe.escape_debug().to_string()
}
