//! The signed records of a store, as anybody can verify them: signatures, places, order, and what they refer to.

use std::collections::{BTreeMap, BTreeSet};

use keepwell_catalog::names::{self, ObjectName, PlanName};
use keepwell_catalog::{
    CatalogError, CommitKind, Kept, List, ListedObject, Plan, Retired, Session as SessionRecord,
};
use keepwell_crypto::trust::{Chain, Roles};
use keepwell_crypto::{Digest, MemberId, Signed, StoreId};
use keepwell_storage::{Key, ObjectInfo, ObjectStore, list_all};

use super::history::{MISSING_MAX, check_chain};
use super::scrub::ScrubReport;
use crate::Error;
use crate::prune::live_ends;
use crate::repository::{End, RepositoryHint, fetch_listed, verify_end};

/// What the records of a store say should be there.
#[derive(Default)]
pub(super) struct Records {
    /// What signed lists name.
    pub expected: Vec<ListedObject>,
    /// What each signed plan condemns.
    condemned: BTreeMap<PlanName, Vec<String>>,
    /// Plans that replace others, and need no verdict.
    merged: BTreeSet<PlanName>,
    /// What verdicts release.
    verdicts: BTreeMap<PlanName, BTreeSet<String>>,
    ends: Vec<End>,
    lists: BTreeMap<(MemberId, u64), Digest>,
    sessions: BTreeSet<(MemberId, u64)>,
    retired: BTreeMap<u64, Vec<(MemberId, u64)>>,
}

struct Reader<'r> {
    store: &'r dyn ObjectStore,
    chain: &'r Chain,
    /// Names and sizes of all objects.
    stored: &'r BTreeMap<String, u64>,
    /// What the hint says; records of another store are out of place.
    store_id: Option<StoreId>,
    report: &'r mut ScrubReport,
}

/// Reads and verifies every signed record. `stored` are the names and sizes of all objects.
pub(super) async fn verify(
    store: &dyn ObjectStore,
    chain: &Chain,
    stored: &BTreeMap<String, u64>,
    report: &mut ScrubReport,
) -> Result<Records, Error> {
    let store_id = check_hint(store, chain, report).await?;
    check_keyrings(store, chain, &mut |key, what| report.found(key, what)).await?;
    let mut reader = Reader { store, chain, stored, store_id, report };
    let mut records = Records::default();
    for name in stored.keys() {
        if let Ok(parsed) = name.parse() {
            reader.read(name, parsed, &mut records).await?;
        }
    }
    records.check(stored, report);
    Ok(records)
}

async fn check_hint(
    store: &dyn ObjectStore,
    chain: &Chain,
    report: &mut ScrubReport,
) -> Result<Option<StoreId>, Error> {
    match RepositoryHint::read(store).await {
        Ok(hint) if hint.repository == chain.repository_id().to_string() => Ok(hint.store.parse().ok()),
        Ok(hint) => {
            report.found(RepositoryHint::key(), format_args!("it speaks of repository {}", hint.repository));
            Ok(None)
        }
        Err(Error::Storage(error)) => Err(Error::Storage(error)),
        Err(error) => {
            report.found(RepositoryHint::key(), crate::error::one_line(&error));
            Ok(None)
        }
    }
}

/// Whether the store holds every keyring that the chain names.
pub(super) async fn check_keyrings(
    store: &dyn ObjectStore,
    chain: &Chain,
    found: &mut (dyn FnMut(Key, &str) + Send),
) -> Result<(), Error> {
    let listed = list_all(store, "keys/").await?;
    for keyring in chain.members().filter_map(|member| chain.keyring(&member.id())) {
        let key: Key = keyring.name.parse().map_err(|e| Error::damaged("trust", e))?;
        if let Some(what) = difference(store, &listed, &key, keyring.digest).await? {
            found(key, what);
        }
    }
    Ok(())
}

/// Whether the store holds the very chain that was read when the repository was opened, perhaps from a cache.
pub(super) async fn check_trust(
    store: &dyn ObjectStore,
    chain: &Chain,
    found: &mut (dyn FnMut(Key, &str) + Send),
) -> Result<(), Error> {
    let listed = list_all(store, "trust/").await?;
    for (n, digest) in (0..).map_while(|n| Some((n, chain.record_digest(n)?))) {
        let key = names::trust_key(n);
        if let Some(what) = difference(store, &listed, &key, digest).await? {
            found(key, what);
        }
    }
    Ok(())
}

/// How an object that everybody knows by its hash differs from it. `listed`, in the order of keys, has it if it is there.
async fn difference(
    store: &dyn ObjectStore,
    listed: &[ObjectInfo],
    key: &Key,
    digest: Digest,
) -> Result<Option<&'static str>, Error> {
    let Ok(at) = listed.binary_search_by(|info| info.key.cmp(key)) else { return Ok(Some("it is missing")) };
    match fetch_listed(store, &listed[at]).await {
        Ok(bytes) if Digest::of(&bytes) == digest => Ok(None),
        Ok(_) | Err(Error::Damaged { .. }) => Ok(Some("its bytes are not those that the trust chain names")),
        Err(Error::Storage(error)) if error.is_not_found() => Ok(Some("it is missing")),
        Err(error) => Err(error),
    }
}

