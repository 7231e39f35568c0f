//! Keys of the Merkle map.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use crate::error::MapError;

const TERMINATOR: u8 = 0x00;
const ESCAPE: u8 = 0x01;
const ESCAPED_00: u8 = 0x01;
const ESCAPED_01: u8 = 0x02;

/// Bytes that a sub-key adds to its key: a zero, the tag, a `u64`.
const SUB_KEY_BYTES: usize = 10;

/// The place of an entry in a snapshot: a tuple of non-empty byte strings, held in its encoded form.
///
/// Byte order of the encoding is tuple order: a parent precedes its children and these precede its next sibling,
/// whatever bytes the components hold. Cloning allocates; comparing costs a `memcmp`.
///
/// ```
/// use keepwell_catalog::MapKey;
///
/// let key = MapKey::from_components([b"home".as_slice(), b"ann"])?;
/// let child = key.child(b"notes.txt")?;
/// assert!(key < child && child.starts_with(&key));
/// assert!(child < MapKey::from_components([b"home".as_slice(), b"ann.old"])?);
/// assert_eq!(child.display_path(), "home/ann/notes.txt");
/// # Ok::<(), keepwell_catalog::MapError>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MapKey(Vec<u8>);

impl MapKey {
    /// Longest encoded key in bytes.
    pub const MAX_BYTES: usize = 65_536 - SUB_KEY_BYTES;

    /// The empty tuple: the root directory itself, and the prefix of every key.
    pub fn root() -> Self {
        Self::default()
    }

    /// Encodes a tuple. Fails on an empty component and beyond [`MapKey::MAX_BYTES`].
    pub fn from_components<C: AsRef<[u8]>>(
        components: impl IntoIterator<Item = C>,
    ) -> Result<Self, MapError> {
        let mut key = Self::root();
        for component in components {
            key.push(component.as_ref())?;
        }
        Ok(key)
    }

    /// Takes over bytes that must be a valid encoding of an entry's key (not of a sub-key).
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, MapError> {
        let bytes = bytes.into();
        check_encoding(&bytes)?;
        Ok(Self(bytes))
    }

    /// The encoding, as it stands in the map.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components, decoded. Borrows unless a component holds a byte 00 or 01.
    pub fn components(&self) -> impl Iterator<Item = Cow<'_, [u8]>> {
        self.encoded_components().map(unescape)
    }

    /// The last component; `None` for the root.
    pub fn name(&self) -> Option<Cow<'_, [u8]>> {
        self.encoded_components().next_back().map(unescape)
    }

    /// Number of components.
    pub fn depth(&self) -> usize {
        self.encoded_components().count()
    }

    /// This key with one more component. Fails as [`MapKey::from_components`] does.
    pub fn child(&self, component: &[u8]) -> Result<Self, MapError> {
        let mut key = Self(Vec::with_capacity(self.0.len() + component.len() + 1));
        key.0.extend_from_slice(&self.0);
        key.push(component)?;
        Ok(key)
    }

    /// This key without its last component; `None` for the root. The parent of a key with one component is the root.
    pub fn parent(&self) -> Option<Self> {
        let name = self.encoded_components().next_back()?;
        Some(Self(self.0[..self.0.len() - name.len() - 1].to_vec()))
    }

    /// Whether `ancestor` is this key or lies above it.
    pub fn starts_with(&self, ancestor: &Self) -> bool {
        self.0.starts_with(&ancestor.0)
    }

    /// The key of a record that belongs to this entry; it sorts after the entry and before the entry's children.
    pub fn sub_key(&self, tag: u8, number: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len() + SUB_KEY_BYTES);
        bytes.extend_from_slice(&self.0);
        bytes.extend_from_slice(&[TERMINATOR, tag]);
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes
    }

    /// The smallest byte string that sorts after this entry and everything below it; `None` for the root.
    pub fn after_subtree(&self) -> Option<Vec<u8>> {
        let mut bytes = self.0.clone();
        *bytes.last_mut()? = TERMINATOR + 1;
        Some(bytes)
    }

    /// The path for humans: components joined by `/`, invalid UTF-8 replaced, control characters (and those that turn
    /// the direction of text) escaped. Not reversible.
    pub fn display_path(&self) -> String {
        let mut path = String::with_capacity(self.0.len());
        for component in self.components() {
            if !path.is_empty() {
                path.push('/');
            }
            push_readable(&mut path, &component);
        }
        path
    }

    /// The path relative to the root of the capture, components joined by `/`, safe to hand to a file system.
    ///
    /// Fails on a component that is `.` or `..` or holds a `/` or a NUL: such a key never came from a directory walk,
    /// and a restore that followed it could leave its target.
    pub fn to_os_path_bytes(&self) -> Result<Vec<u8>, MapError> {
        let mut path = Vec::with_capacity(self.0.len());
        for component in self.components() {
            if matches!(&*component, b"." | b"..") || component.iter().any(|byte| matches!(byte, b'/' | 0)) {
                return Err(MapError::Key { what: "a component is no file name" });
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&component);
        }
        Ok(path)
    }

    fn push(&mut self, component: &[u8]) -> Result<(), MapError> {
        if component.is_empty() {
            return Err(MapError::Key { what: "a component is empty" });
        }
        for &byte in component {
            match byte {
                0 => self.0.extend_from_slice(&[ESCAPE, ESCAPED_00]),
                ESCAPE => self.0.extend_from_slice(&[ESCAPE, ESCAPED_01]),
                _ => self.0.push(byte),
            }
        }
        self.0.push(TERMINATOR);
        check_length(&self.0)
    }

    fn encoded_components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        let body = self.0.strip_suffix(&[TERMINATOR]);
        body.into_iter().flat_map(|body| body.split(|&byte| byte == TERMINATOR))
    }
}

