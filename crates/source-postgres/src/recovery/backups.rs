//! Base backups among the snapshots of a repository.

use std::ops::ControlFlow;

use backup_core::{Depth, Repository, Snapshot, SnapshotState, Tree};
use keepwell_catalog::{EntryKind, MapKey};

use super::PlanError;
use crate::archive::ArchiveError;
use crate::cluster::{CLUSTER_BYTES_MAX, CLUSTER_FILE, Cluster, DATA};
use crate::history::{HISTORY_BYTES_MAX, History};
use crate::lsn::Segment;

/// Kind of the source that captures clusters.
pub const SOURCE_KIND: &str = "postgres";

/// A snapshot that holds a base backup.
#[derive(Debug, Clone)]
pub struct BaseBackup {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Where in it the base backup lies; the root, but for one that was kept like any other directory.
    pub root: MapKey,
    /// What it says about itself.
    pub cluster: Cluster,
}

/// Reads what the base backups among snapshots say about themselves, in the order given.
///
/// Without `root`, these are the snapshots of clusters; with it, those that have a `cluster.json` there. A
/// snapshot whose description cannot be read is an error only when it is the only one. Costs a few requests for each.
pub async fn base_backups(
    repository: &Repository,
    snapshots: &[Snapshot],
    root: Option<&MapKey>,
) -> Result<Vec<BaseBackup>, PlanError> {
    let (mut found, mut wrong) = (Vec::new(), None);
    for snapshot in snapshots {
        let SnapshotState::Readable(manifest) = &snapshot.state else { continue };
        if root.is_none() && manifest.source_kind != SOURCE_KIND {
            continue;
        }
        let place = root.cloned().unwrap_or_else(MapKey::root);
        match read(repository, snapshot, &place).await {
            Ok(Some(cluster)) => {
                found.push(BaseBackup { snapshot: snapshot.clone(), root: place, cluster });
            }
            Ok(None) => {}
            Err(PlanError::Repository(backup_core::Error::Storage(error))) => {
                return Err(backup_core::Error::Storage(error).into());
            }
            Err(error) => {
                repository.monitor().problem(&snapshot.short(), &crate::one_line(&error));
                wrong = Some(error);
            }
        }
    }
    match wrong {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

async fn read(
    repository: &Repository,
    snapshot: &Snapshot,
    root: &MapKey,
) -> Result<Option<Cluster>, PlanError> {
    let tree = repository.tree(snapshot).await?;
    let key = child(root, &[CLUSTER_FILE])?;
    match tree.entry(&key).await? {
        Some(entry) if entry.kind.has_content() && entry.size <= CLUSTER_BYTES_MAX => {}
        Some(_) => return Err(PlanError::NoDescription),
        None => return Ok(None),
    }
    let mut json = Vec::new();
    tree.dump_file(&key, &mut json).await?;
    Ok(Some(Cluster::parse(&json)?))
}

/// The key of something below another.
pub(crate) fn child(key: &MapKey, names: &[&str]) -> Result<MapKey, backup_core::Error> {
    let mut key = key.clone();
    for name in names {
        key = key.child(name.as_bytes())?;
    }
    Ok(key)
}

impl BaseBackup {
    /// The tree of the snapshot.
    pub async fn tree(&self, repository: &Repository) -> Result<Tree, backup_core::Error> {
        repository.tree(&self.snapshot).await
    }

    /// Where the snapshot has the WAL that belongs to it.
    pub fn wal_directory(&self) -> Result<MapKey, backup_core::Error> {
        child(&self.root, &[DATA, "pg_wal"])
    }

    /// The history of its timeline, if the snapshot has it.
    pub(super) async fn own_history(&self, repository: &Repository) -> Result<Option<History>, PlanError> {
        let tree = self.tree(repository).await?;
        let timeline = self.cluster.timeline;
        let key = child(&self.wal_directory()?, &[timeline.history_file().as_str()])?;
        match tree.entry(&key).await? {
            Some(entry) if entry.kind == EntryKind::File && entry.size <= HISTORY_BYTES_MAX as u64 => {}
            _ => return Ok(None),
        }
        let mut content = Vec::new();
        tree.dump_file(&key, &mut content).await?;
        let wrong = |error: crate::history::HistoryError| ArchiveError::NotThatWal {
            file: timeline.history_file(),
            reason: error.reason,
        };
        Ok(Some(History::parse(timeline, &content).map_err(wrong)?))
    }

    /// WAL files that the snapshot has itself, with how far each goes: what lies behind the end of the backup may be old.
    pub async fn own_wal(&self, tree: &Tree) -> Result<Vec<(Segment, u32)>, backup_core::Error> {
        let directory = self.wal_directory()?;
        let mut found = Vec::new();
        if tree.entry(&directory).await?.is_none() {
            return Ok(found);
        }
        let size = self.cluster.wal_segment_size;
        let visit = |key: &MapKey, entry: &keepwell_catalog::Entry| {
            let name = key.name().map(|name| String::from_utf8_lossy(&name).into_owned());
            let segment = name.and_then(|name| Segment::parse(&name, size).ok());
            if let (Some(segment), EntryKind::File) = (segment, entry.kind) {
                let end = self.cluster.stop_lsn.get().saturating_sub(size.start_of(segment.number).get());
                found.push((segment, u32::try_from(entry.size.min(end)).unwrap_or(0)));
            }
            ControlFlow::Continue(())
        };
        tree.list(&directory, Depth::Children, visit).await?;
        Ok(found)
    }
}
