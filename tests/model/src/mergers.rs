//! Merging of index segments and merging of plans.

use crate::model::{Model, Next};
use crate::rules::Rule;
use crate::state::{Mask, Memory, PLANS, Plan, Side, State, bits};

/// Where either merge is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// About to read the verdicts (index merge only).
    Plans,
    /// About to read its inputs.
    Read,
    /// About to write its output.
    Write,
    /// Deleting its inputs.
    Delete,
    /// Finished.
    Done,
}

/// An index merge.
#[derive(Debug, Clone, Copy)]
pub struct MergerSpec {
    /// The slot of the segment it writes.
    pub segment: usize,
    /// Whether it drops entries of dead packs.
    pub drops: bool,
}

/// What an index merge remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MergerState {
    /// Where it is.
    pub at: At,
    dead: Mask,
    inputs: Mask,
    entries: Mask,
}

impl MergerState {
    /// A merge before its first step.
    pub fn start() -> Self {
        Self { at: At::Plans, dead: 0, inputs: 0, entries: 0 }
    }
}

/// What a merge of plans remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlanMergerState {
    /// Where it is.
    pub at: At,
    inputs: u8,
    names: Mask,
}

impl PlanMergerState {
    /// A merge before its first step.
    pub fn start() -> Self {
        Self { at: At::Read, inputs: 0, names: 0 }
    }
}

/// Appends the possible steps of index merge `me`.
pub fn merger_steps(model: &Model, s: &State, me: usize, spec: &MergerSpec, m: &MergerState, out: &mut Next) {
    let write_first = model.rules.has(Rule::MergedSegmentFirst);
    let mut push = |what, detail, merger, segments: Option<[Mask; 8]>| {
        let mut next = *s;
        next.actors[me] = Memory::Merger(merger);
        next.segments = segments.unwrap_or(next.segments);
        model.push(out, me, what, detail, next);
    };
    match m.at {
        At::Plans => {
            let dead = if spec.drops { droppable(model, s) } else { 0 };
            push("reads the verdicts; dead packs:", dead, MergerState { at: At::Read, dead, ..*m }, None);
        }
        At::Read => {
            let inputs = existing_segments(s);
            let entries = s.indexed(Side::WHOLE) & !m.dead;
            let at = if write_first { At::Write } else { At::Delete };
            push("reads segments", inputs, MergerState { at, dead: 0, inputs, entries }, None);
        }
        At::Write => {
            let mut segments = s.segments;
            segments[spec.segment] = m.entries;
            let merger = if write_first { MergerState { at: At::Delete, ..*m } } else { finished() };
            push("writes one segment for packs", m.entries, merger, Some(segments));
        }
        At::Delete => {
            let doomed = doomed_segments(model, s, spec, m);
            let mut segments = s.segments;
            if let Some(first) = bits(doomed).next() {
                segments[first] = 0;
                let left = MergerState { inputs: m.inputs & !(1 << first), ..*m };
                push("deletes segment", first as u8, left, Some(segments));
            } else {
                let merger = if write_first { finished() } else { MergerState { at: At::Write, ..*m } };
                push("has deleted its inputs", 0, merger, None);
            }
        }
        At::Done => {}
    }
}

fn finished() -> MergerState {
    MergerState { at: At::Done, ..MergerState::start() }
}

fn droppable(model: &Model, s: &State) -> Mask {
    let decided_only = model.rules.has(Rule::MergeDropsOnlyDecided);
    let plans = s.plans.iter().filter(|plan| plan.present && (plan.decided || !decided_only));
    plans.fold(0, |all, plan| all | (plan.condemned & !plan.kept))
}

fn existing_segments(s: &State) -> Mask {
    s.segments.iter().enumerate().filter(|(_, packs)| **packs != 0).fold(0, |all, (n, _)| all | 1 << n)
}

fn doomed_segments(model: &Model, s: &State, spec: &MergerSpec, m: &MergerState) -> Mask {
    if model.rules.has(Rule::MergeDeletesOnlyInputs) {
        m.inputs
    } else {
        existing_segments(s) & !(1 << spec.segment)
    }
}

/// Appends the possible steps of plan merge `me`.
pub fn plan_merger_steps(model: &Model, s: &State, me: usize, m: &PlanMergerState, out: &mut Next) {
    let write_first = model.rules.has(Rule::MergedPlanFirst);
    let mut push = |what, detail, merger, plans: Option<[Plan; PLANS]>| {
        let mut next = *s;
        next.actors[me] = Memory::PlanMerger(merger);
        next.plans = plans.unwrap_or(next.plans);
        model.push(out, me, what, detail, next);
    };
    match m.at {
        At::Plans | At::Read => {
            let (inputs, names) = mergeable(model, s);
            let at = if write_first { At::Write } else { At::Delete };
            if inputs != 0 {
                push("reads decided plans", inputs, PlanMergerState { at, inputs, names }, None);
            }
        }
        At::Write => {
            let higher = model.rules.has(Rule::MergedPlanHigher);
            let number = if higher { s.next_plan(Side::WHOLE, model.first_plan) } else { Some(0) };
            let Some(n) = number else { return };
            let mut plans = s.plans;
            plans[n] = Plan { used: true, present: true, decided: true, condemned: m.names, kept: 0 };
            let merger =
                if write_first { PlanMergerState { at: At::Delete, ..*m } } else { plans_finished() };
            push("creates the merged plan", n as u8, merger, Some(plans));
        }
        At::Delete => {
            let mut plans = s.plans;
            if let Some(first) = bits(m.inputs).next() {
                let left = PlanMergerState { inputs: m.inputs & !(1 << first), ..*m };
                let plan = &mut plans[first];
                if plan.present {
                    plan.present = false;
                    let merger = if model.rules.has(Rule::VerdictsStay) { left } else { *m };
                    push("deletes plan", first as u8, merger, Some(plans));
                } else {
                    *plan = Plan { decided: false, kept: 0, ..*plan };
                    push("deletes the verdict of plan", first as u8, left, Some(plans));
                }
            } else {
                let merger =
                    if write_first { plans_finished() } else { PlanMergerState { at: At::Write, ..*m } };
                push("has deleted its inputs", 0, merger, None);
            }
        }
        At::Done => {}
    }
}

fn plans_finished() -> PlanMergerState {
    PlanMergerState { at: At::Done, ..PlanMergerState::start() }
}

fn mergeable(model: &Model, s: &State) -> (u8, Mask) {
    let decided_only = model.rules.has(Rule::MergeOnlyDecidedPlans);
    let plans =
        s.plans.iter().enumerate().filter(|(_, plan)| plan.present && (plan.decided || !decided_only));
    let (inputs, names) =
        plans.fold((0, 0), |(set, names), (n, plan)| (set | 1 << n, names | (plan.condemned & !plan.kept)));
    let in_use = s.packs | s.indexed(Side::WHOLE);
    (inputs, if model.rules.has(Rule::NamesNeverLeave) { names } else { names & in_use })
}
