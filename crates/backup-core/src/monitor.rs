//! How the engine says what it is doing. It never prints; whoever embeds it may.

use std::fmt;

/// Receives progress of long work. Calls come from several threads and must be cheap.
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
/// use backup_core::monitor::Monitor;
///
/// /// Counts bytes; all that is not written here does nothing.
/// #[derive(Debug, Default)]
/// struct Bytes(AtomicU64);
///
/// impl Monitor for Bytes {
///     fn advance(&self, _items: u64, bytes: u64) {
///         self.0.fetch_add(bytes, Relaxed);
///     }
/// }
///
/// let bytes = Bytes::default();
/// bytes.phase("backup");
/// bytes.advance(1, 1000);
/// assert_eq!(bytes.0.load(Relaxed), 1000);
/// ```
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
