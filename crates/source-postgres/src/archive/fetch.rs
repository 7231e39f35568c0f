//! What a recovering server asks for: one file of WAL, or a history file.

use backup_core::wal::WalReader;
use keepwell_catalog::wal::{WalName, WalPlace};
use keepwell_crypto::MemberId;

use super::survey::segment_size;
use super::{ArchiveError, Coverage, Covered};
use crate::lsn::{Segment, SegmentSize, Timeline};

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
/// server that is told of a missing file ends its recovery there and opens, as if nothing were wrong.
pub async fn fetch(reader: &WalReader, name: &str) -> Result<Fetched, ArchiveError> {
    if let Some(timeline) = name.strip_suffix(".history") {
        let number = if timeline.len() == 8 { u32::from_str_radix(timeline, 16).ok() } else { None };
        return match number.and_then(Timeline::new) {
            Some(timeline) => history(reader, timeline).await,
            None => Ok(Fetched::Missing),
        };
    }
    Ok(fetch_segment(reader, name).await?.map_or(Fetched::Missing, |found| Fetched::Found(found.content)))
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
    let (mut damage, mut best) = (None, None::<SegmentFile>);
    for writer in reader.writers().await? {
        let mut found = segment(reader, writer, name).await;
        if matches!(&found, Err(ArchiveError::Repository(backup_core::Error::Storage(e))) if e.is_not_found())
        {
            // A prune removed tails that a whole block had taken the place of: the listing was older than that.
            found = segment(reader, writer, name).await;
        }
        match found {
            Ok(None) => {}
            Ok(Some(found)) if found.is_whole() => return Ok(Some(found)),
            Ok(Some(found)) => best = best.filter(|best| best.end >= found.end).or(Some(found)),
            // Somebody else may have archived it in full.
            Err(error) => damage = Some(error),
        }
    }
    match (best, damage) {
        (None, Some(error)) => Err(error),
        (best, _) => Ok(best),
    }
}

async fn history(reader: &WalReader, timeline: Timeline) -> Result<Fetched, ArchiveError> {
    let mut found: Option<Vec<u8>> = None;
    for writer in reader.writers().await? {
        for piece in reader.histories(writer, timeline.get()).await? {
            if found.as_ref().is_some_and(|other| *other != piece.plaintext) {
                return Err(ArchiveError::Conflict { file: timeline.history_file() });
            }
            found = Some(piece.plaintext);
        }
    }
    Ok(found.map_or(Fetched::Missing, Fetched::Found))
}

async fn segment(
    reader: &WalReader,
    writer: MemberId,
    name: &str,
) -> Result<Option<SegmentFile>, ArchiveError> {
    let timeline = name.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok()).and_then(Timeline::new);
    let file =
        name.get(8..).filter(|rest| rest.len() == 16).and_then(|rest| u64::from_str_radix(rest, 16).ok());
    let (Some(timeline), Some(file)) = (timeline, file) else { return Ok(None) };
    let is_of =
        |piece: &WalName, wanted: u64| matches!(piece.place, WalPlace::Bytes { file, .. } if file == wanted);
    let page = reader.some_from(writer, timeline.get(), file).await?;
    let pieces: Vec<_> = page.iter().copied().filter(|piece| is_of(piece, file)).collect();
    let more_follows =
        page.iter().any(|piece| matches!(piece.place, WalPlace::Bytes { file: other, .. } if other > file));
    let gap = || ArchiveError::Gap { file: name.to_owned(), timeline };
    if pieces.is_empty() {
        let begins_later = !more_follows
            || reader.some_from(writer, timeline.get(), 0).await?.first().is_none_or(
                |piece| !matches!(piece.place, WalPlace::Bytes { file: other, .. } if other < file),
            );
        return if begins_later { Ok(None) } else { Err(gap()) };
    }
    let Covered::One(coverage) = Coverage::of(&pieces) else {
        return Err(ArchiveError::Conflict { file: name.to_owned() });
    };
    let Some((_, _, first)) = coverage.pieces.first() else { return Err(gap()) };
    let first = reader.read(first).await?;
    let size = segment_size(name, &first.header)?;
    if coverage.end < size.get() && more_follows {
        return Err(gap());
    }
    let mut content = vec![0; size.get() as usize];
    let mut read = Some(first.plaintext);
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
        fits.ok_or_else(wrong)?.copy_from_slice(&bytes);
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
