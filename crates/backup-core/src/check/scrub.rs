//! Scrubbing without any secret: names, sizes and hashes of what is stored, against what writers signed.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names::ObjectName;
use keepwell_crypto::Digest;
use keepwell_storage::{Key, ObjectStore, list_all};

use super::{Finding, records};
use crate::Error;
use crate::repository::read_chain;

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
/// name, and that everything a signed list names is there with its size, unless a signed plan condemned it.
///
/// `pin` is the genesis fingerprint, if known. `hashes` false compares names and sizes only. Reads one object at a time.
pub async fn scrub(store: &dyn ObjectStore, pin: Option<Digest>, hashes: bool) -> Result<ScrubReport, Error> {
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
    if hashes {
        let names: Vec<(String, u64)> = stored.into_iter().collect();
        hash_all(store, &names, &mut report).await?;
    }
    Ok(report)
}

async fn hash_all(
    store: &dyn ObjectStore,
    names: &[(String, u64)],
    report: &mut ScrubReport,
) -> Result<(), Error> {
    for (name, _) in names {
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
        match store.get(&key).await {
            Ok(bytes) => {
                report.objects += 1;
                report.bytes += bytes.len() as u64;
                if Digest::of(&bytes) != digest {
                    report.found(name, "its bytes do not have the hash in its name");
                }
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads back content objects and proves their hashes, for a credential that can do no more.
pub(super) async fn prove_hashes(store: &dyn ObjectStore, created: &[(String, u64)]) -> Result<(), Error> {
    let mut report = ScrubReport::default();
    hash_all(store, created, &mut report).await?;
    if report.objects < created.iter().filter(|(name, _)| name.contains('-')).count() as u64 {
        return Err(Error::Invalid("an object that was just stored cannot be read back".into()));
    }
    match report.findings.into_iter().next() {
        None => Ok(()),
        Some(finding) => Err(Error::damaged(finding.object, finding.what)),
    }
}
