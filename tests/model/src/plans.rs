//! Reading the plans: a listing in the order of numbers, in pages, and then each plan it named.

use crate::model::Model;
use crate::rules::Rule;
use crate::state::{Mask, Side, State, bits};

/// How far a reading of the plans has come, and what it found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanCursor {
    fetching: bool,
    next: u8,
    listed: u8,
    /// Packs condemned and not released by the plans read so far.
    pub doomed: Mask,
}

/// What one step of reading gives.
pub enum Reading {
    /// One more step is done: the cursor after it, what it was, and the plans it was about.
    More(PlanCursor, &'static str, u8),
    /// All plans are read.
    Finished(PlanCursor),
}

impl PlanCursor {
    /// Nothing read yet.
    pub const START: PlanCursor = PlanCursor { fetching: false, next: 0, listed: 0, doomed: 0 };

    /// Only what was found, without the position.
    pub fn result(self) -> PlanCursor {
        Self::found(self.doomed)
    }

    /// A reading that found `doomed`.
    pub fn found(doomed: Mask) -> PlanCursor {
        PlanCursor { doomed, ..Self::START }
    }

    /// The possible next steps of reading all plans of a store other than `except`. A page of the listing holds one name, or
    /// all. In models without merging of plans a reading is one step.
    pub fn advance(self, model: &Model, s: &State, side: Side, except: Option<usize>) -> Vec<Reading> {
        if !model.plans_in_pages {
            return vec![Reading::Finished(PlanCursor { doomed: s.doomed(side, except), ..self })];
        }
        if !self.fetching {
            return self.list(s, side, except);
        }
        match bits(self.listed).next() {
            Some(n) => vec![self.fetch(model, s, n)],
            None => vec![Reading::Finished(self)],
        }
    }

    fn list(self, s: &State, side: Side, except: Option<usize>) -> Vec<Reading> {
        let rest = s.plans_of(side).filter(|(n, _)| *n >= usize::from(self.next) && Some(*n) != except);
        let rest = rest.fold(0, |all, (n, _)| all | 1 << n);
        let whole = PlanCursor { fetching: true, listed: self.listed | rest, ..self };
        let mut steps = vec![Reading::More(whole, "lists all remaining plans:", rest)];
        if let Some(n) = bits(rest).next() {
            let page = PlanCursor { next: n as u8 + 1, listed: self.listed | 1 << n, ..self };
            steps.push(Reading::More(page, "lists one page of plans:", 1 << n));
        }
        steps
    }

    fn fetch(self, model: &Model, s: &State, n: usize) -> Reading {
        let plan = s.plans[n];
        let listed = self.listed & !(1 << n);
        if plan.present {
            let doomed = self.doomed | (plan.condemned & !plan.kept);
            return Reading::More(PlanCursor { listed, doomed, ..self }, "gets plans", 1 << n);
        }
        if model.rules.has(Rule::RelistMissingPlan) {
            let again = PlanCursor { doomed: self.doomed, ..Self::START };
            return Reading::More(again, "will list again as it misses plans", 1 << n);
        }
        Reading::More(PlanCursor { listed, ..self }, "goes on although it misses plans", 1 << n)
    }
}
