//! Removing what nobody needs any more of an archived log. The rule and its reasons are in docs/pruning.md.

use std::future::Future;

use keepwell_catalog::wal::{self, WalHash, WalName, WalPlace};
use keepwell_crypto::MemberId;
use keepwell_storage::ObjectInfo;

use crate::Error;
use crate::planted::planted;
use crate::prune::{PruneOptions, Young, decided, delete_all, demand_exclusive_create, settle_sessions};
use crate::repository::{Repository, read_ends};

/// What of a cluster's log has to stay: this file and all behind it, on every timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalFloor {
    /// The cluster.
    pub system: u64,
    /// The first file that is needed, as in the names of pieces.
    pub file: u64,
}

/// What was removed of archived logs, or would be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalTrimReport {
    /// Pieces that lie before every floor of their cluster.
    pub outdated: u64,
    /// Pieces that another one holds as a whole; in a dry run, by their names.
    pub superseded: u64,
    /// Stored bytes of both.
    pub bytes: u64,
}

impl WalTrimReport {
    /// Whether there is nothing to remove.
    pub fn is_idle(&self) -> bool {
        self.outdated + self.superseded == 0
    }
}

/// What becomes of pieces that others hold as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tails {
    GoByOthers,
    Stay,
}

impl Repository {
    /// Removes pieces before the floors that `floors` names, and pieces that others hold as a whole.
    ///
    /// Of a cluster without a floor nothing is removed but the latter; history files stay, and so does what the bucket keeps
    /// for a time. Needs the keeper role. Fails where a commit does not verify, since it may be that of a base backup, and
    /// like a prune on a store that does not create exclusively.
    ///
    /// Before anything is deleted, running sessions are waited for as in a prune, and `floors` is asked again: a base backup
    /// that was being taken has been committed by then, or never will be. Of both answers the lower floor counts: a base
    /// backup that began meanwhile needs nothing before the first, and may not show in the second. A piece goes by another
    /// one only after that was read and proved to hold the same bytes, which takes a credential that can read. Costs a listing
    /// of the archive, twice if something goes, and of the commits, and reading each piece by which others go.
    pub async fn trim_wal<E, F, Fut>(&self, options: &PruneOptions, floors: F) -> Result<WalTrimReport, E>
    where
        E: From<Error>,
        F: Fn(Self) -> Fut,
        Fut: Future<Output = Result<Vec<WalFloor>, E>>,
    {
        self.trim(options, floors, Tails::GoByOthers).await
    }

    /// The same, but for pieces that others hold as a whole: they stay. For a copy, which would get them again for as long
    /// as the origin has them.
    pub async fn trim_outdated_wal<E, F, Fut>(
        &self,
        options: &PruneOptions,
        floors: F,
    ) -> Result<WalTrimReport, E>
    where
        E: From<Error>,
        F: Fn(Self) -> Fut,
        Fut: Future<Output = Result<Vec<WalFloor>, E>>,
    {
        self.trim(options, floors, Tails::Stay).await
    }

    async fn trim<E, F, Fut>(
        &self,
        options: &PruneOptions,
        floors: F,
        tails: Tails,
    ) -> Result<WalTrimReport, E>
    where
        E: From<Error>,
        F: Fn(Self) -> Fut,
        Fut: Future<Output = Result<Vec<WalFloor>, E>>,
    {
        if !self.access().is_keeper() {
            return Err(self.access().cannot("remove archived WAL").into());
        }
        if self.wal_systems().await?.is_empty() {
            return Ok(WalTrimReport::default());
        }
        self.demand_all_commits().await?;
        let before = floors(self.clone()).await?;
        let planned = self.outdated_wal(&before, tails).await?;
        if options.dry_run || planned.0.is_idle() {
            return Ok(planned.0);
        }
        if !options.exclusive {
            demand_exclusive_create(self).await?;
        }
        settle_sessions(self, options.fence_after).await?;
        self.demand_all_commits().await?;
        let floors = lower(before, floors(self.clone()).await?);
        let (mut report, mut going) = self.outdated_wal(&floors, tails).await?;
        self.prove_covers(&mut report, &mut going).await?;
        let keys: Vec<String> = going.into_iter().map(|piece| piece.name.key().to_string()).collect();
        delete_all(self, &keys).await?;
        Ok(report)
    }

