//! What is there and what is missing, from the names of the pieces alone.

use std::collections::BTreeMap;
use std::time::Duration;

use backup_core::wal::WalReader;
use keepwell_catalog::WalHeader;
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_crypto::MemberId;

use super::{ArchiveError, Coverage, Covered, differing};
use crate::history::History;
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};

/// Several pieces are uploaded at once, and one may be there before the one that it follows. What lacks for so long is a gap.
pub(crate) const MOMENT: Duration = Duration::from_secs(1);
/// How often the archive is listed while what lacks in it is another thing each time.
pub(crate) const LOOKS_MAX: usize = 5;

/// A stretch of WAL that is archived without a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Who archived it.
    pub writer: MemberId,
    /// Of which timeline.
    pub timeline: Timeline,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
}

/// Why something is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GapKind {
    /// WAL between two stretches of a timeline.
    Missing,
    /// WAL of an ancestor before the next timeline branched off.
    BeforeSwitch,
    /// The same stretch is archived with two different contents.
    Conflict,
}

/// WAL that recovery cannot get across.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// Who archived what lies before it, or, of a conflict, one of the contents.
    pub writer: MemberId,
    /// On which timeline.
    pub timeline: Timeline,
    /// Where it begins.
    pub from: Lsn,
    /// Where it ends.
    pub to: Lsn,
    /// What it is.
    pub kind: GapKind,
}

impl Gap {
    fn is_within(&self, wider: &Self) -> bool {
        (self.timeline, self.kind) == (wider.timeline, wider.kind)
            && wider.from <= self.from
            && self.to <= wider.to
    }
}

/// All of a cluster's archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// In order of writer, timeline and position.
    pub stretches: Vec<Stretch>,
    /// Over all writers together: first those within a timeline, then those before switches.
    pub gaps: Vec<Gap>,
    /// Pieces of all kinds.
    pub pieces: u64,
    /// Size of segments; `None` for an empty archive.
    pub segment_size: Option<SegmentSize>,
}

/// Lists the whole archive of a cluster and finds its gaps: what nobody has archived between what somebody has, also when it
/// is asked for again a moment later. Costs one request per thousand pieces; reads one piece and the history files; all of it
/// twice if there are gaps, and some more times while they change.
pub async fn survey(reader: &WalReader) -> Result<Survey, ArchiveError> {
    let (mut before, mut found) = (Vec::new(), look(reader).await?);
    for _ in 1..LOOKS_MAX {
        if found.gaps.iter().all(|gap| before.contains(gap)) {
            break;
        }
        tokio::time::sleep(MOMENT).await;
        before = std::mem::replace(&mut found, look(reader).await?).gaps;
    }
    // One that somebody fills, slowly, is one until it is full.
    found.gaps.retain(|gap| before.iter().any(|wider| gap.is_within(wider)));
    Ok(found)
}

async fn look(reader: &WalReader) -> Result<Survey, ArchiveError> {
    let mut found = Survey::default();
    let mut timelines: BTreeMap<Timeline, Vec<WalName>> = BTreeMap::new();
    let mut histories: Vec<History> = Vec::new();
    for writer in reader.writers().await? {
        for number in reader.timelines(writer).await? {
            let Some(timeline) = Timeline::new(number) else { continue };
            let names = reader.pieces_from(writer, number, 0).await?;
            found.pieces += names.len() as u64;
            for piece in reader.histories(writer, number).await? {
                histories.extend(History::parse(timeline, &piece.plaintext).ok());
            }
            let Some(first) = names.iter().find(|name| name.place != WalPlace::History) else { continue };
            let size = match found.segment_size {
                Some(size) => size,
                None => segment_size(&first.to_string(), &reader.read(first).await?.header)?,
            };
            found.segment_size = Some(size);
            timeline_stretches(&names, timeline, size, &mut found);
            timelines.entry(timeline).or_default().extend(names);
        }
    }
    let Some(size) = found.segment_size else { return Ok(found) };
    for (timeline, names) in timelines {
        conflicts(&names, timeline, size, &mut found);
        found.gaps.extend(between(&found.stretches, timeline));
    }
    for history in histories {
        for gap in before_switches(&found.stretches, &history) {
            if !found.gaps.contains(&gap) {
                found.gaps.push(gap);
            }
        }
    }
    Ok(found)
}

