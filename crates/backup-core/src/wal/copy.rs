//! Taking an archived log along to another store.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use keepwell_catalog::wal::{self, WalName, WalPlace};
use keepwell_crypto::MemberId;
use keepwell_crypto::trust::Member;
use keepwell_storage::ObjectInfo;
use tokio::task::JoinSet;

use super::trim::WalFloor;
use super::{Archived, WalReader, WalWriter};
use crate::Error;
use crate::repository::{Repository, fetch_listed};

/// Pieces on their way at once; each takes at most some 32 MiB.
const COPIES_MAX: usize = 4;
/// How often an archive is listed from which pieces are removed meanwhile.
const LISTINGS_MAX: usize = 20;

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
    /// Into a store of the same repository pieces go as they are, after the trust and keys that they need
    /// ([`Repository::copy_to_store`]); into another one they are opened, and sealed and signed anew by the target's
    /// credential. A copy that was interrupted or cancelled goes on. [`Error::Damaged`] when all was copied but for pieces that
    /// are damaged, here or there. Costs a listing on both sides.
    pub async fn copy_wal(&self, target: &Self, floors: &[WalFloor]) -> Result<WalCopyReport, Error> {
        let mut report = WalCopyReport::default();
        let copied = self.copy_listed(target, floors, &mut report);
        // Pieces are what a cancelled archiver may still store; a copy need not.
        target.until_cancelled(self.until_cancelled(copied)).await?;
        Ok(report)
    }

    /// A tail that a keeper has removed since it was listed lies in another piece, which was there before: then it is
    /// listed again.
    async fn copy_listed(
        &self,
        target: &Self,
        floors: &[WalFloor],
        report: &mut WalCopyReport,
    ) -> Result<(), Error> {
        for _ in 0..LISTINGS_MAX {
            let round = match self.id() == target.id() {
                true => self.copy_as_it_is(target, floors, report).await?,
                false => self.copy_all_anew(target, floors, report).await?,
            };
            if !round.gone {
                return round.damaged.map_or(Ok(()), Err);
            }
        }
        Err(Error::Invalid("pieces of the log are removed as fast as they are listed".into()))
    }

    async fn copy_as_it_is(
        &self,
        target: &Self,
        floors: &[WalFloor],
        report: &mut WalCopyReport,
    ) -> Result<Round, Error> {
        // Listed before the keys go along: what is listed was sealed under keys that are there by then.
        let missing = self.missing_pieces(target, floors).await?;
        self.bring_trust(target).await?;
        let (mut running, mut round) = (JoinSet::new(), Round::default());
        for info in missing {
            if running.len() >= COPIES_MAX
                && let Some(ended) = running.join_next().await
            {
                round.take(self, joined(ended), report)?;
            }
            let (from, to) = (self.clone(), target.clone());
            running.spawn(async move { copy_piece(&from, &to, &info).await });
        }
        while let Some(ended) = running.join_next().await {
            round.take(self, joined(ended), report)?;
        }
        Ok(round)
    }

    async fn copy_all_anew(
        &self,
        target: &Self,
        floors: &[WalFloor],
        report: &mut WalCopyReport,
    ) -> Result<Round, Error> {
        let mut round = Round::default();
        for floor in floors {
            self.copy_anew(target, floor, &mut round, report).await?;
        }
        Ok(round)
    }

    async fn missing_pieces(&self, target: &Self, floors: &[WalFloor]) -> Result<Vec<ObjectInfo>, Error> {
        let members: Vec<MemberId> = self.refresh_trust().await?.members().map(Member::id).collect();
        let mut missing = Vec::new();
        for floor in floors {
            for member in &members {
                let prefix = wal::system_prefix(*member, floor.system);
                let there = target.list(&prefix).await?;
                let mut here = self.list(&prefix).await?;
                here.retain(|info| {
                    let known = there.binary_search_by(|known| known.key.cmp(&info.key)).is_ok();
                    !known && info.key.as_str().parse().is_ok_and(|name| is_wanted(&name, floor))
                });
                missing.extend(here);
            }
        }
        Ok(missing)
    }

    async fn copy_anew(
        &self,
        target: &Self,
        floor: &WalFloor,
        round: &mut Round,
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
            round.take(self, store_anew(&reader, target, own, name).await, report)?;
        }
        Ok(())
    }
}

/// What became of a piece that was to be copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    /// It was stored, with so many bytes.
    Stored(u64),
    /// It was there.
    Already,
    /// It is in the origin no more.
    Gone,
}

