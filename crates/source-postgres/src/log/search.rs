//! Looking for something in the log, from its end backwards.

use std::collections::BTreeMap;

use backup_core::Tree;
use backup_core::wal::WalReader;
use keepwell_catalog::MapKey;

use super::map::LogMap;
use super::records::{Record, RecordKind, Records};
use crate::archive::{ArchiveError, SegmentFile, held_segment};
use crate::history::History;
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};

/// Segments that are fetched and read together, at most.
const WINDOW_MAX: u64 = 4;
/// They are in memory, and so is one behind them: more than this only where one alone is longer.
const WINDOW_BYTES: u64 = 64 << 20;

/// Reads the log along a history: from the archive, or else from the snapshot that has it.
#[derive(Debug, Clone)]
pub struct LogReader {
    wal: WalReader,
    map: LogMap,
    history: History,
    /// Where the snapshot has WAL of its own.
    own: Option<(Tree, MapKey)>,
    passes_conflicts: bool,
}

impl LogReader {
    /// `own` is the directory of a snapshot with WAL that the archive may lack.
    pub fn new(wal: WalReader, map: LogMap, history: History, own: Option<(Tree, MapKey)>) -> Self {
        Self { wal, map, history, own, passes_conflicts: false }
    }

    /// Passes over files that are archived with two different contents, as over those that are missing: what is looked for
    /// may lie before.
    pub fn passing_conflicts(self) -> Self {
        Self { passes_conflicts: true, ..self }
    }

    /// The last transactions that ended before `end`: those in the last segment that has any. Oldest first.
    ///
    /// Empty when none ended between `from` and `end`.
    pub async fn last_ends(&self, from: Lsn, end: Lsn) -> Result<Vec<Record>, ArchiveError> {
        self.find_last(from, end, |record| matches!(record.kind, RecordKind::End { .. })).await
    }

    /// The last record before `end`.
    pub async fn last_record(&self, from: Lsn, end: Lsn) -> Result<Option<Lsn>, ArchiveError> {
        Ok(self.find_last(from, end, |_| true).await?.last().map(|record| record.start))
    }

    /// Goes backwards from `end` and gives the records that are wanted of the first segments that have any, oldest first.
    ///
    /// Costs the segments between the last such record and `end`. Segments that are missing are passed over.
    pub async fn find_last(
        &self,
        from: Lsn,
        end: Lsn,
        wanted: impl Fn(&Record) -> bool,
    ) -> Result<Vec<Record>, ArchiveError> {
        let size = self.map.segment_size();
        let first = size.number_at(from);
        let mut until = size.number_at(end) + 1;
        let mut width = 1;
        // Of the segment behind the window: a record may end there.
        let mut behind: Option<Vec<u8>> = None;
        while until > first {
            let begin = until.saturating_sub(width).max(first);
            let mut segments = self.segments(begin, until).await?;
            let (mut found, mut records) = (Vec::new(), Records::new(size));
            let boundary = size.start_of(until);
            let mut visit = |record: Record| {
                if record.start >= from && record.start < end.min(boundary) && wanted(&record) {
                    found.push(record);
                }
            };
            for number in begin..until {
                match segments.get(&number) {
                    Some(content) => records.read(number, content, &mut visit),
                    None => records = Records::new(size),
                }
            }
            if let (Some(_), Some(content)) = (records.open_record(), &behind) {
                records.read(until, content, &mut visit);
            }
            if !found.is_empty() {
                return Ok(found);
            }
            behind = segments.remove(&begin);
            until = begin;
            width = (width * 2).min(window(size));
        }
        Ok(Vec::new())
    }

    /// Fetches the segments of a window, several at once, each as far as it goes.
    async fn segments(&self, begin: u64, until: u64) -> Result<BTreeMap<u64, Vec<u8>>, ArchiveError> {
        let mut tasks = tokio::task::JoinSet::new();
        for number in begin..until {
            let Some((timeline, covered)) = self.map.file_for(&self.history, number) else { continue };
            let this = self.clone();
            tasks.spawn(async move { this.segment(timeline, number, covered).await.map(|c| (number, c)) });
        }
        let mut found = BTreeMap::new();
        while let Some(joined) = tasks.join_next().await {
            match joined.map_err(|e| backup_core::Error::Task(e.to_string()))? {
                Ok((number, content)) => {
                    found.insert(number, content);
                }
                Err(ArchiveError::Conflict { .. }) if self.passes_conflicts => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    async fn segment(&self, timeline: Timeline, number: u64, covered: u32) -> Result<Vec<u8>, ArchiveError> {
        let name = Segment { timeline, number }.file_name(self.map.segment_size());
        let held = held_segment(&self.wal, self.map.writers(), &name).await;
        let mut content = match (held, &self.own) {
            (Ok(Some(SegmentFile { content, .. })), _) => content,
            (fetched, Some((tree, directory))) => {
                let mut content = Vec::with_capacity(covered as usize);
                let key = directory.child(name.as_bytes()).map_err(backup_core::Error::from)?;
                match (tree.dump_file(&key, &mut content).await, fetched) {
                    (Ok(()), _) => content,
                    (Err(_), Err(error)) => return Err(error),
                    (Err(error), Ok(_)) => return Err(error.into()),
                }
            }
            (Ok(None), None) => Vec::new(),
            (Err(error), None) => return Err(error),
        };
        content.truncate(covered as usize);
        Ok(content)
    }
}

fn window(size: SegmentSize) -> u64 {
    (WINDOW_BYTES / u64::from(size.get())).clamp(1, WINDOW_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_segments_are_read_one_by_one() {
        for (mib, expected) in [(1, 4), (16, 4), (32, 2), (64, 1), (1024, 1)] {
            assert_eq!(window(SegmentSize::new(mib << 20).unwrap()), expected, "{mib} MiB");
        }
    }
}
