//! Choosing base backup and timeline for a target, and refusing what cannot be reached.

mod error;
mod timelines;

use backup_core::wal::WalReader;
use backup_core::{Repository, Tree};
use keepwell_catalog::MapKey;

use self::timelines::{last_end, narrowed, refuse_two_pasts, stretches, undisputed};
use super::backups::BaseBackup;
use super::server::{Said, ServerError};
use super::target::{Bound, Target, sql_time};
use crate::archive::{ArchiveError, Asker};
use crate::history::History;
use crate::log::{Gap, LogMap, LogReader, Reach, Record, RecordKind};
use crate::lsn::{Lsn, Timeline};
use crate::replication::SystemId;

pub use self::error::PlanError;

/// How a target is reached.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RecoveryPlan {
    /// What is restored first.
    pub backup: BaseBackup,
    /// What is recovered to.
    pub target: Target,
    /// The way through the timelines; it ends with the one that is recovered along.
    pub history: History,
    /// Recovery begins here.
    pub from: Lsn,
    /// It reads the log up to here at most.
    pub to: Lsn,
    /// The stretch that each timeline contributes.
    pub timelines: Vec<(Timeline, Lsn, Lsn)>,
    /// What is missing of the log behind `to`, if there is more of it.
    pub gap: Option<Gap>,
    /// When the last transaction ended that can be reached; nanoseconds since 1970. `None` when none ended since the
    /// backup began.
    pub last_end: Option<i64>,
    /// Where the target is, if it is a place in the log.
    pub position: Option<Lsn>,
    /// The end of the log, if it is where a timeline was left that goes on in the archive, and nothing is there of the next one:
    /// a server that is not told to stop here reads on in the branch that was left.
    pub left_at: Option<Lsn>,
    /// Where the last record begins, for a recovery to the end of the log.
    pub last_record: Option<Lsn>,
    /// The archive lacks WAL up to here that the base backup brings with it.
    pub own_until: Option<Lsn>,
}

impl RecoveryPlan {
    /// How much of the log recovery reads at most, in bytes.
    pub fn log_bytes(&self) -> u64 {
        self.to.get().saturating_sub(self.from.get())
    }

    /// What whoever serves the log must know of the server that is told of this plan.
    pub fn asker(&self) -> Asker {
        Asker {
            // Without a target it opens wherever the log ends.
            to_gap: self.stop() != Target::Latest,
            follows: Some(self.history.timeline()),
        }
    }

    /// Whether a server that recovered came to the end of the log, if it was to. It opens wherever a record is not what has to
    /// follow, and says no more of it than at the end.
    pub fn check_end(&self, said: &Said) -> Result<(), ServerError> {
        match (said.redone, self.last_record) {
            (Some(at), Some(last)) if at < last => Err(ServerError::FellShort { at, last }),
            _ => Ok(()),
        }
    }

    /// Where the server is told to stop. A name may have been given several times: the last is meant, and a server that is
    /// told the name stops at the first that it meets. Nor does it know where a timeline was left: of a segment that the next
    /// one does not have it takes that of the one before, with all that is in it.
    pub fn stop(&self) -> Target {
        match (&self.target, self.position, self.left_at) {
            (Target::Name(_), Some(at), _) => Target::Lsn(at, Bound::Inclusive),
            (Target::Latest, _, Some(at)) => Target::Lsn(at, Bound::Exclusive),
            (target, ..) => target.clone(),
        }
    }
}

/// Makes plans for one cluster.
#[derive(Debug, Clone)]
pub struct Planner {
    repository: Repository,
    /// Oldest first.
    backups: Vec<BaseBackup>,
    wal: WalReader,
}

/// What a base backup is worth for a target.
enum Worth {
    Reached(Box<RecoveryPlan>),
    /// The target lies before its end.
    TooNew,
    /// It cannot even be made consistent; with the reason.
    Incomplete(String),
}

