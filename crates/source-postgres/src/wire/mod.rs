//! The client side of the frontend/backend protocol, as far as we need it: simple queries and COPY.

mod auth;
mod client;
mod connect;
mod error;
mod frame;
#[cfg(test)]
mod tests;
mod tls;

pub(crate) use client::{Answer, CopyIn};
pub use client::{Client, CopyBoth, CopyOut, Rows};
pub use error::{PgError, ServerError};

/// Feeds bytes of a server to the framing until they end or are refused; for the fuzzer.
#[doc(hidden)]
pub fn fuzz_frames(bytes: &[u8]) {
    frame::fuzz(bytes);
}
