//! The recipes of a dataset: in the local cache, and sealed to the writer in `state/`, so that a reinstalled host goes
//! on incrementally.

use std::io::{self, Read};

use keepwell_catalog::{ContentName, names};
use keepwell_crypto::{Digest, MemberId};

use crate::Error;
use crate::cache::Cache;
use crate::repository::Repository;
use crate::write::Uploads;

/// Plain bytes per object in `state/`.
const PART_BYTES: usize = 16 << 20;

/// Cache name of a dataset's recipes, and of the note about the commit they belong to.
pub(super) fn cache_name(tag: &[u8; 16]) -> String {
    format!("recipes/{}", hex::encode(tag))
}

/// The commit whose recipes are in the cache, with its number of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Basis {
    pub n: u64,
    pub entries: u64,
}

pub(super) fn read_basis(cache: &Cache, tag: &[u8; 16]) -> Option<Basis> {
    let mut text = String::new();
    cache.open(&format!("{}.basis", cache_name(tag)))?.reader().take(64).read_to_string(&mut text).ok()?;
    let (n, entries) = text.split_once(' ')?;
    Some(Basis { n: n.parse().ok()?, entries: entries.trim().parse().ok()? })
}

pub(super) fn write_basis(cache: &Cache, tag: &[u8; 16], basis: Basis) -> Result<(), Error> {
    cache.store(&format!("{}.basis", cache_name(tag)), format!("{} {}\n", basis.n, basis.entries).as_bytes())
}

/// Stores the cached recipes in `state/`, in parts.
pub(super) async fn upload(
    repository: &Repository,
    writer: MemberId,
    tag: &[u8; 16],
    uploads: &Uploads,
) -> Result<Vec<ContentName>, Error> {
    let Some(file) = repository.cache().open(&cache_name(tag)) else { return Ok(Vec::new()) };
    let recipients = repository.state_recipients()?;
    let mut names = Vec::new();
    let mut reader = file.reader();
    loop {
        let mut part = Vec::new();
        (&mut reader).take(PART_BYTES as u64).read_to_end(&mut part).map_err(Error::cache("read recipes"))?;
        if part.is_empty() {
            return Ok(names);
        }
        let sealed = keepwell_crypto::seal(&recipients, &part)?;
        let size = sealed.len() as u64;
        let (name, key) = repository.put_content(|name| names::state_key(writer, name), sealed).await?;
        uploads.created(key.to_string(), size);
        names.push(name);
    }
}

/// Fetches recipes from `state/` into the cache.
pub(super) async fn download(
    repository: &Repository,
    writer: MemberId,
    tag: &[u8; 16],
    parts: &[ContentName],
) -> Result<(), Error> {
    let identity =
        repository.access().state.as_ref().ok_or_else(|| repository.access().cannot("read its state"))?;
    let mut out = repository.cache().create(&cache_name(tag))?;
    for name in parts {
        let key = names::state_key(writer, name);
        let sealed = repository.store().get(&key).await?;
        // Anybody can seal something to us. That this is what we once wrote, only the hash in our signed commit tells.
        if Digest::of(&sealed) != name.digest() {
            return Err(Error::damaged(&key, "its bytes do not have the hash in its name"));
        }
        let plain = keepwell_crypto::open(std::slice::from_ref(identity), &sealed, 2 * PART_BYTES as u64)
            .map_err(|e| Error::damaged(&key, e))?;
        io::Write::write_all(&mut out, &plain).map_err(Error::cache("write recipes"))?;
    }
    out.publish()
}
