//! The text of key files and recovery kits.

use std::fmt::Write as _;

use zeroize::Zeroizing;

use super::{KEYFILE_VERSION, KeyFile, MemberKeys, OwnerKeys};
use crate::recipient::Identity;
use crate::secret::Secret;

const KEY_FILE_HEADER: &str = "\
# Keepwell key file. Who holds it holds the keys below: keep it as you keep
# a private SSH key (mode 0600), better under a passphrase.
";

const KIT_HEADER: &str = "\
# KEEPWELL RECOVERY KIT
#
# What this is: the keys of an owner of the backup repository named below.
# With this text and the stored objects, everything can be restored.
# Without it and without any other owner's key, NOTHING can be restored.
#
# How to store it: print it twice, or write it to two media that are not
# online; keep the copies in two places, locked. Who reads it can read
# every backup and decide who may write: treat it as the data itself.
# Open it once a year and restore one file with it.
#
# How to restore with Keepwell, on a fresh machine:
#   1. Type or copy this text into a file, for example kit.txt. Comments
#      may be left out. A typing error in a key is detected.
#   2. keepwell --key-file kit.txt -r REPOSITORY restore latest --target DIR
#
# How to restore without Keepwell, with `age`, `zstd` and Python 3:
#   1. Copy the repository to a local directory, with any tool.
#   2. keepwell_rescue.py DIRECTORY kit.txt list
#      keepwell_rescue.py DIRECTORY kit.txt restore latest OUTPUT
#      The script and the page docs/format.md, which describes every byte,
#      are part of Keepwell's sources. Keep a copy of both with this kit.
#   3. By hand: the `identity` line under [owner] is an age identity. It
#      opens the keyrings: age -d -i ID.txt keys/… | zstd -d
#      A keyring (CBOR) holds the identities that open indexes and packs
#      in the same way.
#
# `genesis` is the fingerprint of the repository: SHA-256 of the object
# trust/0000000000. If `sha256sum` of that object differs, somebody has
# replaced the repository.
";

pub(super) fn key_file(file: &KeyFile) -> Secret {
    let mut text = start(KEY_FILE_HEADER, file);
    if let Some(owner) = &file.owner {
        put_owner(&mut text, owner);
    }
    if let Some(member) = &file.member {
        put_member(&mut text, member);
    }
    Secret::from(text.as_str())
}

pub(super) fn recovery_kit(file: &KeyFile) -> Secret {
    let mut text = start(KIT_HEADER, file);
    if let Some(owner) = &file.owner {
        put_owner(&mut text, owner);
    }
    Secret::from(text.as_str())
}

/// Reserves enough at once: a text that grows would leave copies of secrets behind.
fn start(header: &str, file: &KeyFile) -> Zeroizing<String> {
    let free_texts = file.name.len() + file.store_hint.as_ref().map_or(0, String::len);
    let mut text = Zeroizing::new(String::with_capacity(header.len() + 8 * free_texts + 2048));
    text.push_str(header);
    put(&mut text, format_args!("\nformat = {KEYFILE_VERSION}\n"));
    put(&mut text, format_args!("repository = \"{}\"\n", file.repository));
    put(&mut text, format_args!("genesis = \"{}\"\n", file.genesis));
    put(&mut text, format_args!("name = {}\n", quoted(&file.name)));
    if let Some(hint) = &file.store_hint {
        put(&mut text, format_args!("store_hint = {}\n", quoted(hint)));
    }
    text
}

fn put_owner(text: &mut String, owner: &OwnerKeys) {
    put(text, format_args!("\n[owner]\n"));
    put_identity(text, &owner.identity);
    put(text, format_args!("root = \"{}\"\n", owner.root.to_secret_string().expose()));
}

fn put_member(text: &mut String, member: &MemberKeys) {
    put(text, format_args!("\n[member]\n"));
    put_identity(text, &member.identity);
    put(text, format_args!("signing = \"{}\"\n", member.signing.to_secret_string().expose()));
    let roles: Vec<_> = member.roles.names().map(quoted).collect();
    put(text, format_args!("roles = [{}]\n", roles.join(", ")));
}

fn put_identity(text: &mut String, identity: &Identity) {
    match identity.to_secret_string() {
        Some(secret) => put(text, format_args!("identity = \"{}\"\n", secret.expose())),
        None => put(text, format_args!("# identity: in a device, as {}\n", identity.recipient())),
    }
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    text.write_fmt(line).expect("writing to a string does not fail");
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => put(&mut quoted, format_args!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