impl Planner {
    /// `backups` are oldest first. Those of clusters that the newest one's took the place of, in the same dataset of the
    /// same host, are left out; of other clusters there must be none.
    pub fn new(repository: Repository, mut backups: Vec<BaseBackup>) -> Result<Self, PlanError> {
        let newest = backups.last().ok_or(PlanError::NoBackup)?;
        let system = newest.cluster.system_identifier;
        let clusters = clusters(&backups);
        let own = clusters.first().map_or(&[][..], |(_, places)| places);
        let replaced = |places: &[String]| places.iter().all(|place| own.contains(place));
        if !clusters.iter().all(|(_, places)| replaced(places)) {
            return Err(PlanError::SeveralClusters { clusters });
        }
        backups.retain(|backup| backup.cluster.system_identifier == system);
        backups.sort_by_key(|backup| (backup.cluster.stop_time, backup.cluster.stop_lsn));
        let wal = repository.wal_reader(system.get())?;
        Ok(Self { repository, backups, wal })
    }

    /// Plans a recovery: the newest base backup that ended before the target and leads to it, along `timeline` or else
    /// along the newest one that is known. One that is not complete only where no other leads there.
    ///
    /// Lists the archive from the oldest base backup on, and reads as much of the log as it takes to know that the target
    /// is in it: the end of it for a time or a position, everything behind a transaction or a restore point.
    pub async fn plan(&self, target: &Target, timeline: Option<Timeline>) -> Result<RecoveryPlan, PlanError> {
        let size = self.newest().cluster.wal_segment_size;
        let first = self.backups.iter().map(|backup| backup.cluster.start_segment()).min().unwrap_or(0);
        let mut map = LogMap::read(&self.wal, size, first).await?;
        self.add_own_histories(&mut map).await?;
        let history = self.choose_history(&map, target, timeline)?;
        let fits = |backup: &&BaseBackup| history.contains(backup.cluster.timeline, backup.cluster.stop_lsn);
        let mut backups: Vec<&BaseBackup> = self.backups.iter().filter(fits).collect();
        let oldest = *backups.first().ok_or_else(|| PlanError::Unreachable {
            target: Box::new(target.clone()),
            reason: format!("no base backup leads to timeline {}", history.timeline()),
            nearest: None,
        })?;
        if let (Target::Time(time, _), None) = (target, timeline) {
            refuse_two_pasts(&self.wal, &map, &history, *time, oldest.cluster.start_lsn).await?;
        }
        let position = self.locate(&map, &history, target, oldest).await?;
        let mut refused = None;
        // One that is not whole is better than none.
        backups.sort_by_key(|backup| backup.snapshot.commit.complete);
        while let Some(backup) = backups.pop() {
            match self.judge(backup, &map, &history, target, position).await? {
                Worth::Reached(plan) => return Ok(*plan),
                Worth::TooNew => {}
                Worth::Incomplete(reason) => {
                    refused = refused.or(Some(reason));
                }
            }
        }
        let (at, time) = (oldest.cluster.stop_lsn, sql_time(oldest.cluster.stop_time));
        Err(PlanError::Unreachable {
            target: Box::new(target.clone()),
            reason: refused
                .unwrap_or_else(|| format!("the oldest base backup on this way ended at {at}, {time}")),
            nearest: Some(format!("`{} --to-immediate`, the end of a base backup", oldest.snapshot.short())),
        })
    }

    fn newest(&self) -> &BaseBackup {
        &self.backups[self.backups.len() - 1]
    }

    fn choose_history(
        &self,
        map: &LogMap,
        target: &Target,
        timeline: Option<Timeline>,
    ) -> Result<History, PlanError> {
        let known =
            map.timelines().into_iter().chain(self.backups.iter().map(|backup| backup.cluster.timeline));
        let known: Vec<Timeline> = known.collect();
        let newest = known.iter().max().copied().unwrap_or(Timeline::FIRST);
        match timeline {
            Some(wanted) if !known.contains(&wanted) => Err(PlanError::Unreachable {
                target: Box::new(target.clone()),
                reason: format!("nothing of timeline {wanted} is archived"),
                nearest: Some(format!("`--timeline {newest}`")),
            }),
            wanted => undisputed(map, wanted.unwrap_or(newest)),
        }
    }

