//! With all rules every scenario is safe; without any one of them something is lost.

use keepwell_model::evidence::{SMALL_LIMIT_STATES, evidence, search_without};
use keepwell_model::explore::Verdict;
use keepwell_model::model::Model;
use keepwell_model::rules::Rule;
use keepwell_model::scenarios::{Size, all, named};

#[test]
fn all_rules_together_are_safe_in_every_scenario() {
    for model in all(Size::Small) {
        let outcome = model.check(SMALL_LIMIT_STATES);
        if let Verdict::Broken { trace, complaint } = &outcome.verdict {
            let steps: Vec<String> = trace.iter().map(ToString::to_string).collect();
            panic!("`{}`: {complaint} after\n{}", model.name, steps.join("\n"));
        }
        assert!(outcome.is_safe(), "`{}` is larger than the limit", model.name);
    }
}

/// States that differ only in which of two like keepers is where are searched once, and nothing is missed by that.
#[test]
fn keepers_that_are_alike_need_not_be_told_apart() {
    let crowd = named(Size::Small, "crowd").expect("the scenario exists");
    let apart = Model { alike: 0..0, ..crowd.clone() };
    let (once, twice) = (crowd.check(SMALL_LIMIT_STATES), apart.check(SMALL_LIMIT_STATES));
    assert!(once.is_safe() && twice.is_safe());
    assert!(once.states < twice.states, "{} {}", once.states, twice.states);
    for rule in [Rule::FenceOrWait, Rule::PlanBeforeSessions, Rule::AvoidDoomed, Rule::RandomSuffix] {
        let [once, twice] = [&crowd, &apart].map(|model| model.without(rule).check(SMALL_LIMIT_STATES));
        assert_eq!(once.loss_len(), twice.loss_len(), "without `{rule}`");
        assert!(rule != Rule::FenceOrWait || once.loss_len().is_some());
    }
}

/// The rule's absence loses data; a caution that rules cover for is safe to lose alone, and lossy without those.
fn assert_rule(rule: Rule) {
    let evidence = evidence(rule);
    let alone = search_without(rule, &[rule]).expect("the scenario exists");
    if !evidence.is_caution() {
        assert!(alone.loss_len().is_some(), "`{rule}` is not needed in `{}`", evidence.scenario);
        return;
    }
    assert!(alone.is_safe(), "`{rule}` is needed by itself in `{}`", evidence.scenario);
    if evidence.loss {
        let mut absent = evidence.covered_by.to_vec();
        absent.push(rule);
        assert!(
            search_without(rule, &absent).expect("the scenario exists").loss_len().is_some(),
            "nothing is lost without {absent:?}"
        );
    }
}

macro_rules! rule_tests {
    ($($test:ident => $rule:ident,)*) => {
        $(#[test] fn $test() { assert_rule(Rule::$rule); })*

        #[test]
        fn every_rule_has_its_test() {
            assert_eq!(Rule::ALL, &[$(Rule::$rule,)*]);
        }
    };
}

rule_tests! {
    claim_before_reading => ClaimBeforeReading,
    plans_before_index => PlansBeforeIndex,
    relist_missing_plan => RelistMissingPlan,
    avoid_doomed => AvoidDoomed,
    random_suffix => RandomSuffix,
    index_before_commit => IndexBeforeCommit,
    conditional_commit => ConditionalCommit,
    resume_needs_listing => ResumeNeedsListing,
    listing_after_plans => ListingAfterPlans,
    reload_after_checkpoint => ReloadAfterCheckpoint,
    checkpoint_until_commit => CheckpointUntilCommit,
    superseded_by_name => SupersededByName,
    claim_before_end => ClaimBeforeEnd,
    abandoned_without_session => AbandonedWithoutSession,
    abandoned_ends_first => AbandonedEndsFirst,
    writer_reads_retirements => WriterReadsRetirements,
    retirements_first => RetirementsFirst,
    plan_names_unique => PlanNamesUnique,
    plan_before_sessions => PlanBeforeSessions,
    fence_or_wait => FenceOrWait,
    fences_stay => FencesStay,
    sweep_only_ended => SweepOnlyEnded,
    ends_stay => EndsStay,
    ledger_without_gaps => LedgerWithoutGaps,
    rescan_after_fence => RescanAfterFence,
    rescan_plans_last => RescanPlansLast,
    rescan_counts_plans => RescanCountsPlans,
    verdict_before_delete => VerdictBeforeDelete,
    verdict_binding => VerdictBinding,
    verdicts_stay => VerdictsStay,
    own_plan_only_release => OwnPlanOnlyRelease,
    plan_never_withdrawn => PlanNeverWithdrawn,
    repack_guarded => RepackGuarded,
    repack_before_plan => RepackBeforePlan,
    repack_durable => RepackDurable,
    repack_in_session => RepackInSession,
    merge_deletes_only_inputs => MergeDeletesOnlyInputs,
    merged_segment_first => MergedSegmentFirst,
    merge_drops_only_decided => MergeDropsOnlyDecided,
    merged_plan_first => MergedPlanFirst,
    merged_plan_higher => MergedPlanHigher,
    merge_only_decided_plans => MergeOnlyDecidedPlans,
    names_never_leave => NamesNeverLeave,
    undo_in_session => UndoInSession,
    undo_avoids_doomed => UndoAvoidsDoomed,
    copy_own_session => CopyOwnSession,
    copy_target_plans => CopyTargetPlans,
    foreign_retirements => ForeignRetirements,
    reader_lists_again => ReaderListsAgain,
    reader_ignores_plans => ReaderIgnoresPlans,
}

/// A rule that the model does not need stays unneeded wherever it is switched off: if this fails, it has become real.
#[test]
fn unneeded_rules_are_unneeded_everywhere() {
    for rule in Rule::ALL.iter().filter(|rule| !evidence(**rule).loss) {
        for model in all(Size::Small) {
            assert!(
                model.without(*rule).check(SMALL_LIMIT_STATES).is_safe(),
                "`{rule}` is needed in `{}`",
                model.name
            );
        }
    }
}
