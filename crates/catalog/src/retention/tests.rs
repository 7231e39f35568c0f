//! Tables for calendars, flags and damage.

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};

use super::*;

mod properties;

const HOUR: i64 = 3600 * 1_000_000_000;
const DAY: i64 = 24 * HOUR;

fn ns(time: &str) -> i64 {
    i64::try_from(time.parse::<Timestamp>().unwrap().as_nanosecond()).unwrap()
}

/// A complete snapshot, captured when it was committed.
fn snapshot(order: u64, capture: i64) -> Candidate {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&order.to_be_bytes());
    Candidate {
        id: SnapshotId::from_bytes(id),
        dataset: "home".into(),
        host: "web1".into(),
        capture,
        commit_time: capture,
        stored: None,
        commit_order: order,
        complete: true,
        proven: false,
        damaged: false,
        tags: Vec::new(),
        keep_until: None,
        keep_forever: false,
        logical_bytes: None,
    }
}

/// One snapshot at each of these times, in this order of commits.
fn at(times: &[&str]) -> Vec<Candidate> {
    (0..).zip(times).map(|(order, time)| snapshot(order, ns(time))).collect()
}

fn zone(name: &str) -> TimeZone {
    TimeZone::get(name).unwrap()
}

fn now_of(candidates: &[Candidate]) -> i64 {
    candidates.iter().map(|candidate| candidate.commit_time).max().unwrap_or(0)
}

fn decide_at(policy: &RetentionPolicy, zone_name: &str, candidates: &[Candidate]) -> Vec<Decision> {
    decide(policy, &zone(zone_name), now_of(candidates), candidates)
}

/// Numbers of the snapshots that stay.
fn kept(decisions: &[Decision]) -> Vec<usize> {
    (0..decisions.len()).filter(|&number| decisions[number].keep).collect()
}

fn newest(count: u32) -> Option<Slots> {
    Some(Slots::Newest(count))
}

#[test]
fn each_decision_says_why() {
    let candidates = at(&[
        "2026-11-17T12:00:00Z",
        "2026-11-19T08:00:00Z",
        "2026-11-19T20:00:00Z",
        "2026-11-20T08:00:00Z",
        "2026-11-20T20:00:00Z",
    ]);
    let policy = RetentionPolicy { daily: newest(2), monthly: Some(Slots::Forever), ..Default::default() };
    let decisions = decide_at(&policy, "UTC", &candidates);
    let reasons: Vec<String> = decisions.iter().map(|decision| decision.reasons.join("; ")).collect();
    assert_eq!(
        reasons,
        [
            "monthly 2026-11",
            "daily 2026-11-19 (2 of 2)",
            "no rule keeps it",
            "daily 2026-11-20 (1 of 2)",
            "last complete",
        ]
    );
    assert_eq!(kept(&decisions), [0, 1, 3, 4]);
}

#[test]
fn a_slot_keeps_its_first_until_a_later_one_is_proven() {
    let mut candidates =
        at(&["2026-11-19T01:00:00Z", "2026-11-19T02:00:00Z", "2026-11-19T03:00:00Z", "2026-11-20T01:00:00Z"]);
    let policy = RetentionPolicy { daily: newest(7), ..Default::default() };
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [0, 3]);
    candidates[1].proven = true;
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [1, 3]);
    candidates[0].proven = true;
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [1, 3]);
    candidates[2].proven = true;
    let decisions = decide_at(&policy, "UTC", &candidates);
    assert_eq!(kept(&decisions), [2, 3]);
    assert_eq!(decisions[2].reasons, ["last proven", "daily 2026-11-19 (2 of 7)"]);
}

#[test]
fn a_damaged_snapshot_stays_beside_the_one_that_counts_in_its_place() {
    let mut candidates = at(&[
        "2026-11-18T01:00:00Z",
        "2026-11-19T01:00:00Z",
        "2026-11-19T02:00:00Z",
        "2026-11-20T01:00:00Z",
        "2026-11-20T02:00:00Z",
    ]);
    let policy = RetentionPolicy { last: newest(1), daily: newest(2), ..Default::default() };
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [1, 3, 4]);
    for number in [1, 4] {
        candidates[number].damaged = true;
    }
    let decisions = decide_at(&policy, "UTC", &candidates);
    let reasons: Vec<String> = decisions.iter().map(|decision| decision.reasons.join("; ")).collect();
    assert_eq!(
        reasons,
        [
            "no rule keeps it",
            "damaged, does not count; daily 2026-11-19 (2 of 2)",
            "daily 2026-11-19 (2 of 2)",
            "last complete; last (1 of 1); daily 2026-11-20 (1 of 2)",
            "damaged, does not count; last complete; last (1 of 1)",
        ]
    );
    assert_eq!(kept(&decisions), [1, 2, 3, 4]);
    candidates[0].damaged = true;
    let decisions = decide_at(&policy, "UTC", &candidates);
    assert_eq!(decisions[0].reasons, ["damaged, does not count", "no rule keeps it"]);
    assert!(!decisions[0].keep, "it goes when it would have gone");
}

