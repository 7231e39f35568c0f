//! Copying snapshots into a repository with other keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use keepwell_catalog::{Manifest, MapKey, Problem, dataset_tag};
use keepwell_crypto::SnapshotId;

use crate::Error;
use crate::backup::{BackupOptions, BackupReport};
use crate::repository::{Repository, Snapshot, SnapshotState};
use crate::source::SourceError;

/// Name in a manifest's extra map under which a copy holds the signed commit of the snapshot that it was made from, as
/// stored in the first repository it was taken into.
pub const EXTRA_ORIGIN: &str = "origin";
/// Likewise the id (32 bytes) of that snapshot.
pub const EXTRA_ORIGIN_SNAPSHOT: &str = "origin-snapshot";

/// What a copy did.
#[derive(Debug, Clone, Default)]
pub struct CopyReport {
    /// In the order of their capture.
    pub copied: Vec<CopiedSnapshot>,
    /// Snapshots that were there already.
    pub skipped: Vec<SnapshotId>,
    /// Snapshots of which nothing could be copied, or nothing more than was there, because they are damaged or were forgotten
    /// meanwhile, with the reason.
    pub failed: Vec<(SnapshotId, String)>,
}

/// One snapshot that was copied.
#[derive(Debug, Clone)]
pub struct CopiedSnapshot {
    /// Its id where it came from.
    pub from: SnapshotId,
    /// Items that the copy lacks because their content could not be read. A later copy makes another snapshot, as soon as
    /// one of them can be.
    pub unread: u64,
    /// What the backup into the other repository did; its problems include those of the capture.
    pub report: BackupReport,
}

/// What a target has.
#[derive(Default)]
struct Present {
    ids: BTreeSet<SnapshotId>,
    /// Dataset and time of capture, for a credential that cannot read manifests.
    captures: BTreeSet<([u8; 16], i64)>,
    /// Originals of which there are only copies that lack something: what the best of them lacks, as far as that is named.
    short: BTreeMap<SnapshotId, Vec<MapKey>>,
}

