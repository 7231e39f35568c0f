//! Files and directories: [`FileSource`] captures them, [`FileTarget`] puts them back.
//!
//! Linux only. Both are faithful to the last mode bit, nanosecond, extended attribute, ACL, hard link, hole and byte of a
//! name; both hold against other processes that swap things while they work. Nothing here knows what a repository is.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod beneath;
mod content;
mod handle;
mod ladder;
mod listing;
mod look;
mod options;
mod owners;
mod roots;
mod rules;
mod source;
mod target;
mod tree;
mod walk;

pub use options::FileOptions;
pub use source::FileSource;
pub use target::{FileTarget, TargetOptions};
