//! How much of its log a cluster's base backups need.

use backup_core::wal::WalFloor;
use backup_core::{Repository, Snapshot, SnapshotState};

use crate::lsn::Segment;
use crate::recovery::{BaseBackup, PlanError, SOURCE_KIND, base_backups};

/// The first file that is still needed of each cluster that has a base backup: that in which the oldest one begins.
///
/// Base backups are the snapshots of kind `postgres`, complete or not. Fails when one of the repository's snapshots
/// cannot be read: it might be one that needs more. Costs a few requests per base backup.
pub async fn wal_floors(repository: &Repository) -> Result<Vec<WalFloor>, PlanError> {
    let snapshots = repository.snapshots().await?;
    let mut of_clusters = Vec::new();
    for snapshot in snapshots {
        match &snapshot.state {
            SnapshotState::Readable(manifest) if manifest.source_kind == SOURCE_KIND => {
                of_clusters.push(snapshot)
            }
            SnapshotState::Readable(_) => {}
            // The reason of the manifest's own.
            _ => drop(snapshot.manifest()?),
        }
    }
    let mut backups = Vec::new();
    for snapshot in &of_clusters {
        // One by one: a description that cannot be read must not be passed over.
        let found = base_backups(repository, std::slice::from_ref(snapshot), None).await?;
        match found.into_iter().next() {
            Some(backup) => backups.push(backup),
            None => return Err(unreadable(snapshot)),
        }
    }
    Ok(floors(&backups))
}

fn unreadable(snapshot: &Snapshot) -> PlanError {
    let object = format!("snapshot {}", snapshot.short());
    let reason = "it does not say what cluster it is of; the WAL that it may need stays".to_owned();
    backup_core::Error::Damaged { object, reason }.into()
}

fn floors(backups: &[BaseBackup]) -> Vec<WalFloor> {
    let mut floors: Vec<WalFloor> = Vec::new();
    for backup in backups {
        let cluster = &backup.cluster;
        let segment = Segment { timeline: cluster.timeline, number: cluster.start_segment() };
        let (system, file) = (cluster.system_identifier.get(), segment.file_number(cluster.wal_segment_size));
        match floors.iter_mut().find(|floor| floor.system == system) {
            Some(floor) => floor.file = floor.file.min(file),
            None => floors.push(WalFloor { system, file }),
        }
    }
    floors
}