impl fmt::Display for MapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.display_path())
    }
}

impl fmt::Debug for MapKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MapKey({})", self.display_path())
    }
}

/// Splits the raw key of a record into the entry's key and, for a sub-key, its tag and number.
///
/// Costs O(1) and trusts the part before the sub-key; [`MapKey::from_bytes`] checks that.
pub(crate) fn split_sub_key(raw: &[u8]) -> (&[u8], Option<(u8, u64)>) {
    let Some((entry, suffix)) = raw.split_last_chunk::<SUB_KEY_BYTES>() else { return (raw, None) };
    let follows_a_component = entry.last().is_none_or(|&byte| byte == TERMINATOR);
    let [TERMINATOR, tag, number @ ..] = suffix else { return (raw, None) };
    if !follows_a_component {
        return (raw, None);
    }
    (entry, Some((*tag, u64::from_be_bytes(*number))))
}

/// The raw key of a record, for messages.
pub(crate) fn display_raw(raw: &[u8]) -> String {
    let (entry, sub_key) = split_sub_key(raw);
    let shown = &entry[..entry.len().min(1024)];
    let mut text = String::new();
    for component in shown.split(|&byte| byte == TERMINATOR).filter(|component| !component.is_empty()) {
        if !text.is_empty() {
            text.push('/');
        }
        push_readable(&mut text, &unescape(component));
    }
    if let Some((tag, number)) = sub_key {
        text.push_str(&format!(" (record {tag} at {number})"));
    }
    text
}

fn check_encoding(bytes: &[u8]) -> Result<(), MapError> {
    check_length(bytes)?;
    let mut previous = TERMINATOR;
    let mut escaped = false;
    for &byte in bytes {
        if escaped && !matches!(byte, ESCAPED_00 | ESCAPED_01) {
            return Err(MapError::Key { what: "an escape is unknown" });
        }
        if byte == TERMINATOR && previous == TERMINATOR {
            return Err(MapError::Key { what: "a component is empty" });
        }
        escaped = !escaped && byte == ESCAPE;
        previous = byte;
    }
    if previous == TERMINATOR {
        Ok(())
    } else {
        Err(MapError::Key { what: "its last component is not terminated" })
    }
}

fn check_length(bytes: &[u8]) -> Result<(), MapError> {
    if bytes.len() <= MapKey::MAX_BYTES { Ok(()) } else { Err(MapError::Key { what: "it is too long" }) }
}

fn unescape(encoded: &[u8]) -> Cow<'_, [u8]> {
    if !encoded.contains(&ESCAPE) {
        return Cow::Borrowed(encoded);
    }
    let mut decoded = Vec::with_capacity(encoded.len());
    let mut bytes = encoded.iter();
    while let Some(&byte) = bytes.next() {
        decoded.push(match byte {
            ESCAPE => bytes.next().map_or(ESCAPE, |escaped| escaped.wrapping_sub(ESCAPED_00)),
            _ => byte,
        });
    }
    Cow::Owned(decoded)
}

/// Text from elsewhere for a terminal or a log: invalid UTF-8 replaced, control characters (and those that turn the
/// direction of text) escaped. Not reversible.
pub fn readable(text: impl AsRef<[u8]>) -> String {
    let mut readable = String::new();
    push_readable(&mut readable, text.as_ref());
    readable
}

