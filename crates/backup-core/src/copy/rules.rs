//! What belongs into a copy, and how long it stays there.

use std::collections::{BTreeMap, HashMap, HashSet};

use keepwell_catalog::retention::RetentionPolicy;
use keepwell_crypto::SnapshotId;

use super::reencrypt::is_short_of;
use crate::Error;
use crate::env::Timestamp;
use crate::prune::{PruneOptions, PruneReport};
use crate::repository::{Repository, Snapshot, SnapshotState, in_order};
use crate::retention::{Checked, Proof, retain, retain_in_order};

/// Clocks of hosts may differ by this much: an hour, as for retention.
const CLOCKS_DIFFER_BY: Timestamp = 3600 * 1_000_000_000;

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
    /// The rules of all copies at the same place: what one of them is about and keeps, none of the others forgets.
    pub beside: Vec<Self>,
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

    /// The snapshots that the copy is there for, before its retention. `there` is what it holds, also of what the origin has
    /// forgotten since: the first of a week is not the oldest that the origin still has of it. What is damaged there stands
    /// for none (`checked`).
    pub fn selected<'s>(
        &self,
        now: Timestamp,
        snapshots: &'s [Snapshot],
        there: &'s [Snapshot],
        checked: &Checked,
    ) -> Vec<&'s Snapshot> {
        let fitting = |all: &'s [Snapshot]| -> Vec<&'s Snapshot> {
            let readable = all.iter().filter(|s| matches!(s.state, SnapshotState::Readable(_)));
            readable.filter(|snapshot| self.concern(snapshot)).collect()
        };
        let here = fitting(snapshots);
        if self.selection.is_empty() {
            return here;
        }
        let ids: HashSet<SnapshotId> = here.iter().map(|snapshot| snapshot.origin_id()).collect();
        let mut gone = fitting(there);
        gone.retain(|copy| !ids.contains(&copy.origin_id()) && !checked.damaged.contains(&copy.id));
        let all = amid(in_order(here), gone);
        let chosen = retain_in_order(&self.selection, now, all, |_| Proof::default()).into_iter();
        let chosen = chosen.filter(|verdict| verdict.by_rule).map(|verdict| verdict.snapshot);
        chosen.filter(|snapshot| ids.contains(&snapshot.origin_id())).collect()
    }

    /// Of the selected snapshots, those that the copy lacks, of which the manifest is damaged there, or of which it has under
    /// other keys less than all, and that its own retention would keep. `there` is what it holds, and `checked` what is known
    /// of that, as for [`going`](Self::going): what would go again does not come.
    pub fn missing<'s>(
        &self,
        now: Timestamp,
        selected: Vec<&'s Snapshot>,
        there: &'s [Snapshot],
        checked: &Checked,
    ) -> Vec<&'s Snapshot> {
        let originals: HashMap<SnapshotId, &Snapshot> =
            selected.iter().map(|snapshot| (snapshot.origin_id(), *snapshot)).collect();
        let is_short = |copy: &Snapshot| {
            originals.get(&copy.origin_id()).is_some_and(|original| is_short_of(copy, original))
        };
        let is_sound = |copy: &&Snapshot| !matches!(copy.state, SnapshotState::Damaged(_)) && !is_short(copy);
        let sound = || there.iter().filter(is_sound);
        let held: HashSet<SnapshotId> = sound().map(Snapshot::origin_id).collect();
        let lacking: Vec<&Snapshot> =
            selected.into_iter().filter(|snapshot| !held.contains(&snapshot.origin_id())).collect();
        if self.retention.is_empty() {
            return lacking;
        }
        let ids: HashSet<SnapshotId> = lacking.iter().map(|snapshot| snapshot.id).collect();
        let all: Vec<&Snapshot> = sound().filter(|snapshot| self.concern(snapshot)).chain(lacking).collect();
        // Of what is not there yet nothing is known, whatever the age of its commit.
        let known = |snapshot: &Snapshot| match ids.contains(&snapshot.id) {
            true => Proof::default(),
            false => checked.of(snapshot),
        };
        let kept = retain_in_order(&self.retention, now, in_order(all), known).into_iter();
        let kept = kept.filter(|verdict| verdict.keep);
        kept.map(|verdict| verdict.snapshot).filter(|snapshot| ids.contains(&snapshot.id)).collect()
    }

    /// When the newest of what a copy holds for these rules was captured, at most `now`. What claims to be from further in the
    /// future than clocks differ does not count: the copy would seem new until then.
    pub fn newest(&self, now: Timestamp, there: &[Snapshot]) -> Option<Timestamp> {
        let own = there.iter().filter(|snapshot| self.concern(snapshot));
        let captured = own.filter_map(|snapshot| match &snapshot.state {
            SnapshotState::Readable(manifest) => Some(manifest.capture_end),
            SnapshotState::Sealed => Some(snapshot.commit.capture.unwrap_or(snapshot.commit.time)),
            SnapshotState::Damaged(_) => None,
        });
        let credible = captured.filter(|captured| *captured <= now.saturating_add(CLOCKS_DIFFER_BY));
        // Whoever remembers it takes a time that is still to come for that of a wrong clock.
        credible.max().map(|newest| newest.min(now))
    }

    /// What the copy holds for these rules and neither its retention nor that of one [beside](Self::beside) keeps, with the
    /// reasons; what else lies in the same place is not its business. `checked`: what is known of the copy.
    pub fn going<'s>(
        &self,
        now: Timestamp,
        there: &'s [Snapshot],
        checked: &Checked,
    ) -> Vec<(&'s Snapshot, String)> {
        let own = there.iter().filter(|snapshot| self.concern(snapshot));
        let verdicts = retain(&self.retention, now, own, checked).into_iter().filter(|verdict| !verdict.keep);
        let mut going: Vec<_> =
            verdicts.map(|verdict| (verdict.snapshot, verdict.reasons.join("; "))).collect();
        for other in &self.beside {
            let theirs = there.iter().filter(|snapshot| other.concern(snapshot));
            let kept =
                retain(&other.retention, now, theirs, checked).into_iter().filter(|verdict| verdict.keep);
            let kept: HashSet<SnapshotId> = kept.map(|verdict| verdict.snapshot.id).collect();
            going.retain(|(snapshot, _)| !kept.contains(&snapshot.id));
        }
        going
    }

    /// What is to be copied there now: [`selected`](Self::selected) and [`missing`](Self::missing).
    pub fn wanted(
        &self,
        now: Timestamp,
        snapshots: &[Snapshot],
        there: &[Snapshot],
        checked: &Checked,
    ) -> Vec<Snapshot> {
        let selected = self.selected(now, snapshots, there, checked);
        self.missing(now, selected, there, checked).into_iter().cloned().collect()
    }

    /// Forgets in the copy what is [`going`](Self::going), and gives the space back if `prune` says how; also that of
    /// what was forgotten here earlier and not pruned since, because something came between. In a bucket that locks new
    /// objects it is pruned now and then though nothing was forgotten, for the locks of what is needed. Each only if `approval`
    /// does not object. Interrupted, it goes on the next time.
    pub async fn retire<A: Approval>(
        &self,
        now: Timestamp,
        copy: &Repository,
        prune: Option<PruneOptions>,
        approval: &mut A,
    ) -> Result<Retirement, A::Error> {
        let there = copy.snapshots().await?;
        let going = self.going(now, &there, &copy.checked().await?);
        let mut done = Retirement::default();
        if !going.is_empty() && approval.forget(&going)? {
            copy.forget(&going).await?;
            done.forgotten = going.len();
        }
        // What was forgotten just now is known, also where the cache cannot be written.
        if let Some(options) = prune
            && (done.forgotten > 0 || copy.is_prune_due() || copy.are_locks_due().await?)
        {
            let plan = copy.plan_prune(options).await?;
            if approval.prune(plan.report())? {
                done.bytes_freed = copy.carry_out(plan).await?.bytes_freed;
            }
        }
        Ok(done)
    }
}

