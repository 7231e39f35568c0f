//! The decision itself.

use std::collections::BTreeMap;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};

use super::slot::{Slot, Tier};
use super::{Candidate, Decision, RetentionPolicy, Slots};

/// Clocks may differ by this much before a snapshot is flagged.
const TOLERANCE_NS: i64 = 3600 * 1_000_000_000;
/// The clock of a store may differ by this much: some file systems keep local time.
const STORE_TOLERANCE_NS: i64 = 25 * TOLERANCE_NS;
/// One that has at most the n-th part of the bytes of the complete one before it is flagged.
const SHRUNK_TO: u64 = 5;

/// Decides about every candidate, in their order. `now` is in nanoseconds since 1970; `zone` is the dataset's, or that
/// of the store. Pure: the same input gives the same decisions.
/// ```
/// use jiff::tz::TimeZone;
/// use keepwell_catalog::retention::{Candidate, RetentionPolicy, Slots, decide};
/// use keepwell_crypto::SnapshotId;
///
/// const HOUR: i64 = 3600 * 1_000_000_000;
/// let taken = |n: u8, hours: i64| Candidate {
///     id: SnapshotId::from_bytes([n; 32]),
///     dataset: "home".into(),
///     host: "web1".into(),
///     capture: hours * HOUR,
///     commit_time: hours * HOUR,
///     stored: None,
///     commit_order: n.into(),
///     complete: true,
///     proven: true,
///     damaged: false,
///     tags: Vec::new(),
///     keep_until: None,
///     keep_forever: false,
///     logical_bytes: None,
/// };
/// // Two on the first day, one on each of the two days after it.
/// let candidates = [taken(0, 1), taken(1, 13), taken(2, 25), taken(3, 49)];
/// let policy = RetentionPolicy { daily: Some(Slots::Newest(2)), ..RetentionPolicy::default() };
/// let decisions = decide(&policy, &TimeZone::UTC, 50 * HOUR, &candidates);
/// let keep: Vec<bool> = decisions.iter().map(|decision| decision.keep).collect();
/// assert_eq!(keep, [false, false, true, true]);
/// assert!(decisions[3].reasons.iter().any(|reason| reason.starts_with("daily 1970-01-03")));
/// ```
pub fn decide(
    policy: &RetentionPolicy,
    zone: &TimeZone,
    now: i64,
    candidates: &[Candidate],
) -> Vec<Decision> {
    let mut groups: BTreeMap<(&str, &str), Vec<usize>> = BTreeMap::new();
    for (number, candidate) in candidates.iter().enumerate() {
        groups.entry((&candidate.dataset, &candidate.host)).or_default().push(number);
    }
    let mut decisions: Vec<Option<Decision>> = vec![None; candidates.len()];
    for mut numbers in groups.into_values() {
        numbers.sort_by_key(|number| (candidates[*number].commit_order, candidates[*number].id));
        let decide_with = |damage| {
            let member = |number: &usize| Member::new(&candidates[*number], zone, damage);
            Group { policy, now, members: numbers.iter().map(member).collect() }.decide()
        };
        let decided = decide_with(Damage::Counts);
        let is_damaged = numbers.iter().any(|number| candidates[*number].damaged);
        let as_if_whole = if is_damaged { decide_with(Damage::Unknown) } else { Vec::new() };
        for (at, decision) in decided.into_iter().enumerate() {
            let decision = match candidates[numbers[at]].damaged {
                true => as_if_whole[at].of_damaged(),
                false => decision,
            };
            decisions[numbers[at]] = Some(decision);
        }
    }
    decisions.into_iter().map(|decision| decision.expect("every candidate is in one group")).collect()
}

/// Whether a snapshot that is damaged counts for the rules.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Damage {
    /// It does not: what happens to the others.
    Counts,
    /// As if it were whole: what happens to itself.
    Unknown,
}

impl Decision {
    fn of_damaged(&self) -> Self {
        let mut reasons = vec!["damaged, does not count".to_owned()];
        reasons.extend(self.reasons.iter().cloned());
        Decision { reasons, ..self.clone() }
    }
}

/// Snapshots that are counted together, in commit order.
struct Group<'a> {
    policy: &'a RetentionPolicy,
    now: i64,
    members: Vec<Member<'a>>,
}

struct Member<'a> {
    candidate: &'a Candidate,
    captured: Zoned,
    anomaly: Option<Anomaly>,
    is_damaged: bool,
    /// Why it stays.
    reasons: Vec<String>,
    /// A rule keeps it.
    by_rule: bool,
}

