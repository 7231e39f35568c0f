//! Dates in the headers of answers.

use std::time::SystemTime;

use http::HeaderMap;

/// The date in a header.
pub(crate) fn of_header(headers: &HeaderMap, name: &str) -> Option<SystemTime> {
    parse(headers.get(name)?.to_str().ok()?)
}

/// A date as HTTP writes it, exact to a second.
pub(crate) fn parse(text: &str) -> Option<SystemTime> {
    let zoned = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(zoned.timestamp().into())
}
