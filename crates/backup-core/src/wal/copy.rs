//! Taking an archived log along to another store.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use keepwell_catalog::wal::{self, WalName, WalPlace};
use keepwell_crypto::MemberId;
use tokio::task::JoinSet;

use super::trim::WalFloor;
use super::{Archived, WalReader, WalWriter};
use crate::Error;
use crate::repository::Repository;

/// Pieces on their way at once; each takes at most some 32 MiB.
const COPIES_MAX: usize = 4;

/// What a copy of archived logs did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WalCopyReport {
    /// Pieces and history files that were stored.
    pub stored: u64,
    /// Their plain or stored bytes, depending on how they were copied.
    pub bytes: u64,
}

impl Repository {
    /// Copies the archived logs of clusters into another store, from each one's floor on: what is missing there.
    ///
    /// Into a store of the same repository pieces go as they are; into another one they are opened, and sealed and signed
    /// anew by the target's credential. A copy that was interrupted goes on. Costs a listing on both sides.
    pub async fn copy_wal(&self, target: &Self, floors: &[WalFloor]) -> Result<WalCopyReport, Error> {
        let mut report = WalCopyReport::default();
        for floor in floors {
            if self.id() == target.id() {
                self.copy_as_it_is(target, floor, &mut report).await?;
            } else {
                self.copy_anew(target, floor, &mut report).await?;
            }
        }
        Ok(report)
    }

    async fn copy_as_it_is(
        &self,
        target: &Self,
        floor: &WalFloor,
        report: &mut WalCopyReport,
    ) -> Result<(), Error> {
        let members: Vec<MemberId> = self.chain().members().map(|member| member.id()).collect();
        for member in members {
            let prefix = wal::system_prefix(member, floor.system);
            let there = target.list(&prefix).await?;
            let mut running = JoinSet::new();
            for info in self.list(&prefix).await? {
                let known = there.binary_search_by(|known| known.key.cmp(&info.key)).is_ok();
                let wanted = info.key.as_str().parse().is_ok_and(|name| is_wanted(&name, floor));
                if known || !wanted {
                    continue;
                }
                if running.len() >= COPIES_MAX {
                    settle(running.join_next().await, report)?;
                }
                let (from, to) = (self.clone(), target.clone());
                running.spawn(async move {
                    let bytes = from.store().get(&info.key).await?;
                    to.put_own(&info.key, bytes).await?;
                    Ok(info.size)
                });
            }
            while let Some(ended) = running.join_next().await {
                settle(Some(ended), report)?;
            }
        }
        Ok(())
    }

    async fn copy_anew(
        &self,
        target: &Self,
        floor: &WalFloor,
        report: &mut WalCopyReport,
    ) -> Result<(), Error> {
        let reader = self.wal_reader(floor.system)?;
        let own = target.writer()?;
        let prefix = wal::system_prefix(own, floor.system);
        let there = target.list(&prefix).await?;
        let there: Vec<WalName> = there.iter().filter_map(|info| info.key.as_str().parse().ok()).collect();
        let mut wanted = Vec::new();
        for member in reader.writers().await? {
            for timeline in reader.timelines(member).await? {
                let pieces = reader.pieces_from(member, timeline, 0).await?;
                wanted.extend(pieces.into_iter().filter(|name| is_wanted(name, floor)));
            }
        }
        // Hashes differ from store to store, so places have to do. Where they do not, because several pieces differ there,
        // or may (history files are few and small), each is stored, which does nothing for one that is there.
        let place = |name: &WalName| (name.timeline, name.place);
        let known: HashSet<_> = there.iter().map(place).collect();
        let mut pieces: HashMap<_, u64> = HashMap::new();
        wanted.iter().for_each(|name| *pieces.entry(place(name)).or_default() += 1);
        let is_known = |name: &WalName| {
            name.place != WalPlace::History && pieces[&place(name)] == 1 && known.contains(&place(name))
        };
        for name in wanted.iter().filter(|name| !is_known(name)) {
            store_anew(&reader, target, own, name, report).await?;
        }
        Ok(())
    }
}

