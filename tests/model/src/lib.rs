//! Exhaustive model of sessions, commits and pruning on a store shared without locks.
//!
//! `docs/pruning.md` is the protocol in words; this crate searches every interleaving of its actors at small sizes.
//! Any actor may stall for ever or wake at any time, so there are no clocks: what is safe here is safe with any.
//! Each [`rules::Rule`] can be switched off, which shows what it prevents.

pub mod evidence;
pub mod explore;
pub mod keeper;
pub mod mergers;
pub mod model;
pub mod plans;
pub mod reader;
pub mod rescue;
pub mod rules;
pub mod scenarios;
pub mod state;
pub mod tidy;
pub mod writer;
