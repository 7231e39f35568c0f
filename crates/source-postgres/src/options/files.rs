//! The files that libpq reads as well: services and passwords.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keepwell_crypto::Secret;

use super::parse::{Pairs, insert};
use super::resolve::{SOCKET_DIRECTORY, Surroundings};
use super::{HostOptions, OptionsError};

/// Password and service files longer than this are refused.
const FILE_MAX: u64 = 1 << 20;

/// Adds what the service file says, for keywords that are not given.
pub(super) fn add_service(pairs: &mut Pairs, surroundings: &Surroundings) -> Result<(), OptionsError> {
    let named =
        |keyword: &str, variable| pairs.get(keyword).cloned().or_else(|| surroundings.variable(variable));
    let Some(service) = named("service", "PGSERVICE").filter(|service| !service.is_empty()) else {
        return Ok(());
    };
    let own = named("servicefile", "PGSERVICEFILE")
        .map(PathBuf::from)
        .or_else(|| surroundings.in_home(".pg_service.conf"));
    let system = surroundings
        .variable("PGSYSCONFDIR")
        .map_or_else(|| PathBuf::from("/etc/postgresql-common"), PathBuf::from)
        .join("pg_service.conf");
    for path in own.into_iter().chain([system]) {
        let Some((text, _)) = read_text(&path)? else { continue };
        if let Some(found) = service_section(&text, &service)? {
            found.into_iter().for_each(|(keyword, value)| {
                pairs.entry(keyword).or_insert(value);
            });
            return Ok(());
        }
    }
    Err(OptionsError::NoService { service })
}

fn service_section(text: &str, service: &str) -> Result<Option<Pairs>, OptionsError> {
    let mut found: Option<Pairs> = None;
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            if found.is_some() {
                break;
            }
            found = (name == service).then(Pairs::new);
        } else if let Some(pairs) = &mut found {
            let (keyword, value) = line.split_once('=').ok_or_else(|| OptionsError::Syntax {
                reason: format!("a line of the service `{service}` has no `=`"),
            })?;
            insert(pairs, keyword.trim(), value.trim().to_owned())?;
        }
    }
    Ok(found)
}

/// The lines of a password file; `None` if there is none, or if others may read it, as libpq has it.
pub(super) fn password_file(path: Option<&Path>) -> Result<Option<Secret>, OptionsError> {
    let Some(path) = path else { return Ok(None) };
    match read_text(path)? {
        Some((text, metadata)) if metadata.permissions().mode() & 0o077 == 0 => Ok(Some(Secret::new(text))),
        Some(_) => {
            let reason = "others may read it, so it is not used (chmod 600)";
            let source = io::Error::new(io::ErrorKind::PermissionDenied, reason);
            Err(OptionsError::File { path: path.to_owned(), source })
        }
        None => Ok(None),
    }
}

/// The first line that fits. A socket directory is known as `localhost` only when it is the default one.
pub(super) fn find_password(lines: &str, host: &HostOptions, database: &str, user: &str) -> Option<Secret> {
    let name = if host.name == SOCKET_DIRECTORY { "localhost" } else { &host.name };
    let wanted = [name, &host.port.to_string(), database, user].map(str::to_owned);
    for line in lines.lines().filter(|line| !line.starts_with('#')) {
        let mut fields = password_fields(line);
        if fields.len() == 5
            && wanted.iter().zip(&fields).all(|(want, field)| field.1 == "*" && field.0 || *want == field.1)
        {
            return fields.pop().map(|(_, password)| Secret::new(password));
        }
    }
    None
}

/// Five fields between colons; `\:` and `\\` stand for themselves. Beside each, whether it was written without escapes.
fn password_fields(line: &str) -> Vec<(bool, String)> {
    let mut fields = vec![(true, String::new())];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        let last = fields.len() == 5;
        let field = fields.last_mut().expect("begins with one");
        match c {
            '\\' => {
                field.0 = false;
                field.1.extend(chars.next());
            }
            ':' if !last => fields.push((true, String::new())),
            // A sixth field is not ours; libpq ignores it.
            ':' => break,
            c => field.1.push(c),
        }
    }
    fields
}

/// A text file and its mode; `None` if there is none.
fn read_text(path: &Path) -> Result<Option<(String, std::fs::Metadata)>, OptionsError> {
    let fail = |source| OptionsError::File { path: path.to_owned(), source };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(fail(error)),
    };
    if !metadata.is_file() || metadata.len() > FILE_MAX {
        return Err(fail(io::Error::other("it is no text file of at most 1 MiB")));
    }
    std::fs::read_to_string(path).map(|text| Some((text, metadata))).map_err(fail)
}
