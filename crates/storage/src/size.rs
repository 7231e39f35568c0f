//! Sizes, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes, written as a number or as a text with a unit: `512`, `10KiB`, `1.5 GiB`, `20M`; units are powers
/// of 1024. Shown in the largest unit that fits, with about three digits: `1.25 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "SizeText")]
pub struct Size(pub u64);

const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1000.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        match unit {
            0 => write!(f, "{} B", self.0),
            _ if value < 10.0 => write!(f, "{value:.2} {}", UNITS[unit]),
            _ if value < 100.0 => write!(f, "{value:.1} {}", UNITS[unit]),
            _ => write!(f, "{value:.0} {}", UNITS[unit]),
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a size such as `64MiB`")]
enum SizeText {
    Number(u64),
    Text(String),
}

impl TryFrom<SizeText> for Size {
    type Error = String;

    fn try_from(size: SizeText) -> Result<Self, String> {
        match size {
            SizeText::Number(bytes) => Ok(Self(bytes)),
            SizeText::Text(text) => text.parse(),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let value: f64 = text[..split].parse().map_err(|_| format!("`{text}` is no size; try `10MiB`"))?;
        let unit = text[split..].trim().to_ascii_lowercase();
        let power = match unit.trim_end_matches('b').trim_end_matches('i') {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            _ => return Err(format!("`{unit}` is no unit; use KiB, MiB, GiB or TiB")),
        };
        Ok(Self((value * 1024f64.powi(power)) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, n) in [("512", 512), ("10 KiB", 10 << 10), ("1.5g", 3 << 29), ("20MB", 20 << 20)] {
            assert_eq!(text.parse(), Ok(Size(n)), "{text}");
        }
        for text in ["", "x", "10 miles", "KiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }
}