impl<'a> Member<'a> {
    fn new(candidate: &'a Candidate, zone: &TimeZone, damage: Damage) -> Self {
        let captured = Timestamp::from_nanosecond(i128::from(candidate.capture))
            .expect("every i64 of nanoseconds lies within the years that jiff knows")
            .to_zoned(zone.clone());
        let is_damaged = candidate.damaged && damage == Damage::Counts;
        Member { candidate, captured, anomaly: None, is_damaged, reasons: Vec::new(), by_rule: false }
    }

    fn is_credible(&self) -> bool {
        self.candidate.complete && self.anomaly.is_none() && !self.is_damaged
    }

    fn keep_by_rule(&mut self, reason: String) {
        self.by_rule = true;
        self.reasons.push(reason);
    }

    fn has_credible_clock(&self) -> bool {
        !matches!(self.anomaly, Some(Anomaly::Clock(_)))
    }

    fn decision(self) -> Decision {
        let anomaly = self.anomaly.map(|(Anomaly::Clock(why) | Anomaly::Size(why))| why);
        let mut reasons: Vec<String> = anomaly.iter().map(|why| format!("flagged: {why}")).collect();
        reasons.extend(self.reasons);
        let keep = !reasons.is_empty();
        if !keep {
            let why = if self.candidate.complete {
                "no rule keeps it"
            } else {
                "incomplete, and a later one is complete"
            };
            reasons.push(why.to_owned());
        }
        Decision { id: self.candidate.id, keep, by_rule: self.by_rule, anomaly, reasons }
    }
}

/// What speaks against a snapshot.
enum Anomaly {
    /// Its time.
    Clock(String),
    /// How little is in it.
    Size(String),
}

