//! Choosing base backup and timeline for a target, and refusing what cannot be reached.

use backup_core::Repository;
use backup_core::wal::WalReader;

use super::backups::BaseBackup;
use super::target::{Bound, Target, TargetTime, sql_time};
use crate::archive::{ArchiveError, Asker};
use crate::cluster::ClusterError;
use crate::history::History;
use crate::log::{Gap, LogMap, LogReader, Reach, Record, RecordKind};
use crate::lsn::{Lsn, Timeline};
use crate::replication::SystemId;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] backup_core::Error),
    /// The archived log.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A base backup does not say what it is.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// `cluster.json` is no file, or larger than any.
    #[error("`cluster.json` is no description of a base backup")]
    NoDescription,
    /// There is nothing to begin with.
    #[error("there is no base backup of a PostgreSQL cluster here")]
    NoBackup,
    /// The base backups are of several clusters, and nothing says which is meant.
    #[error("there are base backups of {} clusters here: {}", clusters.len(), shown(clusters))]
    SeveralClusters {
        /// Each with the datasets, as `HOST/DATASET`, that have it; the newest first.
        clusters: Vec<(SystemId, Vec<String>)>,
    },
    /// At that time the cluster lived on a timeline that was left since.
    #[error("at {time} the cluster was on timeline {left}, which was left for timeline {newest}")]
    TwoPasts {
        /// What was wanted.
        time: TargetTime,
        /// Where it was then.
        left: Timeline,
        /// The timeline that would be followed.
        newest: Timeline,
    },
    /// The target cannot be reached.
    #[error("{target} cannot be reached: {reason}")]
    Unreachable {
        /// What was wanted.
        target: Box<Target>,
        /// Why not.
        reason: String,
        /// The nearest that can be reached, as options of the command.
        nearest: Option<String>,
    },
}

fn shown(clusters: &[(SystemId, Vec<String>)]) -> String {
    let each = clusters.iter().map(|(system, places)| format!("{system} (`{}`)", places.join("`, `")));
    each.collect::<Vec<_>>().join(", ")
}

impl PlanError {
    /// What the operator may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Archive(error) => error.hint(),
            Self::Cluster(_) | Self::NoDescription => None,
            Self::SeveralClusters { .. } => {
                Some("Say which: `--dataset NAME` or `--host NAME`, or name a snapshot.".to_owned())
            }
            Self::NoBackup => Some("Take one with `keepwell pg backup`.".to_owned()),
            Self::TwoPasts { left, newest, .. } => Some(format!(
                "Say `--timeline {left}` for what it was then, or `--timeline {newest}` for where the timelines part."
            )),
            Self::Unreachable { nearest, .. } => {
                nearest.as_ref().map(|nearest| format!("The nearest that can be reached: {nearest}"))
            }
        }
    }
}

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
            to_gap: self.target != Target::Latest,
            follows: Some(self.history.timeline()),
        }
    }

    /// Where the server is told to stop. A name may have been given several times: the last is meant, and a server that is
    /// told the name stops at the first that it meets.
    pub fn stop(&self) -> Target {
        match (&self.target, self.position) {
            (Target::Name(_), Some(at)) => Target::Lsn(at, Bound::Inclusive),
            (target, _) => target.clone(),
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
        let mut reader = LogReader::new(self.wal.clone(), map.clone(), history.clone(), own);
        if *target != Target::Latest {
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
            own_until: (!archived).then_some(cluster.stop_lsn),
        })))
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

/// The history of a timeline. Fails where there are two of it, or of one on the way: two servers were promoted to it.
fn undisputed(map: &LogMap, timeline: Timeline) -> Result<History, PlanError> {
    let history = map.history(timeline);
    match map.disputed(&history) {
        Some(disputed) => Err(ArchiveError::Conflict { file: disputed.history_file() }.into()),
        None => Ok(history),
    }
}

/// The history of the timeline that holds the target: a server that is told of a later one writes a history for its own
/// timeline that goes back.
async fn narrowed(
    map: &LogMap,
    reader: &LogReader,
    backup: &BaseBackup,
    history: &History,
    target: &Target,
    position: Option<Lsn>,
) -> Result<History, ArchiveError> {
    let (from, stop) = (backup.cluster.start_lsn, backup.cluster.stop_lsn);
    for (timeline, switch) in history.ancestors() {
        if *timeline < backup.cluster.timeline {
            continue;
        }
        let ends_before = match target {
            Target::Latest => false,
            Target::Immediate => *timeline == backup.cluster.timeline && stop <= *switch,
            Target::Xid(..) | Target::Name(_) => position.is_some_and(|at| at < *switch),
            // The server stops at a record there or behind it, which must not be one of a branch that was left.
            Target::Lsn(at, _) => !reader.find_last(*at, *switch, |_| true).await?.is_empty(),
            Target::Time(time, bound) => {
                last_end(reader, from, *switch).await?.is_some_and(|end| bound.ends(*time, end))
            }
        };
        if ends_before {
            return Ok(map.history(*timeline));
        }
    }
    Ok(history.clone())
}

/// Fails when the cluster lived on another timeline at that time: one that was left for the past, be it for this history or
/// for another timeline that was left itself.
async fn refuse_two_pasts(
    wal: &WalReader,
    map: &LogMap,
    history: &History,
    time: TargetTime,
    from: Lsn,
) -> Result<(), PlanError> {
    for left in map.timelines().into_iter().filter(|timeline| *timeline != history.timeline()) {
        let own = undisputed(map, left)?;
        let Some(parting) = own.parting(history) else { continue };
        let end = map.last_segment(&own).map_or(parting, |last| map.segment_size().start_of(last + 1));
        let reader = LogReader::new(wal.clone(), map.clone(), own, None);
        let Some(last) = last_end(&reader, parting, end).await? else { continue };
        let before = last_end(&reader, from, parting).await?;
        if time.get() <= last && before.is_none_or(|before| time.get() > before) {
            return Err(PlanError::TwoPasts { time, left, newest: history.timeline() });
        }
    }
    Ok(())
}

async fn last_end(reader: &LogReader, from: Lsn, end: Lsn) -> Result<Option<i64>, ArchiveError> {
    let ends = reader.last_ends(from, end).await?;
    let times = ends.iter().filter_map(|record| match record.kind {
        RecordKind::End { time, .. } => Some(time),
        _ => None,
    });
    Ok(times.max())
}

/// Which timeline contributes what between two positions.
fn stretches(history: &History, from: Lsn, to: Lsn) -> Vec<(Timeline, Lsn, Lsn)> {
    let mut begin = from;
    let mut found = Vec::new();
    let ends = history.ancestors().iter().copied().chain([(history.timeline(), Lsn::new(u64::MAX))]);
    for (timeline, end) in ends {
        let end = end.min(to);
        if end > begin {
            found.push((timeline, begin, end));
            begin = end;
        }
    }
    found
}

#[cfg(test)]
mod tests;
