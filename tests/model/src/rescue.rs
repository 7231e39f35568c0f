//! Liveness: from every reachable state one keeper, left alone, can bring every live chunk out of doom.

use crate::keeper::{self, At, KeeperSpec, KeeperState};
use crate::model::Model;
use crate::state::{ACTORS, Chunks, Memory, Side, State, each_chunk};

/// The place of the rescuing keeper among the actors; scenarios with a rescuer leave it free.
const RESCUER: usize = ACTORS - 1;

/// Runs a lone keeper on `s` and says which chunk stays doomed, if any does.
pub fn check(model: &Model, spec: &KeeperSpec, s: &State) -> Result<(), String> {
    let mut state = *s;
    if spec.takes_over {
        while let Some(n) = state.plans.iter().position(|plan| plan.present && !plan.decided) {
            let start = KeeperState::taking_over(n, state.retired);
            state = run(model, spec, state, start, At::Done);
        }
    } else if doomed_chunks(model, &state) != 0 {
        let start = KeeperState::copying(doomed_chunks(model, &state));
        state = run(model, spec, state, start, At::Pick);
    }
    match doomed_chunks(model, &state) {
        0 => model.sound(&state),
        chunks => Err(format!("no keeper can bring chunk {} out of doom", chunks.trailing_zeros())),
    }
}

/// Lets the rescuer alone take steps until it is at `end`.
fn run(model: &Model, spec: &KeeperSpec, mut state: State, start: KeeperState, end: At) -> State {
    state.actors[RESCUER] = Memory::Keeper(start);
    let mut next = Vec::new();
    while let Memory::Keeper(k) = state.actors[RESCUER] {
        if k.at == end || k.at == At::Done {
            break;
        }
        next.clear();
        keeper::steps(model, &state, RESCUER, spec, &k, &mut next);
        state = next.first().expect("a lone keeper is never stuck").1;
    }
    state
}

/// Live chunks that no writer may reuse: every location is missing or doomed.
fn doomed_chunks(model: &Model, s: &State) -> Chunks {
    let usable = s.resolvable(Side::WHOLE) & !s.doomed(Side::WHOLE, None);
    each_chunk(model.live(s, Side::WHOLE, s.retired))
        .filter(|c| s.holding(usable, *c) == 0)
        .fold(0, |all, c| all | c)
}