    /// Refuses where a commit does not verify: what is left out of the list of snapshots has a say in no floor.
    async fn demand_all_commits(&self) -> Result<(), Error> {
        let ends = read_ends(self).await?;
        if ends.1.is_empty() {
            return Ok(());
        }
        // A writer may have been enrolled since the trust chain was read.
        self.refresh_trust().await?;
        decided(read_ends(self).await?).map(drop)
    }

    /// Leaves out tails whose bytes the piece that should hold them does not: it may be damaged, or have others. A
    /// credential that cannot read proves nothing, and removes none.
    async fn prove_covers(&self, report: &mut WalTrimReport, going: &mut Vec<Piece>) -> Result<(), Error> {
        let mut read: Option<(WalName, Option<Vec<u8>>)> = None;
        let mut kept = Vec::with_capacity(going.len());
        for piece in std::mem::take(going) {
            if let Some(cover) = piece.cover {
                if read.as_ref().is_none_or(|(name, _)| *name != cover) {
                    read = Some((cover, self.read_cover(&cover).await?));
                }
                let bytes = read.as_ref().and_then(|(_, bytes)| within(&cover, &piece.name, bytes.as_ref()?));
                if bytes.is_none_or(|bytes| WalHash::of(&self.domain().id_key, bytes) != piece.name.hash) {
                    report.superseded -= 1;
                    report.bytes -= piece.size;
                    continue;
                }
            }
            kept.push(piece);
        }
        *going = kept;
        Ok(())
    }

    /// The bytes of a piece, proved; nothing, and a word to whoever looks on, if they cannot be had.
    async fn read_cover(&self, name: &WalName) -> Result<Option<Vec<u8>>, Error> {
        if !self.can_read() {
            return Ok(None);
        }
        match self.wal_reader(name.system)?.read(name).await {
            Ok(piece) => Ok(Some(piece.plaintext)),
            Err(Error::Storage(error)) if !error.is_not_found() => Err(Error::Storage(error)),
            Err(error) => {
                let reason = crate::error::one_line(&error);
                self.monitor().problem(name.key().as_str(), &reason);
                Ok(None)
            }
        }
    }

    async fn outdated_wal(
        &self,
        floors: &[WalFloor],
        tails: Tails,
    ) -> Result<(WalTrimReport, Vec<Piece>), Error> {
        let (mut report, mut all_going) = (WalTrimReport::default(), Vec::new());
        let members: Vec<MemberId> = self.chain().members().map(|member| member.id()).collect();
        let young = Young::ask(self).await?;
        for system in self.wal_systems().await? {
            let floor = floors.iter().find(|floor| floor.system == system).map_or(0, |floor| floor.file);
            for member in &members {
                let mut listed = self.list(&wal::system_prefix(*member, system)).await?;
                listed.retain(|info| !young.keeps(info.modified));
                let pieces: Vec<Piece> = listed.iter().filter_map(Piece::of).collect();
                for file in pieces.chunk_by(|a, b| (a.timeline, a.file) == (b.timeline, b.file)) {
                    let outdated = file[0].file < floor;
                    let going = match tails {
                        _ if outdated => file.to_vec(),
                        Tails::GoByOthers => superseded(file),
                        Tails::Stay => Vec::new(),
                    };
                    let counter = if outdated { &mut report.outdated } else { &mut report.superseded };
                    *counter += going.len() as u64;
                    report.bytes += going.iter().map(|piece| piece.size).sum::<u64>();
                    all_going.extend(going);
                }
            }
        }
        Ok((report, all_going))
    }
}

