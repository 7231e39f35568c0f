//! The tests of this crate as its users see it, in one program.

mod common;
mod entries;
mod map;
mod map_damage;
mod recipe;
