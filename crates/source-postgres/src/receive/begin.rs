//! Where to begin: behind what is archived, on the right timeline, and only if the server is the right one.

use std::collections::BTreeMap;

use backup_core::wal::WalWriter;
use bytes::Bytes;
use keepwell_catalog::wal::{WalName, WalPlace};

use super::block::block_bytes;
use super::uploads::IN_FLIGHT_MAX;
use super::{ReceiveError, ReceiveOptions, SlotFault};
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
    /// What is archived of the segment and of those behind it.
    pub names: Vec<WalName>,
    /// The archive reaches up to here already, without a hole.
    pub durable: Lsn,
    /// More is archived behind a hole: where to go on if the server no longer has what belongs there.
    pub behind: Option<Box<Behind>>,
}

/// The other side of a hole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behind {
    pub begin: Begin,
    /// Whether something is archived before the hole as well.
    pub is_gap: bool,
}

/// The end of an archive. Pieces are stored several at once: what is archived last need not follow what came before.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ArchiveEnd {
    timeline: Timeline,
    /// Where something is missing, as far as that may still be had, and the end; ascending, at least one. For each, whether
    /// something is archived before it.
    places: Vec<(Lsn, bool)>,
    /// Pieces from the file with the first place on.
    names: Vec<WalName>,
}

impl ArchiveEnd {
    /// Up to here there is no hole.
    fn at(&self) -> Lsn {
        self.places.first().map_or(Lsn::default(), |(at, _)| *at)
    }

    /// The last archived byte is the one before.
    fn last(&self) -> Lsn {
        self.places.last().map_or(Lsn::default(), |(at, _)| *at)
    }
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
    let restart = slot.and_then(|slot| slot.restart);
    let begin = match archive_end(archive, size, &history, identity.position, restart).await? {
        None => fresh(&history, restart.unwrap_or(identity.position), size),
        Some(end) => after(archive, &end, &history, identity, client.is_standby(), size).await?,
    };
    // Of a server that is refused nothing is kept.
    keep_histories(client, archive, &history).await?;
    Ok(begin)
}

/// A beginning without anything archived.
pub(super) fn fresh(history: &History, from: Lsn, size: SegmentSize) -> Begin {
    let at = size.start_of(size.number_at(from));
    Begin { timeline: history.timeline_at(from), at, names: Vec::new(), durable: at, behind: None }
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
        keep_history(archive, timeline, content).await?;
    }
    Ok(())
}

/// A timeline has one history: where two servers were promoted to the same one, the first that was archived counts.
async fn keep_history(archive: &WalWriter, timeline: Timeline, content: Vec<u8>) -> Result<(), ReceiveError> {
    let hash = archive.hash(&content);
    let known = archive.pieces_from(timeline.get(), u64::MAX).await?;
    let known: Vec<_> = known.iter().filter(|name| name.place == WalPlace::History).collect();
    if known.iter().any(|name| name.hash != hash) {
        return Err(ReceiveError::OtherHistory { timeline });
    }
    if known.is_empty() {
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
        |reason: String| ReceiveError::Diverged { timeline: end.timeline, archived: end.last(), reason };
    if end.timeline == history.timeline() {
        if end.last() > identity.position && !standby {
            return Err(diverged(format!("has come only to {}", identity.position)));
        }
        let begin = resume(end, size, None);
        return match begin.at > identity.position {
            // A server streams nothing from where it has not come yet.
            true => Err(ReceiveError::Behind { position: identity.position, archived: end.last() }),
            false => Ok(begin),
        };
    }
    let Some(switch) = history.end_of(end.timeline) else {
        return Err(diverged(format!(
            "is on timeline {}, which does not descend from it",
            identity.timeline
        )));
    };
    // What was archived beyond the switch is the past of nobody; it stays, and recovery does not go there.
    let timeline = history.timeline_at(switch);
    let at = size.start_of(size.number_at(switch));
    let file = Segment { timeline, number: size.number_at(switch) }.file_number(size);
    let names = archive.pieces_of(timeline.get(), file).await?;
    let next = Begin { timeline, at, names, durable: switch, behind: None };
    if end.at() < switch { Ok(resume(end, size, Some(next))) } else { Ok(next) }
}

/// Each place is where to go on if the server no longer has what is missing at those before it. `next` is where another
/// timeline begins: no server has what is behind that of this one.
fn resume(end: &ArchiveEnd, size: SegmentSize, next: Option<Begin>) -> Begin {
    let block = u64::from(block_bytes(size));
    let from = |place: Lsn, behind| Begin {
        timeline: end.timeline,
        at: Lsn::new(place.get() / block * block),
        names: end.names.clone(),
        durable: place,
        behind,
    };
    let mut behind = None;
    for pair in end.places.windows(2).rev() {
        let [(_, is_gap), (place, _)] = pair else { continue };
        let begin = match &next {
            Some(next) if *place >= next.durable => next.clone(),
            _ => from(*place, behind),
        };
        behind = Some(Box::new(Behind { begin, is_gap: *is_gap }));
    }
    from(end.at(), behind)
}

/// Where the newest timeline of the archive ends. `hint` is about where it should; costs few requests if it is right.
///
/// The server may still have to send what a slot holds back, and what was on its way when the last stream broke. So holes
/// are looked for from `restart`, the slot's place, or from so many blocks before the end as are uploaded at once.
async fn archive_end(
    archive: &WalWriter,
    size: SegmentSize,
    history: &History,
    hint: Lsn,
    restart: Option<Lsn>,
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
        // Only a history so far: the timeline before it says where we are.
        let last = names.iter().rev().find_map(|name| segment_of(name, timeline, size));
        let Some(last) = last else { continue };
        let on_their_way = u64::from(block_bytes(size)) * IN_FLIGHT_MAX as u64;
        let least = Lsn::new(size.start_of(last).get().saturating_sub(on_their_way));
        let first = restart.map_or(least, |restart| restart.min(least)).max(begin_of(history, timeline));
        // There is no WAL in the first segment of all.
        let first = size.number_at(first).max(1).min(last);
        let names = archive.pieces_from(number, file_at(first)).await?;
        return places(timeline, first, restart, names, size).map(Some);
    }
    Ok(None)
}

