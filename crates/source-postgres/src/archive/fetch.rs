//! What a recovering server asks for: one file of WAL, or a history file.

use backup_core::wal::WalReader;
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_crypto::MemberId;

use super::survey::segment_size;
use super::{ArchiveError, Coverage, Covered, differing};
use crate::history::History;
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};

/// What became of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fetched {
    /// The file.
    Found(Vec<u8>),
    /// It is not in the archive, and the archive has no gap here: the end of what is known.
    Missing,
}

/// Fetches a file by the name that PostgreSQL gives it.
///
/// The last file of a timeline is served as far as it was archived and filled up with zeros, so that recovery reaches
/// the last archived transaction. A file that is missing between others is an error and not [`Fetched::Missing`]: a
/// server that is told of a missing file ends its recovery there and opens, as if nothing were wrong. So is one before the
/// first that is archived, which a base backup may have brought along ([`ArchiveError::BeginsLater`]).
pub async fn fetch(reader: &WalReader, name: &str) -> Result<Fetched, ArchiveError> {
    fetch_for(reader, name, Asker::default()).await
}

/// What is known of the server that asks; by default nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Asker {
    /// It has a target, reads ahead of it, and opens nowhere else: for it the log ends where a gap begins, or a conflict.
    pub to_gap: bool,
    /// The timeline that it follows. What later ones lack of the log is no gap on its way, and of these it only wants to know
    /// which are taken.
    pub follows: Option<Timeline>,
}

/// The same for a server of which something is known. With `to_gap`, of the file in which a gap begins what there is, and
/// [`Fetched::Missing`] for one that lies in it, or of which there are two. Of a timeline later than `follows` any history,
/// also where there are two.
pub async fn fetch_for(reader: &WalReader, name: &str, asker: Asker) -> Result<Fetched, ArchiveError> {
    if let Some(timeline) = name.strip_suffix(".history") {
        let number = if timeline.len() == 8 { u32::from_str_radix(timeline, 16).ok() } else { None };
        return match number.and_then(Timeline::new) {
            Some(timeline) => history(reader, timeline, asker).await,
            None => Ok(Fetched::Missing),
        };
    }
    let found = fetch_segment_for(reader, name, asker).await?;
    Ok(found.map_or(Fetched::Missing, |found| Fetched::Found(found.content)))
}

/// A segment of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentFile {
    /// All of it, with zeros behind what is archived.
    pub content: Vec<u8>,
    /// How much of it is archived.
    pub end: u32,
}

impl SegmentFile {
    /// Whether all of it is archived; else, asked again later, there may be more.
    pub fn is_whole(&self) -> bool {
        self.end as usize == self.content.len()
    }
}

/// Fetches a segment as [`fetch`] does; of several that were archived in part, the longest.
pub async fn fetch_segment(reader: &WalReader, name: &str) -> Result<Option<SegmentFile>, ArchiveError> {
    fetch_segment_for(reader, name, Asker::default()).await
}

/// The same, as [`fetch_for`] does.
pub(crate) async fn fetch_segment_for(
    reader: &WalReader,
    name: &str,
    asker: Asker,
) -> Result<Option<SegmentFile>, ArchiveError> {
    let Some((timeline, file)) = parse(name) else { return Ok(None) };
    let writers = reader.writers().await?;
    let (mut found, later) = match held(reader, &writers, name, timeline, file).await {
        Err(ArchiveError::Conflict { .. }) if asker.to_gap => return Ok(None),
        held => held?,
    };
    if found.as_ref().is_some_and(SegmentFile::is_whole) {
        return Ok(found);
    }
    if let Some(part) = &found
        && (asker.to_gap || !later)
        && let Some((ancestor, left)) = original(reader, &writers, timeline, file, part).await?
    {
        // It asks for the ancestor's then, and knows where to stop.
        if asker.to_gap {
            return Ok(None);
        }
        found = Some(longer(reader, &writers, (ancestor, file), left, part).await?);
    }
    let wanted_by = match later {
        true => Some(timeline),
        false => descendant(reader, &writers, (timeline, file), found.as_ref(), asker.follows).await?,
    };
    match wanted_by {
        None => Ok(found),
        Some(_) if found.is_none() && !is_behind_others(reader, &writers, timeline, file).await? => {
            Err(ArchiveError::BeginsLater { file: name.to_owned() })
        }
        Some(_) if asker.to_gap => Ok(found),
        Some(timeline) => Err(ArchiveError::Gap { file: name.to_owned(), timeline }),
    }
}

