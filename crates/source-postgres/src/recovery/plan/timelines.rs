//! Which timelines lead to a target.

use backup_core::wal::WalReader;

use super::PlanError;
use crate::archive::ArchiveError;
use crate::history::History;
use crate::log::{LogMap, LogReader, RecordKind};
use crate::lsn::{Lsn, Timeline};
use crate::recovery::backups::BaseBackup;
use crate::recovery::target::{Target, TargetTime};

/// The history of a timeline. Fails where there are two of it, or of one on the way: two servers were promoted to it.
pub(super) fn undisputed(map: &LogMap, timeline: Timeline) -> Result<History, PlanError> {
    let history = map.history(timeline);
    match map.disputed(&history) {
        Some(disputed) => Err(ArchiveError::Conflict { file: disputed.history_file() }.into()),
        None => Ok(history),
    }
}

/// The history of the timeline that holds the target: a server that is told of a later one writes a history for its own
/// timeline that goes back.
pub(super) async fn narrowed(
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
pub(super) async fn refuse_two_pasts(
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

/// When the last transaction ended between two positions.
pub(super) async fn last_end(reader: &LogReader, from: Lsn, end: Lsn) -> Result<Option<i64>, ArchiveError> {
    let ends = reader.last_ends(from, end).await?;
    let times = ends.iter().filter_map(|record| match record.kind {
        RecordKind::End { time, .. } => Some(time),
        _ => None,
    });
    Ok(times.max())
}

/// Which timeline contributes what between two positions.
pub(super) fn stretches(history: &History, from: Lsn, to: Lsn) -> Vec<(Timeline, Lsn, Lsn)> {
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