/// Puts what the origin has `gone` amid what it has, by host and dataset: before the first of those that were all captured
/// later. When a copy got something says nothing about its place. What was written anew comes before what it was.
fn amid<'s>(here: Vec<&'s Snapshot>, gone: Vec<&'s Snapshot>) -> Vec<&'s Snapshot> {
    let mut lines: BTreeMap<(&str, &str), [Vec<&Snapshot>; 2]> = BTreeMap::new();
    for (n, snapshots) in [here, gone].into_iter().enumerate() {
        for snapshot in snapshots {
            if let SnapshotState::Readable(m) = &snapshot.state {
                lines.entry((&m.host, &m.dataset)).or_default()[n].push(snapshot);
            }
        }
    }
    let capture = |snapshot: &Snapshot| snapshot.manifest().map_or(Timestamp::MAX, |m| m.capture_end);
    let mut all = Vec::new();
    for [here, mut gone] in lines.into_values() {
        gone.sort_by_key(|snapshot| capture(snapshot));
        let (begin, mut earliest) = (all.len(), Timestamp::MAX);
        for snapshot in here.into_iter().rev() {
            earliest = earliest.min(capture(snapshot));
            while let Some(later) = gone.pop_if(|gone| capture(gone) >= earliest) {
                all.push(later);
            }
            all.push(snapshot);
        }
        all.extend(gone.into_iter().rev());
        all[begin..].reverse();
    }
    all
}