/// What these writers archived of a segment, whatever is there behind it.
pub(crate) async fn held_segment(
    reader: &WalReader,
    writers: &[MemberId],
    name: &str,
) -> Result<Option<SegmentFile>, ArchiveError> {
    let Some((timeline, file)) = parse(name) else { return Ok(None) };
    Ok(held(reader, writers, name, timeline, file).await?.0)
}

fn parse(name: &str) -> Option<(Timeline, u64)> {
    let timeline = u32::from_str_radix(name.get(..8)?, 16).ok().and_then(Timeline::new)?;
    let file = name.get(8..).filter(|rest| rest.len() == 16)?;
    Some((timeline, u64::from_str_radix(file, 16).ok()?))
}

/// The longest that somebody archived of a segment, and whether anybody archived later ones of its timeline. Fails where
/// two archived different bytes, and where what is damaged may be more than what is not.
async fn held(
    reader: &WalReader,
    writers: &[MemberId],
    name: &str,
    timeline: Timeline,
    file: u64,
) -> Result<(Option<SegmentFile>, bool), ArchiveError> {
    let conflict = || ArchiveError::Conflict { file: name.to_owned() };
    let (mut later, mut damage, mut best) = (false, None, None::<SegmentFile>);
    let mut all: Vec<WalName> = Vec::new();
    for writer in writers {
        let (mut pieces, more) = pieces_of(reader, *writer, timeline, file).await?;
        later |= more;
        let known =
            |piece: &WalName| all.iter().any(|other| (other.place, other.hash) == (piece.place, piece.hash));
        if best.is_some() && pieces.iter().all(known) {
            continue;
        }
        let mut found = assemble(reader, &pieces, name, timeline, file).await;
        if matches!(&found, Err(ArchiveError::Repository(backup_core::Error::Storage(e))) if e.is_not_found())
        {
            // A prune removed tails that a whole block had taken the place of: the listing was older than that.
            pieces = pieces_of(reader, *writer, timeline, file).await?.0;
            found = assemble(reader, &pieces, name, timeline, file).await;
        }
        match (found, &best) {
            (Ok(None), _) => {}
            (Ok(Some(found)), Some(other)) => {
                let both = found.end.min(other.end) as usize;
                if found.content[..both] != other.content[..both] {
                    return Err(conflict());
                }
                if found.end > other.end {
                    best = Some(found);
                }
            }
            (Ok(found), None) => best = found,
            (Err(error @ ArchiveError::Conflict { .. }), _) => return Err(error),
            // Somebody else may have archived it in full.
            (Err(error), _) => damage = Some(error),
        }
        all.extend(pieces);
    }
    if !differing(&all).is_empty() {
        return Err(conflict());
    }
    match damage {
        Some(error) if !best.as_ref().is_some_and(SegmentFile::is_whole) => Err(error),
        _ => Ok((best, later)),
    }
}

/// A writer's pieces of a file, and whether there are files behind it. Costs a request, and some more for a file in many
/// tails.
async fn pieces_of(
    reader: &WalReader,
    writer: MemberId,
    timeline: Timeline,
    file: u64,
) -> Result<(Vec<WalName>, bool), ArchiveError> {
    let mut names = reader.some_from(writer, timeline.get(), file).await?;
    if names.last().and_then(file_of) == Some(file) {
        names = reader.pieces_from(writer, timeline.get(), file).await?;
    }
    let more = names.iter().any(|name| file_of(name).is_some_and(|other| other > file));
    names.retain(|name| file_of(name) == Some(file));
    Ok((names, more))
}

fn file_of(name: &WalName) -> Option<u64> {
    match name.place {
        WalPlace::Bytes { file, .. } => Some(file),
        WalPlace::History => None,
    }
}

/// A timeline, up to the one that is followed, that branched off this one so late that its past needs more of the segment than
/// is there.
async fn descendant(
    reader: &WalReader,
    writers: &[MemberId],
    (timeline, file): (Timeline, u64),
    found: Option<&SegmentFile>,
    follows: Option<Timeline>,
) -> Result<Option<Timeline>, ArchiveError> {
    let counts = |later: &Timeline| *later > timeline && follows.is_none_or(|follows| *later <= follows);
    let mut size = found.and_then(|found| SegmentSize::new(found.content.len() as u64));
    for writer in writers {
        for number in reader.timelines(*writer).await? {
            let Some(later) = Timeline::new(number).filter(counts) else { continue };
            for history in reader.histories(*writer, number).await? {
                let Ok(history) = History::parse(later, &history.plaintext) else { continue };
                let Some(switch) = history.end_of(timeline) else { continue };
                // A timeline that has nothing yet needs nothing.
                if !has_file(reader, writers, &history, timeline, None).await? {
                    continue;
                }
                let size = match size {
                    Some(size) => size,
                    None => match any_size(reader, writers).await? {
                        Some(found) => *size.insert(found),
                        None => return Ok(None),
                    },
                };
                let Some(segment) = Segment::of_file(timeline, file, size) else { return Ok(None) };
                let until = size.number_at(switch);
                let short = found.map_or(0, |found| found.end) < size.offset_of(switch);
                // The first file of the later timeline begins with what the earlier one has up to the switch.
                if segment.number < until
                    || (segment.number == until
                        && short
                        && !has_file(reader, writers, &history, timeline, Some(file)).await?)
                {
                    return Ok(Some(later));
                }
            }
        }
    }
    Ok(None)
}