fn push_readable(text: &mut String, component: &[u8]) {
    for character in String::from_utf8_lossy(component).chars() {
        let turns_direction =
            matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if character.is_control() || turns_direction {
            // Writing to a string cannot fail.
            let _ = write!(text, "{}", character.escape_default());
        } else {
            text.push(character);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// Components made mostly of the bytes that matter.
    fn components() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let byte = prop_oneof![Just(0u8), Just(1), Just(2), Just(0xff), Just(b'a'), any::<u8>()];
        vec(vec(byte, 1..4), 0..5)
    }

    fn key(components: &[Vec<u8>]) -> MapKey {
        MapKey::from_components(components).unwrap()
    }

    #[test]
    fn only_encodings_of_tuples_are_taken() {
        for (bytes, valid) in [
            (&b""[..], true),
            (b"a\0", true),
            (b"a\0b\0", true),
            (b"\x01\x01\x01\x02\0", true),
            (b"a", false),
            (b"\0", false),
            (b"a\0\0", false),
            (b"\x01\x03\0", false),
            (b"\x01\0", false),
            (b"a\0\x01", false),
        ] {
            assert_eq!(MapKey::from_bytes(bytes).is_ok(), valid, "{bytes:02x?}");
        }
    }

    #[test]
    fn keys_are_shown_without_tricks() {
        let key = MapKey::from_components([&b"a\nb"[..], b"\xff", "\u{202e}gpj".as_bytes()]).unwrap();
        assert_eq!(key.display_path(), "a\\nb/\u{fffd}/\\u{202e}gpj");
        assert_eq!(
            display_raw(&key.child(b"x").unwrap().sub_key(1, 7)),
            key.display_path() + "/x (record 1 at 7)"
        );
        assert_eq!(MapKey::root().display_path(), "");
    }

    #[test]
    fn only_file_names_become_paths() {
        let path = |components: &[&str]| MapKey::from_components(components).unwrap().to_os_path_bytes().ok();
        assert_eq!(path(&["a", "b c"]), Some(b"a/b c".to_vec()));
        assert_eq!(path(&[]), Some(Vec::new()));
        for refused in [&["a", ".."][..], &["."], &["a/b"], &["a\0"]] {
            assert_eq!(path(refused), None, "{refused:?}");
        }
    }

    #[test]
    fn a_key_that_is_too_long_is_refused() {
        let component = vec![b'x'; MapKey::MAX_BYTES - 1];
        assert!(MapKey::from_components([&component]).is_ok());
        assert!(MapKey::from_components([&component[..], b"y"]).is_err());
    }

    proptest! {
        #[test]
        fn components_round_trip_and_keep_their_order(a in components(), b in components()) {
            let (left, right) = (key(&a), key(&b));
            prop_assert_eq!(left.cmp(&right), a.cmp(&b));
            prop_assert_eq!(left.components().map(Cow::into_owned).collect::<Vec<_>>(), a.clone());
            prop_assert_eq!(left.depth(), a.len());
            prop_assert_eq!(MapKey::from_bytes(left.as_bytes()).unwrap(), left.clone());
            prop_assert_eq!(left.starts_with(&right), a.starts_with(&b));
            prop_assert_eq!(left.name().map(Cow::into_owned), a.last().cloned());
            prop_assert_eq!(left.parent(), a.split_last().map(|(_, above)| key(above)));
        }

        #[test]
        fn sub_keys_stand_between_an_entry_and_its_children(a in components(), name in vec(any::<u8>(), 1..4), tag: u8, number: u64) {
            let entry = key(&a);
            let sub = entry.sub_key(tag, number);
            let child = entry.child(&name).unwrap();
            prop_assert!(entry.as_bytes() < &sub[..] && &sub[..] < child.as_bytes());
            prop_assert_eq!(split_sub_key(&sub), (entry.as_bytes(), Some((tag, number))));
            prop_assert_eq!(split_sub_key(child.as_bytes()), (child.as_bytes(), None));
            prop_assert!(MapKey::from_bytes(sub).is_err());
            if let Some(after) = entry.after_subtree() {
                prop_assert!(child.as_bytes() < &after[..]);
            }
        }

        #[test]
        fn any_bytes_are_handled(bytes in vec(any::<u8>(), 0..40)) {
            let _ = display_raw(&bytes);
            if let Ok(key) = MapKey::from_bytes(&bytes[..]) {
                prop_assert_eq!(MapKey::from_components(key.components()).unwrap(), key);
            }
        }
    }
}
