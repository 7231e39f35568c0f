//! The name of every object in a store (format §1): one place that builds them, and one strict parser.
//!
//! A *content name* names the stored bytes themselves, so `sha256sum` scrubs a store without a key. Everything else is
//! numbered or belongs to a member.

use std::fmt;
use std::str::FromStr;

use keepwell_crypto::{Digest, DomainId, GroupId, MemberId};
use keepwell_storage::Key;

/// Largest number an object name can carry: ten decimal digits.
pub const NUMBER_MAX: u64 = 9_999_999_999;

/// What a pack holds. The two never mix, so that content can live in a cold storage class while tree nodes stay hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PackClass {
    /// Chunks of content, under `data/`.
    Data,
    /// Tree nodes, under `meta/`.
    Meta,
}

impl PackClass {
    /// Number of the class in an index segment.
    pub fn code(self) -> u64 {
        match self {
            PackClass::Data => 0,
            PackClass::Meta => 1,
        }
    }

    /// The class with this number, or `None` for one that this version does not know.
    pub fn from_code(code: u64) -> Option<Self> {
        match code {
            0 => Some(PackClass::Data),
            1 => Some(PackClass::Meta),
            _ => None,
        }
    }

    /// First component of the names of such packs.
    pub fn prefix(self) -> &'static str {
        match self {
            PackClass::Data => "data",
            PackClass::Meta => "meta",
        }
    }
}

impl fmt::Display for PackClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.prefix())
    }
}

/// `<64 hex SHA-256 of the stored bytes>-<8 hex random>`: the last component of a content object's name.
///
/// The random suffix lets the same bytes be stored again under a fresh name, as names are never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentName {
    digest: [u8; 32],
    suffix: [u8; 4],
}

impl ContentName {
    /// Length of the text form.
    pub const TEXT_LEN: usize = 64 + 1 + 8;

    /// Names stored bytes with this SHA-256; `suffix` must be freshly random.
    pub fn new(digest: &Digest, suffix: [u8; 4]) -> Self {
        ContentName { digest: *digest.as_bytes(), suffix }
    }

    /// SHA-256 that the stored bytes must have.
    pub fn digest(&self) -> Digest {
        Digest::from_bytes(self.digest)
    }
}

impl fmt::Display for ContentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [b'-'; Self::TEXT_LEN];
        hex::encode_to_slice(self.digest, &mut text[..64]).map_err(|_| fmt::Error)?;
        hex::encode_to_slice(self.suffix, &mut text[65..]).map_err(|_| fmt::Error)?;
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for ContentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContentName({}…-{})", hex::encode(&self.digest[..6]), hex::encode(self.suffix))
    }
}

impl FromStr for ContentName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parse = || {
            let (digest, suffix) = text.split_once('-')?;
            Some(ContentName { digest: fixed_hex(digest)?, suffix: fixed_hex(suffix)? })
        };
        parse().ok_or_else(|| NameError { name: text.to_owned() })
    }
}

/// Number and random suffix of a prune plan: `<n>-<8 hex>`, or `<n>` alone as the first version wrote it.
///
/// The number gives plans their order; the suffix makes sure that no name is ever used twice, although merged plans go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlanName {
    n: u64,
    suffix: Option<[u8; 4]>,
}

impl PlanName {
    /// Names a plan; `suffix` must be freshly random.
    pub fn new(n: u64, suffix: [u8; 4]) -> Self {
        PlanName { n, suffix: Some(suffix) }
    }

    /// The name of a plan as its record states it.
    pub fn from_parts(n: u64, suffix: Option<[u8; 4]>) -> Self {
        PlanName { n, suffix }
    }

    /// Its place in the order of plans.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// What makes it unique; `None` in plans of the first version, which are therefore never merged.
    pub fn suffix(&self) -> Option<[u8; 4]> {
        self.suffix
    }
}

impl fmt::Display for PlanName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.suffix {
            Some(suffix) => write!(f, "{:010}-{}", self.n, hex::encode(suffix)),
            None => write!(f, "{:010}", self.n),
        }
    }
}

