//! The answers to the kernel: everything is passed through to the directory beneath.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{self as at};
use rustix::fs::{AtFlags, FallocateFlags, Mode, OFlags, RawMode};

use super::beneath::{Answer, Handle, Hollow, OPEN_FLAGS, failed, refused};
use crate::lock;

/// Nobody else changes what stands beneath.
const FOR_EVER: Duration = Duration::from_secs(24 * 3600);

fn entry(reply: ReplyEntry, found: Answer<FileAttr>) {
    match found {
        Ok(attributes) => reply.entry(&FOR_EVER, &attributes, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn empty(reply: ReplyEmpty, done: Answer<()>) {
    match done {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Hollow {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.find(parent, name));
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.names.forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attributes_now(ino, fh) {
            Ok(attributes) => reply.attr(&FOR_EVER, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = || {
            size.map_or(Ok(()), |size| self.resize(ino, fh, size))?;
            if mode.is_some() || uid.is_some() || gid.is_some() {
                self.change(&self.path(ino)?, mode, (uid, gid))?;
            }
            // With a new size the time is that of the change.
            if size.is_none() && (atime.is_some() || mtime.is_some()) {
                self.set_times(&self.path(ino)?, atime, mtime)?;
            }
            self.attributes_now(ino, fh)
        };
        match change() {
            Ok(attributes) => reply.attr(&FOR_EVER, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        let target = self
            .path(ino)
            .and_then(|path| at::readlinkat(&self.files.directory, &path, Vec::new()).map_err(refused));
        match target {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let kind = at::FileType::from_raw_mode(mode as RawMode);
        let bits = Mode::from_raw_mode((mode & !umask) as RawMode);
        let device = u64::from(rdev);
        let make = |path: &[u8]| at::mknodat(&self.files.directory, path, kind, bits, device);
        entry(reply, self.make(request, parent, name, make));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let mode = Mode::from_raw_mode((mode & !umask) as RawMode);
        let make = |path: &[u8]| at::mkdirat(&self.files.directory, path, mode);
        entry(reply, self.make(request, parent, name, make));
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let make = |path: &[u8]| at::symlinkat(target, &self.files.directory, path);
        entry(reply, self.make(request, parent, name, make));
    }

    fn link(&self, _: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let linked = self.path(ino).and_then(|from| {
            let path = self.child(parent, name)?;
            let directory = &self.files.directory;
            let mut hollow = self.files.hollow_mut();
            at::linkat(directory, &from, directory, &path, AtFlags::empty()).map_err(refused)?;
            let found = self.look(&path)?;
            // The older name is the one that goes: a server before 16 renames segments of its log so.
            if let Some((known, _)) = hollow.get_mut(&found.st_ino) {
                *known = Path::new(OsStr::from_bytes(&path)).to_path_buf();
            }
            drop(hollow);
            Ok(self.tell(parent, &path, &found))
        });
        entry(reply, linked);
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::empty()));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.remove(parent, name, AtFlags::REMOVEDIR));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let paths = self.child(parent, name).and_then(|from| Ok((from, self.child(new_parent, new_name)?)));
        empty(reply, paths.and_then(|(from, to)| self.move_to(&from, &to, new_parent, flags)));
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let flags = OFlags::from_bits_retain(flags.0 as u32);
        match self.path(ino).and_then(|path| self.open_beneath(ino, &path, flags)) {
            Ok(handle) => reply.opened(self.keep(handle), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let flags = OFlags::from_bits_retain(flags as u32);
        let created = self.child(parent, name).and_then(|path| {
            let kept =
                (flags & (OPEN_FLAGS | OFlags::EXCL)) | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let mode = Mode::from_raw_mode((mode & !umask & 0o7777) as RawMode);
            let hollow = self.files.hollow();
            let file = at::openat(&self.files.directory, &path, kept, mode).map_err(refused)?;
            drop(hollow);
            let attributes = self.made(request, parent, &path)?;
            Ok((attributes, Handle { ino: attributes.ino.0, file: file.into(), hollow: None }))
        });
        match created {
            Ok((attributes, handle)) => {
                let handle = self.keep(handle);
                reply.created(&FOR_EVER, &attributes, Generation(0), handle, FopenFlags::FOPEN_KEEP_CACHE);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_from(ino, fh, offset, size) {
            Ok(data) => reply.data(&data),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_to(ino, fh, offset, data) {
            // The kernel hands over at most what it has room for, far below 4 GiB.
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        lock(&self.open).remove(&fh.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        let synced = self.opened(fh).and_then(|handle| {
            let done = if datasync { handle.file.sync_data() } else { handle.file.sync_all() };
            done.map_err(|error| failed(&error))
        });
        empty(reply, synced);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let flags = FallocateFlags::from_bits_retain(mode as u32);
        // Anything else changes content that may not have been fetched.
        if !(flags.is_empty() || flags == FallocateFlags::KEEP_SIZE) {
            return reply.error(Errno::EOPNOTSUPP);
        }
        let done = self
            .opened(fh)
            .and_then(|handle| at::fallocate(handle.file.as_fd(), flags, offset, length).map_err(refused));
        empty(reply, done);
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.list(ino) {
            Ok(lines) => {
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                lock(&self.listings).insert(handle, Arc::new(lines));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(lines) = lock(&self.listings).get(&fh.0).cloned() else {
            return reply.error(Errno::EBADF);
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (number, line) in lines.iter().enumerate().skip(from) {
            // Any number but zero will do: who wants to know asks for the file.
            let ino = INodeNo(number as u64 + 2);
            if reply.add(ino, number as u64 + 1, line.kind, OsStr::from_bytes(&line.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.listings).remove(&fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, ino: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let synced = self.path(ino).and_then(|path| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = at::openat(&self.files.directory, &path, flags, Mode::empty());
            at::fsync(directory.map_err(refused)?).map_err(refused)
        });
        empty(reply, synced);
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        match at::fstatvfs(&self.files.directory) {
            Ok(found) => reply.statfs(
                found.f_blocks,
                found.f_bfree,
                found.f_bavail,
                found.f_files,
                found.f_ffree,
                u32::try_from(found.f_bsize).unwrap_or(4096),
                u32::try_from(found.f_namemax).unwrap_or(255),
                u32::try_from(found.f_frsize).unwrap_or(4096),
            ),
            Err(errno) => reply.error(refused(errno)),
        }
    }
}
