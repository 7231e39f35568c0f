//! Checking what is stored.
use keepwell_catalog::Root;

use crate::Error;
use crate::repository::Repository;

/// Proves what a session created.
pub(crate) async fn prove_session(_: &Repository, _: &Root, _: &[(String, u64)]) -> Result<u64, Error> {
    Ok(0)
}