impl FromStr for PlanName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let parse = || match text.split_once('-') {
            Some((n, suffix)) => Some(PlanName { n: number(n)?, suffix: Some(fixed_hex(suffix)?) }),
            None => Some(PlanName { n: number(text)?, suffix: None }),
        };
        parse().ok_or_else(|| NameError { name: text.to_owned() })
    }
}

/// The text is not a name that this format version gives to an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` is not the name of an object of this format")]
pub struct NameError {
    /// What was to be parsed.
    pub name: String,
}

/// What the name of an object says about it.
///
/// ```
/// use keepwell_catalog::names::{ObjectName, PlanName};
/// let name: ObjectName = "gc/0000000042-0badcafe.kept".parse()?;
/// assert_eq!(name, ObjectName::Kept(PlanName::new(42, [0x0b, 0xad, 0xca, 0xfe])));
/// assert_eq!(name.to_string(), "gc/0000000042-0badcafe.kept");
/// # Ok::<(), keepwell_catalog::names::NameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ObjectName {
    /// `keepwell.json`, the plain hint.
    Hint,
    /// A record of the trust chain.
    Trust(u64),
    /// A member's keyring.
    Keyring {
        /// Whose.
        member: MemberId,
        /// Which, counting from 0.
        n: u64,
    },
    /// A member's secrets of one erasable domain.
    ErasableKey {
        /// The domain.
        domain: DomainId,
        /// Whose.
        member: MemberId,
        /// Which, counting from 0.
        n: u64,
    },
    /// A pack.
    Pack(PackClass, ContentName),
    /// An index segment.
    Index(GroupId, ContentName),
    /// A manifest.
    Manifest(ContentName),
    /// The claim of a session (`k` = 0) or a beat of it.
    Session {
        /// Whose session.
        writer: MemberId,
        /// Which session.
        n: u64,
        /// Which beat.
        k: u64,
    },
    /// The end of a session.
    Commit(MemberId, u64),
    /// What a session created.
    List(MemberId, u64),
    /// A recipe for its writer alone.
    State(MemberId, ContentName),
    /// A retirement.
    Retired(u64),
    /// A prune plan.
    Plan(PlanName),
    /// What a prune plan released.
    Kept(PlanName),
    /// Remembered marks.
    Marks(u64),
    /// A sealed stretch of a writer's ends (from format 1.1 on; never touched).
    Ledger(MemberId, u64),
}

impl ObjectName {
    /// The key under which the object is stored.
    pub fn key(&self) -> Key {
        key(self.to_string())
    }

    /// Whether the key belongs to a part of the name space that is reserved for later versions: to be left alone.
    pub fn is_reserved(key: &str) -> bool {
        ["wal/", "attest/", "audit/"].iter().any(|prefix| key.starts_with(prefix))
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use ObjectName as N;
        match self {
            N::Hint => f.write_str("keepwell.json"),
            N::Trust(n) => write!(f, "trust/{n:010}"),
            N::Keyring { member, n } => write!(f, "keys/{member}/{n:010}"),
            N::ErasableKey { domain, member, n } => write!(f, "keys/erasable/{domain}/{member}-{n:010}"),
            N::Pack(class, name) => write!(f, "{class}/{:02x}/{name}", name.digest[0]),
            N::Index(group, name) => write!(f, "index/{group}/{name}"),
            N::Manifest(name) => write!(f, "manifests/{name}"),
            N::Session { writer, n, k } => write!(f, "sessions/{writer}/{n:010}/{k:010}"),
            N::Commit(writer, n) => write!(f, "commits/{writer}/{n:010}"),
            N::List(writer, n) => write!(f, "lists/{writer}/{n:010}"),
            N::State(writer, name) => write!(f, "state/{writer}/{name}"),
            N::Retired(n) => write!(f, "retired/{n:010}"),
            N::Plan(name) => write!(f, "gc/{name}"),
            N::Kept(name) => write!(f, "gc/{name}.kept"),
            N::Marks(n) => write!(f, "gc/marks/{n:010}"),
            N::Ledger(writer, n) => write!(f, "ledger/{writer}/{n:010}"),
        }
    }
}

