//! A long reader: resolves a chunk through the index and fetches it later.

use crate::model::{Model, Next};
use crate::rules::Rule;
use crate::state::{Chunks, Mask, Memory, Side, State, bits};

/// What a reader is after.
#[derive(Debug, Clone, Copy)]
pub struct ReaderSpec {
    /// Session whose snapshot it restores.
    pub session: usize,
    /// The chunk it fetches (a mask of one bit).
    pub chunk: Chunks,
}

/// Where a reader is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum At {
    /// About to list the index.
    Index,
    /// About to fetch.
    Fetch,
    /// Has its chunk.
    Done,
    /// Has reported the snapshot as damaged.
    Damage,
}

/// What a reader remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReaderState {
    /// Where it is.
    pub at: At,
    view: Mask,
    tried: Mask,
}

impl ReaderState {
    /// A reader before its first step.
    pub fn start() -> Self {
        Self { at: At::Index, view: 0, tried: 0 }
    }
}

/// Appends the possible steps of reader `me`.
pub fn steps(model: &Model, s: &State, me: usize, spec: &ReaderSpec, r: &ReaderState, out: &mut Next) {
    let mut push = |what, detail, reader| {
        let mut next = *s;
        next.actors[me] = Memory::Reader(reader);
        model.push(out, me, what, detail, next);
    };
    match r.at {
        At::Index => {
            let hidden =
                if model.rules.has(Rule::ReaderIgnoresPlans) { 0 } else { s.doomed(Side::WHOLE, None) };
            let view = s.holding(s.indexed(Side::WHOLE) & !hidden, spec.chunk) & !r.tried;
            let at = if view == 0 { At::Damage } else { At::Fetch };
            push("lists the index; untried locations:", view, ReaderState { at, view, ..*r });
        }
        At::Fetch => {
            for pack in bits(r.view) {
                if s.packs & (1 << pack) != 0 {
                    push("fetches from pack", pack as u8, ReaderState { at: At::Done, view: 0, tried: 0 });
                } else {
                    push("does not find pack", pack as u8, missed(model, r, pack));
                }
            }
        }
        At::Done | At::Damage => {}
    }
}

fn missed(model: &Model, r: &ReaderState, pack: usize) -> ReaderState {
    let view = r.view & !(1 << pack);
    let at = match (view, model.rules.has(Rule::ReaderListsAgain)) {
        (0, true) => At::Index,
        (0, false) => At::Damage,
        _ => At::Fetch,
    };
    ReaderState { at, view, tried: r.tried | 1 << pack }
}
