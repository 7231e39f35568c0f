//! How much of its log a cluster's base backups need.

use backup_core::wal::WalFloor;
use backup_core::{Repository, Snapshot, SnapshotState};

use crate::cluster::Cluster;
use crate::lsn::Segment;
use crate::recovery::{PlanError, SOURCE_KIND, base_backups};

/// Whether a base backup was committed by a member that is revoked by now.
type ByRevoked = bool;

/// The first file that is still needed of each cluster that has a base backup: that in which the oldest one begins.
///
/// Base backups are the snapshots of kind `postgres`, complete or not. Those of revoked members need their log like
/// others, but where a cluster has no other, they set no floor: whoever had the key of one can have made them up. Fails
/// when one of the repository's snapshots cannot be read: it might be one that needs more. Costs a few requests per base
/// backup.
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
    let chain = repository.chain();
    let mut backups = Vec::new();
    for snapshot in &of_clusters {
        // One by one: a description that cannot be read must not be passed over.
        let found = base_backups(repository, std::slice::from_ref(snapshot), None).await?;
        match found.into_iter().next() {
            Some(backup) => {
                let by_revoked = chain.revoked_from(&snapshot.commit.writer).is_some();
                backups.push((backup.cluster, by_revoked));
            }
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

fn floors(backups: &[(Cluster, ByRevoked)]) -> Vec<WalFloor> {
    let file = |cluster: &Cluster| {
        let segment = Segment { timeline: cluster.timeline, number: cluster.start_segment() };
        segment.file_number(cluster.wal_segment_size)
    };
    let mut floors: Vec<WalFloor> = Vec::new();
    for (cluster, _) in backups.iter().filter(|(_, by_revoked)| !by_revoked) {
        let system = cluster.system_identifier.get();
        if floors.iter().any(|floor| floor.system == system) {
            continue;
        }
        let of_cluster =
            backups.iter().filter(|(other, _)| other.system_identifier == cluster.system_identifier);
        let oldest = of_cluster.map(|(other, _)| file(other)).min();
        floors.extend(oldest.map(|file| WalFloor { system, file }));
    }
    floors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backup(system: u64, segment: u64, by_revoked: ByRevoked) -> (Cluster, ByRevoked) {
        let json = format!(
            r#"{{ "format": 1, "system_identifier": "{system}", "server_version_num": 150018, "timeline": 1,
            "start_lsn": "0/{segment:X}000028", "stop_lsn": "0/{segment:X}000100",
            "start_time": "2026-11-21T12:00:00Z", "stop_time": "2026-11-21T12:00:01Z", "from_standby": false,
            "wal_segment_size": 16777216, "block_size": 8192, "data_checksums": true,
            "data_directory": "/srv/data", "tablespaces": [], "databases": [], "settings": {{}} }}"#
        );
        (Cluster::parse(json.as_bytes()).unwrap(), by_revoked)
    }

    fn found(backups: &[(Cluster, ByRevoked)]) -> Vec<(u64, u64)> {
        floors(backups).iter().map(|floor| (floor.system, floor.file)).collect()
    }

    #[test]
    fn a_revoked_member_sets_no_floor_and_keeps_what_its_backups_need() {
        let file = |segment| found(&[backup(7, segment, false)])[0].1;
        assert!(found(&[backup(7, 9, true)]).is_empty());
        assert_eq!(found(&[backup(7, 9, true), backup(8, 3, false)]), [(8, file(3))]);
        assert_eq!(found(&[backup(7, 9, true), backup(7, 5, false)]), [(7, file(5))]);
        assert_eq!(found(&[backup(7, 5, false), backup(7, 2, true)]), [(7, file(2))]);
    }
}