/// What has to stay by both, of clusters that both name.
fn lower(before: Vec<WalFloor>, now: Vec<WalFloor>) -> Vec<WalFloor> {
    if planted("log-floors-once") {
        return before;
    }
    if planted("log-floors-rise") {
        return now;
    }
    let both = |floor: WalFloor| {
        let other = before.iter().find(|other| other.system == floor.system)?;
        Some(WalFloor { file: floor.file.min(other.file), ..floor })
    };
    now.into_iter().filter_map(both).collect()
}

/// A stretch of a file in the archive.
#[derive(Debug, Clone, Copy)]
struct Piece {
    name: WalName,
    size: u64,
    timeline: u32,
    file: u64,
    range: (u32, u32),
    /// The piece that holds it as a whole, if it goes by that.
    cover: Option<WalName>,
}

impl Piece {
    /// `None` for a history file.
    fn of(info: &ObjectInfo) -> Option<Self> {
        let name: WalName = info.key.as_str().parse().ok()?;
        let WalPlace::Bytes { file, from, to } = name.place else { return None };
        let (size, timeline) = (info.size, name.timeline);
        Some(Self { name, size, timeline, file, range: (from, to), cover: None })
    }
}

/// The bytes of a piece that lies within another, as that one has them.
fn within<'b>(cover: &WalName, tail: &WalName, bytes: &'b [u8]) -> Option<&'b [u8]> {
    match (cover.place, tail.place) {
        (WalPlace::Bytes { from: start, .. }, WalPlace::Bytes { from, to, .. }) => {
            bytes.get(from.checked_sub(start)? as usize..to.checked_sub(start)? as usize)
        }
        _ => None,
    }
}