/// What became of the pieces of one listing.
#[derive(Debug, Default)]
struct Round {
    /// Some that were listed were gone.
    gone: bool,
    /// What is wrong with the first that could not be copied because it is damaged.
    damaged: Option<Error>,
}

impl Round {
    /// A damaged piece is named, and keeps no other from being copied: those that come after it are the newest.
    fn take(
        &mut self,
        origin: &Repository,
        copied: Result<Copied, Error>,
        report: &mut WalCopyReport,
    ) -> Result<(), Error> {
        match copied {
            Ok(Copied::Stored(bytes)) => {
                report.bytes += bytes;
                report.stored += 1;
            }
            Ok(Copied::Already) => {}
            Ok(Copied::Gone) => self.gone = true,
            Err(error @ Error::Damaged { .. }) => {
                origin.monitor().problem("archived WAL", &crate::error::one_line(&error));
                self.damaged.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn joined(ended: Result<Result<Copied, Error>, tokio::task::JoinError>) -> Result<Copied, Error> {
    ended.unwrap_or_else(|error| Err(Error::Task(error.to_string())))
}

/// Nothing damaged is copied, as far as the credential can read: under the name of the piece it would stand for it for ever.
/// What stands under the name by then is proved likewise where it has other bytes: a piece is sealed anew each time, so that
/// the same content may have others.
async fn copy_piece(from: &Repository, to: &Repository, info: &ObjectInfo) -> Result<Copied, Error> {
    let key = &info.key;
    let bytes = match fetch_listed(from.store(), info).await {
        Ok(bytes) => bytes,
        Err(Error::Storage(error)) if error.is_not_found() => return Ok(Copied::Gone),
        Err(error) => return Err(error),
    };
    let name: WalName = key.as_str().parse().map_err(|e| Error::damaged(key, e))?;
    if from.can_read() {
        from.wal_reader(name.system)?.prove(&name, bytes.clone()).await?;
    }
    let size = bytes.len() as u64;
    if to.put_own(key, bytes).await? {
        return Ok(Copied::Stored(size));
    }
    if to.can_read() {
        to.wal_reader(name.system)?.read(&name).await?;
    }
    Ok(Copied::Already)
}

async fn store_anew(
    reader: &WalReader,
    target: &Repository,
    own: MemberId,
    name: &WalName,
) -> Result<Copied, Error> {
    let piece = match reader.read(name).await {
        Err(Error::Storage(error)) if error.is_not_found() => return Ok(Copied::Gone),
        read => read?,
    };
    let writer = WalWriter::of(target, own, name.system, piece.header.file_bytes);
    let length = piece.plaintext.len() as u64;
    // The piece before has another hash there, and its neighbours are named by their places anyway.
    match writer.put(name.timeline, name.place, Bytes::from(piece.plaintext), None).await? {
        (Archived::Stored, _) => Ok(Copied::Stored(length)),
        (Archived::Already, _) => Ok(Copied::Already),
    }
}

fn is_wanted(name: &WalName, floor: &WalFloor) -> bool {
    match name.place {
        WalPlace::Bytes { file, .. } => file >= floor.file,
        WalPlace::History => true,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use keepwell_storage::{Key, Memory, ObjectStore, Operation};

    use super::*;
    use crate::Cancel;
    use crate::testing::{Hook, Hooked, World};

    /// Something happens when a certain object is asked for the first time.
    #[derive(Debug)]
    struct When {
        key: Key,
        then: Mutex<Option<Then>>,
    }

    #[derive(Debug)]
    enum Then {
        Cancelled(Cancel),
        Gone,
    }

    #[async_trait]
    impl Hook for When {
        async fn before(&self, inner: &Memory, operation: Operation, subject: &str) {
            if !matches!(operation, Operation::Get | Operation::Head) || subject != self.key.as_str() {
                return;
            }
            let then = self.then.lock().unwrap().take();
            match then {
                Some(Then::Cancelled(cancel)) => {
                    cancel.cancel();
                    // An answer would race with the cancellation: with few pieces, the copy might end first.
                    std::future::pending().await
                }
                Some(Then::Gone) => inner.delete(&self.key).await.unwrap(),
                None => {}
            }
        }
    }

    /// Targets to copy to: another store of the same repository, and another repository.
    async fn targets(world: &World) -> [Repository; 2] {
        let store = Arc::new(Memory::new());
        world.repository.create_copy(&*store).await.unwrap();
        let same = Repository::builder(store).open(world.key.clone()).await.unwrap();
        [same, World::new().await.repository]
    }

    /// The first piece of a file.
    async fn piece_of(repository: &Repository, file: u64) -> WalName {
        let reader = repository.wal_reader(7).unwrap();
        let writer = reader.writers().await.unwrap()[0];
        reader.pieces_from(writer, 1, file).await.unwrap()[0]
    }

    #[tokio::test]
    async fn a_copy_of_a_log_is_cancelled() {
        let (world, floor) = (origin().await, [WalFloor { system: 7, file: 0 }]);
        for target in targets(&world).await {
            let (inner, cancel) = (world.store.inner().clone(), Cancel::default());
            let key = piece_of(&world.repository, 4).await.key();
            let then = Mutex::new(Some(Then::Cancelled(cancel.clone())));
            let builder =
                Repository::builder(Arc::new(Hooked::new(inner, When { key, then }))).cancel(cancel);
            let repository = builder.open(world.key.clone()).await.unwrap();
            let copied = repository.copy_wal(&target, &floor).await;
            assert!(matches!(copied, Err(Error::Cancelled)), "{copied:?}");
            world.repository.copy_wal(&target, &floor).await.unwrap();
            assert_eq!(archived(&target).await.len(), 4, "the next one goes on");
        }
    }

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
        for target in targets(&world).await {
            assert_eq!(world.repository.copy_wal(&target, &floor).await.unwrap().stored, 3);
            assert_eq!(archived(&target).await, expected);
            assert_eq!(world.repository.copy_wal(&target, &floor).await.unwrap().stored, 0);
        }
    }

    #[tokio::test]
    async fn a_tail_that_is_removed_after_it_was_listed_ends_no_copy() {
        for which in 0..2 {
            let (world, floor) = (origin().await, [WalFloor { system: 7, file: 0 }]);
            let target = targets(&world).await.into_iter().nth(which).unwrap();
            let tail = piece_of(&world.repository, 5).await;
            let (inner, then) = (world.store.inner().clone(), Mutex::new(Some(Then::Gone)));
            let store = Hooked::new(inner, When { key: tail.key(), then });
            let repository = Repository::builder(Arc::new(store)).open(world.key.clone()).await.unwrap();
            assert_eq!(repository.copy_wal(&target, &floor).await.unwrap().stored, 3);
            assert_eq!(archived(&target).await, archived(&world.repository).await);
        }
    }

    #[tokio::test]
    async fn other_bytes_under_the_name_of_a_piece_are_not_that_piece() {
        let world = origin().await;
        let [target, _] = targets(&world).await;
        let key = piece_of(&world.repository, 4).await.key();
        let listed = world.store.head(&key).await.unwrap();
        let copied = async || copy_piece(&world.repository, &target, &listed).await;
        assert!(matches!(copied().await, Ok(Copied::Stored(_))));
        assert_eq!(
            copied().await.unwrap(),
            Copied::Stored(world.store.get(&key).await.unwrap().len() as u64)
        );
        target.store().delete(&key).await.unwrap();
        target.store().put_new(&key, Bytes::from_static(b"something else")).await.unwrap();
        assert!(matches!(copied().await, Err(Error::Damaged { .. })));
        world.delete(key.as_str()).await;
        assert_eq!(copied().await.unwrap(), Copied::Gone);
    }

    #[tokio::test]
    async fn a_damaged_piece_is_not_copied_and_keeps_no_other_from_being_copied() {
        for which in 0..2 {
            let (world, floor) = (origin().await, [WalFloor { system: 7, file: 0 }]);
            let target = targets(&world).await.into_iter().nth(which).unwrap();
            let key = piece_of(&world.repository, 3).await.key();
            let sound = world.store.get(&key).await.unwrap();
            let mut rotten = sound.to_vec();
            *rotten.last_mut().unwrap() ^= 1;
            world.delete(key.as_str()).await;
            world.store.put_new(&key, rotten.into()).await.unwrap();
            let copied = world.repository.copy_wal(&target, &floor).await;
            assert!(matches!(copied, Err(Error::Damaged { .. })), "{copied:?}");
            assert_eq!(archived(&target).await.len(), 3);
            world.delete(key.as_str()).await;
            world.store.put_new(&key, sound).await.unwrap();
            assert_eq!(world.repository.copy_wal(&target, &floor).await.unwrap().stored, 1);
            assert_eq!(archived(&target).await, archived(&world.repository).await);
        }
    }
}
