//! Which files of the log there are, and how far recovery gets along a history.

use std::collections::{BTreeMap, BTreeSet};

use backup_core::wal::WalReader;
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_crypto::MemberId;

use crate::archive::{ArchiveError, Coverage, Covered, LOOKS_MAX, MOMENT, differing};
use crate::history::History;
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};

/// The files of a cluster's log that are at hand, whoever archived them, with how far each goes.
#[derive(Debug, Clone)]
pub struct LogMap {
    size: SegmentSize,
    writers: Vec<MemberId>,
    files: BTreeMap<Timeline, BTreeMap<u64, u32>>,
    histories: BTreeMap<Timeline, History>,
    /// Timelines of which there are several histories.
    disputed: BTreeSet<Timeline>,
}

/// How far recovery gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The log is there up to here without a gap.
    pub end: Lsn,
    /// The timeline of the last file.
    pub timeline: Timeline,
    /// What is missing behind the end, if there is more of the log behind it.
    pub gap: Option<Gap>,
}

/// A stretch of the log that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Where it begins.
    pub from: Lsn,
    /// Where the log goes on.
    pub to: Lsn,
    /// Of which timeline what follows is.
    pub timeline: Timeline,
}

impl LogMap {
    /// A log without files.
    pub fn new(size: SegmentSize) -> Self {
        Self {
            size,
            writers: Vec::new(),
            files: BTreeMap::new(),
            histories: BTreeMap::new(),
            disputed: BTreeSet::new(),
        }
    }

    /// What is archived of a cluster from a segment on.
    ///
    /// Costs a few requests per writer and timeline and one per thousand pieces; reads the history files. Where something is
    /// missing between others, that is looked for again a moment later: it may be on its way.
    pub async fn read(reader: &WalReader, size: SegmentSize, from: u64) -> Result<Self, ArchiveError> {
        let mut map = Self::list(reader, size, from).await?;
        for _ in 1..LOOKS_MAX {
            let before = map.holes();
            if before.is_empty() {
                break;
            }
            tokio::time::sleep(MOMENT).await;
            map = Self::list(reader, size, from).await?;
            if map.holes().iter().all(|hole| before.contains(hole)) {
                break;
            }
        }
        Ok(map)
    }

    async fn list(reader: &WalReader, size: SegmentSize, from: u64) -> Result<Self, ArchiveError> {
        let mut map = Self::new(size);
        let mut timelines: BTreeMap<Timeline, Vec<Vec<WalName>>> = BTreeMap::new();
        map.writers = reader.writers().await?;
        for writer in map.writers.clone() {
            for number in reader.timelines(writer).await? {
                let Some(timeline) = Timeline::new(number) else { continue };
                let first = Segment { timeline, number: from }.file_number(size);
                let names = reader.pieces_from(writer, number, first).await?;
                for piece in names.iter().filter(|name| name.place == WalPlace::History) {
                    let content = reader.read(piece).await?.plaintext;
                    let history = History::parse(timeline, &content).map_err(|error| {
                        ArchiveError::NotThatWal { file: timeline.history_file(), reason: error.reason }
                    })?;
                    map.add_history(history);
                }
                timelines.entry(timeline).or_default().push(names);
            }
        }
        for (timeline, writers) in timelines {
            let differing = differing(&writers.concat());
            for names in writers {
                map.add_pieces(timeline, &names, &differing);
            }
        }
        Ok(map)
    }

    /// Files that two servers wrote differently are left out: recovery must not get across them.
    fn add_pieces(&mut self, timeline: Timeline, names: &[WalName], differing: &BTreeSet<u64>) {
        let file_of = |name: &WalName| match name.place {
            WalPlace::Bytes { file, .. } => Some(file),
            WalPlace::History => None,
        };
        for pieces in names.chunk_by(|a, b| file_of(a) == file_of(b)) {
            let file = file_of(&pieces[0]).filter(|file| !differing.contains(file));
            let segment = file.and_then(|file| Segment::of_file(timeline, file, self.size));
            if let (Some(segment), Covered::One(coverage)) = (segment, Coverage::of(pieces)) {
                self.add(segment, coverage.end);
            }
        }
    }

    /// Files that are short, or that none follows, before later ones of their timeline.
    fn holes(&self) -> Vec<Segment> {
        let of = |(timeline, files): (&Timeline, &BTreeMap<u64, u32>)| {
            let holes = files
                .iter()
                .zip(files.keys().skip(1))
                .filter(|((number, end), next)| **number + 1 != **next || **end < self.size.get());
            holes.map(|((number, _), _)| Segment { timeline: *timeline, number: *number }).collect::<Vec<_>>()
        };
        self.files.iter().flat_map(of).collect()
    }

    /// Adds a file that is there up to `end`.
    pub fn add(&mut self, segment: Segment, end: u32) {
        let known = self.files.entry(segment.timeline).or_default().entry(segment.number).or_default();
        *known = (*known).max(end.min(self.size.get()));
    }

