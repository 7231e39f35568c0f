//! What belongs into a copy, and how long it stays there.

use std::collections::HashSet;

use keepwell_catalog::retention::RetentionPolicy;
use keepwell_crypto::SnapshotId;

use crate::env::Timestamp;
use crate::repository::{Snapshot, SnapshotState};
use crate::retention::retain;

/// The rules of one copy. Names are given or not: an empty list is no rule.
#[derive(Debug, Clone, Default)]
pub struct CopyRules {
    /// Only snapshots of these datasets.
    pub datasets: Vec<String>,
    /// Only of these hosts.
    pub hosts: Vec<String>,
    /// Only with one of these tags.
    pub tags: Vec<String>,
    /// Of these only what this keeps; a policy without rules takes all of them.
    pub selection: RetentionPolicy,
    /// How long they stay; a policy without rules keeps everything.
    pub retention: RetentionPolicy,
}

impl CopyRules {
    /// The snapshots that the copy is there for, before its retention.
    pub fn selected<'s>(&self, now: Timestamp, snapshots: &'s [Snapshot]) -> Vec<&'s Snapshot> {
        let named = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        let fits = |snapshot: &&Snapshot| match &snapshot.state {
            SnapshotState::Readable(m) => {
                named(&self.datasets, &m.dataset)
                    && named(&self.hosts, &m.host)
                    && (self.tags.is_empty() || m.tags.iter().any(|tag| self.tags.contains(tag)))
            }
            _ => false,
        };
        let fitting = snapshots.iter().filter(fits);
        if self.selection.is_empty() {
            return fitting.collect();
        }
        let chosen = retain(&self.selection, now, fitting, None).into_iter();
        chosen.filter(|verdict| verdict.by_rule).map(|verdict| verdict.snapshot).collect()
    }

    /// Of the selected snapshots, those that the copy lacks and that its own retention would keep. `there` is what it holds.
    pub fn missing<'s>(
        &self,
        now: Timestamp,
        selected: Vec<&'s Snapshot>,
        there: &'s [Snapshot],
    ) -> Vec<&'s Snapshot> {
        let held: HashSet<SnapshotId> = there.iter().map(Snapshot::origin_id).collect();
        let lacking: Vec<&Snapshot> =
            selected.into_iter().filter(|snapshot| !held.contains(&snapshot.origin_id())).collect();
        if self.retention.is_empty() {
            return lacking;
        }
        let ids: HashSet<SnapshotId> = lacking.iter().map(|snapshot| snapshot.id).collect();
        let all = there.iter().chain(lacking);
        let kept = retain(&self.retention, now, all, None).into_iter().filter(|verdict| verdict.keep);
        kept.map(|verdict| verdict.snapshot).filter(|snapshot| ids.contains(&snapshot.id)).collect()
    }

    /// What the copy holds and its retention does not keep, with the reasons. `proved`: see [`retain`].
    pub fn going<'s>(
        &self,
        now: Timestamp,
        there: &'s [Snapshot],
        proved: Option<Timestamp>,
    ) -> Vec<(&'s Snapshot, String)> {
        let verdicts =
            retain(&self.retention, now, there, proved).into_iter().filter(|verdict| !verdict.keep);
        verdicts.map(|verdict| (verdict.snapshot, verdict.reasons.join("; "))).collect()
    }
}
