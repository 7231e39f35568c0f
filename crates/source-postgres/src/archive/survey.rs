//! What is there and what is missing, from the names of the pieces alone.

use backup_core::wal::WalReader;
use keepwell_catalog::WalHeader;
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_crypto::MemberId;

use super::{ArchiveError, Coverage, Covered};
use crate::history::History;
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};

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
    /// In whose archive.
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

/// All of a cluster's archive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Survey {
    /// In order of writer, timeline and position.
    pub stretches: Vec<Stretch>,
    /// Likewise.
    pub gaps: Vec<Gap>,
    /// Pieces of all kinds.
    pub pieces: u64,
    /// Size of segments; `None` for an empty archive.
    pub segment_size: Option<SegmentSize>,
}

/// Lists the whole archive of a cluster and finds its gaps. Costs one request per thousand pieces; reads one piece and
/// the history files.
pub async fn survey(reader: &WalReader) -> Result<Survey, ArchiveError> {
    let mut found = Survey::default();
    for writer in reader.writers().await? {
        for number in reader.timelines(writer).await? {
            let Some(timeline) = Timeline::new(number) else { continue };
            let names = reader.pieces_from(writer, number, 0).await?;
            found.pieces += names.len() as u64;
            let Some(first) = names.iter().find(|name| name.place != WalPlace::History) else { continue };
            let size = match found.segment_size {
                Some(size) => size,
                None => segment_size(&first.to_string(), &reader.read(first).await?.header)?,
            };
            found.segment_size = Some(size);
            let before = found.stretches.len();
            timeline_stretches(&names, timeline, size, &mut found);
            if before < found.stretches.len() {
                check_switch(reader, writer, timeline, &mut found).await?;
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

/// Adds the stretches and gaps of one timeline of one writer.
fn timeline_stretches(names: &[WalName], timeline: Timeline, size: SegmentSize, found: &mut Survey) {
    let file_of = |name: &WalName| match name.place {
        WalPlace::Bytes { file, .. } => Some(file),
        WalPlace::History => None,
    };
    let mut current: Option<Stretch> = None;
    for pieces in names.chunk_by(|a, b| file_of(a) == file_of(b)) {
        let writer = pieces[0].writer;
        let Some(segment) = file_of(&pieces[0]).and_then(|file| Segment::of_file(timeline, file, size))
        else {
            continue;
        };
        let start = size.start_of(segment.number);
        let end = match Coverage::of(pieces) {
            Covered::One(coverage) => start.plus(coverage.end.into()),
            Covered::Conflict => {
                let to = start.plus(size.get().into());
                found.gaps.push(Gap { writer, timeline, from: start, to, kind: GapKind::Conflict });
                continue;
            }
        };
        match &mut current {
            Some(stretch) if stretch.to == start => stretch.to = end,
            other => {
                if let Some(stretch) = other.replace(Stretch { writer, timeline, from: start, to: end }) {
                    found.stretches.push(stretch);
                    found.gaps.push(Gap {
                        writer,
                        timeline,
                        from: stretch.to,
                        to: start,
                        kind: GapKind::Missing,
                    });
                }
            }
        }
    }
    found.stretches.extend(current);
}

/// Whether the parent of a timeline is archived up to where the timeline branched off.
async fn check_switch(
    reader: &WalReader,
    writer: MemberId,
    timeline: Timeline,
    found: &mut Survey,
) -> Result<(), ArchiveError> {
    for piece in reader.histories(writer, timeline.get()).await? {
        let Ok(history) = History::parse(timeline, &piece.plaintext) else { continue };
        let Some((parent, at)) = history.ancestors().last().copied() else { continue };
        let mut of_parent = found.stretches.iter().filter(|s| s.writer == writer && s.timeline == parent);
        let Some(last) = of_parent.next_back() else { continue };
        // The timeline's own first file begins with the parent's WAL.
        let own = found
            .stretches
            .iter()
            .find(|s| s.writer == writer && s.timeline == timeline)
            .map_or(at, |s| s.from);
        let needed = at.min(own);
        if last.to < needed {
            let gap =
                Gap { writer, timeline: parent, from: last.to, to: needed, kind: GapKind::BeforeSwitch };
            found.gaps.push(gap);
        }
    }
    Ok(())
}
