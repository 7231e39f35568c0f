//! Checking: that every snapshot can still be restored, as far as it can be told by structure, by reading, or without
//! any key.

mod affected;
mod data;
mod history;
#[cfg(test)]
mod poison;
mod records;
mod remembered;
mod scrub;
mod structure;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{PackClass, Root};

use self::history::History;
use self::structure::Structure;
use crate::Error;
use crate::prune::open_sessions;
use crate::repository::Repository;

pub(crate) use records::prove_object;
pub(crate) use remembered::{DAMAGE, NAME as PROVED, damaged, found_damage, load as remembered_proofs};
pub use scrub::{ScrubReport, scrub};

/// So many times a look begins again because others have forgotten or pruned meanwhile.
const LOOKS_MAX: usize = 5;

/// How much content a check reads, beside the packs in which the last check of this host found damage: those are read again.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ReadData {
    /// None: structure only.
    #[default]
    Nothing,
    /// A random share of the packs, from 0 to 1.
    Share(f64),
    /// Packs that this host has not read and proved within this time: run daily, everything is read within it.
    OlderThan(Duration),
    /// Every pack.
    Everything,
}

/// How to check.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CheckOptions {
    /// How much content is read, decrypted and proved.
    pub read: ReadData,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// The object, or the snapshot and path.
    pub object: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Of these, those in domains that were erased: nobody can read them, and that is no damage.
    pub erased_snapshots: u64,
    /// Tree nodes read and proved.
    pub nodes: u64,
    /// Chunks that snapshots reach and the index knows.
    pub chunks: u64,
    /// Packs that the index lists.
    pub packs: u64,
    /// Their stored bytes.
    pub pack_bytes: u64,
    /// Packs read whole and proved, chunk by chunk.
    pub packs_read: u64,
    /// Their stored bytes.
    pub bytes_read: u64,
    /// Packs that were to be read and lie in an archive: nothing is known of them, and that is no finding.
    pub packs_archived: u64,
    /// Packs that no index lists and no session is open for: the next prune removes them.
    pub orphans: u64,
    /// Sessions without an end: at work, or dead.
    pub open_sessions: u64,
    /// What is wrong. Empty means that every snapshot can be restored, as far as was read.
    pub findings: BTreeSet<Finding>,
    /// Ids of snapshots that are affected: something that they need is lost, or was read and is damaged everywhere.
    pub damaged_snapshots: BTreeSet<String>,
    /// Paths that are affected, at most 1000, as `snapshot:path`.
    pub damaged_paths: Vec<String>,
}

impl CheckReport {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings.is_empty()
    }

    pub(crate) fn found(&mut self, object: impl std::fmt::Display, what: impl std::fmt::Display) {
        self.findings.insert(Finding { object: object.to_string(), what: what.to_string() });
    }
}

impl Repository {
    /// Checks every snapshot: records and signatures, trees, that each chunk lies in a pack that exists with its size;
    /// and reads as much content as asked for. Damage is reported, not returned as an error. What others forget and prune
    /// meanwhile is none. Changes nothing.
    pub async fn check(&self, options: CheckOptions) -> Result<CheckReport, Error> {
        if !self.can_read() {
            return Err(self.access().cannot("decrypt what it backs up"));
        }
        self.monitor().phase("check");
        let checked = async {
            let (history, structure, mut report) = self.look_at_structure().await?;
            let data::Damaged { mut lost, packs, unread } =
                data::check(self, &structure.packs, options.read, &mut report).await?;
            self.cancel().check()?; // what could not be read any more is no damage
            if structure.is_broken || !lost.is_empty() {
                lost.extend(structure.lost);
                affected::name(self, history, lost, &mut report).await?;
            }
            remembered::note_damage(self, &report.damaged_snapshots, &packs, &unread);
            Ok(report)
        };
        self.unless_cancelled(checked).await
    }

    /// Records and trees. Where something is wrong, and somebody has forgotten, revoked or pruned something meanwhile, they
    /// are looked at again: what was removed rightly is no damage.
    async fn look_at_structure(&self) -> Result<(History, Structure, CheckReport), Error> {
        let mut looks = 1;
        loop {
            let mut report = CheckReport::default();
            let history = history::check(self, &mut report).await?;
            let structure = structure::check(self, &history, &mut report).await?;
            if report.is_sound() || looks == LOOKS_MAX || !history.is_outdated(self).await {
                return Ok((history, structure, report));
            }
            looks += 1;
        }
    }

    /// [`Repository::check`], and beside it all that [`scrub`] finds in records and names: what a repair goes by.
    ///
    /// Costs a request for every signed record more. A session at work is no damage.
    pub async fn examine(&self, read: ReadData) -> Result<CheckReport, Error> {
        let mut report = self.check(CheckOptions { read }).await?;
        let scrubbed = scrub(self.store(), Some(self.chain().fingerprint()), false).await?;
        let open = open_sessions(self).await?;
        let is_at_work = |finding: &Finding| matches!(finding.object.parse(), Ok(ObjectName::Commit(writer, n)) if open.contains_key(&(writer, n)));
        report.findings.extend(scrubbed.findings.into_iter().filter(|finding| !is_at_work(finding)));
        Ok(report)
    }
}

/// Reads back what a session created and proves it: hashes of everything, and every chunk where the keys allow.
/// Gives the number of chunks proved.
pub(crate) async fn prove_session(
    repository: &Repository,
    root: &Root,
    created: &[(String, u64)],
) -> Result<u64, Error> {
    if !repository.can_read() {
        scrub::prove_hashes(repository, created).await?;
        return Ok(0);
    }
    let mut report = CheckReport::default();
    let chunks = data::prove_created(repository, created, &mut report).await?;
    structure::prove_root(repository, root, &mut report).await?;
    match report.findings.into_iter().next() {
        None => Ok(chunks),
        Some(finding) => Err(Error::damaged(finding.object, finding.what)),
    }
}

/// The class of a pack by its key's prefix.
pub(crate) fn class_of_key(key: &str) -> PackClass {
    if key.starts_with(PackClass::Meta.prefix()) { PackClass::Meta } else { PackClass::Data }
}
