//! Scrubbing without any secret: names, sizes and hashes of what is stored, against what writers signed.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names::ObjectName;
use keepwell_crypto::{Digest, DigestHasher};
use keepwell_storage::{Key, ObjectStore, StorageError, StorageErrorKind, list_all};

use super::{Finding, LOOKS_MAX, records};
use crate::Error;
use crate::repository::{Repository, read_chain, read_plans};

/// Of a larger object so much is held at a time: how large one is, whoever may create objects decides.
const PART_BYTES: u64 = 64 << 20;

/// What a scrub found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Fingerprint of the genesis: compare it with a key file.
    pub genesis: String,
    /// Content objects whose hash was computed.
    pub objects: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong.
    pub findings: BTreeSet<Finding>,
}

impl ScrubReport {
    pub(super) fn found(&mut self, object: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.findings.insert(Finding { object: object.to_string(), what: what.to_string() });
    }
}

/// Verifies a store with public information only: every signed record, that each content object has the hash in its
/// name, and that everything a signed list names is there with its size, unless a signed plan condemned it. What others forget
/// and prune meanwhile is no damage.
///
/// `pin` is the genesis fingerprint, if known. `hashes` false compares names and sizes only. Holds one object at a time, or 64 MiB
/// of a larger one.
pub async fn scrub(store: &dyn ObjectStore, pin: Option<Digest>, hashes: bool) -> Result<ScrubReport, Error> {
    let mut looks = 1;
    let (mut report, stored) = loop {
        let (report, stored) = look(store, pin).await?;
        if report.findings.is_empty() || looks == LOOKS_MAX || !has_changed(store, &stored).await? {
            break (report, stored);
        }
        looks += 1;
    };
    if hashes {
        let names: Vec<(String, u64)> = stored.into_iter().collect();
        hash_all(store, &names, &mut report).await?;
    }
    Ok(report)
}

/// What records say, against a listing. Gives the names and sizes of all objects.
async fn look(
    store: &dyn ObjectStore,
    pin: Option<Digest>,
) -> Result<(ScrubReport, BTreeMap<String, u64>), Error> {
    let chain = read_chain(store, pin).await?;
    let mut report = ScrubReport { genesis: chain.fingerprint().to_string(), ..ScrubReport::default() };
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    for info in list_all(store, "").await? {
        stored.insert(info.key.to_string(), info.size);
    }
    let records = records::verify(store, &chain, &stored, &mut report).await?;
    let explained = records.explained();
    for object in &records.expected {
        match stored.get(&object.name) {
            Some(size) if *size == object.size => {}
            Some(size) => report
                .found(&object.name, format_args!("it has {size} bytes, its writer signed {}", object.size)),
            None if explained.contains(object.name.as_str()) => {}
            None => report.found(&object.name, "it is missing"),
        }
    }
    Ok((report, stored))
}

/// Whether others have forgotten, revoked, pruned, or merged plans since this was listed. Names are used once.
async fn has_changed(store: &dyn ObjectStore, stored: &BTreeMap<String, u64>) -> Result<bool, Error> {
    for prefix in ["gc/", "retired/", "trust/"] {
        let now = list_all(store, prefix).await?;
        let before = stored.keys().filter(|name| name.starts_with(prefix));
        if !before.map(String::as_str).eq(now.iter().map(|info| info.key.as_str())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Gives the names of content objects that are not there.
async fn hash_all(
    store: &dyn ObjectStore,
    names: &[(String, u64)],
    report: &mut ScrubReport,
) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    for (name, size) in names {
        let digest = match name.parse() {
            Ok(
                ObjectName::Pack(_, n)
                | ObjectName::Index(_, n)
                | ObjectName::Manifest(n)
                | ObjectName::State(_, n),
            ) => n.digest(),
            _ => continue,
        };
        let key: Key = name.parse().map_err(|e| Error::damaged(name, e))?;
        match digest_of(store, &key, *size, PART_BYTES).await {
            Ok(found) => {
                report.objects += 1;
                report.bytes += size;
                if found != digest {
                    report.found(name, "its bytes do not have the hash in its name");
                }
            }
            Err(error) if error.is_not_found() => missing.push(name.clone()),
            Err(error) if error.kind == StorageErrorKind::OutOfRange => {
                report.found(name, format_args!("it does not have the {size} bytes that it should have"));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(missing)
}

/// Of an object of this size, part by part.
async fn digest_of(
    store: &dyn ObjectStore,
    key: &Key,
    size: u64,
    part_bytes: u64,
) -> Result<Digest, StorageError> {
    let mut hasher = DigestHasher::new();
    let mut start = 0;
    while start < size {
        let end = size.min(start.saturating_add(part_bytes));
        hasher.update(&store.get_range(key, start..end).await?);
        start = end;
    }
    if size == 0 {
        store.head(key).await?; // whether it is there
    }
    Ok(hasher.finish())
}

/// Reads back content objects and proves their hashes, for a credential that can do no more. One that a prune has removed
/// meanwhile is no failure: an index segment lives on in a merged one; and of anything else the session was fenced, so that
/// nothing of it will count.
pub(super) async fn prove_hashes(repository: &Repository, created: &[(String, u64)]) -> Result<(), Error> {
    let mut report = ScrubReport::default();
    let mut missing = hash_all(repository.store(), created, &mut report).await?;
    if !missing.is_empty() {
        let plans = read_plans(repository).await?;
        let doomed: BTreeSet<&str> = plans.doomed().collect();
        missing.retain(|name| !doomed.contains(name.as_str()));
    }
    if let Some(name) = missing.into_iter().next() {
        return Err(Error::damaged(name, "it was just stored and cannot be read back"));
    }
    match report.findings.into_iter().next() {
        None => Ok(()),
        Some(finding) => Err(Error::damaged(finding.object, finding.what)),
    }
}

#[cfg(test)]
mod tests {
    use keepwell_storage::{Memory, Operation, Recording};

    use super::*;

    #[tokio::test]
    async fn a_large_object_is_hashed_part_by_part() {
        let store = Recording::new(Memory::new());
        let (key, bytes) = ("data/00/x".parse().unwrap(), &b"twenty-five bytes of pack"[..]);
        store.put_new(&key, bytes.into()).await.unwrap();
        assert_eq!(digest_of(&store, &key, 25, 10).await.unwrap(), Digest::of(bytes));
        assert_eq!(store.reset().calls(Operation::GetRange), 3);
        let shorter = digest_of(&store, &key, 26, 10).await.unwrap_err();
        assert_eq!(shorter.kind, StorageErrorKind::OutOfRange);
        let missing = "data/00/y".parse().unwrap();
        assert!(digest_of(&store, &missing, 0, 10).await.unwrap_err().is_not_found());
    }
}