/// The earlier timeline that has most of what is there of a file too, and where it was left, if this one had not begun by there.
async fn original(
    reader: &WalReader,
    writers: &[MemberId],
    timeline: Timeline,
    file: u64,
    found: &SegmentFile,
) -> Result<Option<(Timeline, Lsn)>, ArchiveError> {
    let Some(size) = SegmentSize::new(found.content.len() as u64) else { return Ok(None) };
    let Some(segment) = Segment::of_file(timeline, file, size) else { return Ok(None) };
    let end = size.start_of(segment.number).plus(found.end.into());
    for writer in writers {
        for history in reader.histories(*writer, timeline.get()).await? {
            let Ok(history) = History::parse(timeline, &history.plaintext) else { continue };
            if end > history.begin() {
                continue;
            }
            // It may be a copy of a copy.
            let mut most: Option<(Lsn, Timeline, Lsn)> = None;
            for (ancestor, left) in history.ancestors().iter().filter(|(_, left)| end <= *left) {
                let held = covered(reader, writers, *ancestor, file).await?;
                let reached = size.start_of(segment.number).plus(held.into()).min(*left);
                if reached >= end && most.is_none_or(|(known, ..)| reached >= known) {
                    most = Some((reached, *ancestor, *left));
                }
            }
            if let Some((_, ancestor, left)) = most {
                return Ok(Some((ancestor, left)));
            }
        }
    }
    Ok(None)
}

/// What is archived of a file up to where its timeline was left, for a shorter copy of it. A server that asked for the file itself
/// would read on in the branch that was left.
async fn longer(
    reader: &WalReader,
    writers: &[MemberId],
    (timeline, file): (Timeline, u64),
    left: Lsn,
    copy: &SegmentFile,
) -> Result<SegmentFile, ArchiveError> {
    let Some(size) = SegmentSize::new(copy.content.len() as u64) else { return Ok(copy.clone()) };
    let Some(segment) = Segment::of_file(timeline, file, size) else { return Ok(copy.clone()) };
    let name = segment.file_name(size);
    let Some(mut own) = held_segment(reader, writers, &name).await? else { return Ok(copy.clone()) };
    if own.content.len() != copy.content.len() || !own.content.starts_with(&copy.content[..copy.end as usize])
    {
        return Err(ArchiveError::Conflict { file: name });
    }
    let until = left.get().saturating_sub(size.start_of(segment.number).get()).min(own.end.into());
    own.content[until as usize..].fill(0);
    own.end = until as u32;
    Ok(own)
}

/// How far somebody archived a file.
async fn covered(
    reader: &WalReader,
    writers: &[MemberId],
    timeline: Timeline,
    file: u64,
) -> Result<u32, ArchiveError> {
    let mut end = 0;
    for writer in writers {
        let (pieces, _) = pieces_of(reader, *writer, timeline, file).await?;
        if let Covered::One(coverage) = Coverage::of(&pieces) {
            end = end.max(coverage.end);
        }
    }
    Ok(end)
}