/// The pieces of a file that lie within another one, by their names. Of two with the same range, which is a conflict, none
/// goes by the other.
fn superseded(file: &[Piece]) -> Vec<Piece> {
    let mut order: Vec<&Piece> = file.iter().collect();
    order.sort_by_key(|piece| (piece.range.0, u32::MAX - piece.range.1));
    let mut longest: Option<&Piece> = None;
    let mut going = Vec::new();
    for piece in order {
        match longest {
            Some(other) if piece.range.1 <= other.range.1 && piece.range != other.range => {
                going.push(Piece { cover: Some(other.name), ..*piece });
            }
            Some(other) if piece.range.1 <= other.range.1 => {}
            _ => longest = Some(piece),
        }
    }
    going
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use bytes::Bytes;
    use keepwell_storage::{Capabilities, Key, Memory};

    use super::*;
    use crate::testing::{Hook, Hooked, TreeModel, World, back_up};

    async fn stored(world: &World) -> Vec<(u32, u64, u32, u32)> {
        let mut found = Vec::new();
        for system in world.repository.wal_systems().await.unwrap() {
            let reader = world.repository.wal_reader(system).unwrap();
            for writer in reader.writers().await.unwrap() {
                for timeline in reader.timelines(writer).await.unwrap() {
                    for name in reader.pieces_from(writer, timeline, 0).await.unwrap() {
                        found.push(match name.place {
                            WalPlace::Bytes { file, from, to } => (timeline, file, from, to),
                            WalPlace::History => (timeline, u64::MAX, 0, 0),
                        });
                    }
                }
            }
        }
        found
    }

    async fn world() -> World {
        let world = World::new().await;
        let log = world.repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
        for (timeline, file, from, to) in [
            (1, 3, 0, 9),
            (1, 4, 0, 2),
            (1, 4, 2, 5),
            (1, 4, 0, 9),
            (1, 5, 0, 2),
            (1, 5, 2, 5),
            (2, 4, 0, 9),
            (2, 6, 0, 3),
        ] {
            let content = vec![timeline as u8; (to - from) as usize];
            log.put(timeline, WalPlace::Bytes { file, from, to }, Bytes::from(content), None).await.unwrap();
        }
        log.put(2, WalPlace::History, Bytes::from_static(b"1\t0/5\tx\n"), None).await.unwrap();
        world
    }

    async fn trim(
        repository: &Repository,
        floors: &[WalFloor],
        dry_run: bool,
    ) -> Result<WalTrimReport, Error> {
        let options = PruneOptions { dry_run, ..PruneOptions::default() };
        let floors = floors.to_vec();
        repository.trim_wal(&options, move |_| std::future::ready(Ok(floors.clone()))).await
    }

    #[tokio::test]
    async fn what_lies_before_the_floor_goes_on_every_timeline_and_histories_stay() {
        let world = world().await;
        let floors = [WalFloor { system: 7, file: 5 }, WalFloor { system: 8, file: u64::MAX }];
        let planned = trim(&world.repository, &floors, true).await.unwrap();
        assert_eq!((planned.outdated, planned.superseded), (5, 0));
        assert_eq!(stored(&world).await.len(), 9, "a dry run removes nothing");
        assert_eq!(trim(&world.repository, &floors, false).await.unwrap(), planned);
        assert_eq!(stored(&world).await, [(1, 5, 0, 2), (1, 5, 2, 5), (2, 6, 0, 3), (2, u64::MAX, 0, 0)]);
        assert!(trim(&world.repository, &floors, false).await.unwrap().is_idle());
    }

    #[tokio::test]
    async fn without_a_base_backup_only_tails_go_that_a_block_holds() {
        let world = world().await;
        let report = trim(&world.repository, &[WalFloor { system: 8, file: 9 }], false).await.unwrap();
        assert_eq!((report.outdated, report.superseded), (0, 2));
        assert_eq!(stored(&world).await[..4], [(1, 3, 0, 9), (1, 4, 0, 9), (1, 5, 0, 2), (1, 5, 2, 5)]);
    }

    #[tokio::test]
    async fn what_a_copy_would_get_again_stays_there() {
        let world = world().await;
        let floors = |_| std::future::ready(Ok::<_, Error>(vec![WalFloor { system: 7, file: 4 }]));
        let report = world.repository.trim_outdated_wal(&PruneOptions::default(), floors).await.unwrap();
        assert_eq!((report.outdated, report.superseded), (1, 0));
        assert_eq!(stored(&world).await.len(), 8);
    }

    #[tokio::test]
    async fn nothing_goes_while_a_commit_does_not_verify() {
        let world = world().await;
        back_up(&world.repository, &TreeModel::default()).await;
        let key: Key = world.names("commits/").await[0].parse().unwrap();
        let mut bytes = world.repository.store().get(&key).await.unwrap().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        world.delete(key.as_str()).await;
        world.repository.store().put_new(&key, bytes.into()).await.unwrap();
        let repository = world.open(&world.key).await;
        for dry_run in [true, false] {
            let trimmed = trim(&repository, &[WalFloor { system: 7, file: 5 }], dry_run).await;
            assert!(matches!(trimmed, Err(Error::Damaged { .. })), "{trimmed:?}");
        }
        assert_eq!(stored(&world).await.len(), 9);
    }

    /// Says that it does not create exclusively.
    #[derive(Debug)]
    struct Shared;

    #[async_trait]
    impl Hook for Shared {
        fn capabilities(&self, _: &Memory) -> Capabilities {
            Capabilities { conditional_create: false }
        }
    }

    #[tokio::test]
    async fn beside_others_nothing_goes_from_a_store_that_does_not_create_exclusively() {
        let world = world().await;
        let store = Arc::new(Hooked::new(world.store.inner().clone(), Shared));
        let repository = Repository::builder(store).open(world.key.clone()).await.unwrap();
        let floors = |_| std::future::ready(Ok::<_, Error>(vec![WalFloor { system: 7, file: 4 }]));
        let refused = repository.trim_wal(&PruneOptions::default(), floors).await.unwrap_err();
        assert!(refused.to_string().contains("--exclusive"), "{refused}");
        assert_eq!(stored(&world).await.len(), 9);
        let exclusive = PruneOptions { exclusive: true, ..PruneOptions::default() };
        assert_eq!(repository.trim_wal(&exclusive, floors).await.unwrap().outdated, 1);
    }

    #[tokio::test]
    async fn two_contents_of_one_stretch_both_stay_to_be_seen() {
        let world = World::new().await;
        let log = world.repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
        for content in [&b"same"[..], b"else"] {
            let place = WalPlace::Bytes { file: 1, from: 0, to: 4 };
            log.put(1, place, Bytes::from_static(content), None).await.unwrap();
        }
        assert!(trim(&world.repository, &[], false).await.unwrap().is_idle());
    }

    #[tokio::test]
    async fn floors_are_asked_again_after_running_sessions_have_ended_and_the_lower_counts() {
        // A base backup that was committed meanwhile needs more; or the oldest of those that were retired meanwhile needed
        // more, and so may one that has begun since and is still being taken.
        for (first, second) in [(6, 4), (4, 6)] {
            let world = world().await;
            let asked = std::sync::atomic::AtomicU64::new(0);
            let floors = |_| {
                let is_first = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
                let file = if is_first { first } else { second };
                std::future::ready(Ok::<_, Error>(vec![WalFloor { system: 7, file }]))
            };
            let report = world.repository.trim_wal(&PruneOptions::default(), floors).await.unwrap();
            assert_eq!((report.outdated, report.superseded), (1, 2), "{first}, then {second}");
        }
    }

    #[tokio::test]
    async fn a_cluster_whose_first_base_backup_appears_meanwhile_keeps_its_log() {
        let world = world().await;
        let asked = std::sync::atomic::AtomicU64::new(0);
        let floors = |_| {
            let is_first = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
            let floors = if is_first { Vec::new() } else { vec![WalFloor { system: 7, file: 6 }] };
            std::future::ready(Ok::<_, Error>(floors))
        };
        let report = world.repository.trim_wal(&PruneOptions::default(), floors).await.unwrap();
        assert_eq!((report.outdated, report.superseded), (0, 2));
    }

    #[tokio::test]
    async fn tails_stay_where_the_block_cannot_be_read_or_has_other_bytes() {
        for damaged in [true, false] {
            let world = World::new().await;
            let log = world.repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
            let put = |from, to, text: &'static [u8]| {
                log.put(1, WalPlace::Bytes { file: 1, from, to }, Bytes::from_static(text), None)
            };
            put(0, 2, b"ab").await.unwrap();
            put(2, 4, if damaged { b"cd" } else { b"xx" }).await.unwrap();
            put(0, 6, b"abcdef").await.unwrap();
            if damaged {
                let block = log
                    .pieces_of(1, 1)
                    .await
                    .unwrap()
                    .into_iter()
                    .find(|name| matches!(name.place, WalPlace::Bytes { from: 0, to: 6, .. }));
                let key = block.unwrap().key();
                let mut bytes = world.repository.store().get(&key).await.unwrap().to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                world.delete(key.as_str()).await;
                world.repository.store().put_new(&key, bytes.into()).await.unwrap();
            }
            let report = trim(&world.repository, &[], false).await.unwrap();
            let (gone, left) = if damaged { (0, 3) } else { (1, 2) };
            assert_eq!((report.superseded, stored(&world).await.len()), (gone, left), "{damaged}");
        }
    }

    #[tokio::test]
    async fn only_a_keeper_removes() {
        let world = world().await;
        let host = world.enrol_writer().await;
        assert!(matches!(trim(&host, &[], false).await, Err(Error::NotAllowed { .. })));
    }
}