    /// Adds the history of a timeline.
    pub fn add_history(&mut self, history: History) {
        let timeline = history.timeline();
        if self.histories.get(&timeline).is_some_and(|other| *other != history) {
            self.disputed.insert(timeline);
        }
        self.histories.insert(timeline, history);
    }

    /// A timeline on this way of which there are several histories: nobody knows whose files are which.
    pub fn disputed(&self, history: &History) -> Option<Timeline> {
        let ancestors = history.ancestors().iter().map(|(timeline, _)| *timeline);
        ancestors.chain([history.timeline()]).find(|timeline| self.disputed.contains(timeline))
    }

    /// Who archived something of it.
    pub fn writers(&self) -> &[MemberId] {
        &self.writers
    }

    /// How long its files are.
    pub fn segment_size(&self) -> SegmentSize {
        self.size
    }

    /// Timelines with files or a history, ascending.
    pub fn timelines(&self) -> Vec<Timeline> {
        let with_files =
            self.files.iter().filter(|(_, files)| !files.is_empty()).map(|(timeline, _)| *timeline);
        let mut all: Vec<Timeline> = with_files.chain(self.histories.keys().copied()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// Whether the history of a timeline is there.
    pub fn knows_history(&self, timeline: Timeline) -> bool {
        self.histories.contains_key(&timeline)
    }

    /// The history of a timeline; without ancestors if none is known.
    pub fn history(&self, timeline: Timeline) -> History {
        self.histories.get(&timeline).cloned().unwrap_or_else(|| History::root(timeline))
    }

    /// The file that a server recovering along `history` reads for a segment, and how far it goes: that of the newest
    /// timeline that has it and had begun by then. Of a first file that ends before its timeline begins, the same one of the
    /// timeline before, if that goes as far: a server gets what that one has ([`crate::archive::fetch_for`]).
    pub fn file_for(&self, history: &History, number: u64) -> Option<(Timeline, u32)> {
        let mut found: Option<(Timeline, u32)> = None;
        for (timeline, begin) in line(history).into_iter().rev() {
            let Some(end) = self.files.get(&timeline).and_then(|files| files.get(&number)).copied() else {
                continue;
            };
            if number < self.size.number_at(begin) || found.is_some_and(|(_, copied)| end < copied) {
                continue;
            }
            found = Some((timeline, end));
            if self.size.start_of(number).plus(end.into()) > begin {
                break;
            }
        }
        found
    }

    /// How far recovery gets from `from` on. The end may lie before `from`, when nothing of the log is there.
    pub fn reach(&self, history: &History, from: Lsn) -> Reach {
        let mut number = self.size.number_at(from);
        let mut reach =
            Reach { end: self.size.start_of(number), timeline: history.timeline_at(from), gap: None };
        while let Some((timeline, covered)) = self.file_for(history, number) {
            let start = self.size.start_of(number);
            let switch = history.end_of(timeline).unwrap_or(Lsn::new(u64::MAX));
            reach.timeline = timeline;
            reach.end = reach.end.max(start.plus(covered.into()).min(switch));
            if reach.end < start.plus(self.size.get().into()) {
                break;
            }
            number += 1;
        }
        reach.gap = self.beyond(history, reach.end);
        reach
    }

    /// The first file behind `end` that recovery would read if it got there.
    fn beyond(&self, history: &History, end: Lsn) -> Option<Gap> {
        let number = self.size.number_at(end) + 1;
        let later = line(history).into_iter().filter_map(|(timeline, begin)| {
            let first = number.max(self.size.number_at(begin));
            let (found, _) = self.files.get(&timeline)?.range(first..).next()?;
            let start = self.size.start_of(*found);
            (history.end_of(timeline).is_none_or(|switch| start < switch)).then_some((start, timeline))
        });
        let (to, timeline) = later.min()?;
        Some(Gap { from: end, to, timeline })
    }

    /// The last segment along a history that is there at all.
    pub fn last_segment(&self, history: &History) -> Option<u64> {
        let last = line(history).into_iter().filter_map(|(timeline, begin)| {
            let (number, _) = self.files.get(&timeline)?.iter().next_back()?;
            let end = history.end_of(timeline).map_or(u64::MAX, |end| self.size.number_at(end));
            (*number >= self.size.number_at(begin)).then_some((*number).min(end))
        });
        last.max()
    }
}

/// The timelines of a history, oldest first, each with where it began.
fn line(history: &History) -> Vec<(Timeline, Lsn)> {
    let mut begin = Lsn::default();
    let mut line = Vec::new();
    for (timeline, end) in history.ancestors() {
        line.push((*timeline, begin));
        begin = *end;
    }
    line.push((history.timeline(), begin));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u32 = 1 << 20;

    fn t(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn at(segment: u64, offset: u32) -> Lsn {
        Lsn::new(segment * u64::from(MIB) + u64::from(offset))
    }

    fn map(files: &[(u32, u64, u32)]) -> LogMap {
        let mut map = LogMap::new(SegmentSize::new(MIB.into()).unwrap());
        for (timeline, number, end) in files {
            map.add(Segment { timeline: t(*timeline), number: *number }, *end);
        }
        map
    }

    fn second(switch: Lsn) -> History {
        History::parse(t(2), format!("1\t{switch}\tx\n").as_bytes()).unwrap()
    }

    #[test]
    fn recovery_gets_to_the_first_byte_that_is_missing() {
        let root = History::root(t(1));
        let whole = map(&[(1, 3, MIB), (1, 4, MIB), (1, 5, 100)]);
        assert_eq!(whole.reach(&root, at(3, 40)), Reach { end: at(5, 100), timeline: t(1), gap: None });
        assert_eq!(whole.reach(&root, at(2, 40)).end, at(2, 0), "nothing is there");
        let gap = Gap { from: at(4, 0), to: at(5, 0), timeline: t(1) };
        let holed = map(&[(1, 3, MIB), (1, 5, MIB), (1, 6, MIB)]);
        assert_eq!(holed.reach(&root, at(3, 40)), Reach { end: at(4, 0), timeline: t(1), gap: Some(gap) });
        let short = map(&[(1, 3, 77), (1, 4, MIB)]);
        assert_eq!(
            short.reach(&root, at(3, 40)).gap,
            Some(Gap { from: at(3, 77), to: at(4, 0), timeline: t(1) })
        );
    }

    #[test]
    fn recovery_changes_to_the_next_timeline_and_never_goes_on_in_a_branch_that_was_left() {
        let history = second(at(4, 500));
        // Timeline 1 went on after the switch: those files are there, and are nobody's past.
        let both = map(&[(1, 3, MIB), (1, 4, MIB), (1, 5, MIB), (1, 9, MIB), (2, 4, MIB), (2, 5, 9)]);
        assert_eq!(both.reach(&history, at(3, 0)), Reach { end: at(5, 9), timeline: t(2), gap: None });
        assert_eq!(both.file_for(&history, 4), Some((t(2), MIB)));
        assert_eq!(both.file_for(&history, 3), Some((t(1), MIB)));
        let without = map(&[(1, 3, MIB), (1, 4, MIB), (1, 5, MIB), (2, 5, 9)]);
        let gap = Gap { from: at(4, 500), to: at(5, 0), timeline: t(2) };
        assert_eq!(
            without.reach(&history, at(3, 0)),
            Reach { end: at(4, 500), timeline: t(1), gap: Some(gap) }
        );
        assert_eq!(both.reach(&History::root(t(1)), at(3, 0)).end, at(6, 0));
        let on_the_boundary = map(&[(1, 3, MIB), (1, 4, MIB), (2, 4, MIB)]);
        assert_eq!(on_the_boundary.reach(&second(at(4, 0)), at(3, 0)).end, at(5, 0));
    }

    #[test]
    fn what_is_there_of_a_first_file_before_its_timeline_begins_is_that_of_the_one_before() {
        let history = second(at(4, 500));
        for (first, copied, expected) in
            [(MIB, 400, (1, MIB)), (500, 500, (1, 500)), (300, 400, (2, 400)), (MIB, 501, (2, 501))]
        {
            let map = map(&[(1, 3, MIB), (1, 4, first), (2, 4, copied)]);
            let (timeline, end) = map.file_for(&history, 4).unwrap();
            assert_eq!((timeline.get(), end), expected, "{first} {copied}");
            let reached = expected.1.min(if expected.0 == 1 { 500 } else { MIB });
            assert_eq!(map.reach(&history, at(3, 0)).end, at(4, reached));
        }
        assert_eq!(map(&[(2, 4, 400)]).file_for(&history, 4), Some((t(2), 400)));
    }

    #[test]
    fn files_that_no_next_one_follows_are_known() {
        for (files, expected) in [
            (&[(1, 3, MIB), (1, 4, MIB), (1, 5, 9), (2, 5, MIB), (2, 6, 0)], &[][..]),
            (&[(1, 3, MIB), (1, 5, 9), (1, 6, 0), (2, 5, MIB), (2, 8, 0)], &[(1, 3), (1, 5), (2, 5)][..]),
        ] {
            let holes = map(files).holes();
            let found: Vec<(u32, u64)> = holes.iter().map(|s| (s.timeline.get(), s.number)).collect();
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_timeline_with_two_histories_is_disputed_and_so_is_what_descends_from_it() {
        let mut map = map(&[]);
        let ways = [1, 2, 3, 4].map(t).map(|timeline| match timeline.get() {
            1 => History::root(timeline),
            2 => second(at(4, 0)),
            3 => History::parse(timeline, format!("1\t{}\tx\n2\t{}\tx\n", at(4, 0), at(6, 0)).as_bytes())
                .unwrap(),
            _ => History::parse(timeline, format!("1\t{}\tx\n", at(3, 0)).as_bytes()).unwrap(),
        });
        let disputed = |map: &LogMap| ways.each_ref().map(|way| map.disputed(way));
        map.add_history(second(at(4, 0)));
        map.add_history(second(at(4, 0)));
        assert_eq!(disputed(&map), [None; 4]);
        map.add_history(second(at(5, 0)));
        assert_eq!(disputed(&map), [None, Some(t(2)), Some(t(2)), None]);
    }
}
