//! What one `lstat` says, in plain integers that are the same on every architecture.

use keepwell_catalog::{Entry, EntryKind};
use rustix::fs::{FileType, Stat};

/// Permission bits with setuid, setgid and sticky.
pub(crate) const MODE_BITS: u32 = 0o7777;

/// Seconds and nanoseconds (0..1e9) since 1970; the seconds are negative before.
pub(crate) type Time = (i64, u32);

/// The longest step of change times that are whole seconds: FAT counts every other one, ext4 with small inodes, HFS+ and
/// what lies behind SFTP each.
const WHOLE_SECONDS_STEP_NS: i64 = 2_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    pub dev: u64,
    pub ino: u64,
    pub raw_mode: u32,
    pub nlink: u64,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u64,
    pub size: u64,
    pub blocks: u64,
    pub mtime: Time,
    pub ctime: Time,
}

impl Look {
    /// What it is; `None` for a type of file this version does not know.
    pub fn kind(&self) -> Option<EntryKind> {
        Some(match FileType::from_raw_mode(self.raw_mode) {
            FileType::RegularFile => EntryKind::File,
            FileType::Directory => EntryKind::Directory,
            FileType::Symlink => EntryKind::Symlink,
            FileType::Fifo => EntryKind::Fifo,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            FileType::Socket => EntryKind::Socket,
            _ => return None,
        })
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == Some(EntryKind::Directory)
    }

    pub fn is_file(&self) -> bool {
        self.kind() == Some(EntryKind::File)
    }

    pub fn mode(&self) -> u32 {
        self.raw_mode & MODE_BITS
    }

    /// What tells this inode from every other one that exists now.
    pub fn identity(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// Whether there may be holes in it.
    pub fn may_be_sparse(&self) -> bool {
        self.blocks.saturating_mul(512) < self.size
    }

    /// 16 bytes that change when content or metadata may have changed after `now` (nanoseconds since 1970). All zeros,
    /// which mean "unknown", where a change could go unnoticed: where change times are whole seconds, a further one in the
    /// same second leaves everything as it is.
    ///
    /// The device number is not part of it: it may change with every mount. The kind and the first name of a hard link
    /// are, because moving a parent directory or excluding the first name makes another name carry the inode without
    /// touching the inode itself.
    pub fn fingerprint(&self, hard_link_to: Option<&[u8]>, now: i64) -> [u8; 16] {
        if self.may_change_unseen(now) {
            return [0; 16];
        }
        let mut bytes = [0; 88];
        let fields = [
            self.size,
            self.mtime.0.cast_unsigned(),
            u64::from(self.mtime.1),
            self.ctime.0.cast_unsigned(),
            u64::from(self.ctime.1),
            self.ino,
            u64::from(self.raw_mode),
            u64::from(self.uid) << 32 | u64::from(self.gid),
            self.rdev,
            self.nlink,
            u64::from(hard_link_to.is_some()),
        ];
        for (slot, field) in bytes.chunks_exact_mut(8).zip(fields) {
            slot.copy_from_slice(&field.to_le_bytes());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&bytes).update(hard_link_to.unwrap_or_default());
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        if fingerprint == [0; 16] {
            fingerprint[0] = 1;
        }
        fingerprint
    }

    fn may_change_unseen(&self, now: i64) -> bool {
        let (seconds, nanoseconds) = self.ctime;
        nanoseconds == 0 && now.saturating_sub(seconds.saturating_mul(1_000_000_000)) < WHOLE_SECONDS_STEP_NS
    }

    /// The metadata of an entry of `kind`, without names of users, link target and extended attributes.
    pub fn entry(&self, kind: EntryKind) -> Entry {
        let mut entry = Entry::new(kind);
        entry.mode = self.mode();
        (entry.uid, entry.gid, entry.mtime) = (self.uid, self.gid, self.mtime);
        if matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            entry.device = Some((rustix::fs::major(self.rdev), rustix::fs::minor(self.rdev)));
        }
        entry
    }
}

impl From<Stat> for Look {
    #[allow(
        clippy::unnecessary_cast,
        clippy::cast_lossless,
        reason = "field types differ between architectures"
    )]
    fn from(stat: Stat) -> Self {
        Self {
            dev: stat.st_dev as u64,
            ino: stat.st_ino as u64,
            raw_mode: stat.st_mode as u32,
            nlink: stat.st_nlink as u64,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: stat.st_rdev as u64,
            size: stat.st_size as u64,
            blocks: stat.st_blocks as u64,
            mtime: (stat.st_mtime as i64, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime as i64, stat.st_ctime_nsec as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look() -> Look {
        let stat = rustix::fs::statat(rustix::fs::CWD, c"/", rustix::fs::AtFlags::empty()).unwrap();
        stat.into()
    }

    #[test]
    fn every_field_but_the_device_number_changes_the_fingerprint() {
        let base = look();
        let fingerprint = |look: Look, first: Option<&[u8]>| look.fingerprint(first, i64::MAX);
        let changes: [fn(&mut Look); 10] = [
            |l| l.size += 1,
            |l| l.mtime.0 -= 1,
            |l| l.mtime.1 ^= 1,
            |l| l.ctime.0 += 1,
            |l| l.ctime.1 ^= 1,
            |l| l.ino += 1,
            |l| l.raw_mode ^= 0o4000,
            |l| l.uid ^= 1,
            |l| l.gid ^= 1,
            |l| l.nlink += 1,
        ];
        for (index, change) in changes.iter().enumerate() {
            let mut other = base;
            change(&mut other);
            assert_ne!(fingerprint(other, None), fingerprint(base, None), "change {index}");
        }
        assert_eq!(fingerprint(Look { dev: base.dev + 1, ..base }, None), fingerprint(base, None));
        assert_ne!(fingerprint(base, Some(b"")), fingerprint(base, None));
        assert_ne!(fingerprint(base, Some(b"a\0")), fingerprint(base, Some(b"b\0")));
    }

    #[test]
    fn what_may_change_again_within_its_second_has_no_fingerprint() {
        let second = 1_000_000_000;
        for (ctime, now, is_known) in [
            ((100, 0), 100 * second + 1, false),
            ((100, 0), 102 * second - 1, false),
            ((100, 0), 102 * second, true),
            // The clock of a server is ahead of ours.
            ((100, 0), 99 * second, false),
            ((100, 1), 100 * second + 2, true),
            ((i64::MAX, 0), 0, false),
            ((i64::MIN, 0), i64::MAX, true),
        ] {
            let fingerprint = Look { ctime, ..look() }.fingerprint(None, now);
            assert_eq!(fingerprint != [0; 16], is_known, "{ctime:?} at {now}");
        }
    }
}