    /// A base backup brings the histories that it needs.
    async fn add_own_histories(&self, map: &mut LogMap) -> Result<(), PlanError> {
        for backup in &self.backups {
            let timeline = backup.cluster.timeline;
            if timeline != Timeline::FIRST
                && !map.knows_history(timeline)
                && let Some(history) = backup.own_history(&self.repository).await?
            {
                map.add_history(history);
            }
        }
        Ok(())
    }

    /// Where a transaction ended or a name was given, the last time that happened.
    async fn locate(
        &self,
        map: &LogMap,
        history: &History,
        target: &Target,
        oldest: &BaseBackup,
    ) -> Result<Option<Lsn>, PlanError> {
        let wanted = |record: &Record| match (&record.kind, target) {
            (RecordKind::End { xid, .. }, Target::Xid(wanted, _)) => *xid == Some(*wanted),
            (RecordKind::RestorePoint { name, .. }, Target::Name(wanted)) => name == wanted,
            _ => false,
        };
        match target {
            Target::Lsn(at, _) => return Ok(Some(*at)),
            Target::Xid(..) | Target::Name(_) => {}
            Target::Latest | Target::Immediate | Target::Time(..) => return Ok(None),
        }
        let size = map.segment_size();
        let end = map.last_segment(history).map_or(Lsn::default(), |last| size.start_of(last + 1));
        let reader = LogReader::new(self.wal.clone(), map.clone(), history.clone(), None).passing_conflicts();
        let found = reader.find_last(oldest.cluster.start_lsn, end, wanted).await?;
        let Some(last) = found.last() else {
            return Err(PlanError::Unreachable {
                target: Box::new(target.clone()),
                reason: format!(
                    "it is not in the log from {} to {end} on the way to timeline {}",
                    oldest.cluster.start_lsn,
                    history.timeline()
                ),
                nearest: self.name_nearest(&reader, oldest, end).await?,
            });
        };
        Ok(Some(last.start))
    }

    async fn judge(
        &self,
        backup: &BaseBackup,
        map: &LogMap,
        history: &History,
        target: &Target,
        position: Option<Lsn>,
    ) -> Result<Worth, PlanError> {
        let cluster = &backup.cluster;
        let before = match target {
            Target::Time(time, _) => time.get() < cluster.stop_time,
            _ => position.is_some_and(|at| at < cluster.stop_lsn),
        };
        if before {
            return Ok(Worth::TooNew);
        }
        let tree = backup.tree(&self.repository).await?;
        let archived = map.reach(history, cluster.start_lsn).end >= cluster.stop_lsn;
        let mut map = map.clone();
        for (segment, end) in backup.own_wal(&tree).await? {
            map.add(segment, end);
        }
        let reach = map.reach(history, cluster.start_lsn);
        if reach.end < cluster.stop_lsn {
            return Ok(Worth::Incomplete(format!(
                "snapshot {} needs the log from {} to {}, and it is there only to {}",
                backup.snapshot.short(),
                cluster.start_lsn,
                cluster.stop_lsn,
                reach.end
            )));
        }
        let own = Some((tree, backup.wal_directory()?));
        let mut reader = LogReader::new(self.wal.clone(), map.clone(), history.clone(), own.clone());
        let (mut left_at, mut last_record) = (None, None);
        if *target == Target::Latest {
            left_at = self.left_at(&map, own, history, &reach).await?;
            last_record = reader.last_record(cluster.start_lsn, reach.end).await?;
        } else {
            reader = reader.passing_conflicts();
        }
        // The server goes by its own clock, which may differ from that of the host that took the backup.
        if let Target::Time(time, bound) = target
            && last_end(&reader, cluster.start_lsn, cluster.stop_lsn)
                .await?
                .is_some_and(|end| bound.ends(*time, end))
        {
            return Ok(Worth::TooNew);
        }
        let history = &narrowed(&map, &reader, backup, history, target, position).await?;
        let last_end = last_end(&reader, cluster.start_lsn, reach.end).await?;
        self.reaches(&reader, backup, &reach, target, position, last_end).await?;
        let to = match target {
            Target::Immediate => cluster.stop_lsn,
            _ => position.unwrap_or(reach.end).max(cluster.stop_lsn),
        };
        Ok(Worth::Reached(Box::new(RecoveryPlan {
            backup: backup.clone(),
            target: target.clone(),
            history: history.clone(),
            from: cluster.start_lsn,
            to,
            timelines: stretches(history, cluster.start_lsn, to),
            gap: reach.gap,
            last_end,
            position,
            left_at,
            last_record,
            own_until: (!archived).then_some(cluster.stop_lsn),
        })))
    }

