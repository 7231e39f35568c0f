//! Names of objects.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest key, in bytes.
pub(crate) const KEY_MAX_BYTES: usize = 512;
/// Longest component, in bytes: what every common file system accepts as a file name.
const COMPONENT_MAX_BYTES: usize = 255;
/// First component that stores keep for their own unfinished work.
pub(crate) const RESERVED_COMPONENT: &str = ".tmp";

/// The name of an object: components of `A-Z a-z 0-9 . _ -`, joined by `/`.
///
/// At most 512 bytes, each component 1 to 255 bytes and neither `.` nor `..`; so a key is a safe relative path
/// on every file system and needs no escaping in a URL. The first component `.tmp` is reserved for the stores.
/// Keys order by their bytes, which is the order of every listing; note that `-` and `.` sort before `/`.
/// Cloning is cheap.
///
/// ```
/// use keepwell_storage::Key;
/// let key: Key = "commits/00c0ffee00c0ffee/0000000042".parse().unwrap();
/// assert_eq!(key.first_component(), "commits");
/// assert!("../escape".parse::<Key>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

/// A text that is not a [`Key`], and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an object key: {reason}")]
pub struct InvalidKey {
    /// The offending text; cut after 512 bytes.
    pub text: String,
    /// The rule that it breaks.
    pub reason: &'static str,
}

impl Key {
    /// Checks and wraps `text`.
    pub fn new(text: &str) -> Result<Self, InvalidKey> {
        match broken_rule(text) {
            None => Ok(Self(text.into())),
            Some(reason) => {
                let end = text.floor_char_boundary(KEY_MAX_BYTES);
                Err(InvalidKey { text: text[..end].escape_debug().to_string(), reason })
            }
        }
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What stands before the first `/`; the whole key if there is none.
    pub fn first_component(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(first, _)| first)
    }

    /// What stands after the last `/`; the whole key if there is none.
    pub fn last_component(&self) -> &str {
        self.0.rsplit_once('/').map_or(&*self.0, |(_, last)| last)
    }
}

/// Whether a file of this name can be part of a key; costs no allocation.
pub(crate) fn is_component(name: &str) -> bool {
    broken_component_rule(name).is_none()
}

fn broken_rule(text: &str) -> Option<&'static str> {
    if text.is_empty() {
        return Some("it is empty");
    }
    if text.len() > KEY_MAX_BYTES {
        return Some("it is longer than 512 bytes");
    }
    if text.split('/').next() == Some(RESERVED_COMPONENT) {
        return Some("`.tmp` is reserved for the store");
    }
    text.split('/').find_map(broken_component_rule)
}

fn broken_component_rule(component: &str) -> Option<&'static str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match component {
        "" => Some("a component is empty"),
        "." | ".." => Some("a component is `.` or `..`"),
        _ if component.len() > COMPONENT_MAX_BYTES => Some("a component is longer than 255 bytes"),
        _ if !component.bytes().all(allowed) => Some("only A-Z, a-z, 0-9, `.`, `_`, `-` and `/` are allowed"),
        _ => None,
    }
}

impl FromStr for Key {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        Self::new(text)
    }
}

impl TryFrom<String> for Key {
    type Error = InvalidKey;

    fn try_from(text: String) -> Result<Self, InvalidKey> {
        Self::new(&text)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Key({})", self.0)
    }
}

impl AsRef<str> for Key {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_safe_relative_paths_are_keys() {
        let long_component = "a".repeat(255);
        let too_long_component = "a".repeat(256);
        let longest = format!("{long_component}/{long_component}/x");
        let too_long = format!("{long_component}/{long_component}/xx");
        assert_eq!((longest.len(), too_long.len()), (513, 514));
        let exactly_512 = &longest[1..];
        for (text, valid) in [
            ("keepwell.json", true),
            ("gc/0000000001.kept", true),
            ("...", true),
            (".hidden/-dash/_", true),
            ("a/.tmp", true),
            (".tmpx", true),
            (long_component.as_str(), true),
            (exactly_512, true),
            (longest.as_str(), false),
            (too_long_component.as_str(), false),
            ("", false),
            ("/", false),
            ("/a", false),
            ("a/", false),
            ("a//b", false),
            (".", false),
            ("..", false),
            ("a/../b", false),
            ("a/./b", false),
            (".tmp", false),
            (".tmp/x", false),
            ("a b", false),
            ("ä", false),
            ("a\0", false),
            ("a\\b", false),
            ("a\nb", false),
        ] {
            assert_eq!(text.parse::<Key>().is_ok(), valid, "parsing {text:?}");
        }
    }

    #[test]
    fn the_error_names_the_text_and_the_rule() {
        let message = Key::new("a//b\n").unwrap_err().to_string();
        assert_eq!(message, "`a//b\\n` is not an object key: a component is empty");
    }

    proptest! {
        #[test]
        fn display_round_trips(text in "[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,20}){0,5}") {
            let key = Key::new(&text).unwrap();
            prop_assert_eq!(key.to_string(), text.clone());
            prop_assert_eq!(key.to_string().parse::<Key>(), Ok(key));
        }

        #[test]
        fn any_text_is_judged_without_panic_and_by_the_rules(text in ".{0,600}") {
            let valid = (1..=512).contains(&text.len())
                && !text.starts_with(".tmp/") && text != ".tmp"
                && text.split('/').all(|part| (1..=255).contains(&part.len()) && part != "." && part != ".."
                    && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)));
            prop_assert_eq!(Key::new(&text).is_ok(), valid);
        }

        #[test]
        fn keys_order_by_bytes(a in "[a-c./-]{1,6}", b in "[a-c./-]{1,6}") {
            if let (Ok(key_a), Ok(key_b)) = (Key::new(&a), Key::new(&b)) {
                prop_assert_eq!(key_a.cmp(&key_b), a.as_bytes().cmp(b.as_bytes()));
            }
        }
    }
}
