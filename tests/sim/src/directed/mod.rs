//! Directed worlds: one schedule each, written by hand, in which one planted fault loses something. For faults that need
//! so rare a meeting that chance does not bring it about in some dozens of worlds.
//!
//! Each holds without its fault, and asserts that what it is about has taken place.

mod checkpoints;
#[path = "../../../e2e/src/gate.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "the end-to-end tests have it, too, and use all of it")]
mod gate;
mod keepers;
mod logs;
mod stage;
mod trust;

use crate::oracle::Wrong;

/// The planted faults for which there is a directed world.
pub const DIRECTED: [&str; 13] = [
    "sessions-before-plan",
    "rescan-ignores-others",
    "verdict-not-binding",
    "merged-plan-never",
    "retirements-read-late",
    "checkpoint-is-no-root",
    "checkpoint-superseded-by-any",
    "checkpoint-keeps-index",
    "lists-checkpoints",
    "believe-revoked",
    "chunk-id-unchecked",
    "log-floors-once",
    "log-floors-rise",
];

/// Lives through the world for this fault; the fault itself is on only if the environment says so.
///
/// # Panics
/// For a name that is not in [`DIRECTED`].
pub fn run_directed(fault: &str) -> Result<(), Wrong> {
    keepwell_sim_entropy::begin(1);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a plain runtime").block_on(async {
        match fault {
            "sessions-before-plan" => keepers::a_writer_begins_before_the_plan().await,
            "rescan-ignores-others" => keepers::two_plans_condemn_two_copies().await,
            "verdict-not-binding" => keepers::the_slower_judge_knows_less().await,
            "merged-plan-never" => keepers::a_fenced_writer_lists_what_is_gone().await,
            "retirements-read-late" => checkpoints::retired_while_a_keeper_waits().await,
            "checkpoint-is-no-root" => checkpoints::a_keeper_meets_a_checkpoint().await,
            "checkpoint-keeps-index" => checkpoints::a_plan_that_is_older_than_the_next_session().await,
            "checkpoint-superseded-by-any" => checkpoints::another_capture_of_the_same_writer().await,
            "lists-checkpoints" => checkpoints::a_capture_dies_after_a_checkpoint().await,
            "believe-revoked" => trust::a_revoked_writer_commits().await,
            "chunk-id-unchecked" => trust::the_index_names_the_wrong_place().await,
            "log-floors-once" => logs::a_base_backup_is_at_work().await,
            "log-floors-rise" => logs::a_base_backup_begins_while_a_keeper_waits().await,
            _ => panic!("there is no directed world for `{fault}`"),
        }
    })
}
