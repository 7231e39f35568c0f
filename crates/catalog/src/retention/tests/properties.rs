//! The promises, for any history and any policy.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn some_slots() -> impl Strategy<Value = Option<Slots>> {
    prop_oneof![
        3 => Just(None),
        3 => (0_u32..6).prop_map(|count| Some(Slots::Newest(count))),
        1 => Just(Some(Slots::Forever)),
    ]
}

fn some_span() -> impl Strategy<Value = Option<Span>> {
    prop_oneof![4 => Just(None), 1 => (0_i64..2000).prop_map(|hours| Some(hours.hours()))]
}

fn some_policy() -> impl Strategy<Value = RetentionPolicy> {
    let slots = [some_slots(), some_slots(), some_slots(), some_slots(), some_slots(), some_slots()];
    let spans = [some_span(), some_span(), some_span()];
    (slots, spans, any::<bool>()).prop_map(
        |([last, hourly, daily, weekly, monthly, yearly], [within, within_daily, within_weekly], tag)| {
            RetentionPolicy {
                last,
                hourly,
                daily,
                weekly,
                monthly,
                yearly,
                within,
                within_daily,
                within_weekly,
                tags: if tag { vec!["keep".into()] } else { Vec::new() },
                ..Default::default()
            }
        },
    )
}

/// Capture times that drift from the commit's by up to a few days, rarely; half an hour, mostly.
fn drift() -> impl Strategy<Value = i64> {
    prop_oneof![6 => -HOUR..=HOUR, 1 => -20 * DAY..=20 * DAY, 1 => any::<i64>()]
}

/// Time since the one before, drift of the clock, completeness, proof, what is special, and size of a snapshot.
type Shape = (i64, i64, bool, bool, u8, Option<u64>);

fn some_history() -> impl Strategy<Value = Vec<Candidate>> {
    let size =
        prop_oneof![1 => Just(None), 6 => (80_u64..120).prop_map(Some), 1 => (0_u64..500).prop_map(Some)];
    let member = (0..3 * DAY, drift(), prop::bool::weighted(0.8), prop::bool::weighted(0.2), 0_u8..40, size);
    prop::collection::vec(member, 0..40).prop_map(|members| {
        let mut time = ns("2025-12-01T00:00:00Z");
        let member = |(order, (step, drift, complete, proven, special, logical_bytes)): (u64, Shape)| {
            time += step;
            Candidate {
                capture: time.saturating_add(drift),
                commit_time: time,
                complete,
                proven: complete && proven && special % 7 != 0,
                damaged: special % 7 == 0,
                tags: if special == 0 { vec!["keep".into()] } else { Vec::new() },
                stored: (special % 3 == 0).then_some(time),
                keep_forever: special == 2,
                logical_bytes,
                ..snapshot(2 * order + 1, 0)
            }
        };
        (0..).zip(members).map(member).collect()
    })
}

