//! For each rule, where its absence shows.

use crate::explore::Outcome;
use crate::model::Step;
use crate::rules::Rule;
use crate::scenarios::{Size, named};

/// Enough for every small scenario.
pub const SMALL_LIMIT_STATES: usize = 5_000_000;

/// Where a rule's absence shows: a scenario, and the rules that must be absent as well.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// Name of the scenario.
    pub scenario: &'static str,
    /// Rules that cover for a caution: it is needed only where these are absent. Empty for a rule.
    pub covered_by: &'static [Rule],
    /// Whether a loss is expected at all. False for a caution that the model never needs.
    pub loss: bool,
}

impl Evidence {
    /// Whether nothing is lost by this absence alone: good practice that costs nothing, rather than a rule.
    pub fn is_caution(&self) -> bool {
        !self.loss || !self.covered_by.is_empty()
    }
}

/// The evidence for `rule`.
pub fn evidence(rule: Rule) -> Evidence {
    let (scenario, covered_by): (_, &[Rule]) = match rule {
        Rule::ClaimBeforeReading
        | Rule::AvoidDoomed
        | Rule::RandomSuffix
        | Rule::IndexBeforeCommit
        | Rule::ConditionalCommit
        | Rule::PlanBeforeSessions
        | Rule::FenceOrWait
        | Rule::FencesStay
        | Rule::RescanAfterFence
        | Rule::OwnPlanOnlyRelease
        | Rule::PlanNeverWithdrawn => ("writers", &[]),
        Rule::PlansBeforeIndex => ("shrinking plans", &[Rule::NamesNeverLeave]),
        Rule::NamesNeverLeave => ("shrinking resume", &[]),
        Rule::ResumeNeedsListing => ("late requests", &[]),
        Rule::ListingAfterPlans => ("resume", &[]),
        Rule::ReloadAfterCheckpoint
        | Rule::CheckpointUntilCommit
        | Rule::SupersededByName
        | Rule::WriterReadsRetirements
        | Rule::RetirementsFirst => ("checkpoint", &[]),
        Rule::ClaimBeforeEnd | Rule::AbandonedWithoutSession | Rule::AbandonedEndsFirst => ("abandoned", &[]),
        Rule::SweepOnlyEnded | Rule::EndsStay | Rule::LedgerWithoutGaps => ("ledger", &[]),
        Rule::RepackGuarded => ("repack", &[]),
        Rule::RescanPlansLast => ("stray entry", &[]),
        Rule::RescanCountsPlans => ("duplicate", &[]),
        Rule::VerdictBeforeDelete => ("takeover", &[]),
        Rule::VerdictBinding => ("stalled keeper", &[]),
        Rule::PlanNamesUnique => ("plan names", &[]),
        Rule::RelistMissingPlan
        | Rule::VerdictsStay
        | Rule::MergedPlanFirst
        | Rule::MergedPlanHigher
        | Rule::MergeOnlyDecidedPlans => ("stalled merge", &[]),
        Rule::RepackBeforePlan => ("repack", &[Rule::RepackInSession]),
        Rule::RepackInSession => ("repack", &[Rule::RepackBeforePlan]),
        Rule::RepackDurable => ("repack", &[]),
        Rule::MergeDeletesOnlyInputs | Rule::MergedSegmentFirst | Rule::MergeDropsOnlyDecided => {
            ("index merge", &[])
        }
        Rule::UndoInSession | Rule::UndoAvoidsDoomed => ("undo", &[]),
        Rule::CopyOwnSession | Rule::CopyTargetPlans | Rule::ForeignRetirements => ("copy", &[]),
        Rule::ReaderListsAgain | Rule::ReaderIgnoresPlans => ("reader", &[]),
    };
    Evidence { scenario, covered_by, loss: rule != Rule::ListingAfterPlans }
}

/// Searches the small scenario of `rule` without `absent`; `None` if there is no scenario of that name.
pub fn search_without(rule: Rule, absent: &[Rule]) -> Option<Outcome<Step>> {
    let model = named(Size::Small, evidence(rule).scenario)?;
    let model = absent.iter().fold(model, |model, rule| model.without(*rule));
    Some(model.check(SMALL_LIMIT_STATES))
}