#[test]
fn incomplete_snapshots_occupy_no_slot() {
    let mut candidates = at(&[
        "2026-11-18T01:00:00Z",
        "2026-11-19T01:00:00Z",
        "2026-11-19T02:00:00Z",
        "2026-11-20T01:00:00Z",
        "2026-11-21T01:00:00Z",
    ]);
    for number in [1, 3, 4] {
        candidates[number].complete = false;
    }
    let policy = RetentionPolicy { daily: newest(2), ..Default::default() };
    let decisions = decide_at(&policy, "UTC", &candidates);
    assert_eq!(kept(&decisions), [0, 2, 3, 4]);
    assert_eq!(decisions[1].reasons, ["incomplete, and a later one is complete"]);
    assert_eq!(decisions[4].reasons, ["incomplete, but newer than the last complete one"]);
}

#[test]
fn hours_days_and_months_are_those_of_the_zone() {
    // (zone, tier, times, which stay)
    let hourly = RetentionPolicy { hourly: Some(Slots::Forever), ..Default::default() };
    let daily = RetentionPolicy { daily: Some(Slots::Forever), ..Default::default() };
    let monthly = RetentionPolicy { monthly: Some(Slots::Forever), ..Default::default() };
    let table: [(&str, &RetentionPolicy, &[&str], &[usize]); 8] = [
        // The same two moments are one day in UTC and two in Helsinki.
        ("UTC", &daily, &["2026-11-19T21:30:00Z", "2026-11-19T22:30:00Z", "2026-11-30T00:00:00Z"], &[0, 2]),
        ("Europe/Helsinki", &daily, &["2026-11-19T21:30:00Z", "2026-11-19T22:30:00Z"], &[0, 1]),
        // Clocks go back on 2026-10-25 at 04:00: 03:30 comes twice, each in its own hour.
        (
            "Europe/Helsinki",
            &hourly,
            &["2026-10-25T00:30:00Z", "2026-10-25T00:45:00Z", "2026-10-25T01:30:00Z", "2026-10-25T01:45:00Z"],
            &[0, 2, 3],
        ),
        // That day has 25 hours and is one day.
        (
            "Europe/Helsinki",
            &daily,
            &["2026-10-24T21:00:00Z", "2026-10-25T21:59:00Z", "2026-10-25T22:00:00Z"],
            &[0, 2],
        ),
        // Clocks go forward on 2026-03-29 at 03:00: 02:59 and 04:00 are neighbours.
        (
            "Europe/Helsinki",
            &hourly,
            &["2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:59:00Z", "2026-03-29T02:00:00Z"],
            &[0, 1, 3],
        ),
        // A zone with an offset of half an hour.
        (
            "Asia/Kolkata",
            &hourly,
            &["2026-01-01T00:29:00Z", "2026-01-01T00:30:00Z", "2026-01-01T01:29:00Z", "2026-01-01T01:30:00Z"],
            &[0, 1, 3],
        ),
        // Samoa left out 2011-12-30.
        (
            "Pacific/Apia",
            &daily,
            &["2011-12-30T09:59:00Z", "2011-12-30T10:00:00Z", "2011-12-31T09:59:00Z", "2011-12-31T10:00:00Z"],
            &[0, 1, 3],
        ),
        ("America/New_York", &monthly, &["2026-03-01T04:59:00Z", "2026-03-01T05:00:00Z"], &[0, 1]),
    ];
    for (zone, policy, times, expected) in table {
        assert_eq!(kept(&decide_at(policy, zone, &at(times))), expected, "{zone} {times:?}");
    }
}

