//! Tests of the crate from outside, as its users see it.
#![allow(clippy::unwrap_used, missing_docs)]

mod keyfile;
mod keyring;
mod sealing;
mod signatures;
mod trust;
mod vectors;