impl Reader<'_> {
    async fn read(&mut self, name: &str, parsed: ObjectName, records: &mut Records) -> Result<(), Error> {
        let any = Roles::WRITER | Roles::KEEPER;
        match parsed {
            ObjectName::Plan(named) => {
                let place = |plan: &Plan| (plan.store, names::plan_key(plan.name));
                if let Some((_, plan)) =
                    self.record(name, Plan::KIND, Roles::KEEPER, Plan::decode, place).await?
                {
                    if !plan.merged.is_empty() {
                        records.merged.insert(named);
                    }
                    records.condemned.insert(named, plan.condemned);
                }
            }
            ObjectName::Kept(named) => {
                let place = |kept: &Kept| (kept.store, names::kept_key(kept.name));
                let read = self.record(name, Kept::KIND, Roles::KEEPER, Kept::decode, place).await?;
                let released =
                    read.map_or_else(BTreeSet::new, |(_, kept)| kept.released.into_iter().collect());
                records.verdicts.insert(named, released);
            }
            ObjectName::Retired(n) => {
                let place = |retired: &Retired| (retired.store, names::retired_key(retired.n));
                let read = self.record(name, Retired::KIND, Roles::KEEPER, Retired::decode, place).await?;
                let of = |retired: &Retired| retired.snapshots.iter().map(|s| (s.writer, s.seq)).collect();
                records.retired.insert(n, read.map_or_else(Vec::new, |(_, retired)| of(&retired)));
            }
            ObjectName::List(writer, n) => {
                let place = |list: &List| (list.store, names::list_key(list.writer, list.n));
                if let Some((digest, list)) = self.record(name, List::KIND, any, List::decode, place).await? {
                    records.expected.extend(list.objects);
                    records.lists.insert((writer, n), digest);
                }
            }
            ObjectName::Session { writer, n, k } => {
                let place = |s: &SessionRecord| (s.store, names::session_key(s.writer, s.n, s.k));
                let anybody = any | Roles::READER;
                self.record(name, SessionRecord::KIND, anybody, SessionRecord::decode, place).await?;
                if k == 0 {
                    records.sessions.insert((writer, n));
                }
            }
            ObjectName::Commit(writer, n) => {
                if let Some(end) = self.end(name, writer, n).await? {
                    records.ends.push(end);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads one record and verifies its signature and its place; a broken one is a finding.
    async fn record<T>(
        &mut self,
        name: &str,
        kind: &str,
        roles: Roles,
        decode: impl Fn(&[u8]) -> Result<T, CatalogError>,
        place: impl Fn(&T) -> (StoreId, Key),
    ) -> Result<Option<(Digest, T)>, Error> {
        let Some(bytes) = self.fetch(name).await? else { return Ok(None) };
        let in_place = |record: &T| {
            let (store, key) = place(record);
            key.as_str() == name && self.store_id.is_none_or(|id| id == store)
        };
        match prove(self.chain, &bytes, kind, roles, decode, in_place) {
            Ok(record) => Ok(Some((Digest::of(&bytes), record))),
            Err(reason) => {
                self.report.found(name, reason);
                Ok(None)
            }
        }
    }

    async fn end(&mut self, name: &str, writer: MemberId, n: u64) -> Result<Option<End>, Error> {
        let Some(bytes) = self.fetch(name).await? else { return Ok(None) };
        match verify_end(self.chain, self.store_id, writer, n, &bytes) {
            Ok(end) => Ok(Some(end)),
            Err(error) => {
                self.report.found(name, crate::error::one_line(&error));
                Ok(None)
            }
        }
    }

    /// `None` for what was deleted since it was listed, and for what is larger than any record, which is a finding.
    async fn fetch(&mut self, name: &str) -> Result<Option<bytes::Bytes>, Error> {
        let key: Key = name.parse().map_err(|e| Error::damaged(name, e))?;
        let size = self.stored.get(name).copied().unwrap_or(0);
        match fetch_listed(self.store, &ObjectInfo { key, size, modified: None }).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Storage(error)) if error.is_not_found() => Ok(None),
            Err(error @ Error::Damaged { .. }) => {
                self.report.found(name, crate::error::one_line(&error));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The record in an envelope, if its author may sign it and it stands where it says.
fn prove<T>(
    chain: &Chain,
    bytes: &[u8],
    kind: &str,
    roles: Roles,
    decode: impl Fn(&[u8]) -> Result<T, CatalogError>,
    in_place: impl Fn(&T) -> bool,
) -> Result<T, String> {
    let signed = Signed::from_bytes(bytes).map_err(|e| e.to_string())?;
    chain.verify_author(&signed, kind, roles).map_err(|e| crate::error::one_line(&e))?;
    let record = decode(&signed.payload).map_err(|e| e.to_string())?;
    if in_place(&record) { Ok(record) } else { Err("it belongs elsewhere".to_owned()) }
}

/// Whether these bytes are what has to stand under a name, as far as a signature or the hash in the name tells.
pub(crate) fn prove_object(chain: &Chain, store: StoreId, key: &Key, bytes: &[u8]) -> Result<(), String> {
    let any = Roles::WRITER | Roles::KEEPER;
    let here = |found: StoreId, place: Key| found == store && place == *key;
    match key.as_str().parse() {
        Ok(ObjectName::Plan(_)) => {
            let place = |plan: &Plan| here(plan.store, names::plan_key(plan.name));
            prove(chain, bytes, Plan::KIND, Roles::KEEPER, Plan::decode, place).map(drop)
        }
        Ok(ObjectName::Kept(_)) => {
            let place = |kept: &Kept| here(kept.store, names::kept_key(kept.name));
            prove(chain, bytes, Kept::KIND, Roles::KEEPER, Kept::decode, place).map(drop)
        }
        Ok(ObjectName::Retired(_)) => {
            let place = |retired: &Retired| here(retired.store, names::retired_key(retired.n));
            prove(chain, bytes, Retired::KIND, Roles::KEEPER, Retired::decode, place).map(drop)
        }
        Ok(ObjectName::List(..)) => {
            let place = |list: &List| here(list.store, names::list_key(list.writer, list.n));
            prove(chain, bytes, List::KIND, any, List::decode, place).map(drop)
        }
        Ok(ObjectName::Session { .. }) => {
            let place = |s: &SessionRecord| here(s.store, names::session_key(s.writer, s.n, s.k));
            let anybody = any | Roles::READER;
            prove(chain, bytes, SessionRecord::KIND, anybody, SessionRecord::decode, place).map(drop)
        }
        Ok(ObjectName::Commit(writer, n)) => {
            let end = verify_end(chain, Some(store), writer, n, bytes);
            end.map(drop).map_err(|e| crate::error::one_line(&e))
        }
        Ok(ObjectName::Manifest(name) | ObjectName::State(_, name)) if Digest::of(bytes) == name.digest() => {
            Ok(())
        }
        _ => Err("nothing shows that it is sound".to_owned()),
    }
}

impl Records {
    /// What may be missing: a plan condemns it, and its verdict does not release it.
    pub fn explained(&self) -> BTreeSet<&str> {
        let mut explained = BTreeSet::new();
        for (plan, condemned) in &self.condemned {
            let released = self.verdicts.get(plan);
            let left = condemned.iter().filter(|name| !released.is_some_and(|r| r.contains(*name)));
            explained.extend(left.map(String::as_str));
        }
        explained
    }

    /// Whether anything that the records refer to, or that must come before them, is missing.
    fn check(&self, stored: &BTreeMap<String, u64>, report: &mut ScrubReport) {
        let ended: BTreeSet<(MemberId, u64)> = self.ends.iter().map(|e| (e.writer, e.n)).collect();
        let open = self.sessions.difference(&ended).copied().collect();
        check_chain(&self.ends, &open, &mut |object, what| report.found(object, what));
        for end in &self.ends {
            let place = (end.writer, end.n);
            let list = names::list_key(end.writer, end.n);
            match (end.commit.list, self.lists.get(&place)) {
                (Some(named), Some(found)) if named != *found => {
                    report.found(list, "it is not the list that the commit names");
                }
                (Some(_), None) if !stored.contains_key(list.as_str()) => {
                    report.found(list, "it is missing, and a commit names it");
                }
                _ => {}
            }
        }
        for (writer, n) in self.lists.keys().filter(|place| !ended.contains(*place)) {
            report.found(
                names::commit_key(*writer, *n),
                "it is missing: the backup was interrupted at its very end, or the commit was removed",
            );
        }
        self.check_retirements(stored, report);
        self.check_verdicts(stored, report);
    }

    /// Retirements without gaps; a snapshot that none names has its manifest.
    fn check_retirements(&self, stored: &BTreeMap<String, u64>, report: &mut ScrubReport) {
        let newest = self.retired.keys().next_back().map_or(0, |n| n + 1);
        for n in (0..newest).filter(|n| !self.retired.contains_key(n)).take(MISSING_MAX) {
            report.found(names::retired_key(n), "it is missing, and later ones exist");
        }
        let retired = self.retired.values().flatten().copied().collect();
        for end in live_ends(&self.ends, &retired) {
            let manifest = end.commit.manifest.map(|name| names::manifest_key(&name));
            let Some(manifest) = manifest.filter(|key| !stored.contains_key(key.as_str())) else { continue };
            if end.commit.kind == CommitKind::Snapshot {
                report.found(manifest, "it is missing, and nobody has forgotten its snapshot");
            }
        }
    }

    /// Nothing is deleted before a plan has its verdict.
    fn check_verdicts(&self, stored: &BTreeMap<String, u64>, report: &mut ScrubReport) {
        let undecided = |n: &PlanName| !self.verdicts.contains_key(n) && !self.merged.contains(n);
        for (n, condemned) in self.condemned.iter().filter(|(n, _)| undecided(n)) {
            if !condemned.is_empty() && condemned.iter().all(|name| !stored.contains_key(name)) {
                report.found(names::kept_key(*n), "it is missing, and all that the plan condemns is gone");
            }
        }
    }
}
