//! Entries: what a snapshot says about one path or object.

mod codec;

use std::collections::BTreeMap;
use std::sync::Arc;

pub(crate) use codec::peek_more_extents;

use crate::MapKey;
use crate::cbor::Malformed;
use crate::error::MapError;
use crate::extent::Extent;

/// Most extents that stand in an entry itself; the rest goes to sub-key records.
pub const INLINE_EXTENTS_MAX: usize = 32;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A regular file.
    File = 0,
    /// A directory.
    Directory = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A named pipe.
    Fifo = 3,
    /// A character device.
    CharDevice = 4,
    /// A block device.
    BlockDevice = 5,
    /// A socket.
    Socket = 6,
    /// A further name of the inode that another entry carries.
    HardLink = 7,
    /// An object of an object store, a dump, or other content that is no file.
    Object = 8,
}

impl EntryKind {
    /// Whether such an entry has bytes of its own.
    pub fn has_content(self) -> bool {
        matches!(self, Self::File | Self::Object)
    }

    fn from_number(number: u64) -> Result<Self, Malformed> {
        const ALL: [EntryKind; 9] = [
            EntryKind::File,
            EntryKind::Directory,
            EntryKind::Symlink,
            EntryKind::Fifo,
            EntryKind::CharDevice,
            EntryKind::BlockDevice,
            EntryKind::Socket,
            EntryKind::HardLink,
            EntryKind::Object,
        ];
        let found = usize::try_from(number).ok().and_then(|index| ALL.get(index));
        found.copied().ok_or(Malformed("its kind is unknown to this version"))
    }
}

/// Everything a snapshot knows about one path or object.
///
/// An entry in memory is *whole* when `content` holds all of its extents and `more_extents` is zero; it is a *head*
/// when `content` holds the first few and `more_extents` counts the sub-key records with the others. Writers hand in
/// whole entries ([`push_entry`](crate::push_entry) splits them); readers choose.
/// ```
/// use keepwell_catalog::{Entry, EntryKind, Extent};
/// use keepwell_crypto::{ChunkKind, IdKey};
///
/// let id = IdKey::generate().chunk_id(ChunkKind::Content, b"hello");
/// let entry = Entry {
///     mode: 0o644,
///     size: 5 + 4096,
///     content: vec![Extent::Chunk { id, offset: 0, length: 5 }, Extent::Hole { length: 4096 }],
///     ..Entry::new(EntryKind::File)
/// };
/// assert_eq!(Entry::decode(&entry.encode()?)?, entry);
/// let short = Entry { size: 5, ..entry };
/// assert!(short.encode().is_err(), "its extents do not add up to its size");
/// # Ok::<(), keepwell_catalog::MapError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: at most `0o7777`.
    pub mode: u32,
    /// Owner, by number.
    pub uid: u32,
    /// Group, by number.
    pub gid: u32,
    /// Time of the last change of content: seconds since 1970 and nanoseconds below a thousand million.
    pub mtime: (i64, u32),
    /// Size of the content in bytes: the sum of the lengths of the extents, zero for what has no content.
    pub size: u64,
    /// The content, front to back and without gaps.
    pub content: Vec<Extent>,
    /// Where a symbolic link points; bytes as the file system has them.
    pub link_target: Option<Vec<u8>>,
    /// Extended attributes and their values, strictly ascending by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// For [`EntryKind::HardLink`]: the entry that carries the inode. It sorts before this one.
    pub hard_link: Option<MapKey>,
    /// Owner, by name.
    pub user: Option<Arc<str>>,
    /// Group, by name.
    pub group: Option<Arc<str>>,
    /// Number of sub-key records that hold the extents after `content`; zero in a whole entry.
    pub more_extents: u32,
    /// What only the source understands.
    pub attributes: BTreeMap<String, Vec<u8>>,
}

impl Entry {
    /// Permissions for where every file has some: an object of an object store knows none, and gets 0644.
    pub fn shown_mode(&self) -> u32 {
        if self.kind == EntryKind::Object && self.mode == 0 { 0o644 } else { self.mode }
    }

    /// An entry of this kind with everything else zero, empty or absent.
    pub fn new(kind: EntryKind) -> Self {
        Self {
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            size: 0,
            content: Vec::new(),
            link_target: None,
            xattrs: Vec::new(),
            device: None,
            hard_link: None,
            user: None,
            group: None,
            more_extents: 0,
            attributes: BTreeMap::new(),
        }
    }

    /// Checks every rule of the format; what passes can be encoded and read back.
    pub fn check(&self) -> Result<(), MapError> {
        let mut content_bytes: u64 = 0;
        for extent in &self.content {
            extent.check()?;
            content_bytes =
                content_bytes.checked_add(extent.length()).ok_or(Malformed("its extents are too long"))?;
        }
        Ok(self.check_with(content_bytes)?)
    }

    fn check_with(&self, content_bytes: u64) -> Result<(), Malformed> {
        let adds_up =
            if self.more_extents == 0 { content_bytes == self.size } else { content_bytes < self.size };
        let xattrs_ascend = self.xattrs.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let is_device = matches!(self.kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        for (holds, fact) in [
            (adds_up, "its extents do not add up to its size"),
            (self.kind.has_content() || self.size == 0, "this kind has no content"),
            (self.mode <= 0o7777, "its mode has unknown bits"),
            (self.mtime.1 < 1_000_000_000, "its time is out of range"),
            (xattrs_ascend, "its extended attributes are out of order"),
            (self.hard_link.is_some() == (self.kind == EntryKind::HardLink), "hard link and kind disagree"),
            (
                self.link_target.is_some() == (self.kind == EntryKind::Symlink),
                "link target and kind disagree",
            ),
            (self.device.is_some() == is_device, "device number and kind disagree"),
        ] {
            if !holds {
                return Err(Malformed(fact));
            }
        }
        Ok(())
    }
}
