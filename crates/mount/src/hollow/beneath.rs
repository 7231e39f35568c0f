//! The directory beneath: what is done there, and how hollow files are filled before it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use backup_core::OpenFile;
use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, RenameFlags, Request, TimeOrNow};
use keepwell_catalog::readable;
use rustix::fs::{self as at};
use rustix::fs::{
    AtFlags, Dir, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

use super::names::Names;
use super::pending::{FetchError, Pending};
use super::{Files, StandIn};
use crate::attributes::time;
use crate::lock;

/// Of how a file is opened, this reaches the directory beneath: reading, writing, and writing through to the disk.
pub(super) const OPEN_FLAGS: OFlags = OFlags::RWMODE.union(OFlags::DSYNC).union(OFlags::SYNC);

/// Passes everything through.
pub(super) struct Hollow {
    pub(super) files: Arc<Files>,
    stand_in: StandIn,
    pub(super) names: Names,
    pub(super) open: Mutex<HashMap<u64, Arc<Handle>>>,
    pub(super) listings: Mutex<HashMap<u64, Arc<Vec<Line>>>>,
    pub(super) next_handle: AtomicU64,
}

pub(super) struct Handle {
    pub ino: u64,
    pub file: File,
    pub hollow: Option<(Arc<Pending>, Arc<OpenFile>)>,
}

pub(super) struct Line {
    pub kind: FileType,
    pub name: Vec<u8>,
}

pub(super) type Answer<T> = Result<T, Errno>;

pub(super) fn refused(errno: rustix::io::Errno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

pub(super) fn failed(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_i32)
}

impl Hollow {
    pub fn new(files: Arc<Files>, stand_in: StandIn) -> Self {
        Self {
            files,
            stand_in,
            names: Names::default(),
            open: Mutex::default(),
            listings: Mutex::default(),
            next_handle: AtomicU64::new(1),
        }
    }

    pub(super) fn path(&self, ino: INodeNo) -> Answer<Vec<u8>> {
        self.names.path(ino.0, None).map_err(|errno| Errno::from_i32(errno as i32))
    }

    /// The path beneath of a name in a directory.
    pub(super) fn child(&self, parent: INodeNo, name: &OsStr) -> Answer<Vec<u8>> {
        let name = self.stand_in.beneath(name.as_bytes()).ok_or(Errno::ENOENT)?;
        self.names.path(parent.0, Some(name)).map_err(|errno| Errno::from_i32(errno as i32))
    }

    pub(super) fn look(&self, path: &[u8]) -> Answer<Stat> {
        at::statat(&self.files.directory, path, AtFlags::SYMLINK_NOFOLLOW).map_err(refused)
    }

    /// Tells the kernel of what stands under a name.
    pub(super) fn tell(&self, parent: INodeNo, path: &[u8], found: &Stat) -> FileAttr {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        attributes(self.names.tell(parent.0, name, found.st_ino), found)
    }

    pub(super) fn find(&self, parent: INodeNo, name: &OsStr) -> Answer<FileAttr> {
        let path = self.child(parent, name)?;
        let found = self.look(&path)?;
        Ok(self.tell(parent, &path, &found))
    }

    /// Gives what was just made to whoever asked for it.
    pub(super) fn made(&self, request: &Request, parent: INodeNo, path: &[u8]) -> Answer<FileAttr> {
        if nix::unistd::geteuid().is_root() {
            let (user, group) = (Uid::from_raw(request.uid()), Gid::from_raw(request.gid()));
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            at::chownat(&self.files.directory, path, Some(user), Some(group), flags).map_err(refused)?;
        }
        let found = self.look(path)?;
        Ok(self.tell(parent, path, &found))
    }

    /// Opens a file beneath; a hollow one for writing too, since what is read of it must be written first.
    pub(super) fn open_beneath(&self, ino: INodeNo, path: &[u8], flags: OFlags) -> Answer<Handle> {
        let kept = (flags & OPEN_FLAGS) | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        // As long as this is held, no inode number beneath passes to another file.
        let hollow = self.files.hollow();
        let found = self.look(path)?;
        let pending = hollow.get(&found.st_ino).map(|(_, pending)| Arc::clone(pending));
        let kept = if pending.is_some() { kept.difference(OFlags::RWMODE) | OFlags::RDWR } else { kept };
        let file = at::openat(&self.files.directory, path, kept, Mode::empty()).map_err(refused)?;
        drop(hollow);
        let hollow = match pending.filter(|pending| pending.missing_bytes() > 0) {
            None => None,
            Some(pending) => match pending.source(&self.files.tree) {
                Ok(source) => Some((pending, source)),
                Err(error) => return Err(self.say(path, &FetchError::Snapshot(error))),
            },
        };
        Ok(Handle { ino: ino.0, file: file.into(), hollow })
    }

    pub(super) fn keep(&self, handle: Handle) -> FileHandle {
        let number = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(number, Arc::new(handle));
        FileHandle(number)
    }

    pub(super) fn opened(&self, fh: FileHandle) -> Answer<Arc<Handle>> {
        lock(&self.open).get(&fh.0).cloned().ok_or(Errno::EBADF)
    }

    /// How somebody has a file open, by handle or, if that is not told, by inode: a removed file has no path.
    fn any_open(&self, ino: INodeNo, fh: Option<FileHandle>) -> Option<Arc<Handle>> {
        let open = lock(&self.open);
        match fh {
            Some(fh) => open.get(&fh.0).cloned(),
            None => open.values().find(|handle| handle.ino == ino.0).cloned(),
        }
    }

    pub(super) fn attributes_now(&self, ino: INodeNo, fh: Option<FileHandle>) -> Answer<FileAttr> {
        let found = match self.path(ino) {
            Ok(path) if fh.is_none() => self.look(&path)?,
            path => match self.any_open(ino, fh) {
                Some(handle) => at::fstat(&handle.file).map_err(refused)?,
                None => self.look(&path?)?,
            },
        };
        Ok(attributes(ino.0, &found))
    }

    /// Says why something could not be fetched.
    fn say(&self, path: &[u8], error: &FetchError) -> Errno {
        match error {
            FetchError::Snapshot(error) => {
                self.files.monitor.problem(&readable(path), &backup_core::one_line(error));
                Errno::EIO
            }
            FetchError::Directory(error) => failed(error),
        }
    }

    /// Runs something on a file that may be hollow.
    fn on_hollow(
        &self,
        ino: INodeNo,
        handle: &Handle,
        run: impl FnOnce(
            &Pending,
            &dyn Fn(u64, usize) -> Result<bytes::Bytes, backup_core::Error>,
        ) -> Result<(), FetchError>,
    ) -> Option<Answer<()>> {
        let (pending, source) = handle.hollow.as_ref()?;
        let read = |offset: u64, length: usize| self.files.fetch(source, offset, length);
        Some(run(pending, &read).map_err(|error| self.say(&self.path(ino).unwrap_or_default(), &error)))
    }

    pub(super) fn read_from(&self, ino: INodeNo, fh: FileHandle, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let handle = self.opened(fh)?;
        let bytes = offset..offset.saturating_add(u64::from(size));
        self.on_hollow(ino, &handle, |pending, read| pending.fetch(&handle.file, bytes, read))
            .unwrap_or(Ok(()))?;
        let mut data = vec![0; size as usize];
        let mut filled = 0;
        while filled < data.len() {
            match handle.file.read_at(&mut data[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        data.truncate(filled);
        Ok(data)
    }

    pub(super) fn write_to(&self, ino: INodeNo, fh: FileHandle, offset: u64, data: &[u8]) -> Answer<()> {
        let handle = self.opened(fh)?;
        let hollow =
            self.on_hollow(ino, &handle, |pending, read| pending.write(&handle.file, data, offset, read));
        hollow.unwrap_or_else(|| handle.file.write_all_at(data, offset).map_err(|error| failed(&error)))
    }

    pub(super) fn resize(&self, ino: INodeNo, fh: Option<FileHandle>, size: u64) -> Answer<()> {
        let handle = match self.path(ino) {
            Ok(path) if fh.is_none() => Arc::new(self.open_beneath(ino, &path, OFlags::WRONLY)?),
            _ => self.any_open(ino, fh).ok_or(Errno::ESTALE)?,
        };
        let hollow = self.on_hollow(ino, &handle, |pending, read| pending.truncate(&handle.file, size, read));
        hollow.unwrap_or_else(|| handle.file.set_len(size).map_err(|error| failed(&error)))
    }

    pub(super) fn list(&self, ino: INodeNo) -> Answer<Vec<Line>> {
        let path = self.path(ino)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = at::openat(&self.files.directory, &path, flags, Mode::empty()).map_err(refused)?;
        let mut lines = Vec::new();
        for item in Dir::read_from(&directory).map_err(refused)? {
            let item = item.map_err(refused)?;
            let name = item.file_name().to_bytes();
            if let Some(seen) = self.stand_in.seen(name) {
                lines.push(Line { kind: kind(item.file_type()), name: seen.to_vec() });
            }
        }
        Ok(lines)
    }

    /// Removes a name, and with the last one what is known of the file.
    pub(super) fn remove(&self, parent: INodeNo, name: &OsStr, flags: AtFlags) -> Answer<()> {
        let path = self.child(parent, name)?;
        let mut hollow = self.files.hollow_mut();
        let found = self.look(&path)?;
        at::unlinkat(&self.files.directory, &path, flags).map_err(refused)?;
        if found.st_nlink <= 1 || flags.contains(AtFlags::REMOVEDIR) {
            hollow.remove(&found.st_ino);
            self.names.removed(found.st_ino);
        }
        Ok(())
    }

    pub(super) fn move_to(&self, from: &[u8], to: &[u8], parent: INodeNo, flags: RenameFlags) -> Answer<()> {
        if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
            return Err(Errno::EINVAL);
        }
        let mut hollow = self.files.hollow_mut();
        let moved = self.look(from)?;
        let replaced = self.look(to).ok();
        let flags = at::RenameFlags::from_bits_retain(flags.bits());
        let directory = &self.files.directory;
        at::renameat_with(directory, from, directory, to, flags).map_err(refused)?;
        let name = to.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if let Some(replaced) = replaced.filter(|replaced| replaced.st_ino != moved.st_ino)
            && (replaced.st_nlink <= 1
                || kind(at::FileType::from_raw_mode(replaced.st_mode)) == FileType::Directory)
        {
            hollow.remove(&replaced.st_ino);
            self.names.removed(replaced.st_ino);
        }
        self.names.renamed(moved.st_ino, parent.0, name);
        let (from, to) = (Path::new(OsStr::from_bytes(from)), Path::new(OsStr::from_bytes(to)));
        for (path, _) in hollow.values_mut() {
            if let Ok(below) = path.strip_prefix(from) {
                *path = if below.as_os_str().is_empty() { to.to_path_buf() } else { to.join(below) };
            }
        }
        Ok(())
    }

    pub(super) fn change(
        &self,
        path: &[u8],
        mode: Option<u32>,
        owner: (Option<u32>, Option<u32>),
    ) -> Answer<()> {
        let directory = &self.files.directory;
        if owner != (None, None) {
            let (user, group) = (owner.0.map(Uid::from_raw), owner.1.map(Gid::from_raw));
            at::chownat(directory, path, user, group, AtFlags::SYMLINK_NOFOLLOW).map_err(refused)?;
        }
        match mode {
            None => Ok(()),
            Some(mode) => {
                let mode = Mode::from_raw_mode(mode as RawMode);
                at::chmodat(directory, path, mode, AtFlags::empty()).map_err(refused)
            }
        }
    }

    pub(super) fn set_times(
        &self,
        path: &[u8],
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
    ) -> Answer<()> {
        let times = Timestamps { last_access: stamp(atime), last_modification: stamp(mtime) };
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        at::utimensat(&self.files.directory, path, &times, flags).map_err(refused)
    }

    pub(super) fn make(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        make: impl FnOnce(&[u8]) -> rustix::io::Result<()>,
    ) -> Answer<FileAttr> {
        let path = self.child(parent, name)?;
        make(&path).map_err(refused)?;
        self.made(request, parent, &path)
    }
}

fn attributes(ino: u64, found: &Stat) -> FileAttr {
    let moment = |seconds: i64, nanoseconds: u64| time((seconds, nanoseconds as u32 % 1_000_000_000));
    let modified = moment(found.st_mtime, found.st_mtime_nsec);
    FileAttr {
        ino: INodeNo(ino),
        size: u64::try_from(found.st_size).unwrap_or_default(),
        blocks: u64::try_from(found.st_blocks).unwrap_or_default(),
        atime: moment(found.st_atime, found.st_atime_nsec),
        mtime: modified,
        ctime: moment(found.st_ctime, found.st_ctime_nsec),
        crtime: modified,
        kind: kind(at::FileType::from_raw_mode(found.st_mode)),
        perm: (found.st_mode & 0o7777) as u16,
        nlink: u32::try_from(found.st_nlink).unwrap_or(u32::MAX),
        uid: found.st_uid,
        gid: found.st_gid,
        rdev: found.st_rdev as u32,
        blksize: 4096,
        flags: 0,
    }
}

fn kind(beneath: at::FileType) -> FileType {
    match beneath {
        at::FileType::Directory => FileType::Directory,
        at::FileType::Symlink => FileType::Symlink,
        at::FileType::Fifo => FileType::NamedPipe,
        at::FileType::Socket => FileType::Socket,
        at::FileType::CharacterDevice => FileType::CharDevice,
        at::FileType::BlockDevice => FileType::BlockDevice,
        at::FileType::RegularFile | at::FileType::Unknown => FileType::RegularFile,
    }
}

fn stamp(time: Option<TimeOrNow>) -> Timespec {
    match time {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(TimeOrNow::Now) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(TimeOrNow::SpecificTime(time)) => match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(since) => Timespec {
                tv_sec: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: since.subsec_nanos().into(),
            },
            Err(before) => Timespec {
                tv_sec: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
                tv_nsec: 0,
            },
        },
    }
}
