//! Faults that are planted on purpose, to see whether the tests find them (docs/simulation.md). An ordinary build has none.

/// Whether this fault is switched on. Constant `false` unless built with `--cfg keepwell_planted`.
#[cfg(not(keepwell_planted))]
#[inline(always)]
pub(crate) const fn planted(_: &str) -> bool {
    false
}

/// Whether this fault is switched on, by name in the environment.
#[cfg(keepwell_planted)]
#[expect(clippy::disallowed_methods, reason = "a build that is never shipped")]
pub(crate) fn planted(fault: &str) -> bool {
    static ON: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    ON.get_or_init(|| std::env::var("KEEPWELL_PLANTED").ok()).as_deref() == Some(fault)
}
