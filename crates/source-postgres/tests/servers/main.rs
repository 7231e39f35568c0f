//! Against real servers, of every major that `KEEPWELL_TEST_POSTGRES` names (`15 17` by default).

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod capture;
mod client;
mod errors;
mod files;
mod logical;
mod receive;
mod server;
mod world;
