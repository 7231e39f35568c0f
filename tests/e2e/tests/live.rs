//! The tests against real servers, which `KEEPWELL_TEST_SERVERS` names.

mod control;
mod exclusive;
mod network;
mod stores;
