//! Checkpoints, and who takes them for more or less than they are.

use backup_core::PruneReport;
use keepwell_catalog::{Retired, RetiredSnapshot, names};
use keepwell_crypto::Signed;
use keepwell_storage::{ObjectStore, Operation};

use super::stage::{Capture, Host, Stage, Stop, ended, expect, files, said, soon};
use crate::check::line;
use crate::oracle::Wrong;

/// A capture that has made a checkpoint and goes on, and a keeper that has condemned a pack of the checkpoint, listed
/// sessions before the one that goes on was there, and now sees that those have ended.
struct Overlap {
    stage: Stage,
    keeper: Host,
    prune: tokio::task::JoinHandle<Result<PruneReport, backup_core::Error>>,
    capture: Capture,
}

async fn overlap() -> Result<Overlap, Wrong> {
    let stage = Stage::new().await?;
    let writer = stage.host().await?;
    let next = names::session_key(stage.member(), 1, 0).to_string();
    writer.gate.shut(move |operation, key| operation == Operation::Put && key == next);
    let mut capture = stage.begin(&writer, files(&[1, 2, 3]), &[(1, Stop::Day), (2, Stop::Wait)]);
    soon(writer.gate.reached()).await?;
    // The pack is stored and listed, and nothing refers to it yet.
    let keeper = stage.host().await?;
    let prune = keeper.begin_prune().await?;
    writer.gate.open();
    capture.waits().await?;
    let checkpoint = names::commit_key(stage.member(), 0).to_string();
    expect(stage.names("commits/").await? == [checkpoint], "there is a checkpoint and nothing else")?;
    Ok(Overlap { stage, keeper, prune, capture })
}

async fn both_end(overlap: Overlap, snapshots: usize) -> Result<(), Wrong> {
    let Overlap { stage, prune, capture, .. } = overlap;
    let report = ended(prune).await?.map_err(said)?;
    let captured = capture.go_on().await?.map_err(said)?;
    stage.all_restore(snapshots).await?;
    expect(captured.checkpoints == 1, "one checkpoint")?;
    expect(report.kept > 0, "the keeper had condemned what the checkpoint holds")
}

/// Nothing else happens: what the checkpoint holds, and the rest of its capture relies on, stays.
pub(super) async fn a_keeper_meets_a_checkpoint() -> Result<(), Wrong> {
    both_end(overlap().await?, 1).await
}

/// A plan condemns a pack while a capture makes a checkpoint: after the capture has read the index and the plans, and before
/// the session is claimed in which it goes on. Then it comes to a content of that pack.
pub(super) async fn a_plan_that_is_older_than_the_next_session() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    stage.back_up(files(&[1])).await?;
    stage.forget_all().await?;
    let writer = stage.host().await?;
    let next = names::session_key(stage.member(), 2, 0).to_string();
    writer.gate.shut(move |operation, key| operation == Operation::Put && key == next);
    let mut capture = stage.begin(&writer, files(&[2, 3, 1]), &[(1, Stop::Day), (2, Stop::Wait)]);
    soon(writer.gate.reached()).await?;
    let prune = stage.host().await?.begin_prune().await?;
    writer.gate.open();
    capture.waits().await?;
    let report = ended(prune).await?.map_err(said)?;
    expect(report.bytes_freed > 0 && report.kept > 0, "one pack goes, and the checkpoint's stays")?;
    let captured = capture.go_on().await?.map_err(said)?;
    expect(captured.checkpoints == 1, "one checkpoint")?;
    stage.all_restore(1).await
}

/// Somebody retires the checkpoint after the keeper has read the retirements.
pub(super) async fn retired_while_a_keeper_waits() -> Result<(), Wrong> {
    let overlap = overlap().await?;
    let stage = &overlap.stage;
    let repository = stage.host().await?.repository;
    let checkpoint = RetiredSnapshot { writer: stage.member(), seq: 0, reason: "by hand".to_owned() };
    let record = Retired {
        store: repository.store_id(),
        n: 0,
        time: 0,
        snapshots: vec![checkpoint],
        undone: Vec::new(),
    };
    let signing = &stage.key.member.as_ref().expect("the owner is a member").signing;
    let signed = Signed::sign(signing, repository.id(), Retired::KIND, record.encode()).to_bytes();
    stage.memory.put_new(&names::retired_key(0), signed.into()).await.map_err(|e| line(&e))?;
    both_end(overlap, 1).await
}

/// A second process of the same writer publishes a snapshot of the same dataset, which does not hold what the checkpoint
/// holds.
pub(super) async fn another_capture_of_the_same_writer() -> Result<(), Wrong> {
    let overlap = overlap().await?;
    overlap.keeper.gate.shut(|operation, key| operation == Operation::List && key == "commits/");
    overlap.stage.back_up(files(&[9])).await?;
    overlap.keeper.gate.open();
    both_end(overlap, 2).await
}

/// What is left is a root for prunes, and no snapshot.
pub(super) async fn a_capture_dies_after_a_checkpoint() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    let stops = [(1, Stop::Day), (2, Stop::Die)];
    let capture = stage.begin(&stage.host().await?, files(&[1, 2, 3]), &stops);
    expect(capture.end().await?.is_err(), "the capture fails")?;
    expect(stage.names("commits/").await?.len() == 2, "there are a checkpoint and an end")?;
    stage.all_restore(0).await
}