/// Whether this file, or any, is archived of a timeline that comes after `timeline` in a history.
async fn has_file(
    reader: &WalReader,
    writers: &[MemberId],
    history: &History,
    timeline: Timeline,
    file: Option<u64>,
) -> Result<bool, ArchiveError> {
    let ancestors = history.ancestors().iter().map(|(ancestor, _)| *ancestor);
    for later in ancestors.chain([history.timeline()]).filter(|later| *later > timeline) {
        for writer in writers {
            let names = reader.some_from(*writer, later.get(), file.unwrap_or(0)).await?;
            if names.first().and_then(file_of).is_some_and(|found| file.is_none_or(|file| file == found)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The size of segments, from whatever is archived.
async fn any_size(reader: &WalReader, writers: &[MemberId]) -> Result<Option<SegmentSize>, ArchiveError> {
    for writer in writers {
        for timeline in reader.timelines(*writer).await? {
            let page = reader.some_from(*writer, timeline, 0).await?;
            if let Some(piece) = page.iter().find(|piece| file_of(piece).is_some()) {
                return segment_size(&piece.to_string(), &reader.read(piece).await?.header).map(Some);
            }
        }
    }
    Ok(None)
}

/// Whether an earlier file of the timeline, or one of a timeline that it descends from, is archived.
async fn is_behind_others(
    reader: &WalReader,
    writers: &[MemberId],
    timeline: Timeline,
    file: u64,
) -> Result<bool, ArchiveError> {
    let mut line = vec![timeline];
    for writer in writers {
        for history in reader.histories(*writer, timeline.get()).await? {
            let Ok(history) = History::parse(timeline, &history.plaintext) else { continue };
            line.extend(history.ancestors().iter().map(|(ancestor, _)| *ancestor));
        }
    }
    for timeline in line {
        for writer in writers {
            let first = reader.some_from(*writer, timeline.get(), 0).await?;
            if first.first().and_then(file_of).is_some_and(|other| other < file) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

async fn history(reader: &WalReader, timeline: Timeline, asker: Asker) -> Result<Fetched, ArchiveError> {
    let is_read = asker.follows.is_none_or(|follows| timeline <= follows);
    let mut found: Option<Vec<u8>> = None;
    for writer in reader.writers().await? {
        for piece in reader.histories(writer, timeline.get()).await? {
            if is_read && found.as_ref().is_some_and(|other| *other != piece.plaintext) {
                return Err(ArchiveError::Conflict { file: timeline.history_file() });
            }
            found = Some(piece.plaintext);
        }
    }
    Ok(found.map_or(Fetched::Missing, Fetched::Found))
}

/// Puts one writer's pieces of a file together, as far as they continue each other. Where they overlap they must be equal: one
/// credential may have archived from two servers at once.
async fn assemble(
    reader: &WalReader,
    pieces: &[WalName],
    name: &str,
    timeline: Timeline,
    file: u64,
) -> Result<Option<SegmentFile>, ArchiveError> {
    let Covered::One(coverage) = Coverage::of(pieces) else {
        return Err(ArchiveError::Conflict { file: name.to_owned() });
    };
    let Some((_, _, first)) = coverage.pieces.first() else { return Ok(None) };
    let first = reader.read(first).await?;
    let size = segment_size(name, &first.header)?;
    let mut content = vec![0; size.get() as usize];
    let (mut read, mut reached) = (Some(first.plaintext), 0_u32);
    for (from, to, piece) in &coverage.pieces {
        let bytes = match read.take() {
            Some(bytes) => bytes,
            None => reader.read(piece).await?.plaintext,
        };
        let fits = content.get_mut(*from as usize..*to as usize).filter(|part| part.len() == bytes.len());
        let wrong = || ArchiveError::NotThatWal {
            file: name.to_owned(),
            reason: "a piece reaches past its end".into(),
        };
        let part = fits.ok_or_else(wrong)?;
        let again = part.len().min(reached.saturating_sub(*from) as usize);
        if part[..again] != bytes[..again] {
            return Err(ArchiveError::Conflict { file: name.to_owned() });
        }
        part.copy_from_slice(&bytes);
        reached = *to;
    }
    check_first_page(&content, reader.system(), timeline, file, size)
        .map_err(|reason| ArchiveError::NotThatWal { file: name.to_owned(), reason })?;
    Ok(Some(SegmentFile { content, end: coverage.end }))
}

/// Every segment begins with a page that says which cluster's it is and where it belongs.
pub(crate) fn check_first_page(
    content: &[u8],
    system: u64,
    timeline: Timeline,
    file: u64,
    size: SegmentSize,
) -> Result<(), String> {
    let header = content.get(..40).ok_or("it is too short")?;
    let u64_at = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default());
    let u32_at = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default());
    let start = Segment::of_file(timeline, file, size).map(|segment| size.start_of(segment.number).get());
    // xlp_magic is 0xD1xx in all versions since 9.6 or so; bit 1 of xlp_info says that the long header follows.
    if header[1] != 0xd1 || header[2] & 0x02 == 0 {
        return Err("it does not begin with a page of WAL".to_owned());
    }
    if u64_at(24) != system {
        return Err(format!("it is WAL of cluster {}", u64_at(24)));
    }
    if Some(u64_at(8)) != start || u32_at(32) != size.get() {
        return Err(format!("it is WAL of another place, byte {}", u64_at(8)));
    }
    Ok(())
}
