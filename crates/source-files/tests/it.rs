//! The tests of this crate as its users see it, in one program.

mod common;
mod confinement;
mod round_trip;
mod target;
mod walk;
