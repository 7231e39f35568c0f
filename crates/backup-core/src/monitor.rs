//! How the engine says what it is doing. It never prints; whoever embeds it may.

use std::fmt;

/// Receives progress of long work. Calls come from several threads and must be cheap.
pub trait Monitor: Send + Sync + fmt::Debug {
    /// A phase begins: `scan`, `backup`, `restore`, … Totals are unknown (zero) until [`Monitor::total`] is called.
    fn phase(&self, _name: &'static str) {}
    /// The expected totals of the phase became known or grew.
    fn total(&self, _items: u64, _bytes: u64) {}
    /// This much more has been done.
    fn advance(&self, _items: u64, _bytes: u64) {}
    /// The name of what is being worked on.
    fn current(&self, _name: &str) {}
    /// Something went wrong with one item, and the work goes on.
    fn problem(&self, _item: &str, _message: &str) {}
    /// A thing that an operator wants to know, as a sentence.
    fn note(&self, _message: &str) {}
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {}