impl FromStr for ObjectName {
    type Err = NameError;

    /// Accepts exactly what [`fmt::Display`] writes: lower case, zero padded, a pack in the folder of its own digest.
    fn from_str(text: &str) -> Result<Self, NameError> {
        parse(text).ok_or_else(|| NameError { name: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<ObjectName> {
    use ObjectName as N;
    let parts: Vec<&str> = text.split('/').collect();
    let name = match parts[..] {
        ["keepwell.json"] => N::Hint,
        ["trust", n] => N::Trust(number(n)?),
        ["keys", "erasable", domain, file] => {
            let (member, n) = file.split_once('-')?;
            N::ErasableKey {
                domain: DomainId::from_bytes(fixed_hex(domain)?),
                member: member_id(member)?,
                n: number(n)?,
            }
        }
        ["keys", member, n] => N::Keyring { member: member_id(member)?, n: number(n)? },
        ["data", folder, name] => N::Pack(PackClass::Data, in_folder(folder, name)?),
        ["meta", folder, name] => N::Pack(PackClass::Meta, in_folder(folder, name)?),
        ["index", group, name] => N::Index(GroupId::from_bytes(fixed_hex(group)?), name.parse().ok()?),
        ["manifests", name] => N::Manifest(name.parse().ok()?),
        ["sessions", writer, n, k] => N::Session { writer: member_id(writer)?, n: number(n)?, k: number(k)? },
        ["commits", writer, n] => N::Commit(member_id(writer)?, number(n)?),
        ["lists", writer, n] => N::List(member_id(writer)?, number(n)?),
        ["state", writer, name] => N::State(member_id(writer)?, name.parse().ok()?),
        ["retired", n] => N::Retired(number(n)?),
        ["gc", "marks", n] => N::Marks(number(n)?),
        ["gc", file] => match file.strip_suffix(".kept") {
            Some(plan) => N::Kept(plan.parse().ok()?),
            None => N::Plan(file.parse().ok()?),
        },
        ["ledger", writer, n] => N::Ledger(member_id(writer)?, number(n)?),
        _ => return None,
    };
    Some(name)
}

fn in_folder(folder: &str, name: &str) -> Option<ContentName> {
    (folder.len() == 2 && name.starts_with(folder)).then(|| name.parse().ok())?
}

fn member_id(text: &str) -> Option<MemberId> {
    Some(MemberId::from_bytes(fixed_hex(text)?))
}

/// Exactly ten decimal digits.
fn number(text: &str) -> Option<u64> {
    (text.len() == 10 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Exactly `2 N` lower-case hex digits.
fn fixed_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let lower = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (lower && hex::decode_to_slice(text, &mut bytes).is_ok()).then_some(bytes)
}

fn key(text: String) -> Key {
    text.parse().expect("names of this format are valid keys")
}

/// Name for stored bytes with this SHA-256; `suffix` must be freshly random.
pub fn content_name(digest: &Digest, suffix: [u8; 4]) -> ContentName {
    ContentName::new(digest, suffix)
}

/// Key of a pack.
pub fn pack_key(class: PackClass, name: &ContentName) -> Key {
    ObjectName::Pack(class, *name).key()
}

/// Key of an index segment.
pub fn index_key(group: GroupId, name: &ContentName) -> Key {
    ObjectName::Index(group, *name).key()
}

/// Key of a manifest.
pub fn manifest_key(name: &ContentName) -> Key {
    ObjectName::Manifest(*name).key()
}

/// Key of a session's claim (`k` = 0) or of its k-th beat.
pub fn session_key(writer: MemberId, n: u64, k: u64) -> Key {
    ObjectName::Session { writer, n, k }.key()
}

/// Key of the commit or fence that ends session `n`.
pub fn commit_key(writer: MemberId, n: u64) -> Key {
    ObjectName::Commit(writer, n).key()
}

/// Key of the list of what session `n` created.
pub fn list_key(writer: MemberId, n: u64) -> Key {
    ObjectName::List(writer, n).key()
}

/// Key of a recipe.
pub fn state_key(writer: MemberId, name: &ContentName) -> Key {
    ObjectName::State(writer, *name).key()
}

/// Key of a retirement.
pub fn retired_key(n: u64) -> Key {
    ObjectName::Retired(n).key()
}

/// Key of a prune plan.
pub fn plan_key(plan: PlanName) -> Key {
    ObjectName::Plan(plan).key()
}

/// Key of the verdict on a prune plan.
pub fn kept_key(plan: PlanName) -> Key {
    ObjectName::Kept(plan).key()
}

/// Key of a record of the trust chain.
pub fn trust_key(n: u64) -> Key {
    ObjectName::Trust(n).key()
}

/// Key of a member's n-th keyring.
pub fn keyring_key(member: MemberId, n: u64) -> Key {
    ObjectName::Keyring { member, n }.key()
}

/// Key of a member's n-th secrets of an erasable domain.
pub fn erasable_key(domain: DomainId, member: MemberId, n: u64) -> Key {
    ObjectName::ErasableKey { domain, member, n }.key()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn valid() -> Vec<String> {
        let content = format!("{DIGEST}-0badcafe");
        let member = "0123456789abcdef";
        vec![
            "keepwell.json".into(),
            "trust/0000000000".into(),
            format!("keys/{member}/0000000007"),
            format!("keys/erasable/01020304/{member}-0000000001"),
            format!("data/00/{content}"),
            format!("meta/00/{content}"),
            format!("index/a1b2c3d4/{content}"),
            format!("manifests/{content}"),
            format!("sessions/{member}/0000000003/0000000000"),
            format!("commits/{member}/9999999999"),
            format!("lists/{member}/0000000003"),
            format!("state/{member}/{content}"),
            "retired/0000000001".into(),
            "gc/0000000042".into(),
            "gc/0000000042.kept".into(),
            "gc/0000000042-0badcafe".into(),
            "gc/0000000042-0badcafe.kept".into(),
            "gc/marks/0000000042".into(),
            format!("ledger/{member}/0000000042"),
        ]
    }

    #[test]
    fn every_name_survives_parse_and_build() {
        for text in valid() {
            let name: ObjectName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!(name.key().to_string(), text);
        }
    }

    #[test]
    fn one_changed_byte_is_another_name_or_none() {
        for text in valid() {
            for at in 0..text.len() {
                for replacement in ["", "/", "0", "A", "g", "-", ".", "é"] {
                    let changed = format!("{}{replacement}{}", &text[..at], &text[at + 1..]);
                    if let Ok(name) = changed.parse::<ObjectName>() {
                        assert_eq!(name.to_string(), changed);
                    }
                }
            }
        }
    }

    #[test]
    fn near_misses_are_refused() {
        let content = format!("{DIGEST}-0badcafe");
        let bad = [
            String::new(),
            "/".into(),
            "trust/".into(),
            "trust/1".into(),
            "trust/00000000001".into(),
            "trust/+000000001".into(),
            "trust/0000000000/".into(),
            "gc/0000000042.kept.kept".into(),
            "gc/.kept".into(),
            "gc/0000000042-".into(),
            "gc/0000000042-0badcafe0".into(),
            "gc/0000000042-0BADCAFE".into(),
            format!("data/01/{content}"),
            format!("data/{content}"),
            format!("manifests/{}", content.to_uppercase()),
            format!("manifests/{DIGEST}"),
            "keys/erasable/0000000001".into(),
            "wal/0123456789abcdef/1".into(),
        ];
        for text in bad {
            assert_eq!(text.parse::<ObjectName>(), Err(NameError { name: text.clone() }));
        }
        assert!(ObjectName::is_reserved("wal/0123456789abcdef/1"));
        assert!(!ObjectName::is_reserved("walnut"));
    }

    #[test]
    fn a_digest_names_its_own_folder() {
        let digest: Digest = DIGEST.parse().unwrap();
        let name = content_name(&digest, [0x0b, 0xad, 0xca, 0xfe]);
        assert_eq!(name.digest(), digest);
        assert_eq!(pack_key(PackClass::Data, &name).to_string(), format!("data/00/{DIGEST}-0badcafe"));
    }
}
