//! Recovered states that were kept as snapshots: each recovers by itself, and none is a base backup of the cluster.

use backup_core::Repository;

use super::backups::BaseBackup;
use super::plan::{PlanError, RecoveryPlan};
use super::target::Target;
use crate::history::History;
use crate::lsn::Timeline;

/// Kind of the snapshots that hold what was made of a cluster by a recovery.
///
/// It lives on a timeline that only it knows: as a base backup of the cluster it would lead other recoveries astray.
pub const SAVED_KIND: &str = "postgres-instant";

impl RecoveryPlan {
    /// Plans the recovery of a base backup to its end, with nothing but the log that it brings with it.
    ///
    /// Reads its history and lists its log. Fails with [`PlanError::Unreachable`] when a part of either is missing.
    pub async fn of_saved(repository: &Repository, backup: BaseBackup) -> Result<Self, PlanError> {
        let cluster = &backup.cluster;
        let (size, timeline) = (cluster.wal_segment_size, cluster.timeline);
        let unreachable = |reason: String| PlanError::Unreachable {
            target: Box::new(Target::Immediate),
            reason,
            nearest: None,
        };
        let history = match backup.own_history(repository).await? {
            Some(history) => history,
            None if timeline == Timeline::FIRST => History::root(timeline),
            None => {
                return Err(unreachable(format!("the snapshot lacks the history of timeline {timeline}")));
            }
        };
        let (from, to) = (cluster.start_lsn, cluster.stop_lsn);
        let held = backup.own_wal(&backup.tree(repository).await?).await?;
        for number in size.number_at(from)..=size.number_at(to) {
            let needed = to.get().saturating_sub(size.start_of(number).get()).min(size.get().into());
            let holds = |(segment, end): &(crate::lsn::Segment, u32)| {
                segment.timeline == timeline && segment.number == number && u64::from(*end) >= needed
            };
            if needed > 0 && !held.iter().any(holds) {
                return Err(unreachable(format!(
                    "the snapshot lacks the log from {}",
                    size.start_of(number)
                )));
            }
        }
        Ok(Self {
            target: Target::Immediate,
            history,
            from,
            to,
            timelines: vec![(timeline, from, to)],
            gap: None,
            last_end: None,
            position: None,
            left_at: None,
            last_record: None,
            own_until: Some(to),
            backup,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lsn::Lsn;
    use crate::testing::{Made, SYSTEM, World, content, segment, size};

    #[tokio::test]
    async fn a_saved_state_needs_all_of_its_own_log_and_nothing_else() {
        let lsn = |number, offset| size().start_of(number).plus(offset);
        let world = World::new().await;
        let made = |numbers: &[u64]| {
            let mut made = Made::new(SYSTEM, lsn(3, 40), lsn(4, 80), 1_795_248_000, "");
            for number in numbers {
                let name = segment(*number).file_name(size());
                made.file(&format!("data/pg_wal/{name}"), &content(SYSTEM, *number, 1));
            }
            made
        };
        let whole = made(&[3, 4]).back_up(&world, "whole").await;
        let plan = RecoveryPlan::of_saved(&world.repository, whole).await.unwrap();
        assert_eq!((plan.target, plan.to, plan.own_until), (Target::Immediate, lsn(4, 80), Some(lsn(4, 80))));
        for (name, numbers) in [("first", &[3][..]), ("last", &[4]), ("none", &[])] {
            let backup = made(numbers).back_up(&world, name).await;
            let refused = RecoveryPlan::of_saved(&world.repository, backup).await.unwrap_err();
            assert!(matches!(refused, PlanError::Unreachable { .. }), "{name}: {refused}");
        }
        let edge = Made::new(SYSTEM, Lsn::new(0x28), size().start_of(1), 1_795_248_000, "");
        let edge = edge.back_up(&world, "edge").await;
        assert!(RecoveryPlan::of_saved(&world.repository, edge).await.is_err());
    }
}