#[test]
fn weeks_are_those_of_iso_8601_across_years() {
    // (date, ISO week): a year has 53 weeks when it begins or ends on a Thursday.
    let table = [
        ("2020-12-28", "2020-W53"),
        ("2021-01-03", "2020-W53"),
        ("2021-01-04", "2021-W01"),
        ("2024-12-29", "2024-W52"),
        ("2024-12-30", "2025-W01"),
        ("2025-12-28", "2025-W52"),
        ("2025-12-29", "2026-W01"),
        ("2026-12-31", "2026-W53"),
        ("2027-01-03", "2026-W53"),
        ("2027-01-04", "2027-W01"),
    ];
    let times: Vec<String> = table.iter().map(|(date, _)| format!("{date}T12:00:00Z")).collect();
    let times: Vec<&str> = times.iter().map(String::as_str).collect();
    let policy = RetentionPolicy { weekly: Some(Slots::Forever), ..Default::default() };
    let decisions = decide_at(&policy, "UTC", &at(&times));
    let mut last = "";
    for ((date, week), decision) in table.iter().zip(&decisions) {
        assert_eq!(decision.keep, last != *week, "{date}");
        if decision.keep {
            assert!(decision.reasons.contains(&format!("weekly {week}")), "{date}: {:?}", decision.reasons);
        }
        last = week;
    }
    // The newest two weeks, not the two with the highest numbers.
    let policy = RetentionPolicy { weekly: newest(2), ..Default::default() };
    assert_eq!(kept(&decide_at(&policy, "UTC", &at(&times))), [7, 9]);
}

#[test]
fn labels_are_for_people() {
    let hourly = RetentionPolicy { hourly: newest(1), yearly: newest(1), ..Default::default() };
    let decisions = decide_at(&hourly, "America/St_Johns", &at(&["2026-11-20T08:10:00Z"]));
    assert_eq!(
        decisions[0].reasons,
        ["last complete", "hourly 2026-11-20T04-03:30 (1 of 1)", "yearly 2026 (1 of 1)"]
    );
}

#[test]
fn within_counts_back_from_the_newest_in_the_calendar_of_the_zone() {
    let candidates =
        at(&["2026-03-28T11:59:00Z", "2026-03-28T12:30:00Z", "2026-03-29T08:00:00Z", "2026-03-29T12:00:00Z"]);
    // In Helsinki that night has 23 hours: a day before 15:00 is 15:00, 23 hours earlier.
    let policy = RetentionPolicy { within: Some(1.day()), ..Default::default() };
    let years_later = now_of(&candidates) + 2000 * DAY;
    let decisions = decide(&policy, &zone("Europe/Helsinki"), years_later, &candidates);
    assert_eq!(kept(&decisions), [2, 3]);
    assert_eq!(decisions[2].reasons, ["within 1d"]);
    let policy = RetentionPolicy { within: Some(24.hours()), ..Default::default() };
    assert_eq!(kept(&decide_at(&policy, "Europe/Helsinki", &candidates)), [1, 2, 3]);
    let policy = RetentionPolicy { within_daily: Some(2.days()), ..Default::default() };
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [0, 2, 3]);
    let policy = RetentionPolicy { within: Some(19_998.years()), ..Default::default() };
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [0, 1, 2, 3]);
}

#[test]
fn wishes_are_kept() {
    let mut candidates: Vec<_> = (0..6).map(|n| snapshot(n, n as i64 * DAY)).collect();
    candidates[0].keep_forever = true;
    candidates[1].keep_until = Some(6 * DAY);
    candidates[2].keep_until = Some(5 * DAY);
    candidates[3].tags = vec!["a".into(), "release".into()];
    let policy = RetentionPolicy { last: newest(1), tags: vec!["release".into()], ..Default::default() };
    let decisions = decide_at(&policy, "UTC", &candidates);
    assert_eq!(kept(&decisions), [0, 1, 3, 5]);
    assert_eq!(decisions[0].reasons, ["kept for ever"]);
    assert_eq!(decisions[1].reasons, ["kept until 1970-01-07 00:00"]);
    assert_eq!(decisions[3].reasons, ["tag `release`"]);
    assert_eq!(decisions[5].reasons, ["last complete", "last (1 of 1)"]);
}

#[test]
fn a_policy_without_rules_keeps_everything() {
    let candidates: Vec<_> = (0..5).map(|n| snapshot(n, n as i64 * DAY)).collect();
    for policy in [
        RetentionPolicy::default(),
        RetentionPolicy { last: newest(0), daily: newest(0), ..Default::default() },
    ] {
        let decisions = decide_at(&policy, "UTC", &candidates);
        assert_eq!(kept(&decisions), [0, 1, 2, 3, 4]);
        assert_eq!(decisions[0].reasons, ["the policy has no rule"]);
    }
}

