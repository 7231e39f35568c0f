//! What is damaged, and what a prune takes away, under a mount.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use backup_core::{Cache, Limits};
use keepwell_e2e::noise;
use keepwell_e2e::tree;
use keepwell_e2e::world::{self, LIMITS, World, back_up, forget, prune_to_the_end, snapshot_of};
use keepwell_storage::{ObjectStore, list_all};

use crate::{MIB, in_a_directory, mount};

/// Names of packs with content.
async fn packs(world: &World) -> BTreeSet<String> {
    world.names("data/").await.into_iter().collect()
}

async fn flip_in_the_middle(world: &World, name: &str) {
    let key = name.parse().unwrap();
    let mut bytes = world.store.get(&key).await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    world.store.delete(&key).await.unwrap();
    world.store.put_new(&key, bytes.into()).await.unwrap();
}

#[test]
fn a_damaged_node_hides_what_is_beneath_it_and_nothing_else() {
    const FILES: u64 = 12_000;
    in_a_directory(async |world, repository, dir| {
        // Long names, so that the nodes fill several frames, of which one is damaged.
        let name = |n: u64| format!("{n:05}{}", "-".repeat(200));
        for n in 0..FILES {
            tree::put(dir, &name(n), n, 5);
        }
        fs::hard_link(dir.join(name(0)), dir.join("another")).unwrap();
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        let metas = list_all(&world.store, "meta/").await.unwrap();
        let largest = metas.into_iter().max_by_key(|info| info.size).unwrap().key;
        let whole = world.store.get(&largest).await.unwrap();
        // Which nodes lie where is random. Some place must be one that takes some files away and not all.
        let mut seen_at = Vec::new();
        for eighth in 1..8 {
            let mut bytes = whole.to_vec();
            bytes[whole.len() / 8 * eighth] ^= 1;
            world.store.delete(&largest).await.unwrap();
            world.store.put_new(&largest, bytes.into()).await.unwrap();
            let mount = mount(&world.open().await).await;
            let seen = mount.of(&snapshot, dir);
            let look =
                move || (0..FILES).filter(|n| fs::metadata(seen.join(name(*n))).is_ok()).count() as u64;
            seen_at.push(mount.look(look).await);
            mount.end().await;
            if (1..FILES).contains(&seen_at[seen_at.len() - 1]) {
                return;
            }
        }
        panic!("of {FILES} files are seen, wherever the damage is: {seen_at:?}");
    });
}

#[test]
fn a_damaged_pack_is_an_error_where_it_is_needed_and_nowhere_else() {
    in_a_directory(async |world, repository, dir| {
        tree::put(dir, "good", 1, 2 * MIB);
        back_up(&repository, dir).await.unwrap();
        let good = packs(world).await;
        tree::put(dir, "bad", 2, 2 * MIB);
        let snapshot = snapshot_of(&repository, &back_up(&repository, dir).await.unwrap()).await;
        for name in packs(world).await.difference(&good) {
            flip_in_the_middle(world, name).await;
        }
        // What lies in a cache would still be right.
        let mount = mount(&world.open().await).await;
        let seen = mount.of(&snapshot, dir);
        mount
            .look(move || {
                assert_eq!(fs::read(seen.join("good")).unwrap(), noise(1, 2 * MIB));
                let bad = File::open(seen.join("bad")).unwrap();
                let expected = noise(2, 2 * MIB);
                let mut failed = 0;
                for from in (0..2 * MIB).step_by(64 << 10) {
                    let mut found = vec![0; 64 << 10];
                    match bad.read_at(&mut found, from as u64) {
                        Ok(n) => assert_eq!(found[..n], expected[from..from + n]),
                        Err(error) => {
                            assert_eq!(error.raw_os_error(), Some(5), "{error}");
                            failed += 1;
                        }
                    }
                }
                assert!(failed > 0);
                assert_eq!(fs::metadata(seen.join("bad")).unwrap().len(), 2 * MIB as u64);
                assert_eq!(fs::read(seen.join("good")).unwrap(), noise(1, 2 * MIB));
            })
            .await;
        let heard = mount.heard.0.lock().unwrap().clone();
        assert!(!heard.is_empty() && heard.iter().all(|line| line.contains("/bad: ")), "{heard:?}");
        mount.end().await;
    });
}

#[test]
fn a_prune_beside_it_takes_nothing_away_that_is_still_a_snapshot() {
    in_a_directory(async |world, _, dir| {
        let limits = Limits { threads: 1, ..LIMITS };
        let store: Arc<dyn ObjectStore> = Arc::new(world.store.clone());
        let other = world::open(Arc::clone(&store), &world.key, Cache::memory(), limits).await.unwrap();
        for n in 0..8 {
            tree::put(dir, &format!("{n}"), n, 400 << 10);
        }
        let first = snapshot_of(&other, &back_up(&other, dir).await.unwrap()).await;
        for n in 0..4 {
            tree::put(dir, &format!("{n}"), 100 + n, 400 << 10);
        }
        let after = tree::read(dir);
        let second = snapshot_of(&other, &back_up(&other, dir).await.unwrap()).await;
        let mount = mount(&world.open().await).await;
        let (old, new) = (mount.of(&first, dir), mount.of(&second, dir));
        let open = mount
            .look(move || {
                // The mount knows the old packs from now on.
                assert_eq!(fs::read(new.join("7")).unwrap(), noise(7, 400 << 10));
                File::open(old.join("0")).unwrap()
            })
            .await;
        let stored = packs(world).await;
        forget(&other, std::slice::from_ref(&first)).await.unwrap();
        prune_to_the_end(&other, "beside a mount").await;
        assert!(stored.iter().any(|name| !name.is_empty()) && packs(world).await != stored);
        tree::assert_same(&after, &mount.tree(&second, dir).await, "after the prune");
        // What was forgotten is an error, not zeros.
        let gone = mount.look(move || open.read_at(&mut [0; 4096], 300 << 10).map_err(|e| e.raw_os_error()));
        assert_eq!(gone.await, Err(Some(5)));
        let top = mount.at.path().join("by-id").join(first.short());
        let hidden = mount.look(move || {
            std::thread::sleep(Duration::from_millis(1100)); // the kernel may know it for a second
            top.exists()
        });
        assert!(!hidden.await);
        mount.end().await;
    });
}
