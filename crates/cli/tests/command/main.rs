//! The command itself, as people and servers run it.
#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

mod copies;
mod enroll;
mod kit;
mod repair;
mod wal_push;
