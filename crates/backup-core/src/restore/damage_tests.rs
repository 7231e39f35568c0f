//! What a restore makes of a tree of which a part cannot be read, and of files that no window holds.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_storage::ObjectStore;

use super::RestoreOptions;
use crate::source::{Content, Found, Item, Opened, Piece, Preflight, Source, SourceError};
use crate::testing::{
    MemoryTarget, Thing, TreeModel, World, back_up, block_on, key, noise, options, restored, snapshot_of,
};
use crate::{CheckOptions, PruneOptions};

/// Three directories of many files, and so a tree of many nodes.
fn wide() -> TreeModel {
    let name = |i: u64| format!("{}/sub/{i:04}", ["a", "b", "c"][i as usize / 6000]);
    (0..18_000).fold(TreeModel::default(), |tree, i| tree.with(&name(i), Thing::file(noise(i, 30))))
}

/// Flips a byte of the largest meta pack, so far in.
async fn damage(world: &World, share: f64) {
    let packs = keepwell_storage::list_all(&*world.store, "meta/").await.unwrap();
    let largest = packs.iter().max_by_key(|info| info.size).unwrap();
    let mut bytes = world.store.get(&largest.key).await.unwrap().to_vec();
    let at = (bytes.len() as f64 * share) as usize;
    bytes[at] ^= 1;
    world.delete(largest.key.as_str()).await;
    world.store.put_new(&largest.key, Bytes::from(bytes)).await.unwrap();
}

#[test]
fn what_lies_beside_an_unreadable_part_of_the_tree_is_restored() {
    // Within the first frame of nodes, and in the middle; the root is in the last.
    for (share, whole_directory) in [(0.05, "c"), (0.5, "a")] {
        block_on(async {
            let world = World::new().await;
            let report = back_up(&world.repository, &wide()).await;
            let snapshot = snapshot_of(&world.repository, &report).await;
            let whole = MemoryTarget::default();
            let sound =
                world.repository.restore(&snapshot, Arc::new(whole.clone()), RestoreOptions::default());
            assert_eq!(sound.await.unwrap().problem_count, 0);
            damage(&world, share).await;

            let repository = world.open(&world.key).await;
            let target = MemoryTarget::default();
            let restore = repository.restore(&snapshot, Arc::new(target.clone()), RestoreOptions::default());
            let restore = restore.await.unwrap();
            assert!((1..60).contains(&restore.problem_count), "{:?}", restore.problems);
            assert!(restore.problems[0].1.contains("nothing is restored from"), "{:?}", restore.problems);
            let (model, found) = (wide().as_restored(), target.tree());
            let files = found.0.iter().filter(|(_, thing)| thing.entry.kind == EntryKind::File);
            let mut count = 0;
            for (key, thing) in files {
                assert_eq!(model.0.get(key), Some(thing), "{key}");
                count += 1;
            }
            assert!((1000..18_000).contains(&count), "{count} files at {share}");
            let directory = key(whole_directory);
            assert_eq!(found.0[&directory], model.0[&directory], "metadata of what is whole");

            // What cannot be read is in the snapshot all the same: it stays where it stands.
            let delete = RestoreOptions { delete: true, ..RestoreOptions::default() };
            let again = repository.restore(&snapshot, Arc::new(whole.clone()), delete).await.unwrap();
            assert_eq!(again.removed, 0);
            assert_eq!(whole.tree().0.len(), model.0.len());

            let check = repository.check(CheckOptions::default()).await.unwrap();
            assert!(check.findings.iter().any(|finding| finding.object == "tree"), "{:?}", check.findings);
            assert!(check.chunks > 1000, "what follows is checked too: {}", check.chunks);
            assert!(!check.damaged_paths.is_empty());
            assert!(repository.prune(PruneOptions::default()).await.is_err(), "a prune needs to know all");
        });
    }
}

/// One file in which bytes and holes take turns.
#[derive(Debug)]
struct Comb {
    teeth: u32,
}

impl Comb {
    fn bytes(&self) -> Vec<u8> {
        (0..self.teeth).flat_map(|n| [n as u8 % 3 + 1, 0]).collect()
    }
}

impl Source for Comb {
    fn kind(&self) -> &str {
        "comb"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        vec![b"/comb".to_vec()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        for (name, size) in [("comb", u64::from(self.teeth) * 2), ("other", 2)] {
            let (kind, fingerprint) = (EntryKind::File, [1; 16]);
            let item = Item { key: key(name), kind, size, fingerprint, hard_link: None };
            if visit(Found::Item(item)).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        let left = u32::try_from(item.size / 2).unwrap();
        let content = Some(Box::new(Teeth { n: 0, left, hole: false }) as _);
        Ok(Some(Opened { entry: Entry::new(EntryKind::File), content }))
    }
}

struct Teeth {
    n: u32,
    left: u32,
    hole: bool,
}

impl Content for Teeth {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        if std::mem::take(&mut self.hole) {
            return Ok(Piece::Hole(1));
        }
        if self.left == 0 {
            return Ok(Piece::End);
        }
        buf[0] = self.n as u8 % 3 + 1;
        (self.n, self.left, self.hole) = (self.n + 1, self.left - 1, true);
        Ok(Piece::Data(1))
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

#[test]
fn a_file_of_more_extents_than_anything_holds_at_once_is_restored() {
    block_on(async {
        let world = World::new().await;
        let comb = Arc::new(Comb { teeth: 2_100_000 });
        let report = world.repository.backup(Arc::clone(&comb) as _, options("data")).await.unwrap();
        assert_eq!(report.problem_count, 0, "{:?}", report.problems);
        let snapshot = snapshot_of(&world.repository, &report).await;
        let tree = restored(&world.repository, &snapshot).await;
        let bytes = |key: &MapKey| tree.0[key].bytes();
        assert!(bytes(&key("comb")) == comb.bytes());
        assert_eq!(bytes(&key("other")), [1, 0]);
        // What stands there is compared part by part, and one wrong byte is found.
        let target = MemoryTarget::default();
        let restore =
            || world.repository.restore(&snapshot, Arc::new(target.clone()), RestoreOptions::default());
        restore().await.unwrap();
        target.change(&key("comb"), 2_000_000);
        let report = restore().await.unwrap();
        assert_eq!((report.files_written, report.files_unchanged, report.bytes_written), (1, 1, 1));
        assert!(target.tree().0[&key("comb")].bytes() == comb.bytes());
    });
}
