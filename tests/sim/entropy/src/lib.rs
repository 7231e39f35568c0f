//! Random bytes that a seed decides. Good enough for a simulation, and for nothing else.
//!
//! Streams are told apart by who draws: the process that the simulation lets run, and the name of its thread. Two
//! threads of one process that draw at the same time have different names, so no race can mix their streams.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[derive(Default)]
struct State {
    seed: u64,
    process: u64,
    streams: HashMap<(u64, u64), u64>,
    repeats: bool,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

/// Begins a new world: every stream starts over.
pub fn begin(seed: u64) {
    *state() = Some(State { seed, ..State::default() });
}

/// From now on this process draws.
pub fn enter(process: &str) {
    if let Some(state) = &mut *state() {
        state.process = hash(process);
    }
}

/// From now on every stream gives the same bytes again and again: the operating system's randomness is broken.
pub fn repeat() {
    if let Some(state) = &mut *state() {
        state.repeats = true;
    }
}

/// Fills `buf` with the next bytes of the calling thread's stream.
///
/// # Panics
/// Before [`begin`]: what is drawn outside a world would differ from run to run.
pub fn fill(buf: &mut [u8]) {
    let thread = hash(std::thread::current().name().unwrap_or(""));
    let mut state = state();
    let state = state.as_mut().expect("random bytes are drawn outside a simulated world");
    let start = mix(state.seed ^ mix(state.process ^ mix(thread)));
    let stream = state.streams.entry((state.process, thread)).or_insert(start);
    if state.repeats {
        *stream = start;
    }
    for chunk in buf.chunks_mut(8) {
        *stream = stream.wrapping_add(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mix(*stream).to_le_bytes()[..chunk.len()]);
    }
}

/// The finisher of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn state() -> MutexGuard<'static, Option<State>> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}
