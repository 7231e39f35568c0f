//! The root of trust of a repository: who owns it, who may write, read and keep it.
//!
//! A [`Chain`] is rebuilt from the objects `trust/<n>` each time a repository is opened. Every record is signed by an
//! owner and names the hash of the record before it; the first one, the genesis, is pinned by key files. A chain that
//! breaks one rule is refused as a whole.
//!
//! What a chain cannot show by itself is that its end was cut off: who holds the storage can hide the newest records,
//! a revocation for example. Remember [`Chain::head`] and ask [`Chain::record_digest`] about it next time.

mod body;
mod chain;
mod error;
mod record;
mod state;

pub use body::{Body, Domain, Erase, Group, KeyringRef, Member, Owner, Revoke, Roles};
pub use chain::{Chain, FORMAT_VERSION, KIND};
pub use error::{TrustError, Violation};
