//! Copies of what is damaged.

use keepwell_storage::ObjectStore;

use super::copy;
use crate::testing::{Thing, TreeModel, World, assert_same, back_up, noise, options, restored, snapshot_of};
use crate::{Checked, CopyRules};

#[tokio::test]
async fn a_copy_of_a_damaged_snapshot_is_incomplete_and_tried_again() {
    let (from, to) = (World::new().await, World::new().await);
    let tree =
        TreeModel::default().with("small", Thing::file("s")).with("large", Thing::file(noise(4, 1 << 20)));
    back_up(&from.repository, &tree).await;
    let packs = from.names("data/").await;
    let saved: Vec<_> = {
        let mut saved = Vec::new();
        for name in &packs {
            saved.push(from.store.get(&name.parse().unwrap()).await.unwrap());
            from.delete(name).await;
        }
        saved
    };
    let report = copy(&from, &to.repository).await;
    assert_eq!((report.copied.len(), report.copied[0].unread), (1, 2));
    let wanted = async || {
        let (here, there) =
            (from.repository.snapshots().await.unwrap(), to.repository.snapshots().await.unwrap());
        CopyRules::default().wanted(to.repository.now(), &here, &there, &Checked::default()).len()
    };
    assert_eq!(wanted().await, 1);
    let report = copy(&from, &to.repository).await;
    assert_eq!((report.copied.len(), report.failed.len()), (0, 1), "as much as that is there: {report:?}");
    for (name, bytes) in packs.iter().zip(saved) {
        from.store.put_new(&name.parse().unwrap(), bytes).await.unwrap();
    }
    let report = copy(&from, &to.repository).await;
    assert_eq!((report.copied.len(), report.copied[0].unread), (1, 0));
    let snapshot = snapshot_of(&to.repository, &report.copied[0].report).await;
    assert_same(&restored(&to.repository, &snapshot).await, &tree.as_restored());
    assert_eq!(copy(&from, &to.repository).await.skipped.len(), 1);
    assert_eq!(wanted().await, 0);
}

/// A manifest names a thousand problems, and the original has as many.
#[tokio::test]
async fn a_copy_that_lacks_something_beside_a_thousand_problems_is_tried_again() {
    let (from, middle, to) = (World::new().await, World::new().await, World::new().await);
    let lost = |tree: TreeModel, n: u32| tree.with(&format!("lost/{n:04}"), Thing::file(n.to_string()));
    let tree = (0..1000).fold(TreeModel::default(), lost);
    back_up(&from.repository, &tree).await;
    let packs = from.names("data/").await;
    back_up(&from.repository, &tree.with("whole", Thing::file("whole"))).await;
    for name in &packs {
        from.delete(name).await;
    }
    let newest = from.repository.snapshots().await.unwrap().pop().unwrap();
    let copied = from.repository.copy_snapshots(&middle.repository, &[newest], &options("not used")).await;
    assert_eq!(copied.unwrap().copied[0].unread, 1000);

    let packs = middle.names("data/").await;
    assert_eq!(packs.len(), 1, "`whole` alone was copied");
    let pack = packs[0].parse().unwrap();
    let saved = middle.store.get(&pack).await.unwrap();
    middle.delete(pack.as_str()).await;
    assert_eq!(copy(&middle, &to.repository).await.copied[0].unread, 1);
    let again = copy(&middle, &to.repository).await;
    assert_eq!((again.copied.len(), again.failed.len()), (0, 1), "as much as that is there: {again:?}");
    middle.store.put_new(&pack, saved).await.unwrap();
    assert_eq!(copy(&middle, &to.repository).await.copied[0].unread, 0);
    assert_eq!(copy(&middle, &to.repository).await.skipped.len(), 1);
}