async fn store_anew(
    reader: &WalReader,
    target: &Repository,
    own: MemberId,
    name: &WalName,
    report: &mut WalCopyReport,
) -> Result<(), Error> {
    let piece = reader.read(name).await?;
    let writer = WalWriter::of(target, own, name.system, piece.header.file_bytes);
    let length = piece.plaintext.len() as u64;
    // The piece before has another hash there, and its neighbours are named by their places anyway.
    let (archived, _) = writer.put(name.timeline, name.place, Bytes::from(piece.plaintext), None).await?;
    if archived == Archived::Stored {
        report.stored += 1;
        report.bytes += length;
    }
    Ok(())
}

fn is_wanted(name: &WalName, floor: &WalFloor) -> bool {
    match name.place {
        WalPlace::Bytes { file, .. } => file >= floor.file,
        WalPlace::History => true,
    }
}

fn settle(
    ended: Option<Result<Result<u64, Error>, tokio::task::JoinError>>,
    report: &mut WalCopyReport,
) -> Result<(), Error> {
    if let Some(ended) = ended {
        report.bytes += ended.map_err(|error| Error::Task(error.to_string()))??;
        report.stored += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::testing::World;

    async fn archived(repository: &Repository) -> Vec<(u32, WalPlace, Vec<u8>)> {
        let reader = repository.wal_reader(7).unwrap();
        let mut found = Vec::new();
        for writer in reader.writers().await.unwrap() {
            for timeline in reader.timelines(writer).await.unwrap() {
                for name in reader.pieces_from(writer, timeline, 0).await.unwrap() {
                    found.push((timeline, name.place, reader.read(&name).await.unwrap().plaintext));
                }
            }
        }
        found
    }

    async fn origin() -> World {
        let world = World::new().await;
        let log = world.repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
        for (file, content) in [(3, &b"old"[..]), (4, b"needed"), (5, b"newest")] {
            let place = WalPlace::Bytes { file, from: 0, to: content.len() as u32 };
            log.put(1, place, Bytes::from_static(content), None).await.unwrap();
        }
        log.put(2, WalPlace::History, Bytes::from_static(b"1\t0/5\tx\n"), None).await.unwrap();
        world
    }

    #[tokio::test]
    async fn both_sides_of_a_conflict_arrive_also_one_after_the_other() {
        let (world, floor) = (World::new().await, [WalFloor { system: 7, file: 0 }]);
        let target = World::new().await.repository;
        let log = world.repository.wal_writer("db", 7, 1 << 20, false).await.unwrap();
        let place = WalPlace::Bytes { file: 3, from: 0, to: 4 };
        for (text, stored) in [(&b"same"[..], 1), (b"else", 1)] {
            log.put(1, place, Bytes::from_static(text), None).await.unwrap();
            assert_eq!(world.repository.copy_wal(&target, &floor).await.unwrap().stored, stored);
        }
        assert_eq!(archived(&target).await.len(), 2);
        assert_eq!(world.repository.copy_wal(&target, &floor).await.unwrap().stored, 0);
    }

    #[tokio::test]
    async fn the_log_goes_along_from_the_floor_on_and_only_once() {
        let (world, floor) = (origin().await, [WalFloor { system: 7, file: 4 }]);
        let expected: Vec<_> = archived(&world.repository).await.into_iter().skip(1).collect();
        let store = Arc::new(keepwell_storage::Memory::new());
        world.repository.create_copy(&*store).await.unwrap();
        let same = Repository::builder(store).open(world.key.clone()).await.unwrap();
        let other = World::new().await.repository;
        for target in [same, other] {
            assert_eq!(world.repository.copy_wal(&target, &floor).await.unwrap().stored, 3);
            assert_eq!(archived(&target).await, expected);
            assert_eq!(world.repository.copy_wal(&target, &floor).await.unwrap().stored, 0);
        }
    }
}
