//! Copies: a snapshot as a source for another repository, and snapshots made anew in their own.

mod holders;
mod reencrypt;
mod rewrite;
mod rules;
mod same;
mod source;
mod trust;

pub use holders::{Held, Holdings, holdings};
pub use reencrypt::{CopiedSnapshot, CopyReport, EXTRA_ORIGIN, EXTRA_ORIGIN_SNAPSHOT};
pub use rewrite::{Exclude, RewriteOptions, RewriteReport};
pub use rules::{Approval, CopyRules, Retirement};
pub use same::StoreCopyReport;
pub use source::SnapshotSource;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod trust_tests;
