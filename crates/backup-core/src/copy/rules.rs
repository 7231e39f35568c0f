//! What belongs into a copy, and how long it stays there.

use std::collections::HashSet;

use keepwell_catalog::retention::RetentionPolicy;
use keepwell_crypto::SnapshotId;

use crate::Error;
use crate::env::Timestamp;
use crate::prune::PruneOptions;
use crate::repository::{Repository, Snapshot, SnapshotState};
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
    /// Whether a snapshot, of the origin or of the copy, is one that these rules are about. Without names all are; with
    /// names none that cannot be read, for nobody can tell.
    pub fn concern(&self, snapshot: &Snapshot) -> bool {
        let named = |names: &[String], name: &String| names.is_empty() || names.contains(name);
        match &snapshot.state {
            SnapshotState::Readable(m) => {
                named(&self.datasets, &m.dataset)
                    && named(&self.hosts, &m.host)
                    && (self.tags.is_empty() || m.tags.iter().any(|tag| self.tags.contains(tag)))
            }
            _ => self.datasets.is_empty() && self.hosts.is_empty() && self.tags.is_empty(),
        }
    }

    /// The snapshots that the copy is there for, before its retention.
    pub fn selected<'s>(&self, now: Timestamp, snapshots: &'s [Snapshot]) -> Vec<&'s Snapshot> {
        let readable = |s: &&Snapshot| matches!(s.state, SnapshotState::Readable(_));
        let fitting = snapshots.iter().filter(readable).filter(|snapshot| self.concern(snapshot));
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
        let all = there.iter().filter(|snapshot| self.concern(snapshot)).chain(lacking);
        let kept = retain(&self.retention, now, all, None).into_iter().filter(|verdict| verdict.keep);
        kept.map(|verdict| verdict.snapshot).filter(|snapshot| ids.contains(&snapshot.id)).collect()
    }

    /// What the copy holds for these rules and its retention does not keep, with the reasons; what else lies in the same
    /// place is not its business. `proved`: see [`retain`].
    pub fn going<'s>(
        &self,
        now: Timestamp,
        there: &'s [Snapshot],
        proved: Option<Timestamp>,
    ) -> Vec<(&'s Snapshot, String)> {
        let own = there.iter().filter(|snapshot| self.concern(snapshot));
        let verdicts = retain(&self.retention, now, own, proved).into_iter().filter(|verdict| !verdict.keep);
        verdicts.map(|verdict| (verdict.snapshot, verdict.reasons.join("; "))).collect()
    }

    /// What is to be copied there now: [`selected`](Self::selected) and [`missing`](Self::missing).
    pub fn wanted(&self, now: Timestamp, snapshots: &[Snapshot], there: &[Snapshot]) -> Vec<Snapshot> {
        self.missing(now, self.selected(now, snapshots), there).into_iter().cloned().collect()
    }

    /// Forgets in the copy what is [`going`](Self::going), and gives the space back if `prune` says how. Returns how many
    /// snapshots were forgotten, and the bytes freed.
    pub async fn retire(
        &self,
        now: Timestamp,
        copy: &Repository,
        prune: Option<PruneOptions>,
    ) -> Result<(usize, u64), Error> {
        let there = copy.snapshots().await?;
        let going = self.going(now, &there, copy.proved_since().await?);
        if going.is_empty() {
            return Ok((0, 0));
        }
        copy.forget(&going).await?;
        let freed = match prune {
            Some(options) => copy.prune(options).await?.bytes_freed,
            None => 0,
        };
        Ok((going.len(), freed))
    }
}
