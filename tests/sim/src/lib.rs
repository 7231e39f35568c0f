//! The engine in a simulated world.
//!
//! Processes (writers, keepers, a reader, a copier, an archiver) run the real engine, each on a runtime and a clock of its own. They
//! meet only in simulated stores, and there one seed decides everything: whose request is served next, which answer is
//! lost, who crashes, what the clocks say. The same seed gives the same requests with the same bytes, so that whatever
//! goes wrong can be looked at again. `docs/simulation.md` says how it works and what it leaves out.

mod actor;
mod check;
mod clock;
mod closing;
mod dice;
mod directed;
mod faults;
mod genesis;
mod log;
mod net;
mod oracle;
mod process;
mod quiet;
mod requests;
mod target;
mod trace;
mod tree;
mod vault;
mod weather;
mod witness;
mod work;
mod world;

pub use directed::{DIRECTED, run_directed};
pub use trace::Trace;
pub use world::{Failure, Report, run};
