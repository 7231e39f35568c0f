//! Retention over the snapshots of a store: what the rules of the catalog need to know about each.

use std::collections::{BTreeMap, BTreeSet};

use jiff::tz::TimeZone;
use keepwell_catalog::Manifest;
use keepwell_catalog::retention::{Candidate, RetentionPolicy, decide};
use keepwell_crypto::SnapshotId;

use crate::env::Timestamp;
use crate::repository::{Snapshot, SnapshotState, in_order};

/// Dataset of what was backed up only because a restore was about to change it. Its snapshots are of this and that, so
/// their sizes are not compared.
pub const SAFETY_DATASET: &str = "safety";

/// What a host knows of the snapshots of a store from checks; see [`Repository::checked`](crate::Repository::checked). The
/// default is to know nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    /// As [`Repository::proved_since`](crate::Repository::proved_since) says: what was committed then or before is proven.
    pub proved_since: Option<Timestamp>,
    /// Snapshots that the last check found to lack something: they stay as if they did not, and count for no rule.
    pub damaged: BTreeSet<SnapshotId>,
}

/// What is known of one snapshot. The default is nothing, as of one that the store does not have yet.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Proof {
    proven: bool,
    damaged: bool,
}

impl Checked {
    /// What is known of a snapshot of the store that was checked.
    pub(crate) fn of(&self, snapshot: &Snapshot) -> Proof {
        let damaged = self.damaged.contains(&snapshot.id);
        // A writer must not pass for proven by claiming to be old.
        let newest = snapshot.stored.map_or(snapshot.commit.time, |stored| stored.max(snapshot.commit.time));
        Proof { proven: self.proved_since.is_some_and(|since| newest <= since) && !damaged, damaged }
    }
}

/// What retention says about a snapshot.
#[derive(Debug, Clone)]
pub struct Verdict<'s> {
    /// The snapshot.
    pub snapshot: &'s Snapshot,
    /// It stays.
    pub keep: bool,
    /// It stays by a rule of the policy, and not only because of what always stays.
    pub by_rule: bool,
    /// Why it is not trusted to fill a slot, if something speaks against it: `captured in the future`.
    pub anomaly: Option<String>,
    /// Why it stays or goes, for people. At least one.
    pub reasons: Vec<String>,
}

/// Decides about snapshots: each dataset of each host by itself, in the time zone of its newest snapshot that counts.
///
/// `snapshots` may come in any order, and from several stores; they are put into that of
/// [`Repository::snapshots`](crate::Repository::snapshots). One whose manifest cannot be read stays. The rules are those of
/// [`keepwell_catalog::retention`]. Verdicts come dataset by dataset, those of one in that order.
pub fn retain<'s>(
    policy: &RetentionPolicy,
    now: Timestamp,
    snapshots: impl IntoIterator<Item = &'s Snapshot>,
    checked: &Checked,
) -> Vec<Verdict<'s>> {
    let snapshots = in_order(snapshots.into_iter().collect());
    retain_in_order(policy, now, snapshots, |snapshot| checked.of(snapshot))
}

/// The same for snapshots in the order in which they are to count, and by what is known of each.
pub(crate) fn retain_in_order<'s>(
    policy: &RetentionPolicy,
    now: Timestamp,
    snapshots: Vec<&'s Snapshot>,
    known: impl Fn(&Snapshot) -> Proof,
) -> Vec<Verdict<'s>> {
    let mut groups: BTreeMap<(&str, &str), Vec<(&Snapshot, &Manifest)>> = BTreeMap::new();
    let mut verdicts = Vec::new();
    for snapshot in snapshots {
        match &snapshot.state {
            SnapshotState::Readable(m) => {
                groups.entry((&m.host, &m.dataset)).or_default().push((snapshot, m))
            }
            _ => verdicts.push(Verdict {
                snapshot,
                keep: true,
                by_rule: false,
                anomaly: None,
                reasons: vec!["its manifest cannot be read".to_owned()],
            }),
        }
    }
    for members in groups.into_values() {
        let candidates: Vec<Candidate> = (0..)
            .zip(&members)
            .map(|(order, (snapshot, m))| candidate(snapshot, m, order, known(snapshot)))
            .collect();
        let zone = zone_of(&members, &candidates, now);
        let decisions = decide(policy, &zone, now, &candidates);
        verdicts.extend(members.into_iter().zip(decisions).map(|((snapshot, _), decision)| Verdict {
            snapshot,
            keep: decision.keep,
            by_rule: decision.by_rule,
            anomaly: decision.anomaly,
            reasons: decision.reasons,
        }));
    }
    verdicts
}

/// The zone of the newest snapshot that is complete and not flagged: another one moves no midnight, which could bring two
/// others into one day. Of the newest at all, if there is none; zones that this host does not know are passed over.
fn zone_of(members: &[(&Snapshot, &Manifest)], candidates: &[Candidate], now: Timestamp) -> TimeZone {
    // What is flagged does not depend on the zone, nor on the rules.
    let judged = decide(&RetentionPolicy::default(), &TimeZone::UTC, now, candidates);
    let counts = candidates.iter().zip(&judged).map(|(it, judged)| it.complete && judged.anomaly.is_none());
    let named: Vec<(&str, bool)> =
        members.iter().map(|(_, manifest)| manifest.time_zone.as_str()).zip(counts).collect();
    let newest = |any: bool| {
        let mut zones = named.iter().rev().filter(|(_, counts)| any || *counts);
        zones.find_map(|(name, _)| TimeZone::get(name).ok())
    };
    newest(false).or_else(|| newest(true)).unwrap_or(TimeZone::UTC)
}

fn candidate(snapshot: &Snapshot, manifest: &Manifest, order: u64, known: Proof) -> Candidate {
    let comparable = manifest.dataset != SAFETY_DATASET;
    Candidate {
        id: snapshot.id,
        dataset: manifest.dataset.clone(),
        host: manifest.host.clone(),
        capture: manifest.capture_end,
        commit_time: snapshot.first.time.min(snapshot.commit.time),
        stored: snapshot.stored,
        commit_order: order,
        complete: snapshot.commit.complete,
        proven: known.proven,
        damaged: known.damaged,
        tags: manifest.tags.clone(),
        keep_until: manifest.keep_until,
        keep_forever: manifest.keep_forever,
        logical_bytes: comparable.then_some(snapshot.commit.logical_bytes),
    }
}

#[cfg(test)]
mod tests;
