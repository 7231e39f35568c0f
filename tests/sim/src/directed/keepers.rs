//! Keepers that meet each other and late writers.

use backup_core::{Error, ReadData, RepairOptions};
use bytes::Bytes;
use keepwell_storage::{ObjectStore, Operation};
use std::time::Duration;

use super::stage::{Stage, Stop, ended, expect, files, impatient, later, patient, said, soon};
use crate::check::line;
use crate::oracle::Wrong;

/// A content that is in two packs.
const SHARED: u64 = 1;

/// A writer has read everything when the plan comes into being. The keeper must see its session.
pub(super) async fn a_writer_begins_before_the_plan() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    stage.back_up(files(&[SHARED])).await?;
    stage.forget_all().await?;
    let keeper = stage.host().await?;
    keeper.gate.shut(|operation, key| operation == Operation::Put && key.starts_with("gc/"));
    let repository = keeper.repository.clone();
    let prune = tokio::spawn(async move { repository.prune(impatient()).await });
    soon(keeper.gate.reached()).await?;
    let writer = stage.host().await?;
    let mut capture = stage.begin(&writer, files(&[SHARED, 2]), &[(0, Stop::Wait)]);
    capture.waits().await?;
    keeper.gate.open();
    let report = ended(prune).await?.map_err(said)?;
    expect(report.objects_deleted > 0, "the prune deletes something")?;
    let fenced = matches!(capture.go_on().await?, Err(Error::Fenced { .. }));
    stage.all_restore(usize::from(!fenced)).await?;
    expect(fenced, "the writer is fenced")
}

/// How far the world of two copies has come: one content is in two packs, of which a plan condemns the first; a writer that
/// knows only this one is at work.
struct TwoCopies {
    stage: Stage,
    first: super::stage::Host,
    prune: tokio::task::JoinHandle<Result<backup_core::PruneReport, Error>>,
    late: super::stage::Capture,
}

async fn two_copies() -> Result<TwoCopies, Wrong> {
    let stage = Stage::new().await?;
    // This one does not know of the first copy, and makes a second.
    let mut slow = stage.begin(&stage.host().await?, files(&[SHARED, 2]), &[(0, Stop::Wait)]);
    slow.waits().await?;
    stage.back_up(files(&[SHARED])).await?;
    stage.forget_all().await?;
    let mut late = stage.begin(&stage.host().await?, files(&[SHARED, 3]), &[(0, Stop::Wait)]);
    late.waits().await?;
    let first = stage.host().await?;
    let prune = first.begin_prune().await?;
    slow.go_on().await?.map_err(said)?;
    expect(stage.names("data/").await?.len() == 2, "there are two copies")?;
    stage.forget_all().await?;
    Ok(TwoCopies { stage, first, prune, late })
}

/// Two keepers each condemn one of two copies, when nobody needs them. Then somebody does.
pub(super) async fn two_plans_condemn_two_copies() -> Result<(), Wrong> {
    let TwoCopies { stage, first, prune, late } = two_copies().await?;
    let second = stage.host().await?;
    let other = second.begin_prune().await?;
    // Neither says what it has judged before the other has, too: each finds the other's copy still there. Then the first
    // speaks first, for the second would also decide the plan of the first, which it has found undecided.
    for keeper in [&first, &second] {
        keeper.gate.shut(|operation, key| operation == Operation::Put && key.ends_with(".kept"));
    }
    late.go_on().await?.map_err(said)?;
    for keeper in [&first, &second] {
        later(keeper.gate.reached()).await?;
    }
    first.gate.open();
    let report = ended(prune).await?.map_err(said)?;
    second.gate.open();
    let other = ended(other).await?.map_err(said)?;
    stage.all_restore(1).await?;
    expect(report.kept + other.kept > 0, "one of the two copies is kept")
}

/// A keeper has judged and not yet said so. Another one condemns the second copy, and a third decides both plans.
pub(super) async fn the_slower_judge_knows_less() -> Result<(), Wrong> {
    let TwoCopies { stage, first, prune, late } = two_copies().await?;
    let second = stage.host().await?;
    let planned = second.repository.plan_prune(patient()).await.map_err(said)?;
    first.gate.shut(|operation, key| operation == Operation::Put && key.ends_with(".kept"));
    late.go_on().await?.map_err(said)?;
    later(first.gate.reached()).await?;
    second.gate.shut(|operation, key| operation == Operation::List && key == "sessions/");
    let repository = second.repository.clone();
    let other = tokio::spawn(async move { repository.carry_out(planned).await });
    soon(second.gate.reached()).await?;
    // A repair decides plans that wait, and moves nothing out of doomed packs; it needs some damage to be about.
    let list = stage.names("lists/").await?.remove(0).parse().map_err(|_| "a name".to_owned())?;
    stage.memory.delete(&list).await.map_err(|e| line(&e))?;
    stage.memory.put_new(&list, Bytes::from_static(b"damaged")).await.map_err(|e| line(&e))?;
    let options =
        RepairOptions { read: ReadData::Nothing, fence_after: Duration::ZERO, ..RepairOptions::default() };
    let third = stage.host().await?;
    let decided = stage.names("gc/").await?.iter().filter(|name| name.ends_with(".kept")).count();
    third.repository.repair(None, options).await.map_err(said)?;
    let now = stage.names("gc/").await?.iter().filter(|name| name.ends_with(".kept")).count();
    expect(now == decided + 2, "the repair decides both plans")?;
    stage.all_restore(1).await?;
    first.gate.open();
    ended(prune).await?.map_err(said)?;
    second.gate.open();
    ended(other).await?.map_err(said)?;
    stage.all_restore(1).await
}

/// A writer that was fenced long ago lists a pack in the index that is gone. Plans must remember that, merged or not.
pub(super) async fn a_fenced_writer_lists_what_is_gone() -> Result<(), Wrong> {
    let stage = Stage::new().await?;
    let stalled = stage.host().await?;
    stalled.gate.shut(|operation, key| operation == Operation::Put && key.starts_with("index/"));
    let capture = stage.begin(&stalled, files(&[SHARED]), &[]);
    soon(stalled.gate.reached()).await?;
    let packs = stage.names("data/").await?;
    expect(packs.len() == 1, "its pack is stored")?;
    let keeper = stage.host().await?.repository;
    keeper.prune(impatient()).await.map_err(said)?;
    expect(stage.names("data/").await?.is_empty(), "and removed")?;
    let mut merged = 0;
    for content in 2..12 {
        stage.back_up(files(&[content])).await?;
        stage.forget_all().await?;
        merged += keeper.prune(impatient()).await.map_err(said)?.plans_merged;
    }
    expect(merged > 0, "plans are merged")?;
    stalled.gate.open();
    let refused = capture.end().await?;
    expect(matches!(refused, Err(Error::Fenced { .. })), "the stalled writer is refused")?;
    stage.back_up(files(&[SHARED])).await?;
    stage.all_restore(1).await
}
