//! Exhaustive breadth-first search over the states of a model.
//!
//! States are kept whole and compared whole, so "no loss found" is exact and not a matter of hash luck.

use std::hash::{Hash, Hasher};

/// What a search found.
#[derive(Debug, Clone)]
pub struct Outcome<L> {
    /// Distinct states reached.
    pub states: usize,
    /// How the search ended.
    pub verdict: Verdict<L>,
}

/// How a search ended.
#[derive(Debug, Clone)]
pub enum Verdict<L> {
    /// Every reachable state satisfies the invariant.
    Safe,
    /// A shortest sequence of steps to a state that breaks the invariant, and what is broken there.
    Broken {
        /// Steps in order, from the initial state.
        trace: Vec<L>,
        /// The invariant's complaint about the last state.
        complaint: String,
    },
    /// The limit of states was reached first; nothing is proven.
    Limit,
}

impl<L> Outcome<L> {
    /// Whether the whole state space was seen and is sound.
    pub fn is_safe(&self) -> bool {
        matches!(self.verdict, Verdict::Safe)
    }

    /// Number of steps of the shortest loss trace, if one was found.
    pub fn loss_len(&self) -> Option<usize> {
        match &self.verdict {
            Verdict::Broken { trace, .. } => Some(trace.len()),
            Verdict::Safe | Verdict::Limit => None,
        }
    }
}

/// Visits every state reachable from `init`, nearest first, until one breaks `invariant` or `limit` states are stored.
///
/// `successors` appends every step possible in a state; it must be a pure function of that state, because a loss
/// trace is rebuilt by calling it again. Memory: one `S` and about 12 bytes per state.
pub fn explore<S, L>(
    init: S,
    mut successors: impl FnMut(&S, &mut Vec<(L, S)>),
    mut invariant: impl FnMut(&S) -> Result<(), String>,
    limit: usize,
) -> Outcome<L>
where
    S: Copy + Eq + Hash,
    L: Copy,
{
    let mut seen = Seen::new();
    seen.insert(init, 0);
    let mut next = Vec::new();
    let mut at = 0;
    while at < seen.states.len() {
        let state = seen.states[at];
        if let Err(complaint) = invariant(&state) {
            let trace = seen.trace(at, &mut successors);
            return Outcome { states: seen.states.len(), verdict: Verdict::Broken { trace, complaint } };
        }
        next.clear();
        successors(&state, &mut next);
        for (_, reached) in &next {
            seen.insert(*reached, at as u32);
        }
        if seen.states.len() > limit {
            return Outcome { states: seen.states.len(), verdict: Verdict::Limit };
        }
        at += 1;
    }
    Outcome { states: seen.states.len(), verdict: Verdict::Safe }
}

/// The visited states in order of discovery, and an open-addressing table of their positions.
struct Seen<S> {
    states: Vec<S>,
    parents: Vec<u32>,
    table: Vec<u32>,
}

const EMPTY: u32 = u32::MAX;

impl<S: Copy + Eq + Hash> Seen<S> {
    fn new() -> Self {
        Self { states: Vec::new(), parents: Vec::new(), table: vec![EMPTY; 1 << 12] }
    }

    fn insert(&mut self, state: S, parent: u32) {
        if (self.states.len() + 1) * 2 > self.table.len() {
            self.grow();
        }
        let slot = self.slot_of(&state);
        if self.table[slot] == EMPTY {
            self.table[slot] = self.states.len() as u32;
            self.states.push(state);
            self.parents.push(parent);
        }
    }

    fn slot_of(&self, state: &S) -> usize {
        let mask = self.table.len() - 1;
        let mut slot = fingerprint(state) as usize & mask;
        while self.table[slot] != EMPTY && self.states[self.table[slot] as usize] != *state {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        let size = self.table.len() * 2;
        self.table = vec![EMPTY; size];
        for index in 0..self.states.len() {
            let mut slot = fingerprint(&self.states[index]) as usize & (size - 1);
            while self.table[slot] != EMPTY {
                slot = (slot + 1) & (size - 1);
            }
            self.table[slot] = index as u32;
        }
    }

    fn trace<L: Copy>(&self, end: usize, successors: &mut impl FnMut(&S, &mut Vec<(L, S)>)) -> Vec<L> {
        let mut steps = Vec::new();
        let mut child = end;
        let mut next = Vec::new();
        while child != 0 {
            let parent = self.parents[child] as usize;
            next.clear();
            successors(&self.states[parent], &mut next);
            let step = next.iter().find(|(_, state)| *state == self.states[child]);
            steps.push(step.expect("successors is a pure function").0);
            child = parent;
        }
        steps.reverse();
        steps
    }
}

fn fingerprint<S: Hash>(state: &S) -> u64 {
    let mut hasher = Mixer(0);
    state.hash(&mut hasher);
    hasher.finish()
}

/// A fast multiplicative hasher; collisions cost time, never correctness.
struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        let folded = (self.0 ^ (self.0 >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        folded ^ (folded >> 29)
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }

    fn write_u16(&mut self, value: u16) {
        self.mix(u64::from(value));
    }

    fn write_isize(&mut self, value: isize) {
        self.mix(value as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_to(limit: u8) -> impl FnMut(&u8, &mut Vec<(&'static str, u8)>) {
        move |state, out| {
            if *state < limit {
                out.push(("one", state + 1));
                out.push(("two", (state + 2).min(limit)));
            }
        }
    }

    #[test]
    fn finds_the_shortest_trace() {
        let outcome = explore(0, count_to(9), |s| if *s == 5 { Err("five".into()) } else { Ok(()) }, 100);
        assert_eq!(outcome.loss_len(), Some(3));
    }

    #[test]
    fn visits_everything_once() {
        let outcome = explore(0, count_to(200), |_| Ok(()), 1000);
        assert!(outcome.is_safe());
        assert_eq!(outcome.states, 201);
    }

    #[test]
    fn says_when_the_limit_was_hit() {
        let outcome = explore(0, count_to(200), |_| Ok(()), 10);
        assert!(matches!(outcome.verdict, Verdict::Limit));
    }
}