#[test]
fn hosts_and_datasets_are_counted_apart() {
    let mut candidates: Vec<_> = (0..6).map(|n| snapshot(n, n as i64 * DAY)).collect();
    candidates[0].host = "web2".into();
    candidates[1].dataset = "etc".into();
    let policy = RetentionPolicy { last: newest(1), ..Default::default() };
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [0, 1, 5]);
}

#[test]
fn wrong_clocks_are_flagged_and_stay() {
    let day = |n: u64| snapshot(n, n as i64 * DAY);
    let policy = RetentionPolicy { last: newest(1), ..Default::default() };
    // (what is wrong with the third of five, the reason)
    type Change = fn(&mut Candidate);
    let table: [(Change, &str); 5] = [
        (|it| it.capture += HOUR + 1, "flagged: captured after it was committed"),
        (|it| (it.capture, it.commit_time) = (i64::MAX, i64::MAX), "flagged: captured in the future"),
        (|it| it.capture -= 25 * HOUR + 1, "flagged: captured before 00000000, which was committed earlier"),
        (|it| it.stored = Some(it.capture - 25 * HOUR - 1), "flagged: captured after the store received it"),
        // The signer's time is as wrong as the capture's; what the store says is not.
        (
            |it| {
                (it.stored, it.capture, it.commit_time) =
                    (Some(it.commit_time), it.capture + 30 * HOUR, it.commit_time + 30 * HOUR);
            },
            "flagged: captured after the store received it",
        ),
    ];
    for (change, reason) in table {
        let mut candidates: Vec<_> = (0..5).map(day).collect();
        change(&mut candidates[2]);
        let decisions = decide(&policy, &TimeZone::UTC, 4 * DAY, &candidates);
        assert_eq!(decisions[2].reasons, [reason]);
        assert!(decisions[2].anomaly.as_ref().is_some_and(|why| reason.ends_with(why)) && decisions[2].keep);
        assert_eq!(kept(&decisions), [1, 2, 4]);
        assert_eq!(decisions[1].reasons, ["newest before 00000000, which is flagged"]);
    }
    let mut candidates: Vec<_> = (0..5).map(day).collect();
    candidates[2].capture += HOUR;
    candidates[3].capture = candidates[2].capture - HOUR;
    assert_eq!(kept(&decide(&policy, &TimeZone::UTC, 4 * DAY, &candidates)), [4]);
}

#[test]
fn a_snapshot_that_shrank_is_flagged_and_keeps_the_one_before() {
    let sized = |sizes: &[Option<u64>]| -> Vec<Candidate> {
        let snapshot = |(n, size): (u64, &Option<u64>)| Candidate {
            logical_bytes: *size,
            ..snapshot(n, n as i64 * DAY)
        };
        (0..).zip(sizes).map(snapshot).collect()
    };
    let policy = RetentionPolicy { last: newest(1), ..Default::default() };
    let mut candidates = sized(&[Some(1000), Some(1000), Some(170), Some(180), Some(190)]);
    let decisions = decide_at(&policy, "UTC", &candidates);
    assert_eq!(decisions[2].reasons, ["flagged: 83 % smaller than 00000000"]);
    assert_eq!(decisions[1].reasons, ["newest before 00000000, which is flagged"]);
    // What comes after it is compared with it: that much less is now how it is.
    assert_eq!(kept(&decisions), [1, 2, 4]);
    // Nobody is left to compare with once a person has forgotten the last large one.
    candidates.remove(1);
    candidates.remove(0);
    assert_eq!(kept(&decide_at(&policy, "UTC", &candidates)), [2]);
    // (sizes, whether the last is flagged)
    for (sizes, flagged) in [
        ([Some(1000), Some(200)], true),
        ([Some(1000), Some(201)], false),
        ([Some(7), Some(0)], true),
        ([Some(0), Some(0)], false),
        ([None, Some(0)], false),
        ([Some(1000), None], false),
    ] {
        let decisions = decide_at(&policy, "UTC", &sized(&sizes));
        assert_eq!(decisions[1].anomaly.is_some(), flagged, "{sizes:?}");
    }
    let mut candidates = sized(&[Some(1000), Some(10), Some(900), Some(100)]);
    candidates[1].complete = false; // says nothing about the next one, and is not counted anyway
    let decisions = decide_at(&policy, "UTC", &candidates);
    assert_eq!(decisions[3].reasons, ["flagged: 89 % smaller than 00000000"]);
    assert_eq!(
        decisions[2].reasons,
        ["newest before 00000000, which is flagged", "last complete", "last (1 of 1)"]
    );
    assert!(decisions[1].anomaly.is_none());
}
