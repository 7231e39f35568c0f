//! Reading records whose size nobody vouches for: who may write to a store chooses how large they are, and whoever reads
//! one holds it in memory.

use bytes::Bytes;
use keepwell_catalog::names::ObjectName;
use keepwell_storage::{Key, ObjectInfo, ObjectStore, StorageErrorKind};

use crate::Error;

/// Most bytes that are read, or written, of an object of this kind (format §1); `None` for what is not read whole here.
fn most_bytes(key: &Key) -> Option<u64> {
    use ObjectName as N;
    if key.as_str().starts_with("wal/") {
        return Some(64 << 20);
    }
    let name: ObjectName = key.as_str().parse().ok()?;
    match name {
        N::Hint => Some(1 << 20),
        N::Trust(_) | N::Session { .. } | N::Commit(..) => Some(4 << 20),
        N::Keyring { .. } | N::ErasableKey { .. } => Some(8 << 20),
        N::State(..) => Some(32 << 20),
        N::Manifest(_) | N::List(..) | N::Retired(_) => Some(80 << 20),
        N::Plan(_) | N::Kept(_) => Some(256 << 20),
        // Those of later versions are bounded where they are read.
        N::Pack(..) | N::Index(..) | N::Marks(_) | N::Ledger(..) | _ => None,
    }
}

/// An object that has at most so many bytes; of a larger one no more is held, whatever the store said of its size.
pub(crate) async fn fetch_at_most(store: &dyn ObjectStore, key: &Key, most: u64) -> Result<Bytes, Error> {
    match store.get_at_most(key, most).await {
        Err(error) if error.kind == StorageErrorKind::TooLarge => {
            Err(Error::damaged(key, format!("it has more than {most} bytes")))
        }
        fetched => Ok(fetched?),
    }
}

/// An object that a listing has shown, if it is no larger than one of its kind may be.
pub(crate) async fn fetch_listed(store: &dyn ObjectStore, info: &ObjectInfo) -> Result<Bytes, Error> {
    if let Some(most) = most_bytes(&info.key).filter(|most| info.size > *most) {
        let what = format!("it has {} bytes, and such an object has at most {most}", info.size);
        return Err(Error::damaged(&info.key, what));
    }
    fetch_bounded(store, &info.key).await
}

/// The same of one that no listing has shown.
pub(crate) async fn fetch_bounded(store: &dyn ObjectStore, key: &Key) -> Result<Bytes, Error> {
    match most_bytes(key) {
        Some(most) => fetch_at_most(store, key, most).await,
        None => Ok(store.get(key).await?),
    }
}

/// Refuses to write what nobody would read.
pub(super) fn check_fits(key: &Key, body: &[u8]) -> Result<(), Error> {
    let bytes = body.len() as u64;
    match most_bytes(key).filter(|most| bytes > *most) {
        None => Ok(()),
        Some(most) => {
            let what = format!("`{key}` would have {bytes} bytes, and nobody reads more than {most}");
            Err(Error::Invalid(what))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use keepwell_catalog::names;
    use keepwell_storage::Operation;

    use super::*;
    use crate::testing::{Thing, TreeModel, World, back_up, snapshot_of};
    use crate::{Repository, RepositoryHint};

    /// Replaces an object by one that is larger than any of its kind.
    async fn inflate(world: &World, key: &Key) {
        let size = most_bytes(key).unwrap() as usize + 1;
        world.delete(key.as_str()).await;
        world.store.put_new(key, vec![0_u8; size].into()).await.unwrap();
    }

    fn fetched(world: &World, top: &str) -> u64 {
        world.store.snapshot().under(Operation::Get, top).bytes
    }

    #[tokio::test]
    async fn what_is_larger_than_any_of_its_kind_is_not_fetched() {
        let world = World::new().await;
        let tree = TreeModel::default().with("a", Thing::file("a"));
        let first = snapshot_of(&world.repository, &back_up(&world.repository, &tree).await).await;
        let second = back_up(&world.repository, &tree.with("b", Thing::file("b"))).await;
        let (writer, n) = first.place();
        inflate(&world, &names::commit_key(writer, n)).await;
        inflate(&world, &names::retired_key(0)).await;
        let repository = world.open(&world.key).await;
        world.store.reset();
        let ids: Vec<_> = repository.snapshots().await.unwrap().iter().map(|snapshot| snapshot.id).collect();
        assert_eq!(ids, [second.snapshot]);
        assert!(fetched(&world, "commits") < 4 << 10 && fetched(&world, "retired") == 0);

        let second = snapshot_of(&repository, &second).await;
        inflate(&world, &names::manifest_key(&second.commit.manifest.unwrap())).await;
        let repository = world.open(&world.key).await;
        world.store.reset();
        let snapshots = repository.snapshots().await.unwrap();
        assert!(matches!(snapshots[0].manifest(), Err(Error::Damaged { .. })));
        assert_eq!(fetched(&world, "manifests"), 0);

        let hint = RepositoryHint::key();
        let sound = world.store.get(&hint).await.unwrap();
        inflate(&world, &hint).await;
        let refused = RepositoryHint::read(&*world.store).await;
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
        world.delete(hint.as_str()).await;
        world.store.put_new(&hint, sound).await.unwrap();

        let chain = repository.chain().head().0;
        world.store.put_new(&names::trust_key(chain + 1), vec![0_u8; (4 << 20) + 1].into()).await.unwrap();
        let store: Arc<dyn ObjectStore> = Arc::clone(&world.store) as _;
        let refused = Repository::builder(store).open(world.key.clone()).await.map(|_| ());
        assert!(matches!(refused, Err(Error::Damaged { .. })), "{refused:?}");
    }

    #[tokio::test]
    async fn what_nobody_would_read_is_not_written() {
        let world = World::new().await;
        let key = names::commit_key(world.repository.writer().unwrap(), 7);
        let refused = world.repository.put_own(&key, vec![0_u8; (4 << 20) + 1]).await;
        assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
        assert!(world.repository.put_own(&key, vec![0_u8; 4 << 20]).await.unwrap());
    }
}