impl Group<'_> {
    fn decide(mut self) -> Vec<Decision> {
        self.flag();
        self.protect();
        self.keep_by_wish();
        self.keep_last();
        for tier in Tier::ALL {
            self.keep_slots(tier);
        }
        self.keep_within();
        self.members.into_iter().map(Member::decision).collect()
    }

    /// Flags what is not credible, and keeps what shows that: the newest credible snapshot before it, and the one
    /// whose clock contradicts it.
    fn flag(&mut self) {
        let mut newest_credible: Option<usize> = None;
        let mut latest_capture: Option<usize> = None;
        let mut newest_complete: Option<usize> = None;
        for at in 0..self.members.len() {
            let anomaly = self.why_the_clock(at, latest_capture).map(Anomaly::Clock);
            let anomaly = anomaly.or_else(|| self.why_the_size(at, newest_complete).map(Anomaly::Size));
            self.members[at].anomaly = anomaly;
            if self.members[at].anomaly.is_some() {
                let reason =
                    format!("newest before {}, which is flagged", short_id(self.members[at].candidate));
                let mut kept = [newest_credible, latest_capture];
                if kept[0] == kept[1] {
                    kept[1] = None;
                }
                for index in kept.into_iter().flatten() {
                    self.members[index].reasons.push(reason.clone());
                }
            }
            if self.members[at].is_credible() {
                newest_credible = Some(at);
            }
            if self.members[at].candidate.complete && self.members[at].has_credible_clock() {
                let capture = |index: usize| self.members[index].candidate.capture;
                latest_capture =
                    Some(latest_capture.filter(|&best| capture(best) > capture(at)).unwrap_or(at));
                newest_complete = Some(at);
            }
        }
    }

    /// `latest` has the latest credible capture of those that were committed before.
    fn why_the_clock(&self, at: usize, latest: Option<usize>) -> Option<String> {
        let candidate = self.members[at].candidate;
        let is_after = |limit: i64, tolerance| candidate.capture > limit.saturating_add(tolerance);
        if is_after(candidate.commit_time, TOLERANCE_NS) {
            return Some("captured after it was committed".to_owned());
        }
        if is_after(self.now, TOLERANCE_NS) {
            return Some("captured in the future".to_owned());
        }
        if candidate.stored.is_some_and(|stored| is_after(stored, STORE_TOLERANCE_NS)) {
            return Some("captured after the store received it".to_owned());
        }
        let earlier = self.members[latest?].candidate;
        (candidate.capture < earlier.capture.saturating_sub(TOLERANCE_NS))
            .then(|| format!("captured before {}, which was committed earlier", short_id(earlier)))
    }

    /// `before` is the newest complete one before it.
    fn why_the_size(&self, at: usize, before: Option<usize>) -> Option<String> {
        let (candidate, before) = (self.members[at].candidate, self.members[before?].candidate);
        let (bytes, bytes_before) = (candidate.logical_bytes?, before.logical_bytes?);
        let is_shrunk = candidate.complete && bytes < bytes_before && bytes <= bytes_before / SHRUNK_TO;
        is_shrunk.then(|| {
            let left = u128::from(bytes) * 100 / u128::from(bytes_before);
            format!("{} % smaller than {}", 100 - left, short_id(before))
        })
    }

    /// What stays whatever the policy says.
    fn protect(&mut self) {
        let last_complete = self.members.iter().rposition(Member::is_credible);
        let last_proven =
            self.members.iter().rposition(|member| member.is_credible() && member.candidate.proven);
        self.keep_at(last_complete, "last complete");
        self.keep_at(last_proven, "last proven");
        let since = last_complete.map_or(0, |at| at + 1);
        for member in &mut self.members[since..] {
            if !member.candidate.complete {
                member.reasons.push("incomplete, but newer than the last complete one".to_owned());
            }
        }
        if self.policy.is_empty() {
            self.members
                .iter_mut()
                .for_each(|member| member.reasons.push("the policy has no rule".to_owned()));
        }
    }

    fn keep_at(&mut self, at: Option<usize>, reason: &str) {
        if let Some(at) = at {
            self.members[at].reasons.push(reason.to_owned());
        }
    }

    /// What a person or the writer asked to keep.
    fn keep_by_wish(&mut self) {
        for member in &mut self.members {
            let candidate = member.candidate;
            if candidate.keep_forever {
                member.reasons.push("kept for ever".to_owned());
            }
            if let Some(until) = candidate.keep_until.filter(|until| *until > self.now) {
                let until = Timestamp::from_nanosecond(i128::from(until)).map_or_else(
                    |_| "later".into(),
                    |time| {
                        time.to_zoned(member.captured.time_zone().clone()).strftime("%F %H:%M").to_string()
                    },
                );
                member.reasons.push(format!("kept until {until}"));
            }
            if let Some(tag) = self.policy.tags.iter().find(|tag| candidate.tags.contains(tag)) {
                member.keep_by_rule(format!("tag `{tag}`"));
            }
        }
    }

    fn keep_last(&mut self) {
        let Some(slots) = self.policy.last else { return };
        let credible = self.members.iter_mut().rev().filter(|member| member.is_credible());
        for (number, member) in credible.take(slots.count()).enumerate() {
            member.keep_by_rule(format!("last{}", of(number, slots)));
        }
    }

    fn keep_slots(&mut self, tier: Tier) {
        let (slots, within) = (tier.slots(self.policy), tier.within(self.policy));
        if slots.is_none() && within.is_none() {
            return;
        }
        let occupants = self.occupants(tier);
        if let Some(slots) = slots {
            for (number, (slot, at)) in occupants.iter().rev().take(slots.count()).enumerate() {
                let reason = format!("{} {}{}", tier.name(), tier.label(*slot), of(number, slots));
                self.members[*at].keep_by_rule(reason);
            }
        }
        if let Some(span) = within {
            let oldest = self.oldest_within(&span);
            for (slot, at) in occupants {
                if self.members[at].captured.timestamp() >= oldest {
                    let reason = format!("{} {} within {span:#}", tier.name(), tier.label(slot));
                    self.members[at].keep_by_rule(reason);
                }
            }
        }
    }

    fn keep_within(&mut self) {
        let Some(span) = self.policy.within else { return };
        let oldest = self.oldest_within(&span);
        for member in &mut self.members {
            if member.is_credible() && member.captured.timestamp() >= oldest {
                member.keep_by_rule(format!("within {span:#}"));
            }
        }
    }

    /// Who occupies each slot: the first, until a later one is proven.
    fn occupants(&self, tier: Tier) -> BTreeMap<Slot, usize> {
        let mut occupants = BTreeMap::new();
        for (at, member) in self.members.iter().enumerate().filter(|(_, member)| member.is_credible()) {
            let occupant = occupants.entry(tier.slot(&member.captured)).or_insert(at);
            if member.candidate.proven {
                *occupant = at;
            }
        }
        occupants
    }

    /// The age of `span`, counted back from the latest credible capture. A span that leads out of all calendars
    /// keeps everything.
    fn oldest_within(&self, span: &Span) -> Timestamp {
        let credible = self.members.iter().filter(|member| member.is_credible());
        let newest = credible.map(|member| &member.captured).max();
        newest
            .and_then(|newest| newest.checked_sub(*span).ok())
            .map_or(Timestamp::MIN, |time| time.timestamp())
    }
}

/// ` (3 of 30)`, or nothing when all are kept.
fn of(number: usize, slots: Slots) -> String {
    match slots {
        Slots::Newest(count) => format!(" ({} of {count})", number + 1),
        Slots::Forever => String::new(),
    }
}

/// What people type to name a snapshot.
fn short_id(candidate: &Candidate) -> String {
    candidate.id.to_string()[..8].to_owned()
}