/// Who has a say before a copy loses something. Whoever says nothing agrees.
pub trait Approval {
    /// What a say may fail with, beside what the engine does.
    type Error: From<Error>;

    /// Whether these are to be forgotten, for these reasons.
    fn forget(&mut self, _going: &[(&Snapshot, String)]) -> Result<bool, Self::Error> {
        Ok(true)
    }

    /// Whether what nobody needs any more is to be removed. There may be nothing.
    fn prune(&mut self, _plan: &PruneReport) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// What [`CopyRules::retire`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Retirement {
    /// Snapshots that were forgotten.
    pub forgotten: usize,
    /// Stored bytes of packs that were deleted.
    pub bytes_freed: u64,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keepwell_catalog::retention::Slots;
    use keepwell_storage::{Memory, ObjectStore, list_all};

    use super::*;
    use crate::env::Clock;
    use crate::testing::{SetClock, Thing, TreeModel, World, back_up, noise, snapshot_of};

    const HOUR: Timestamp = 3600 * 1_000_000_000;

    /// Agrees, and is interrupted before anything is removed.
    #[derive(Default)]
    struct Interrupted {
        forgets: usize,
        prunes: usize,
        is_over: bool,
    }

    impl Approval for Interrupted {
        type Error = Error;

        fn forget(&mut self, going: &[(&Snapshot, String)]) -> Result<bool, Error> {
            self.forgets += going.len();
            Ok(true)
        }

