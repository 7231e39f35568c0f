//! From an entry to what `stat` shows.

use std::time::{Duration, SystemTime};

use backup_core::OpenFile;
use fuser::{FileAttr, FileType, INodeNo};
use keepwell_catalog::{Entry, EntryKind, Extent};

/// Reads of this size are cheap: a page cache page for a page of us would not be.
const BLOCK_BYTES: u32 = 128 << 10;

/// What `stat` shows of an entry that carries its own inode.
pub(crate) fn attributes(ino: u64, entry: &Entry, names: u32) -> FileAttr {
    let time = time(entry.mtime);
    let size = entry.link_target.as_ref().map_or(entry.size, |target| target.len() as u64);
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: stored(entry).div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: kind(entry.kind),
        perm: (entry.shown_mode() & 0o7777) as u16,
        nlink: names,
        uid: entry.uid,
        gid: entry.gid,
        rdev: entry.device.map_or(0, |(major, minor)| device(major, minor)),
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// What a made-up directory or link shows.
pub(crate) fn made_up(ino: u64, kind: FileType, size: u64, time: SystemTime) -> FileAttr {
    let perm = if kind == FileType::Symlink { 0o777 } else { 0o755 };
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: 0,
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// The kind as the kernel knows it. A further name is a file.
pub(crate) fn kind(kind: EntryKind) -> FileType {
    match kind {
        EntryKind::File | EntryKind::Object | EntryKind::HardLink => FileType::RegularFile,
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink => FileType::Symlink,
        EntryKind::Fifo => FileType::NamedPipe,
        EntryKind::CharDevice => FileType::CharDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        EntryKind::Socket => FileType::Socket,
    }
}

/// Bytes that are no hole, as far as the head of the entry tells; the rest of a long file counts in full.
fn stored(entry: &Entry) -> u64 {
    let holes = entry.content.iter().filter(|extent| extent.chunk().is_none());
    entry.size.saturating_sub(holes.map(Extent::length).fold(0, u64::saturating_add))
}

/// Seconds and nanoseconds that count forward from them, also before 1970. A time beyond what the system can hold is 1970.
pub(crate) fn time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
    time.and_then(|time| time.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(epoch)
}

/// A device number as the kernel's `new_encode_dev` packs it; what it has no room for is lost.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The next byte at or behind `offset` that is data, or is a hole; `None` where `SEEK_DATA` and `SEEK_HOLE` fail.
pub(crate) fn seek(file: &OpenFile, offset: u64, to_hole: bool) -> Result<Option<u64>, backup_core::Error> {
    let mut at = offset;
    while let Some((is_hole, end)) = file.is_hole(at)? {
        if is_hole == to_hole {
            return Ok(Some(at));
        }
        at = end;
    }
    // The end of a file counts as a hole.
    Ok((to_hole && offset < file.size()).then(|| file.size()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_the_kernel_does() {
        for (major, minor, packed) in [(1, 3, 0x103), (8, 0, 0x800), (259, 300, 0x11_032c)] {
            assert_eq!(device(major, minor), packed, "{major}:{minor}");
        }
    }

    #[test]
    fn times_before_1970_and_beyond_all_bounds_do_no_harm() {
        let epoch = SystemTime::UNIX_EPOCH;
        assert_eq!(time((-1, 999_999_999)), epoch - Duration::from_nanos(1));
        assert_eq!(time((1, 5)), epoch + Duration::new(1, 5));
        assert_eq!(time((i64::MAX, 999_999_999)), epoch + Duration::new(i64::MAX as u64, 999_999_999));
        time((i64::MIN, 0));
    }
}
