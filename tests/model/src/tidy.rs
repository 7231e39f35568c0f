//! What keepers do beside pruning: retire the checkpoints of dead captures, seal ends in a ledger, remove claims.

use crate::model::{Model, Next};
use crate::rules::Rule;
use crate::state::{End, Memory, Side, State, bits};

/// Where either is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// About to read the ends.
    Ends,
    /// About to list the claims.
    Claims,
    /// About to retire, or to create the ledger.
    Record,
    /// Deleting.
    Delete,
    /// Finished.
    Done,
}

/// What a keeper remembers that retires checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TidierState {
    /// Where it is.
    pub at: At,
    checkpoints: u8,
    open: u8,
}

impl TidierState {
    /// Before its first step.
    pub fn start(model: &Model) -> Self {
        let at = if model.rules.has(Rule::AbandonedEndsFirst) { At::Ends } else { At::Claims };
        Self { at, checkpoints: 0, open: 0 }
    }
}

/// Appends the possible steps of a keeper that retires abandoned checkpoints. There is one writer in the scenario.
pub fn tidier_steps(model: &Model, s: &State, me: usize, t: &TidierState, out: &mut Next) {
    let ends_first = model.rules.has(Rule::AbandonedEndsFirst);
    let mut push = |what, detail, tidier, retired| {
        let mut next = *s;
        next.actors[me] = Memory::Tidier(tidier);
        next.retired |= retired;
        model.push(out, me, what, detail, next);
    };
    match t.at {
        At::Ends => {
            let found = s.sessions.iter().enumerate().filter(|(_, session)| session.end == End::Checkpoint);
            let checkpoints = found.fold(0, |all, (slot, _)| all | 1 << slot);
            let at = if ends_first { At::Claims } else { At::Record };
            push("reads the ends; checkpoints:", checkpoints, TidierState { at, checkpoints, ..*t }, 0);
        }
        At::Claims => {
            let open = s.open_sessions(Side::WHOLE);
            let at = if ends_first { At::Record } else { At::Ends };
            push("lists open sessions:", open, TidierState { at, open, ..*t }, 0);
        }
        At::Record => {
            let done = TidierState { at: At::Done, checkpoints: 0, open: 0 };
            let leaves = t.checkpoints == 0 || t.open != 0 && model.rules.has(Rule::AbandonedWithoutSession);
            if leaves {
                push("leaves the checkpoints alone", 0, done, 0);
            } else {
                push("retires the checkpoints as abandoned:", t.checkpoints, done, t.checkpoints);
            }
        }
        At::Delete | At::Done => {}
    }
}

/// The numbers of the writer whose ends are sealed.
#[derive(Debug, Clone, Copy)]
pub struct SweeperSpec {
    /// The first slot.
    pub first: usize,
    /// The last slot.
    pub last: usize,
}

/// What a keeper remembers that seals ends and removes claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SweeperState {
    /// Where it is.
    pub at: At,
    claims: u8,
    ended: u8,
    ends_to_go: u8,
}

impl SweeperState {
    /// Before its first step.
    pub fn start() -> Self {
        Self { at: At::Claims, claims: 0, ended: 0, ends_to_go: 0 }
    }
}

/// Appends the possible steps of a keeper that seals and sweeps.
pub fn sweeper_steps(
    model: &Model,
    s: &State,
    me: usize,
    spec: &SweeperSpec,
    w: &SweeperState,
    out: &mut Next,
) {
    let own = (spec.first..=spec.last).fold(0, |all, slot| all | 1 << slot);
    let mut push = |what, detail, sweeper, change: &dyn Fn(&mut State)| {
        let mut next = *s;
        next.actors[me] = Memory::Sweeper(sweeper);
        change(&mut next);
        model.push(out, me, what, detail, next);
    };
    match w.at {
        At::Claims => {
            let claims = s.claims & own;
            push("lists the claims:", claims, SweeperState { at: At::Ends, claims, ..*w }, &|_| {});
        }
        At::Ends => {
            let ended = s.ended() & own;
            push("reads the ends:", ended, SweeperState { at: At::Record, ended, ..*w }, &|_| {});
        }
        At::Record => {
            let sealed = sealed(model, spec, w.ended);
            let open = sealed & !w.ended;
            let claims = if model.rules.has(Rule::SweepOnlyEnded) { w.claims & w.ended } else { w.claims };
            let ends_to_go = if model.rules.has(Rule::EndsStay) { 0 } else { sealed & w.ended };
            let next = SweeperState { at: At::Delete, claims, ended: 0, ends_to_go };
            push("seals in a ledger the ends of sessions", sealed, next, &|s| {
                s.sealed |= sealed;
                s.sealed_open |= open;
            });
        }
        At::Delete => {
            if let Some(slot) = bits(w.claims).next() {
                let left = SweeperState { claims: w.claims & !(1 << slot), ..*w };
                push("deletes the claim of session", slot as u8, left, &|s| s.claims &= !(1 << slot));
            } else if let Some(slot) = bits(w.ends_to_go).next() {
                let left = SweeperState { ends_to_go: w.ends_to_go & !(1 << slot), ..*w };
                push("deletes the end of session", slot as u8, left, &|s| s.ends_gone |= 1 << slot);
            } else {
                let done = SweeperState { at: At::Done, ..*w };
                push("has swept", 0, done, &|_| {});
            }
        }
        At::Done => {}
    }
}

/// What the ledger covers: all sessions before the first without an end.
fn sealed(model: &Model, spec: &SweeperSpec, ended: u8) -> u8 {
    let to = if model.rules.has(Rule::LedgerWithoutGaps) {
        (spec.first..=spec.last).find(|slot| ended & (1 << slot) == 0).unwrap_or(spec.last + 1)
    } else {
        bits(ended).max().map_or(spec.first, |newest| newest + 1)
    };
    (spec.first..to).fold(0, |all, slot| all | 1 << slot)
}