impl Repository {
    /// Copies snapshots of this repository into one with other keys: everything is read here, decrypted, proved, and
    /// backed up there. For a store with the same keys this is the wrong way: packs can be copied as they are.
    ///
    /// Dataset, host, tags, paths, time of capture, time zone, description and what keeps it from being forgotten are
    /// carried over; of `options` only the other fields count. Files that the previous copy of the same dataset by the
    /// same writer has are not read again, so copying in order of capture (as this does) costs what changed. A snapshot
    /// that is in the target under its own id or as a copy is skipped; one that the target has retired is not there.
    /// Content of an erasable domain goes where `options` say, like any other.
    ///
    /// Damage costs the files that it touches ([`CopiedSnapshot::unread`]). A failed or interrupted copy leaves whole
    /// snapshots and no parts of one. [`Error::NotAllowed`] for a credential that cannot read here.
    pub async fn copy_snapshots(
        &self,
        target: &Repository,
        snapshots: &[Snapshot],
        options: &BackupOptions,
    ) -> Result<CopyReport, Error> {
        if !self.can_read() {
            return Err(self.access().cannot("copy snapshots"));
        }
        let mut report = CopyReport::default();
        let mut wanted = Vec::new();
        for snapshot in snapshots {
            match snapshot.manifest() {
                Ok(manifest) => wanted.push((snapshot, manifest)),
                Err(error @ Error::Damaged { .. }) => {
                    report.failed.push((snapshot.id, crate::error::one_line(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        wanted.sort_by_key(|(snapshot, manifest)| (manifest.capture_start, snapshot.place()));
        let mut present = Present::of(target, &wanted).await?;
        for (snapshot, manifest) in wanted {
            if !present.insert(target, snapshot, manifest) {
                report.skipped.push(snapshot.id);
                continue;
            }
            if let Some(lacking) = present.short.get(&snapshot.id)
                && !self.gives_any(snapshot, lacking.clone()).await?
            {
                let reason = "the copy that is there lacks items, and none of them can be read here";
                report.failed.push((snapshot.id, reason.to_owned()));
                continue;
            }
            match self.copy_one(target, snapshot, manifest, options).await {
                Ok(copied) => report.copied.push(copied),
                Err(
                    error @ (Error::Damaged { .. }
                    | Error::ChunkLost { .. }
                    | Error::NoSuchSnapshot(_)
                    | Error::Source(_)),
                ) => {
                    report.failed.push((snapshot.id, crate::error::one_line(&error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(report)
    }

    /// Whether the content of one of these items at least can be read. Where nothing says what is lacking, it may be.
    async fn gives_any(&self, snapshot: &Snapshot, keys: Vec<MapKey>) -> Result<bool, Error> {
        if keys.is_empty() {
            return Ok(true);
        }
        let source = self.snapshot_source(snapshot).await?;
        let task = tokio::task::spawn_blocking(move || keys.iter().any(|key| source.gives(key)));
        self.unless_cancelled(async { task.await.map_err(|e| Error::Task(e.to_string())) }).await
    }

    async fn copy_one(
        &self,
        target: &Repository,
        snapshot: &Snapshot,
        manifest: &Manifest,
        options: &BackupOptions,
    ) -> Result<CopiedSnapshot, Error> {
        let source = self.snapshot_source(snapshot).await?;
        let mut extra = manifest.extra.clone();
        if !extra.contains_key(EXTRA_ORIGIN_SNAPSHOT) {
            extra.insert(EXTRA_ORIGIN.to_owned(), self.commit_bytes(snapshot).await?);
            extra.insert(EXTRA_ORIGIN_SNAPSHOT.to_owned(), snapshot.id.as_bytes().to_vec());
        }
        let options = BackupOptions {
            dataset: manifest.dataset.clone(),
            host: manifest.host.clone(),
            tags: manifest.tags.clone(),
            description: manifest.description.clone(),
            time_zone: manifest.time_zone.clone(),
            keep_until: manifest.keep_until,
            keep_forever: manifest.keep_forever,
            capture_time: Some(manifest.capture_start),
            original: None,
            extra,
            ..options.clone()
        };
        let report = target.backup(Arc::new(source), options).await.map_err(of_origin)?;
        let unread = report.problem_count.saturating_sub(manifest.problems.len() as u64);
        Ok(CopiedSnapshot { from: snapshot.id, unread, report })
    }
}

/// What the origin failed with, if that ended the capture.
fn of_origin(error: Error) -> Error {
    let cause = match &error {
        Error::Source(source) => match &**source {
            SourceError::Failed(failed) => failed.downcast_ref::<Error>().cloned(),
            _ => None,
        },
        _ => None,
    };
    cause.unwrap_or(error)
}

impl Present {
    async fn of(target: &Repository, wanted: &[(&Snapshot, &Manifest)]) -> Result<Self, Error> {
        let mut present = Self::default();
        for snapshot in target.snapshots().await? {
            match &snapshot.state {
                SnapshotState::Readable(manifest) => {
                    let original = wanted.iter().find(|(original, _)| is_short_of(&snapshot, original));
                    match original {
                        None => present.ids.extend(identities(snapshot.id, manifest)),
                        Some((original, whole)) => present.note_short(original.id, lacking(manifest, whole)),
                    }
                }
                SnapshotState::Sealed => {
                    present.captures.extend(snapshot.commit.dataset_tag.zip(snapshot.commit.capture));
                }
                SnapshotState::Damaged(_) => {}
            }
        }
        Ok(present)
    }

    fn note_short(&mut self, original: SnapshotId, lacking: Vec<MapKey>) {
        let best = self.short.entry(original).or_insert_with(|| lacking.clone());
        // Of one that names nothing it is not known how much it lacks.
        let rank = |keys: &[MapKey]| (keys.is_empty(), keys.len());
        if rank(&lacking) < rank(best) {
            *best = lacking;
        }
    }

    /// `true` if the snapshot was not there; from now on it is.
    fn insert(&mut self, target: &Repository, snapshot: &Snapshot, manifest: &Manifest) -> bool {
        let tag = dataset_tag(&target.domain().id_key, &manifest.dataset);
        let capture = (tag, manifest.capture_start);
        let known = identities(snapshot.id, manifest).any(|id| self.ids.contains(&id));
        if known || (!target.can_read() && self.captures.contains(&capture)) {
            return false;
        }
        self.ids.extend(identities(snapshot.id, manifest));
        self.captures.insert(capture);
        true
    }
}

/// Whether a copy under other keys lacks items that the original has: that was damaged when the copy was made.
pub(super) fn is_short_of(copy: &Snapshot, original: &Snapshot) -> bool {
    let (Ok(short), Ok(whole)) = (copy.manifest(), original.manifest()) else { return false };
    let is_copy = origin_snapshot(short).is_some_and(|of| identities(original.id, whole).any(|id| id == of));
    // As many problems as the original names were copied, and counted.
    copy.id != original.id && is_copy && short.problem_count > whole.problems.len() as u64
}

/// Items that a copy has as problems, and the original has not.
fn lacking(copy: &Manifest, original: &Manifest) -> Vec<MapKey> {
    let known: BTreeSet<&[u8]> = original.problems.iter().map(|problem| problem.key.as_slice()).collect();
    let news = copy.problems.iter().filter(|problem: &&Problem| !known.contains(problem.key.as_slice()));
    news.filter_map(|problem| MapKey::from_bytes(problem.key.as_slice()).ok()).collect()
}

/// The ids under which a snapshot is known in the repositories it was copied through.
fn identities(id: SnapshotId, manifest: &Manifest) -> impl Iterator<Item = SnapshotId> {
    [Some(id), origin_snapshot(manifest)].into_iter().flatten()
}

fn origin_snapshot(manifest: &Manifest) -> Option<SnapshotId> {
    let id = manifest.extra.get(EXTRA_ORIGIN_SNAPSHOT)?;
    Some(SnapshotId::from_bytes(id.as_slice().try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::key;

    #[test]
    fn a_copy_that_does_not_name_what_it_lacks_is_not_the_best() {
        let (id, mut present) = (SnapshotId::from_bytes([1; 32]), Present::default());
        let mut best = |lacking: &[&str]| {
            present.note_short(id, lacking.iter().map(|path| key(path)).collect());
            present.short[&id].clone()
        };
        assert!(best(&[]).is_empty());
        assert_eq!(best(&["a", "b"]), [key("a"), key("b")]);
        assert_eq!(best(&["c"]), [key("c")]);
        assert_eq!(best(&[]), [key("c")]);
    }
}