/// Where a timeline begins in a history; the start of the log for one that is not in it.
fn begin_of(history: &History, timeline: Timeline) -> Lsn {
    let before = history.ancestors().iter().filter(|(ancestor, _)| *ancestor < timeline);
    before.map(|(_, end)| *end).max().unwrap_or_default()
}

fn segment_of(name: &WalName, timeline: Timeline, size: SegmentSize) -> Option<u64> {
    match name.place {
        WalPlace::Bytes { file, .. } => Segment::of_file(timeline, file, size).map(|segment| segment.number),
        WalPlace::History => None,
    }
}

/// Follows the pieces from a segment on, and notes every first byte that is missing.
fn places(
    timeline: Timeline,
    first: u64,
    restart: Option<Lsn>,
    names: Vec<WalName>,
    size: SegmentSize,
) -> Result<ArchiveEnd, ReceiveError> {
    let mut files: BTreeMap<u64, Vec<WalName>> = BTreeMap::new();
    for name in names {
        if let Some(number) = segment_of(&name, timeline, size) {
            files.entry(number).or_default().push(name);
        }
    }
    let last = files.keys().next_back().copied().unwrap_or(first);
    let begin = files.keys().next().copied().unwrap_or(first);
    let mut places = Vec::new();
    // Of what lies before the archive's beginning we need what the slot holds back; without one it is worth a try.
    if begin > first && restart.is_none_or(|restart| size.number_at(restart) < begin) {
        let from = restart.map_or(first, |restart| size.number_at(restart).max(first));
        places.push((size.start_of(from), false));
    }
    let mut reached = size.start_of(begin);
    for (number, names) in &files {
        let start = size.start_of(*number);
        if reached != start {
            places.push((reached, true));
        }
        reached = match Coverage::of(names) {
            Covered::One(coverage) => start.plus(coverage.end.into()),
            Covered::Conflict if *number < last => size.start_of(number + 1),
            Covered::Conflict => return Err(ReceiveError::Different { timeline, at: start }),
        };
    }
    places.push((reached, true));
    let names = files.split_off(&size.number_at(places[0].0)).into_values().flatten().collect();
    Ok(ArchiveEnd { timeline, places, names })
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
    let bad = |fault| Err(ReceiveError::BadSlot { slot: name.clone(), fault });
    match (state.kind.as_str(), state.wal_status.as_deref()) {
        (_, Some("lost")) => bad(SlotFault::Lost),
        ("physical", _) => Ok(Some(state)),
        (kind, _) => bad(SlotFault::Kind(kind.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replication::{SlotName, SystemId};
    use crate::testing::{SYSTEM, World, played, row, segment, size};

    const LENGTH: u32 = 1 << 20;

    fn identity(timeline: u32, at: Lsn) -> Identity {
        let timeline = Timeline::new(timeline).unwrap();
        Identity { system_id: SystemId::new(SYSTEM), timeline, position: at }
    }

    fn at(number: u64, offset: u32) -> Lsn {
        size().start_of(number).plus(offset.into())
    }

    fn slot(restart: Lsn) -> SlotState {
        SlotState {
            kind: "physical".into(),
            active: false,
            restart: Some(restart),
            wal_status: Some("reserved".into()),
            safe_bytes: None,
            lag_bytes: None,
        }
    }

    /// Where a receiver begins against a server that is at the end of segment 12 on the first timeline.
    async fn begin(world: &World, slot: Option<SlotState>) -> Begin {
        let (_dir, mut client) = played(Vec::new()).await;
        let identity = identity(1, at(13, 0));
        find(&mut client, &world.archive().await, &identity, size(), slot.as_ref()).await.unwrap()
    }

    #[tokio::test]
    async fn a_hole_that_uploads_in_parallel_left_is_received_again_and_not_reported_as_durable() {
        let world = World::new().await;
        // Four were on their way, the connection broke, and 8 and 9 were stored; 6 had been, and 7 only in part.
        for (number, to) in [(5, LENGTH), (6, LENGTH), (7, 4000), (8, LENGTH), (9, 500)] {
            world.put(number, 1, to).await;
        }
        for slot in [None, Some(slot(at(7, 10))), Some(slot(at(6, 0))), Some(slot(at(12, 0)))] {
            let begin = begin(&world, slot).await;
            assert_eq!((begin.at, begin.durable), (at(7, 0), at(7, 4000)));
            assert_eq!(begin.names.len(), 3, "what is archived from there on is compared");
            let behind = begin.behind.unwrap();
            assert!(behind.is_gap);
            assert_eq!((behind.begin.at, behind.begin.durable), (at(9, 0), at(9, 500)));
        }
    }

    #[tokio::test]
    async fn what_a_slot_holds_back_is_received_also_when_nothing_before_it_is_archived() {
        let world = World::new().await;
        for number in 5..=11 {
            world.put(number, 1, LENGTH).await;
        }
        let whole = begin(&world, Some(slot(at(5, 10)))).await;
        assert_eq!((whole.at, whole.durable, whole.behind), (at(12, 0), at(12, 0), None));
        let whole = begin(&world, Some(slot(at(13, 0)))).await;
        assert_eq!((whole.at, whole.durable, whole.behind), (at(12, 0), at(12, 0), None));
        let begin = begin(&world, Some(slot(at(3, 10)))).await;
        assert_eq!((begin.at, begin.durable), (at(3, 0), at(3, 0)));
        let behind = begin.behind.unwrap();
        assert_eq!((behind.begin.at, behind.is_gap), (at(12, 0), false));
    }

    #[tokio::test]
    async fn a_hole_that_the_server_no_longer_fills_is_passed_over_alone() {
        let world = World::new().await;
        for number in [1, 3, 5] {
            world.put(number, 1, LENGTH).await;
        }
        // The slot says that nothing is needed from before the archive's beginning.
        let mut next = begin(&world, Some(slot(at(2, 0)))).await;
        for (number, is_gap) in [(2, true), (4, true)] {
            assert_eq!((next.at, next.durable), (at(number, 0), at(number, 0)));
            let behind = next.behind.unwrap();
            assert_eq!(behind.is_gap, is_gap);
            next = behind.begin;
        }
        assert_eq!((next.at, next.behind), (at(6, 0), None));
        // Without one that is not known.
        world.put(9, 1, LENGTH).await;
        let mut next = begin(&world, None).await;
        let mut found = vec![next.at];
        while let Some(behind) = next.behind {
            next = behind.begin;
            found.push(next.at);
        }
        assert_eq!(found, [at(6, 0), at(10, 0)]);
    }

    #[tokio::test]
    async fn behind_a_hole_before_a_switch_lies_the_next_timeline() {
        let world = World::new().await;
        let places = vec![(at(6, 10), true), (at(7, 4000), true), (at(9, 500), true)];
        let end = ArchiveEnd { timeline: Timeline::FIRST, places, names: Vec::new() };
        let second = Timeline::new(2).unwrap();
        let history = History::parse(second, format!("1\t{}\tx\n", at(8, 100)).as_bytes()).unwrap();
        let archive = world.archive().await;
        let identity = identity(2, at(13, 0));
        let begin = after(&archive, &end, &history, &identity, false, size()).await.unwrap();
        assert_eq!((begin.timeline, begin.at), (Timeline::FIRST, at(6, 0)));
        let begin = begin.behind.unwrap().begin;
        assert_eq!((begin.timeline, begin.at), (Timeline::FIRST, at(7, 0)));
        let behind = begin.behind.unwrap();
        assert!(behind.is_gap);
        let begin = behind.begin;
        assert_eq!((begin.timeline, begin.at, begin.durable), (second, at(8, 0), at(8, 100)));
        assert_eq!(begin.behind, None, "of the first one nobody has what was archived behind that");
    }

    #[tokio::test]
    async fn a_standby_that_has_less_than_the_archive_is_waited_for() {
        let world = World::new().await;
        let end = |last: Lsn| ArchiveEnd {
            timeline: Timeline::FIRST,
            places: vec![(last, true)],
            names: Vec::new(),
        };
        let (archive, history) = (world.archive().await, History::root(Timeline::FIRST));
        let after = async |last: Lsn, at: Lsn, standby: bool| {
            after(&archive, &end(last), &history, &identity(1, at), standby, size()).await
        };
        let refused = after(at(9, 500), at(8, 100), true).await.unwrap_err();
        assert!(matches!(refused, ReceiveError::Behind { .. }) && refused.is_passing(), "{refused}");
        // It is in the same block, from whose beginning it streams.
        assert_eq!(after(at(9, 500), at(9, 100), true).await.unwrap().at, at(9, 0));
        assert_eq!(after(at(9, 0), at(9, 0), true).await.unwrap().at, at(9, 0));
        let refused = after(at(9, 500), at(9, 100), false).await.unwrap_err();
        assert!(matches!(refused, ReceiveError::Diverged { .. }) && !refused.is_passing(), "{refused}");
    }

    #[tokio::test]
    async fn the_archive_of_a_later_timeline_begins_where_that_does() {
        let world = World::new().await;
        let place = WalPlace::Bytes { file: segment(9).file_number(size()), from: 0, to: 100 };
        world.archive().await.put(2, place, Bytes::from(vec![1; 100]), None).await.unwrap();
        let history = format!("1\t{}\tx\n", at(9, 50));
        let answers = vec![(
            "TIMELINE_HISTORY 2",
            row(&[("filename", "00000002.history"), ("content", history.as_str())]),
        )];
        let (_dir, mut client) = played(answers).await;
        let identity = identity(2, at(13, 0));
        let archive = world.archive().await;
        let begin = find(&mut client, &archive, &identity, size(), Some(&slot(at(8, 0)))).await.unwrap();
        assert_eq!((begin.at, begin.durable, begin.behind), (at(9, 0), at(9, 100), None));
    }

    #[tokio::test]
    async fn only_a_slot_that_is_lost_is_to_be_dropped() {
        for (kind, status, dropped) in [("physical", "lost", true), ("logical", "reserved", false)] {
            let answer = row(&[
                ("slot_type", kind),
                ("active", "f"),
                ("restart_lsn", "0/5000000"),
                ("wal_status", status),
                ("safe_wal_size", "1"),
                ("lag", "1"),
            ]);
            let (_dir, mut client) = played(vec![("SELECT slot_type", answer)]).await;
            let options = ReceiveOptions { slot: SlotName::new("keepwell"), ..ReceiveOptions::default() };
            let refused = super::slot(&mut client, &options).await.unwrap_err();
            assert!(matches!(refused, ReceiveError::BadSlot { .. }), "{refused}");
            assert_eq!(refused.hint().unwrap().contains("Drop it"), dropped, "{kind}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_refused_leaves_no_history_behind() {
        let world = World::new().await;
        world.put(9, 1, LENGTH).await;
        let archive = world.archive().await;
        let ours = format!("1\t{}\tx\n", at(10, 0)).into_bytes();
        keep_history(&archive, Timeline::new(2).unwrap(), ours.clone()).await.unwrap();
        let third = WalPlace::Bytes { file: segment(10).file_number(size()), from: 0, to: 100 };
        archive.put(2, third, Bytes::from(vec![1; 100]), None).await.unwrap();
        // It knows nothing of timeline 2.
        let other = format!("1\t{}\ty\n", at(9, 50));
        let answers = |timeline: &'static str, file| {
            vec![(timeline, row(&[("filename", file), ("content", other.as_str())]))]
        };
        let (_dir, mut client) = played(answers("TIMELINE_HISTORY 3", "00000003.history")).await;
        let refused = find(&mut client, &archive, &identity(3, at(13, 0)), size(), None).await.unwrap_err();
        assert!(matches!(refused, ReceiveError::Diverged { .. }), "{refused}");
        assert_eq!(archive.timelines().await.unwrap(), [1, 2]);
        // Both were promoted to timeline 2.
        let (_dir, mut client) = played(answers("TIMELINE_HISTORY 2", "00000002.history")).await;
        let refused = find(&mut client, &archive, &identity(2, at(13, 0)), size(), None).await.unwrap_err();
        assert!(matches!(refused, ReceiveError::OtherHistory { .. }), "{refused}");
        assert_eq!(archive.pieces_from(2, u64::MAX).await.unwrap().len(), 1);
        keep_history(&archive, Timeline::new(2).unwrap(), ours).await.unwrap();
    }
}
