//! Copies under other keys, and snapshots that are written anew.

mod copying;
mod incomplete;
mod meanwhile;
mod rewriting;

use super::CopyReport;
use crate::repository::Repository;
use crate::testing::{Thing, TreeModel, World, noise, options};

async fn copy(from: &World, to: &Repository) -> CopyReport {
    let snapshots = from.repository.snapshots().await.unwrap();
    from.repository.copy_snapshots(to, &snapshots, &options("not used")).await.unwrap()
}

fn large_tree() -> TreeModel {
    let mut tree = TreeModel::default().with("keep/large", Thing::file(noise(1, 2 << 20)));
    for n in 0..400 {
        tree = tree.with(&format!("keep/{n:03}"), Thing::file(noise(n + 10, 500)));
    }
    tree.with("secret/key", Thing::file(noise(2, 100_000)))
}
