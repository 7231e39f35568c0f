//! Removing what nobody needs any more of an archived log. The rule and its reasons are in docs/pruning.md.

use std::future::Future;

use keepwell_catalog::wal::{self, WalName, WalPlace};
use keepwell_crypto::MemberId;
use keepwell_storage::ObjectInfo;

use crate::Error;
use crate::prune::{PruneOptions, delete_all, settle_sessions};
use crate::repository::Repository;

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
    /// Pieces that another one holds as a whole.
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

impl Repository {
    /// Removes pieces before the floors that `floors` names, and pieces that others hold as a whole.
    ///
    /// Of a cluster without a floor nothing is removed but the latter; history files stay. Needs the keeper role. Before
    /// anything is deleted, running sessions are waited for as in a prune, and `floors` is asked again: a base backup that
    /// was being taken has been committed by then, or never will be. Costs a listing of the archive, twice if something
    /// goes.
    pub async fn trim_wal<E, F, Fut>(&self, options: &PruneOptions, floors: F) -> Result<WalTrimReport, E>
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
        let planned = self.outdated_wal(&floors(self.clone()).await?).await?;
        if options.dry_run || planned.0.is_idle() {
            return Ok(planned.0);
        }
        settle_sessions(self, options.fence_after).await?;
        let (report, keys) = self.outdated_wal(&floors(self.clone()).await?).await?;
        delete_all(self, &keys).await?;
        Ok(report)
    }

    async fn outdated_wal(&self, floors: &[WalFloor]) -> Result<(WalTrimReport, Vec<String>), Error> {
        let (mut report, mut keys) = (WalTrimReport::default(), Vec::new());
        let members: Vec<MemberId> = self.chain().members().map(|member| member.id()).collect();
        for system in self.wal_systems().await? {
            let floor = floors.iter().find(|floor| floor.system == system).map_or(0, |floor| floor.file);
            for member in &members {
                let listed = self.list(&wal::system_prefix(*member, system)).await?;
                let pieces: Vec<Piece> = listed.iter().filter_map(Piece::of).collect();
                for file in pieces.chunk_by(|a, b| (a.timeline, a.file) == (b.timeline, b.file)) {
                    let outdated = file[0].file < floor;
                    let going = if outdated { file.iter().collect() } else { superseded(file) };
                    let counter = if outdated { &mut report.outdated } else { &mut report.superseded };
                    *counter += going.len() as u64;
                    report.bytes += going.iter().map(|piece| piece.size).sum::<u64>();
                    keys.extend(going.iter().map(|piece| piece.key.clone()));
                }
            }
        }
        Ok((report, keys))
    }
}

/// A stretch of a file in the archive.
struct Piece {
    key: String,
    size: u64,
    timeline: u32,
    file: u64,
    range: (u32, u32),
}

impl Piece {
    /// `None` for a history file.
    fn of(info: &ObjectInfo) -> Option<Self> {
        let name: WalName = info.key.as_str().parse().ok()?;
        let WalPlace::Bytes { file, from, to } = name.place else { return None };
        let (key, size, timeline) = (info.key.as_str().to_owned(), info.size, name.timeline);
        Some(Self { key, size, timeline, file, range: (from, to) })
    }
}

/// The pieces of a file that lie within another one. Of two with the same range, which is a conflict, none goes by the
/// other.
fn superseded(file: &[Piece]) -> Vec<&Piece> {
    let mut order: Vec<&Piece> = file.iter().collect();
    order.sort_by_key(|piece| (piece.range.0, u32::MAX - piece.range.1));
    let mut longest: Option<(u32, u32)> = None;
    let mut going = Vec::new();
    for piece in order {
        match longest {
            Some(range) if piece.range.1 <= range.1 && piece.range != range => going.push(piece),
            Some(range) if piece.range.1 <= range.1 => {}
            _ => longest = Some(piece.range),
        }
    }
    going
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::testing::World;

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
    async fn floors_are_asked_again_after_running_sessions_have_ended() {
        let world = world().await;
        let asked = std::sync::atomic::AtomicU64::new(0);
        let options = PruneOptions::default();
        let floors = |_| {
            // A base backup that was committed meanwhile needs more.
            let file = if asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 { 6 } else { 4 };
            std::future::ready(Ok::<_, Error>(vec![WalFloor { system: 7, file }]))
        };
        let report = world.repository.trim_wal(&options, floors).await.unwrap();
        assert_eq!((report.outdated, report.superseded), (1, 2));
    }

    #[tokio::test]
    async fn only_a_keeper_removes() {
        let world = world().await;
        let host = world.enrol_writer().await;
        assert!(matches!(trim(&host, &[], false).await, Err(Error::NotAllowed { .. })));
    }
}
