//! Stands in for `getrandom` 0.3 in the simulation: the part of it that our crates call.

use std::fmt;

/// Never happens here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Error(());

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no random bytes")
    }
}

impl std::error::Error for Error {}

/// Fills `dest` from the seed of the world.
#[expect(clippy::unnecessary_wraps, reason = "the signature of the crate that it stands in for")]
pub fn fill(dest: &mut [u8]) -> Result<(), Error> {
    keepwell_sim_entropy::fill(dest);
    Ok(())
}
