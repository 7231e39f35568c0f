//! A moment that is meant exactly, with its zone: half a day's difference is half a day's data.

use anyhow::Result;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use keepwell_source_postgres::recovery::TargetTime;

use crate::exit::Complaint;

/// Reads `2026-11-21 12:04:10.55+00`, `2026-11-21T13:04:10[Europe/Berlin]`, or a local time with `zone`.
///
/// What is without a zone, has none of it, or happened twice or never there, is refused.
pub fn parse(text: &str, zone: Option<&str>) -> Result<TargetTime> {
    let (text, zone) = match text.trim().strip_suffix(']').and_then(|rest| rest.split_once('[')) {
        Some((text, named)) => (text.trim(), Some(named)),
        None => (text.trim(), zone),
    };
    let nanoseconds = i64::try_from(moment(text, zone)?.as_nanosecond()).ok();
    nanoseconds.and_then(TargetTime::new).ok_or_else(|| {
        Complaint::usage(format!("`{text}` is finer than a microsecond, which is what PostgreSQL knows"))
            .into()
    })
}

fn moment(text: &str, zone: Option<&str>) -> Result<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(moment);
    }
    let no_time = || {
        Complaint::usage(format!("`{text}` is no time"))
            .hint("Write `2026-11-21 12:04:10+00` or `2026-11-21T13:04:10[Europe/Berlin]`.")
    };
    // A date alone would be midnight.
    let local: DateTime = text.parse().ok().filter(|_| text.contains(':')).ok_or_else(no_time)?;
    let Some(zone) = zone else {
        let here = TimeZone::system();
        let here = here.iana_name().unwrap_or("UTC");
        return Err(Complaint::usage(format!("`{text}` has no time zone"))
            .hint(format!("Add an offset, as in `{text}+00`, or say `--time-zone {here}`."))
            .into());
    };
    let zone = TimeZone::get(zone).map_err(|_| {
        Complaint::usage(format!("`{zone}` is no time zone")).hint("Write it as in `Europe/Berlin`.")
    })?;
    let found = zone.to_ambiguous_zoned(local);
    if !found.is_ambiguous() {
        return Ok(found.compatible().map_err(|e| Complaint::usage(e.to_string()))?.timestamp());
    }
    let both = [found.clone().earlier(), found.later()].map(|at| at.map(|at| shown(&at)));
    match both {
        [Ok(earlier), Ok(later)] => {
            Err(Complaint::usage(format!("the clocks were changed at `{text}`: that is no single moment"))
                .hint(format!("Say which is meant: `{earlier}` or `{later}`."))
                .into())
        }
        _ => Err(no_time().into()),
    }
}

fn shown(at: &Zoned) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S%.f%:z").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_with_its_zone_is_one_moment() {
        for (text, zone, expected) in [
            ("2026-11-21T12:04:10.55Z", None, "2026-11-21 12:04:10.550000+00"),
            ("2026-11-21 12:04:10.55+00", None, "2026-11-21 12:04:10.550000+00"),
            ("2026-11-21 14:04:10+02:00", None, "2026-11-21 12:04:10.000000+00"),
            ("2026-11-21 13:04", Some("Europe/Berlin"), "2026-11-21 12:04:00.000000+00"),
            ("2026-11-21T13:04:10[Europe/Berlin]", None, "2026-11-21 12:04:10.000000+00"),
            ("2026-10-25T02:30:00+01:00", None, "2026-10-25 01:30:00.000000+00"),
        ] {
            assert_eq!(parse(text, zone).unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_could_mean_several_moments_or_none_is_refused() {
        for (text, zone, message) in [
            ("2026-11-21 12:04:10", None, "has no time zone"),
            ("2026-10-25 02:30:00", Some("Europe/Berlin"), "no single moment"),
            ("2026-03-29T02:30:00[Europe/Berlin]", None, "no single moment"),
            ("2026-11-21 13am", Some("UTC"), "is no time"),
            ("2026-11-21 13:00am", Some("UTC"), "is no time"),
            ("2026-11-21", Some("UTC"), "is no time"),
            ("yesterday", Some("UTC"), "is no time"),
            ("2026-11-21 25:00:00+00", None, "is no time"),
            ("2026-11-21 12:00", Some("Mars/Olympus"), "is no time zone"),
            ("2026-11-21T12:04:10.1234567Z", None, "finer than a microsecond"),
        ] {
            let error = parse(text, zone).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }
}
