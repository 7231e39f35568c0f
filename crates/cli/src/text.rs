//! Numbers, sizes and times as people read and write them.

use std::time::Duration;

use anyhow::Result;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, Zoned};
use keepwell_catalog::readable;
use keepwell_storage::Size;

use crate::exit::Complaint;

/// A size in binary units with about three digits: `1.25 GiB`.
pub fn bytes(bytes: u64) -> String {
    Size(bytes).to_string()
}

/// A number with separated thousands: `1,234,567`.
pub fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 file`, `2 files`.
pub fn count(n: u64, one: &str, many: &str) -> String {
    format!("{} {}", number(n), if n == 1 { one } else { many })
}

/// The name of an owner, a member or a domain. No trust record takes another, and it should be refused before anything is made.
pub fn key_name(text: &str) -> Result<String, String> {
    let fits = (1..=200).contains(&text.len()) && !text.chars().any(char::is_control);
    if fits {
        Ok(text.to_owned())
    } else {
        Err("a name has 1 to 200 bytes and no control characters".to_owned())
    }
}

/// `3.2 s`, `4:05`, `1:02:03`.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1} s", duration.as_secs_f64()),
        60..3600 => format!("{}:{:02}", seconds / 60, seconds % 60),
        _ => format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

/// A moment in the local time zone: `2026-11-21 08:33:26`.
pub fn time(nanoseconds: i64) -> String {
    zoned(nanoseconds).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// A moment as RFC 3339 in UTC, for machines.
pub fn rfc3339(nanoseconds: i64) -> String {
    moment(nanoseconds).to_string()
}

fn zoned(nanoseconds: i64) -> Zoned {
    moment(nanoseconds).to_zoned(TimeZone::system())
}

fn moment(nanoseconds: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or_default()
}

/// `512`, `10KiB`, `1.5 GiB`, `20M`: bytes; units are powers of 1024.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    text.parse().map(|Size(bytes)| bytes)
}

/// `14d`, `2w`, `6mo`, `1y`, `36h`: a length of calendar time.
pub fn parse_span(text: &str) -> Result<Span, String> {
    let bare_m = text.split(|c: char| c.is_ascii_digit() || c == ' ').any(|unit| unit == "m");
    if bare_m {
        return Err(format!("`m` in `{text}` could be months or minutes; write `mo` or `min`"));
    }
    let span: Span =
        text.parse().map_err(|_| format!("`{text}` is no length of time; try `14d`, `6mo`, `1y`"))?;
    if span.is_negative() || span.is_zero() {
        return Err(format!("`{text}` must be longer than nothing"));
    }
    Ok(span)
}

/// The moment a length of calendar time before another one, in the local time zone.
pub fn before(moment: i64, length: Span) -> Result<i64> {
    let then = zoned(moment).checked_sub(length).map_err(|e| Complaint::usage(e.to_string()))?;
    Ok(i64::try_from(then.timestamp().as_nanosecond()).unwrap_or(i64::MIN))
}

/// How long ago a moment was, roughly: `5 h`, `12 days`.
pub fn ago(now: i64, moment: i64) -> String {
    let seconds = now.saturating_sub(moment).max(0) / 1_000_000_000;
    match seconds {
        0..120 => count(seconds.unsigned_abs(), "second", "seconds"),
        120..7200 => count(seconds.unsigned_abs() / 60, "minute", "minutes"),
        7200..172_800 => count(seconds.unsigned_abs() / 3600, "hour", "hours"),
        _ => count(seconds.unsigned_abs() / 86_400, "day", "days"),
    }
}

/// A moment as people write it, in the local time zone: `2026-11-20`, `2026-11-20 12:00`, or RFC 3339.
///
/// A bare date means the end of that day. Nanoseconds since 1970. The basic format without `-` is no time here: eight
/// digits are the beginning of an id.
pub fn parse_time(text: &str) -> Option<i64> {
    if text.as_bytes().get(4) != Some(&b'-') {
        return None;
    }
    let local = TimeZone::system();
    let moment = if let Ok(moment) = text.parse::<Timestamp>() {
        moment
    } else if text.len() == 10 {
        let date: Date = text.parse().ok()?;
        let end = date.tomorrow().ok()?.to_zoned(local).ok()?;
        return i64::try_from(end.timestamp().as_nanosecond() - 1).ok();
    } else {
        text.parse::<DateTime>().ok()?.to_zoned(local).ok()?.timestamp()
    };
    i64::try_from(moment.as_nanosecond()).ok()
}

/// The same for an argument that names a time to come: a slip in the year would protect nothing.
pub fn time_to_come(text: &str, now: i64) -> Result<i64> {
    match parse_time(text) {
        Some(time) if time > now => Ok(time),
        Some(_) => Err(Complaint::usage(format!("`{text}` is in the past")).into()),
        None => Err(Complaint::usage(format!("`{text}` is no time"))
            .hint("Write `2026-11-20`, `2026-11-20T12:00` or `2026-11-20T12:00:00Z`.")
            .into()),
    }
}

/// A word for a shell: in quotes where it needs some, with nothing in it that a terminal would obey.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-~".contains(c);
    if !word.is_empty() && !word.starts_with('~') && word.chars().all(plain) {
        return word.to_owned();
    }
    if readable(word) == word {
        return format!("'{}'", word.replace('\'', "'\\''"));
    }
    let escaped = word.chars().map(|c| match c {
        '\'' | '\\' => format!("\\{c}"),
        c if readable(c.to_string()) == c.to_string() => c.to_string(),
        c => c.to_string().bytes().map(|byte| format!("\\x{byte:02x}")).collect(),
    });
    format!("$'{}'", escaped.collect::<String>())
}

/// The word that is most like `given`, if any is much like it. Two letters that are swapped are one slip.
pub fn closest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let measured = known.into_iter().map(|word| (strsim::osa_distance(given, word), word));
    let (distance, word) = measured.min()?;
    (distance <= 1 + given.len() / 4).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_is_not_past() {
        let now = parse_time("2026-11-20T12:00:00Z").unwrap();
        assert!(time_to_come("2026-11-20T12:00:01Z", now).is_ok());
        for past in ["2026-11-20T12:00:00Z", "2025-11-20", "soon"] {
            assert!(time_to_come(past, now).is_err(), "{past}");
        }
    }

    #[test]
    fn a_name_that_no_trust_record_takes_is_refused_beforehand() {
        let longest = "x".repeat(200);
        for name in ["web1", "Ann\u{e9}", longest.as_str()] {
            assert_eq!(key_name(name).unwrap(), name);
        }
        let too_long = "x".repeat(201);
        for name in ["", "a\nb", "\u{9b}", too_long.as_str()] {
            assert!(key_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn sizes_have_three_digits_and_can_be_read_back() {
        for (n, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1 << 10, "1.00 KiB"),
            (1_234_567, "1.18 MiB"),
            (150 << 30, "150 GiB"),
            (1000 << 20, "0.98 GiB"),
        ] {
            assert_eq!(bytes(n), text);
        }
        for (text, n) in [("512", 512), ("10 KiB", 10 << 10), ("1.5g", 3 << 29), ("20MB", 20 << 20)] {
            assert_eq!(parse_bytes(text), Ok(n), "{text}");
        }
        for text in ["", "x", "10 miles", "KiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn thousands_are_separated() {
        for (n, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(number(n), text);
        }
    }

    #[test]
    fn an_ambiguous_m_is_refused() {
        assert!(parse_span("5m").unwrap_err().contains("months or minutes"));
        for good in ["14d", "6mo", "1y 2mo", "36h", "2w", "90min"] {
            assert!(parse_span(good).is_ok(), "{good}");
        }
        for bad in ["", "soon", "-3d", "0d"] {
            assert!(parse_span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_shell_gets_back_the_same_word() {
        for (word, quoted) in [
            ("/srv/x-1.2~a", "/srv/x-1.2~a"),
            ("/srv/my files", "'/srv/my files'"),
            ("it's", "'it'\\''s'"),
            ("$(rm -r x)", "'$(rm -r x)'"),
            ("", "''"),
            ("a\n\u{1b}[2J", "$'a\\x0a\\x1b[2J'"),
        ] {
            assert_eq!(shell_word(word), quoted);
            let script = format!("printf %s {quoted}");
            let said = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(said.stdout).unwrap(), word, "{quoted}");
        }
    }

    #[test]
    fn the_closest_word_is_found_only_if_it_is_close() {
        let known = ["repository", "key-file", "paths"];
        assert_eq!(closest("repositry", known), Some("repository"));
        assert_eq!(closest("keyfile", known), Some("key-file"));
        assert_eq!(closest("colour", known), None);
    }

    #[test]
    fn a_bare_date_is_the_end_of_its_day() {
        let day = parse_time("2026-11-20").unwrap();
        assert!(day > parse_time("2026-11-20T23:59:59").unwrap());
        assert!(day < parse_time("2026-11-21T00:00:00").unwrap());
        assert_eq!(parse_time("1970-01-01T00:00:01Z"), Some(1_000_000_000));
        assert_eq!(parse_time("latest"), None);
    }
}
