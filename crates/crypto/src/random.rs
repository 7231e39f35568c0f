//! The operating system's random source.

/// Fills an array with random bytes.
///
/// # Panics
/// If the operating system cannot deliver random bytes: no key could be made then, and none must be guessed.
#[expect(clippy::disallowed_methods, reason = "keys, and names that are never used twice")]
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the operating system delivers random bytes");
    bytes
}
