//! Where to begin: behind what is archived, on the right timeline, and only if the server is the right one.

use backup_core::wal::WalWriter;
use bytes::Bytes;
use keepwell_catalog::wal::{WalName, WalPlace};

use super::block::block_bytes;
use super::{ReceiveError, ReceiveOptions};
use crate::archive::{Coverage, Covered};
use crate::history::History;
use crate::lsn::{Lsn, Segment, SegmentSize, Timeline};
use crate::replication::{Identity, SlotState};
use crate::wire::{Client, PgError};

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Begin {
    pub timeline: Timeline,
    /// Start of a block.
    pub at: Lsn,
    /// What is archived of the segment.
    pub names: Vec<WalName>,
    /// The archive reaches up to here already.
    pub durable: Lsn,
}

/// The end of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ArchiveEnd {
    timeline: Timeline,
    at: Lsn,
    names: Vec<WalName>,
}

/// Finds the place.
pub(super) async fn find(
    client: &mut Client,
    archive: &WalWriter,
    identity: &Identity,
    size: SegmentSize,
    slot: Option<&SlotState>,
) -> Result<Begin, ReceiveError> {
    let history = client.history(identity.timeline).await?;
    keep_histories(client, archive, &history).await?;
    match archive_end(archive, size, identity.position).await? {
        None => {
            let from = slot.and_then(|slot| slot.restart).unwrap_or(identity.position);
            Ok(fresh(&history, from, size))
        }
        Some(end) => after(archive, &end, &history, identity, client.is_standby(), size).await,
    }
}

/// A beginning without anything archived.
pub(super) fn fresh(history: &History, from: Lsn, size: SegmentSize) -> Begin {
    let at = size.start_of(size.number_at(from));
    Begin { timeline: history.timeline_at(from), at, names: Vec::new(), durable: at }
}

/// Archives the history files of a timeline and its ancestors: they come before any of their WAL.
pub(super) async fn keep_histories(
    client: &mut Client,
    archive: &WalWriter,
    history: &History,
) -> Result<(), ReceiveError> {
    let ancestors = history.ancestors().iter().map(|(timeline, _)| *timeline);
    for timeline in ancestors.chain([history.timeline()]) {
        let content = match client.timeline_history(timeline).await {
            Ok(Some(content)) => content,
            Ok(None) => continue,
            // A server that was not there at the time need not have its ancestors' files.
            Err(PgError::Server { error, .. }) if error.code == "58P01" => continue,
            Err(error) => return Err(error.into()),
        };
        History::parse(timeline, &content)?;
        archive.put(timeline.get(), WalPlace::History, Bytes::from(content), None).await?;
    }
    Ok(())
}

/// Goes on where the archive ends.
async fn after(
    archive: &WalWriter,
    end: &ArchiveEnd,
    history: &History,
    identity: &Identity,
    standby: bool,
    size: SegmentSize,
) -> Result<Begin, ReceiveError> {
    let diverged =
        |reason: String| ReceiveError::Diverged { timeline: end.timeline, archived: end.at, reason };
    if end.timeline == history.timeline() {
        if end.at > identity.position && !standby {
            return Err(diverged(format!("has come only to {}", identity.position)));
        }
        return Ok(resume(end, size));
    }
    let Some(switch) = history.end_of(end.timeline) else {
        return Err(diverged(format!(
            "is on timeline {}, which does not descend from it",
            identity.timeline
        )));
    };
    if end.at < switch {
        return Ok(resume(end, size));
    }
    // What was archived beyond the switch is the past of nobody; it stays, and recovery does not go there.
    let timeline = history.timeline_at(switch);
    let at = size.start_of(size.number_at(switch));
    let file = Segment { timeline, number: size.number_at(switch) }.file_number(size);
    let names = archive.pieces_of(timeline.get(), file).await?;
    Ok(Begin { timeline, at, names, durable: switch })
}

fn resume(end: &ArchiveEnd, size: SegmentSize) -> Begin {
    let block = u64::from(block_bytes(size));
    let at = Lsn::new(end.at.get() / block * block);
    Begin { timeline: end.timeline, at, names: end.names.clone(), durable: end.at }
}

/// Where the newest timeline of the archive ends. `hint` is about where it should; costs few requests if it is right.
async fn archive_end(
    archive: &WalWriter,
    size: SegmentSize,
    hint: Lsn,
) -> Result<Option<ArchiveEnd>, ReceiveError> {
    for number in archive.timelines().await?.into_iter().rev() {
        let Some(timeline) = Timeline::new(number) else { continue };
        let file_at = |number: u64| Segment { timeline, number }.file_number(size);
        let (mut from, mut step) = (size.number_at(hint), 1);
        while !archive.has_from(number, file_at(from)).await? && from > 0 {
            from = from.saturating_sub(step);
            step *= 2;
        }
        let names = archive.pieces_from(number, file_at(from)).await?;
        let last = names.iter().rev().find_map(|name| match name.place {
            WalPlace::Bytes { file, .. } => Some(file),
            WalPlace::History => None,
        });
        // Only a history so far: the timeline before it says where we are.
        let Some(segment) = last.and_then(|file| Segment::of_file(timeline, file, size)) else { continue };
        let names: Vec<WalName> = names
            .into_iter()
            .filter(|name| matches!(name.place, WalPlace::Bytes { file, .. } if Some(file) == last))
            .collect();
        let start = size.start_of(segment.number);
        return match Coverage::of(&names) {
            Covered::One(coverage) => {
                Ok(Some(ArchiveEnd { timeline, at: start.plus(coverage.end.into()), names }))
            }
            Covered::Conflict => Err(ReceiveError::Different { timeline, at: start }),
        };
    }
    Ok(None)
}

/// Makes sure that the slot is there and usable.
pub(super) async fn slot(
    client: &mut Client,
    options: &ReceiveOptions,
) -> Result<Option<SlotState>, ReceiveError> {
    let Some(name) = &options.slot else { return Ok(None) };
    let mut state = client.slot(name).await?;
    if state.is_none() && options.create_slot {
        client.create_slot(name, false).await?;
        state = client.slot(name).await?;
    }
    let Some(state) = state else { return Err(ReceiveError::NoSlot { slot: name.clone() }) };
    let bad = |state: &str| Err(ReceiveError::BadSlot { slot: name.clone(), state: state.to_owned() });
    match (state.kind.as_str(), state.wal_status.as_deref()) {
        (_, Some("lost")) => bad("lost: the server has removed WAL that it should have kept"),
        ("physical", _) => Ok(Some(state)),
        (kind, _) => bad(&format!("of the kind `{kind}`, and a physical one is needed")),
    }
}