    /// Where the timeline with the end of the log was left, if it goes on behind that.
    async fn left_at(
        &self,
        map: &LogMap,
        own: Option<(Tree, MapKey)>,
        history: &History,
        reach: &Reach,
    ) -> Result<Option<Lsn>, ArchiveError> {
        let Some(switch) = history.end_of(reach.timeline).filter(|switch| *switch == reach.end) else {
            return Ok(None);
        };
        let branch = map.history(reach.timeline);
        let end = map.reach(&branch, switch).end;
        let reader = LogReader::new(self.wal.clone(), map.clone(), branch, own).passing_conflicts();
        Ok(reader.last_record(switch, end).await?.map(|_| switch))
    }

    /// Fails when recovery would end before the target.
    async fn reaches(
        &self,
        reader: &LogReader,
        backup: &BaseBackup,
        reach: &Reach,
        target: &Target,
        position: Option<Lsn>,
        last_end: Option<i64>,
    ) -> Result<(), PlanError> {
        let start = backup.cluster.start_lsn;
        let reached = match target {
            Target::Immediate => true,
            Target::Latest => reach.gap.is_none(),
            // PostgreSQL ends at a time only when it sees a transaction that ended later.
            Target::Time(time, bound) => last_end.is_some_and(|end| bound.ends(*time, end)),
            // And at a position only when it sees a record there or behind it.
            Target::Lsn(at, _) => reader.last_record(start, reach.end).await?.is_some_and(|last| last >= *at),
            Target::Xid(..) | Target::Name(_) => position.is_some_and(|at| at < reach.end),
        };
        if reached {
            return Ok(());
        }
        let reason = match reach.gap {
            Some(gap) => format!("the log from {} to {} is missing", gap.from, gap.to),
            None => match last_end {
                Some(end) => format!(
                    "the log ends at {}; the last transaction in it ended at {}",
                    reach.end,
                    sql_time(end)
                ),
                None => format!("the log ends at {}, and no transaction ended in it", reach.end),
            },
        };
        Err(PlanError::Unreachable {
            target: Box::new(target.clone()),
            reason,
            nearest: self.name_nearest(reader, backup, reach.end).await?,
        })
    }

    /// The last thing before `end` that can be asked for.
    async fn name_nearest(
        &self,
        reader: &LogReader,
        backup: &BaseBackup,
        end: Lsn,
    ) -> Result<Option<String>, PlanError> {
        let consistent = backup.cluster.stop_lsn;
        let last = reader.last_ends(consistent, end).await?.pop();
        if let Some(Record { start, kind: RecordKind::End { time, .. } }) = last {
            let time = sql_time(time);
            return Ok(Some(format!("`--to-lsn {start}`, the end of a transaction at {time}")));
        }
        Ok(Some(format!("`{} --to-immediate`, the end of a base backup", backup.snapshot.short())))
    }
}

/// The clusters that base backups are of, newest first, each with its datasets.
fn clusters(backups: &[BaseBackup]) -> Vec<(SystemId, Vec<String>)> {
    let mut clusters: Vec<(SystemId, Vec<String>)> = Vec::new();
    for backup in backups.iter().rev() {
        let system = backup.cluster.system_identifier;
        let place = match backup.snapshot.manifest() {
            Ok(manifest) => format!("{}/{}", manifest.host, manifest.dataset),
            Err(_) => continue,
        };
        match clusters.iter_mut().find(|(known, _)| *known == system) {
            Some((_, places)) if places.contains(&place) => {}
            Some((_, places)) => places.push(place),
            None => clusters.push((system, vec![place])),
        }
    }
    clusters
}

#[cfg(test)]
mod tests;
