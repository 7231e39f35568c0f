//! Parsing of key files, with positions and without leaks.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;
use zeroize::Zeroize;

use super::{KEYFILE_VERSION, KeyFile, KeyFileError, MemberKeys, OwnerKeys};
use crate::error::CryptoError;
use crate::ids::IdError;
use crate::recipient::Identity;
use crate::secret::Secret;
use crate::sign::SigningKey;
use crate::trust::Roles;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    format: Spanned<u32>,
    repository: Spanned<String>,
    genesis: Spanned<String>,
    name: String,
    store_hint: Option<String>,
    owner: Option<RawOwner>,
    member: Option<RawMember>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOwner {
    identity: Spanned<RawSecret>,
    root: Spanned<RawSecret>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMember {
    identity: Spanned<RawSecret>,
    signing: Spanned<RawSecret>,
    roles: Spanned<Vec<Spanned<String>>>,
}

/// A text that is wiped, also when parsing stops half way.
struct RawSecret(Secret);

impl<'de> Deserialize<'de> for RawSecret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Secret::new(text)))
    }
}

pub(super) fn key_file(text: &str) -> Result<KeyFile, KeyFileError> {
    let raw: Raw = toml::from_str(text).map_err(|error| from_toml(text, &error))?;
    let here = |span: Range<usize>, reason: String| at(text, span.start, reason);
    if *raw.format.get_ref() != KEYFILE_VERSION {
        return Err(here(
            raw.format.span(),
            format!("only format {KEYFILE_VERSION} is known to this version"),
        ));
    }
    let id = |span, error: IdError| here(span, error.to_string());
    let repository = raw.repository.get_ref().parse().map_err(|e| id(raw.repository.span(), e))?;
    let genesis = raw.genesis.get_ref().parse().map_err(|e| id(raw.genesis.span(), e))?;
    let owner = raw.owner.map(|owner| owner_keys(text, &owner)).transpose()?;
    let member = raw.member.map(|member| member_keys(text, &member)).transpose()?;
    if owner.is_none() && member.is_none() {
        return Err(at(text, text.len(), "neither `[owner]` nor `[member]` is there".to_owned()));
    }
    Ok(KeyFile { repository, genesis, name: raw.name, owner, member, store_hint: raw.store_hint })
}

fn owner_keys(text: &str, raw: &RawOwner) -> Result<OwnerKeys, KeyFileError> {
    let identity = secret(text, &raw.identity, Identity::parse)?;
    Ok(OwnerKeys { identity, root: secret(text, &raw.root, SigningKey::parse)? })
}

fn member_keys(text: &str, raw: &RawMember) -> Result<MemberKeys, KeyFileError> {
    let identity = secret(text, &raw.identity, Identity::parse)?;
    let signing = secret(text, &raw.signing, SigningKey::parse)?;
    let mut bits = 0;
    for name in raw.roles.get_ref() {
        let unknown = || at(text, name.span().start, "a role is `writer`, `reader` or `keeper`".to_owned());
        bits |= Roles::from_name(name.get_ref()).ok_or_else(unknown)?.bits();
    }
    let none = || at(text, raw.roles.span().start, "at least one role is needed".to_owned());
    Ok(MemberKeys { identity, signing, roles: Roles::from_bits(bits).ok_or_else(none)? })
}

fn secret<T>(
    text: &str,
    raw: &Spanned<RawSecret>,
    parse: impl FnOnce(&str) -> Result<T, CryptoError>,
) -> Result<T, KeyFileError> {
    parse(raw.get_ref().0.expose()).map_err(|error| at(text, raw.span().start, error.to_string()))
}

/// What the TOML library says may quote the text: only what is known to be harmless is taken over.
fn from_toml(text: &str, error: &toml::de::Error) -> KeyFileError {
    let offset = error.span().map_or(0, |span| span.start);
    let mut message = error.message().to_owned();
    let named = |prefix: &str| {
        let name = message.strip_prefix(prefix)?.split('`').next()?;
        let harmless = name.len() <= 24 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        Some(if harmless { format!(" `{name}`") } else { String::new() })
    };
    let reason = if let Some(name) = named("unknown field `") {
        format!("the key{name} is unknown")
    } else if let Some(name) = named("missing field `") {
        format!("the key{name} is missing")
    } else if message.starts_with("duplicate") {
        "a key is there twice".to_owned()
    } else if message.starts_with("invalid type") || message.starts_with("invalid value") {
        "a value has the wrong type".to_owned()
    } else {
        "this is not TOML".to_owned()
    };
    message.zeroize();
    at(text, offset, reason)
}

fn at(text: &str, offset: usize, reason: String) -> KeyFileError {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = before.matches('\n').count() + 1;
    KeyFileError::At { line, column: before[line_start..].chars().count() + 1, reason }
}
