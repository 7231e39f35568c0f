//! Random steps against a model: whatever happened before, a listed snapshot is what was there when it was taken.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::Duration;

use backup_core::{BackupOptions, Repository, Snapshot};
use keepwell_e2e::tree::{Tree, assert_same, put, read};
use keepwell_e2e::{run, world};
use proptest::prelude::*;
use world::{World, back_up_with, forget, options, restored, snapshot_of, thorough};

#[derive(Debug, Clone)]
enum Step {
    Write {
        file: u8,
        content: u8,
        size: usize,
    },
    Delete(u8),
    Link {
        file: u8,
        to: u8,
    },
    Backup {
        reread: bool,
        checkpoints: bool,
    },
    Forget(prop::sample::Index),
    Prune {
        max_unused: f64,
    },
    Restore(prop::sample::Index),
    /// Another host, or the same after it lost its cache.
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let sizes = prop::sample::select(vec![0, 1, 700, 300_000, 600_000, 1_500_000]);
    prop_oneof![
        6 => (0u8..9, 0u8..6, sizes).prop_map(|(file, content, size)| Step::Write { file, content, size }),
        2 => (0u8..9).prop_map(Step::Delete),
        1 => (0u8..9, 0u8..9).prop_map(|(file, to)| Step::Link { file, to }),
        4 => (any::<bool>(), any::<bool>()).prop_map(|(reread, checkpoints)| Step::Backup { reread, checkpoints }),
        2 => any::<prop::sample::Index>().prop_map(Step::Forget),
        2 => prop::sample::select(vec![0.0, 0.3, 1.0]).prop_map(|max_unused| Step::Prune { max_unused }),
        2 => any::<prop::sample::Index>().prop_map(Step::Restore),
        1 => Just(Step::Reopen),
    ]
}

struct Run {
    world: World,
    repository: Repository,
    model: Vec<(Snapshot, Tree)>,
}

/// Where a file lives: some in a directory, some not.
fn path(file: u8) -> String {
    if file.is_multiple_of(2) { format!("{file}") } else { format!("d/{}/{file}", file % 3) }
}

impl Run {
    async fn take(&mut self, step: &Step, dir: &Path) {
        match step {
            Step::Write { file, content, size } => {
                let _ = std::fs::remove_file(dir.join(path(*file)));
                put(dir, &path(*file), u64::from(*content), *size);
            }
            Step::Delete(file) => _ = std::fs::remove_file(dir.join(path(*file))),
            Step::Link { file, to } => {
                std::fs::create_dir_all(dir.join(path(*to)).parent().unwrap()).unwrap();
                let _ = std::fs::hard_link(dir.join(path(*file)), dir.join(path(*to)));
            }
            Step::Backup { reread, checkpoints } => {
                let every = if *checkpoints { Duration::ZERO } else { Duration::from_secs(1 << 30) };
                let options = BackupOptions { reread: *reread, checkpoint_every: every, ..options() };
                let report = back_up_with(&self.repository, dir, options).await.unwrap();
                assert_eq!(report.problems, []);
                self.model.push((snapshot_of(&self.repository, &report).await, read(dir)));
            }
            Step::Forget(at) if !self.model.is_empty() => {
                let (snapshot, _) = self.model.remove(at.index(self.model.len()));
                forget(&self.repository, &[snapshot]).await.unwrap();
            }
            Step::Prune { max_unused } => {
                let options = backup_core::PruneOptions { max_unused: *max_unused, ..thorough() };
                self.repository.prune(options).await.unwrap();
            }
            Step::Restore(at) if !self.model.is_empty() => {
                let (snapshot, tree) = &self.model[at.index(self.model.len())];
                assert_same(tree, &restored(&self.repository, snapshot, dir).await, "restore");
            }
            Step::Reopen => self.repository = self.world.open().await,
            Step::Forget(_) | Step::Restore(_) => {}
        }
    }

    async fn end(&self, dir: &Path) {
        let listed: Vec<_> = self.repository.snapshots().await.unwrap().iter().map(|s| s.id).collect();
        assert_eq!(listed, self.model.iter().map(|(s, _)| s.id).collect::<Vec<_>>());
        world::prune_to_the_end(&self.repository, "at the end").await;
        for repository in [&self.repository, &self.world.open().await] {
            for (snapshot, tree) in &self.model {
                assert_same(tree, &restored(repository, snapshot, dir).await, "at the end");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 60, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens_snapshots_are_what_they_were(steps in prop::collection::vec(step(), 1..30)) {
        run(async {
            let world = World::new().await;
            let repository = world.open().await;
            let source = tempfile::tempdir().unwrap();
            let mut state = Run { world, repository, model: Vec::new() };
            for step in &steps {
                state.take(step, source.path()).await;
            }
            state.end(source.path()).await;
        });
    }
}
