//! Scrubbing without any secret: names, sizes and hashes of what is stored, against what writers signed.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{Kept, List, Plan};
use keepwell_crypto::trust::{Chain, Roles};
use keepwell_crypto::{Digest, Signed};
use keepwell_storage::{Key, ObjectStore, list_all};

use super::Finding;
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
    fn found(&mut self, object: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.findings.insert(Finding { object: object.to_string(), what: what.to_string() });
    }
}

/// Verifies a store with public information only: that each content object has the hash in its name, and that
/// everything a signed list names is there with its size, unless a signed plan condemned it.
///
/// `pin` is the genesis fingerprint, if known. `hashes` false compares names and sizes only. Reads one object at a time.
pub async fn scrub(store: &dyn ObjectStore, pin: Option<Digest>, hashes: bool) -> Result<ScrubReport, Error> {
    let chain = read_chain(store, pin).await?;
    let mut report = ScrubReport { genesis: chain.fingerprint().to_string(), ..ScrubReport::default() };
    let mut stored: BTreeMap<String, u64> = BTreeMap::new();
    for info in list_all(store, "").await? {
        stored.insert(info.key.to_string(), info.size);
    }
    let mut condemned = BTreeSet::new();
    let mut expected = Vec::new();
    for name in stored.keys() {
        match name.parse() {
            Ok(ObjectName::Plan(_)) => {
                if let Some(plan) =
                    record(store, &chain, name, Plan::KIND, Roles::KEEPER, Plan::decode, &mut report).await?
                {
                    condemned.extend(plan.condemned);
                }
            }
            Ok(ObjectName::Kept(_)) => {
                record(store, &chain, name, Kept::KIND, Roles::KEEPER, Kept::decode, &mut report).await?;
            }
            Ok(ObjectName::List(..)) => {
                let roles = Roles::WRITER | Roles::KEEPER;
                if let Some(list) =
                    record(store, &chain, name, List::KIND, roles, List::decode, &mut report).await?
                {
                    expected.extend(list.objects);
                }
            }
            _ => {}
        }
    }
    for object in expected {
        match stored.get(&object.name) {
            Some(size) if *size == object.size => {}
            Some(size) => report
                .found(&object.name, format_args!("it has {size} bytes, its writer signed {}", object.size)),
            None if condemned.contains(&object.name) => {}
            None => report.found(&object.name, "it is missing"),
        }
    }
    if hashes {
        let names: Vec<(String, u64)> = stored.into_iter().collect();
        hash_all(store, &names, &mut report).await?;
    }
    check_commits(store, &chain, &mut report).await?;
    Ok(report)
}

/// Commits verify, and each names the list that is there.
async fn check_commits(
    store: &dyn ObjectStore,
    chain: &Chain,
    report: &mut ScrubReport,
) -> Result<(), Error> {
    use keepwell_catalog::{Commit, names};
    for info in list_all(store, "commits/").await? {
        let roles = Roles::WRITER | Roles::KEEPER;
        let name = info.key.to_string();
        let Some(commit) = record(store, chain, &name, Commit::KIND, roles, Commit::decode, report).await?
        else {
            continue;
        };
        let Some(digest) = commit.list else { continue };
        let list = names::list_key(commit.writer, commit.n);
        match store.get(&list).await {
            Ok(bytes) if Digest::of(&bytes) == digest => {}
            Ok(_) => report.found(list, "it is not the list that the commit names"),
            Err(error) if error.is_not_found() => report.found(list, "it is missing, and a commit names it"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads and verifies one signed record; a broken one is a finding.
async fn record<T>(
    store: &dyn ObjectStore,
    chain: &Chain,
    name: &str,
    kind: &str,
    roles: Roles,
    decode: impl Fn(&[u8]) -> Result<T, keepwell_catalog::CatalogError>,
    report: &mut ScrubReport,
) -> Result<Option<T>, Error> {
    let key: Key = name.parse().map_err(|e| Error::damaged(name, e))?;
    let bytes = match store.get(&key).await {
        Ok(bytes) => bytes,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let opened = Signed::from_bytes(&bytes).map_err(|e| e.to_string()).and_then(|signed| {
        chain.verify_author(&signed, kind, roles).map_err(|e| crate::error::one_line(&e))?;
        decode(&signed.payload).map_err(|e| e.to_string())
    });
    match opened {
        Ok(record) => Ok(Some(record)),
        Err(reason) => {
            report.found(name, reason);
            Ok(None)
        }
    }
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
