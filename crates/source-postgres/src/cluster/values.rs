//! Values as `cluster.json` has them.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::lsn::{SegmentSize, Timeline};
use crate::replication::SystemId;

pub(super) fn as_text<S: Serializer>(value: &impl ToString, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&value.to_string())
}

pub(super) fn from_timeline<S: Serializer>(timeline: &Timeline, to: S) -> Result<S::Ok, S::Error> {
    timeline.get().serialize(to)
}

pub(super) fn from_segment_size<S: Serializer>(size: &SegmentSize, to: S) -> Result<S::Ok, S::Error> {
    size.get().serialize(to)
}

pub(super) fn from_moment<S: Serializer>(moment: &i64, to: S) -> Result<S::Ok, S::Error> {
    let moment = jiff::Timestamp::from_nanosecond((*moment).into()).map_err(serde::ser::Error::custom)?;
    to.serialize_str(&moment.to_string())
}

/// Numbers beyond 2^53 are written as text by many.
#[derive(Deserialize)]
#[serde(untagged)]
enum Loose {
    Number(u64),
    Text(String),
}

pub(super) fn number<'de, T: TryFrom<u64>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let number = match Loose::deserialize(from)? {
        Loose::Number(number) => Some(number),
        Loose::Text(text) => text.parse().ok(),
    };
    let fits = number.and_then(|number| T::try_from(number).ok());
    fits.ok_or_else(|| serde::de::Error::custom("a number is expected"))
}

pub(super) fn system<'de, D: Deserializer<'de>>(from: D) -> Result<SystemId, D::Error> {
    number(from).map(SystemId::new)
}

pub(super) fn timeline<'de, D: Deserializer<'de>>(from: D) -> Result<Timeline, D::Error> {
    Timeline::new(number(from)?).ok_or_else(|| serde::de::Error::custom("there is no timeline 0"))
}

pub(super) fn segment_size<'de, D: Deserializer<'de>>(from: D) -> Result<SegmentSize, D::Error> {
    SegmentSize::new(number(from)?).ok_or_else(|| serde::de::Error::custom("no cluster has such segments"))
}

pub(super) fn parsed<'de, T: std::str::FromStr<Err: std::fmt::Display>, D: Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

pub(super) fn moment<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Moment {
        Nanoseconds(i64),
        Text(String),
    }
    let text = match Moment::deserialize(from)? {
        Moment::Nanoseconds(nanoseconds) => return Ok(nanoseconds),
        Moment::Text(text) => text,
    };
    let moment: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
    i64::try_from(moment.as_nanosecond()).map_err(serde::de::Error::custom)
}
