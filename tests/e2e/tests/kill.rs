//! Real processes killed at random moments of real backups and prunes on disk.
//!
//! 20 kills by default; `KEEPWELL_E2E_KILLS=200 cargo test -p keepwell-e2e --test kill` for the full number.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::Cache;
use keepwell_crypto::SnapshotId;
use keepwell_e2e::tree::{Tree, assert_same, put, read};
use keepwell_e2e::{Dice, within, world};
use keepwell_storage::{LocalFs, LocalOptions};

const FILES: u64 = 12;

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn path(&self, name: &str) -> std::path::PathBuf {
        self.root.path().join(name)
    }

    fn victim(&self, action: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_victim"));
        command.arg(action);
        command.args(["store", "key", "cache", "source"].map(|name| self.path(name)));
        command.stderr(Stdio::null());
        command
    }
}

/// Changes some files; the same tree has the same content.
fn change(dir: &Path, dice: &mut Dice) {
    for _ in 0..4 {
        put(dir, &format!("{}", dice.roll(FILES)), dice.roll(1000), 800 << 10);
    }
    put(dir, "sub/small", dice.roll(1 << 40), 4000);
}

async fn kill_again_and_again(kills: u64) {
    let place = Place { root: tempfile::tempdir().unwrap() };
    let dir = place.path("source");
    std::fs::create_dir_all(place.path("store")).unwrap();
    let store = LocalFs::create(place.path("store"), &LocalOptions::default()).await.unwrap();
    let key = world::create(&store).await;
    std::fs::write(place.path("key"), key.to_toml().expose()).unwrap();
    let store = Arc::new(store);
    let mut dice = Dice::new(77);
    for i in 0..FILES {
        put(&dir, &format!("{i}"), i, 800 << 10);
    }
    let mut known: HashMap<SnapshotId, Tree> = HashMap::new();
    let mut longest =
        HashMap::from([("backup", Duration::from_millis(400)), ("prune", Duration::from_millis(400))]);
    let (mut killed, mut round) = (0, 0);
    while killed < kills {
        round += 1;
        let action = if round % 3 == 0 { "prune" } else { "backup" };
        if action == "backup" {
            change(&dir, &mut dice);
        }
        let now = read(&dir);
        let wait = longest[action].mul_f64(dice.roll(1000) as f64 / 1000.0);
        let begun = Instant::now();
        let mut victim = place.victim(action).spawn().unwrap();
        tokio::time::sleep(wait).await;
        victim.kill().unwrap();
        let status = victim.wait().unwrap();
        let what = format!("round {round}: {action} killed after {wait:?}: {status}");
        if status.code().is_none() {
            killed += 1;
        } else {
            assert!(status.success(), "{what}");
            longest.insert(action, begun.elapsed());
        }

        let repository = world::open(store.clone(), &key, Cache::memory(), world::LIMITS).await.unwrap();
        let snapshots = repository.snapshots().await.unwrap();
        for snapshot in &snapshots {
            known.entry(snapshot.id).or_insert_with(|| now.clone());
        }
        // Check reads every chunk; one of the snapshots is restored.
        world::assert_sound(&repository, &what).await;
        if !snapshots.is_empty() {
            let snapshot = &snapshots[dice.roll(snapshots.len() as u64) as usize];
            assert_same(&known[&snapshot.id], &world::restored(&repository, snapshot, &dir).await, &what);
        }
        if round % 8 == 0 {
            for action in ["backup", "prune"] {
                let begun = Instant::now();
                assert!(place.victim(action).status().unwrap().success(), "{what}; then {action} fails");
                longest.insert(action, begun.elapsed());
            }
            let report = world::assert_sound(&repository, &what).await;
            assert_eq!(report.orphans, 0, "{what}");
            for snapshot in repository.snapshots().await.unwrap() {
                known.entry(snapshot.id).or_insert_with(|| now.clone());
            }
        }
    }
}

#[test]
#[expect(clippy::disallowed_methods, reason = "how many times is for whoever runs the test to say")]
fn killed_at_any_moment_nothing_is_lost() {
    let kills = std::env::var("KEEPWELL_E2E_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    within(Duration::from_secs(300 + 30 * kills), kill_again_and_again(kills));
}