fn kept_ids(decisions: &[Decision]) -> BTreeSet<SnapshotId> {
    decisions.iter().filter(|decision| decision.keep).map(|decision| decision.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_must_never_go_stays(policy in some_policy(), history in some_history()) {
        let decisions = decide_at(&policy, "Europe/Helsinki", &history);
        prop_assert!(decisions.iter().all(|decision| !decision.reasons.is_empty()));
        let credible = |at: &usize| history[*at].complete && decisions[*at].anomaly.is_none();
        let sound = |at: &usize| credible(at) && !history[*at].damaged;
        if let Some(last) = (0..history.len()).rev().find(sound) {
            prop_assert!(decisions[last].keep);
        }
        if let Some(last) = (0..history.len()).rev().find(credible) {
            prop_assert!(decisions[last].keep);
        }
        if let Some(last) = (0..history.len()).rev().find(|at| credible(at) && history[*at].proven) {
            prop_assert!(decisions[last].keep);
        }
        for flagged in (0..history.len()).filter(|at| decisions[*at].anomaly.is_some()) {
            prop_assert!(decisions[flagged].keep);
            for before in [(0..flagged).rev().find(credible), (0..flagged).rev().find(sound)] {
                prop_assert!(before.is_none_or(|before| decisions[before].keep));
            }
        }
        if history.iter().any(|candidate| candidate.complete) {
            prop_assert!(history.iter().zip(&decisions).any(|(candidate, it)| candidate.complete && it.keep));
        }
    }

    #[test]
    fn deciding_again_removes_nothing_more(policy in some_policy(), history in some_history()) {
        let now = now_of(&history);
        let zone = zone("Europe/Helsinki");
        let decisions = decide(&policy, &zone, now, &history);
        let rest: Vec<_> = kept(&decisions).into_iter().map(|at| history[at].clone()).collect();
        let again = decide(&policy, &zone, now, &rest);
        prop_assert!(again.iter().all(|decision| decision.keep), "{:?}", again);
    }

    /// Neither of the others nor, by itself, of the damaged one: to know of damage keeps more.
    #[test]
    fn to_learn_of_damage_removes_nothing(
        policy in some_policy(),
        history in some_history(),
        place: prop::sample::Index,
    ) {
        prop_assume!(!history.is_empty());
        let whole: Vec<_> =
            history.iter().map(|it| Candidate { damaged: false, proven: false, ..it.clone() }).collect();
        let before = decide_at(&policy, "Europe/Helsinki", &whole);
        let mut damaged = whole;
        damaged[place.index(history.len())].damaged = true;
        let after = decide_at(&policy, "Europe/Helsinki", &damaged);
        prop_assert!(kept_ids(&before).is_subset(&kept_ids(&after)));
    }

    /// With a clock that is wrong by more than an hour against the store's, wherever it lands among the commits.
    #[test]
    fn a_wrong_clock_removes_nothing(
        policy in some_policy(),
        history in some_history(),
        place: prop::sample::Index,
        capture: i64,
        complete: bool,
    ) {
        let now = now_of(&history);
        let zone = zone("Europe/Helsinki");
        let before = decide(&policy, &zone, now, &history);
        let place = place.index(history.len() + 1);
        let commit_time = if place == 0 { now } else { history[place - 1].commit_time };
        let intruder = Candidate { capture, commit_time, complete, ..snapshot(2 * place as u64, 0) };
        let mut joined = history.clone();
        joined.insert(place, intruder);
        let after = decide(&policy, &zone, now, &joined);
        if after[place].anomaly.is_some() || !complete {
            prop_assert!(kept_ids(&before).is_subset(&kept_ids(&after)));
        }
        if capture > commit_time.saturating_add(HOUR) {
            prop_assert!(after[place].anomaly.is_some() && after[place].keep);
        }
    }

    /// A host whose clock is right, and an intruder that claims any time for its capture and its commit alike: it is
    /// flagged, and removes nothing, unless it claims a time since the commit before it.
    #[test]
    fn a_wrong_clock_does_not_take_the_slots_of_others(
        policy in some_policy(),
        steps in prop::collection::vec(0..3 * DAY, 1..30),
        place: prop::sample::Index,
        lie: i64,
    ) {
        let mut time = ns("2025-12-01T00:00:00Z");
        let history: Vec<_> = (0..).zip(steps).map(|(order, step)| {
            time += step;
            snapshot(2 * order + 1, time)
        }).collect();
        let zone = zone("Europe/Helsinki");
        let before = decide(&policy, &zone, time, &history);
        let place = place.index(history.len()) + 1;
        let mut joined = history.clone();
        joined.insert(place, Candidate { capture: lie, commit_time: lie, ..snapshot(2 * place as u64, 0) });
        let after = decide(&policy, &zone, time, &joined);
        let gap = history[place - 1].capture - HOUR..=time + HOUR;
        prop_assert_eq!(after[place].anomaly.is_some(), !gap.contains(&lie));
        if after[place].anomaly.is_some() {
            prop_assert!(kept_ids(&before).is_subset(&kept_ids(&after)));
        }
    }

    #[test]
    fn an_empty_policy_keeps_everything(history in some_history()) {
        let decisions = decide_at(&RetentionPolicy::default(), "UTC", &history);
        prop_assert!(decisions.iter().all(|decision| decision.keep));
    }
}