pub(super) fn segment_size(name: &str, header: &WalHeader) -> Result<SegmentSize, ArchiveError> {
    SegmentSize::new(header.file_bytes.into()).ok_or_else(|| ArchiveError::NotThatWal {
        file: name.to_owned(),
        reason: format!("its segments are said to have {} bytes", header.file_bytes),
    })
}

fn file_of(name: &WalName) -> Option<u64> {
    match name.place {
        WalPlace::Bytes { file, .. } => Some(file),
        WalPlace::History => None,
    }
}

/// Adds the stretches of one timeline of one writer.
fn timeline_stretches(names: &[WalName], timeline: Timeline, size: SegmentSize, found: &mut Survey) {
    let mut current: Option<Stretch> = None;
    for pieces in names.chunk_by(|a, b| file_of(a) == file_of(b)) {
        let writer = pieces[0].writer;
        let Some(segment) = file_of(&pieces[0]).and_then(|file| Segment::of_file(timeline, file, size))
        else {
            continue;
        };
        let Covered::One(coverage) = Coverage::of(pieces) else { continue };
        let start = size.start_of(segment.number);
        let end = start.plus(coverage.end.into());
        match &mut current {
            Some(stretch) if stretch.to == start => stretch.to = end,
            other => {
                found.stretches.extend(other.replace(Stretch { writer, timeline, from: start, to: end }))
            }
        }
    }
    found.stretches.extend(current);
}

/// Adds the files of a timeline that are archived with two different contents, by whomever.
fn conflicts(names: &[WalName], timeline: Timeline, size: SegmentSize, found: &mut Survey) {
    for file in differing(names) {
        let writer = names.iter().find(|name| file_of(name) == Some(file)).map(|name| name.writer);
        if let (Some(writer), Some(segment)) = (writer, Segment::of_file(timeline, file, size)) {
            let from = size.start_of(segment.number);
            let to = from.plus(size.get().into());
            found.gaps.push(Gap { writer, timeline, from, to, kind: GapKind::Conflict });
        }
    }
}

/// What nobody has of a timeline between what somebody has.
fn between(stretches: &[Stretch], timeline: Timeline) -> Vec<Gap> {
    let mut of_timeline: Vec<&Stretch> = stretches.iter().filter(|s| s.timeline == timeline).collect();
    of_timeline.sort_by_key(|stretch| stretch.from);
    let mut gaps = Vec::new();
    let mut reached: Option<(Lsn, MemberId)> = None;
    for stretch in of_timeline {
        if let Some((from, writer)) = reached
            && from < stretch.from
        {
            gaps.push(Gap { writer, timeline, from, to: stretch.from, kind: GapKind::Missing });
        }
        if reached.is_none_or(|(end, _)| end < stretch.to) {
            reached = Some((stretch.to, stretch.writer));
        }
    }
    gaps
}

/// Whether the ancestors of an archived timeline are archived up to where each one's successor branched off.
fn before_switches(stretches: &[Stretch], history: &History) -> Vec<Gap> {
    let of = |timeline: Timeline| stretches.iter().filter(move |stretch| stretch.timeline == timeline);
    let Some(first) = of(history.timeline()).min_by_key(|stretch| stretch.from) else { return Vec::new() };
    let (mut begin, mut gaps) = (first.from, Vec::new());
    let ancestors = history.ancestors();
    for (place, (timeline, switch)) in ancestors.iter().enumerate().rev() {
        // The first file of a timeline begins with the WAL of the one before.
        let needed = begin.min(*switch);
        let last = of(*timeline).filter(|stretch| stretch.from < needed).max_by_key(|stretch| stretch.to);
        let starts = match place.checked_sub(1) {
            Some(before) => ancestors[before].1,
            None => Lsn::default(),
        };
        let missing = match last {
            Some(last) => Some((last.to, last.writer)),
            // Where nothing older is archived either, the archive only begins later.
            None if ancestors[..place].iter().all(|(older, _)| of(*older).next().is_none()) => None,
            None => Some((starts, first.writer)),
        };
        if let Some((from, writer)) = missing.filter(|(from, _)| *from < needed) {
            let (timeline, kind) = (*timeline, GapKind::BeforeSwitch);
            gaps.push(Gap { writer, timeline, from, to: needed, kind });
        }
        let first = of(*timeline).map(|stretch| stretch.from).min();
        begin = first.unwrap_or(starts).min(needed);
    }
    gaps
}