        fn prune(&mut self, _: &PruneReport) -> Result<bool, Error> {
            self.prunes += 1;
            if self.is_over { Ok(true) } else { Err(Error::Cancelled) }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_was_forgotten_is_pruned_though_it_was_interrupted() {
        let world = World::new().await;
        let copy = &world.repository;
        for seed in 0..3 {
            back_up(copy, &TreeModel::default().with("file", Thing::file(noise(seed, 9000)))).await;
        }
        let packs = async || world.names("data/").await.len();
        let before = packs().await;
        let retention = RetentionPolicy { last: Some(Slots::Newest(1)), ..RetentionPolicy::default() };
        let rules = CopyRules { retention, ..CopyRules::default() };
        let options = || Some(PruneOptions { max_unused: 0.0, ..PruneOptions::default() });
        let mut approval = Interrupted::default();
        let ended = rules.retire(copy.now(), copy, options(), &mut approval).await;
        assert!(matches!(ended, Err(Error::Cancelled)));
        assert_eq!((approval.forgets, approval.prunes, packs().await), (2, 1, before));

        approval.is_over = true;
        let done = rules.retire(copy.now(), copy, options(), &mut approval).await.unwrap();
        assert_eq!((approval.forgets, approval.prunes), (2, 2));
        assert!(done.forgotten == 0 && done.bytes_freed > 0 && packs().await < before, "{done:?}");
        let done = rules.retire(copy.now(), copy, options(), &mut approval).await.unwrap();
        assert_eq!((done, approval.prunes), (Retirement::default(), 2), "and not again");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_forgotten_is_pruned_though_the_cache_cannot_be_written() {
        let world = World::new().await;
        for seed in 0..3 {
            back_up(&world.repository, &TreeModel::default().with("file", Thing::file(noise(seed, 9000))))
                .await;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let copy = world.open_cached(&world.key, crate::Cache::directory(file.path())).await;
        let retention = RetentionPolicy { last: Some(Slots::Newest(1)), ..RetentionPolicy::default() };
        let rules = CopyRules { retention, ..CopyRules::default() };
        let options = PruneOptions { max_unused: 0.0, ..PruneOptions::default() };
        let mut approval = Interrupted { is_over: true, ..Interrupted::default() };
        let done = rules.retire(copy.now(), &copy, Some(options), &mut approval).await.unwrap();
        assert!(!copy.is_prune_due() && done.forgotten == 2 && done.bytes_freed > 0, "{done:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_gave_way_to_a_proven_one_does_not_come_again() {
        let world = World::new().await;
        let clock = Arc::new(SetClock::default());
        let origin = world.open_with(clock.clone()).await;
        for (seed, hour) in [(1, 0), (2, 6), (3, 12), (4, 18), (5, 25)] {
            clock.set(10_000 * 24 * HOUR + hour * HOUR);
            back_up(&origin, &TreeModel::default().with("file", Thing::file(noise(seed, 9000)))).await;
        }
        let here = origin.snapshots().await.unwrap();
        let store = Arc::new(Memory::new());
        origin.create_copy(&*store).await.unwrap();
        let copy = Repository::builder(store).clock(clock.clone()).open(world.key.clone()).await.unwrap();
        origin.copy_to_store(&copy, &[here[0].clone(), here[2].clone()]).await.unwrap();
        let now = clock.now();
        let checked = Checked { proved_since: Some(now), ..Checked::default() };
        let retention = RetentionPolicy { daily: Some(Slots::Newest(7)), ..RetentionPolicy::default() };
        let rules = CopyRules { retention, ..CopyRules::default() };
        let there = copy.snapshots().await.unwrap();
        let going: Vec<SnapshotId> = rules.going(now, &there, &checked).iter().map(|(s, _)| s.id).collect();
        assert_eq!(going, [here[0].id], "the later one of that day is proven as well");
        let wanted = rules.wanted(now, &here, &there[1..], &checked);
        assert_eq!(wanted.iter().map(|s| s.id).collect::<Vec<_>>(), [here[4].id]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_is_never_newer_than_now() {
        const NOW: Timestamp = 10_000 * 24 * HOUR;
        let world = World::new().await;
        let clock = Arc::new(SetClock::default());
        let origin = world.open_with(clock.clone()).await;
        let mut newest = Vec::new();
        // One from ten years ahead, one by a clock that differs a little, and one that is right.
        for (seed, captured) in [(1, NOW + 87_600 * HOUR), (2, NOW + HOUR / 2), (3, NOW - HOUR)] {
            clock.set(captured);
            let report =
                back_up(&origin, &TreeModel::default().with("file", Thing::file(noise(seed, 9000)))).await;
            let there = [snapshot_of(&origin, &report).await];
            newest.push(CopyRules::default().newest(NOW, &there));
        }
        assert_eq!(newest, [None, Some(NOW), Some(NOW - HOUR)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_damaged_in_the_copy_stands_for_no_day() {
        let world = World::new().await;
        let clock = Arc::new(SetClock::default());
        let origin = world.open_with(clock.clone()).await;
        for hour in [0, 6, 12] {
            clock.set(10_000 * 24 * HOUR + hour * HOUR);
            back_up(&origin, &TreeModel::default().with("file", Thing::file(noise(hour as u64, 9000)))).await;
        }
        let all = origin.snapshots().await.unwrap();
        let selection = RetentionPolicy { daily: Some(Slots::Forever), ..RetentionPolicy::default() };
        let rules = CopyRules { selection, ..CopyRules::default() };
        // The first is in the copy alone.
        let wanted = |checked: &Checked| -> Vec<SnapshotId> {
            rules.wanted(clock.now(), &all[1..], &all[..1], checked).iter().map(|s| s.id).collect()
        };
        assert!(wanted(&Checked::default()).is_empty());
        let damaged = [all[0].id].into_iter().collect();
        assert_eq!(wanted(&Checked { damaged, ..Checked::default() }), [all[1].id]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_snapshot_whose_manifest_is_damaged_in_the_copy_is_missing_there() {
        let world = World::new().await;
        back_up(&world.repository, &TreeModel::default().with("file", Thing::file(noise(1, 9000)))).await;
        let snapshots = world.repository.snapshots().await.unwrap();
        let store = Arc::new(Memory::new());
        world.repository.create_copy(&*store).await.unwrap();
        let open = async || {
            let there: Arc<dyn ObjectStore> = Arc::<Memory>::clone(&store);
            Repository::builder(there).open(world.key.clone()).await.unwrap()
        };
        world.repository.copy_to_store(&open().await, &snapshots).await.unwrap();
        let manifest = list_all(&*store, "manifests/").await.unwrap().pop().unwrap().key;
        store.delete(&manifest).await.unwrap();
        for last in [None, Some(Slots::Newest(1))] {
            let retention = RetentionPolicy { last, ..RetentionPolicy::default() };
            let rules = CopyRules { retention, ..CopyRules::default() };
            let target = open().await;
            let there = target.snapshots().await.unwrap();
            let wanted = rules.wanted(target.now(), &snapshots, &there, &Checked::default());
            assert!(matches!(&wanted[..], [one] if one.manifest().is_ok()), "{wanted:?}");
        }
        let target = open().await;
        world.repository.copy_to_store(&target, &snapshots).await.unwrap();
        let there = target.snapshots().await.unwrap();
        assert_eq!(there.len(), 2, "with what is left of the first");
        let wanted = CopyRules::default().wanted(target.now(), &snapshots, &there, &Checked::default());
        assert!(wanted.is_empty());
    }
}
