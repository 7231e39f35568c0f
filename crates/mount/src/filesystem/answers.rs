//! The answers to the kernel.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, LockOwner,
    OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyXattr, Request,
};

use super::Snapshots;
use crate::attributes::seek;
use crate::directory::Listing;
use crate::lock;
use crate::nodes::Place;

/// How far the kernel reads ahead, if it lets us say.
const READ_AHEAD_BYTES: u32 = 1 << 20;
const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

impl Filesystem for Snapshots {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Both are wishes: what the kernel has not, it does without.
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        if let Err(largest) = config.set_max_readahead(READ_AHEAD_BYTES) {
            let _ = config.set_max_readahead(largest);
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.nodes.end();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok((ttl, attributes)) => reply.entry(&ttl, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, lookups: u64) {
        self.nodes.forget(ino.0, lookups);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.place(ino).and_then(|place| self.attributes_at(ino.0, &place)) {
            Ok((ttl, attributes)) => reply.attr(&ttl, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.target(ino) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.open_file(ino) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.opened(fh).and_then(|opened| {
            let read = opened.file.read_at(offset, size as usize);
            read.map_err(|error| self.failed(&opened.shown, &opened.key, &error))
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
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
        lock(&self.files).remove(&fh.0);
        reply.ok();
    }

    fn lseek(&self, _: &Request, _: INodeNo, fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let found = self.opened(fh).and_then(|opened| {
            let to_hole = match whence {
                SEEK_DATA => false,
                SEEK_HOLE => true,
                _ => return Err(Errno::EINVAL),
            };
            let from = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
            let found = seek(&opened.file, from, to_hole);
            let found = found.map_err(|error| self.failed(&opened.shown, &opened.key, &error))?;
            found.and_then(|at| i64::try_from(at).ok()).ok_or(Errno::ENXIO)
        });
        match found {
            Ok(at) => reply.offset(at),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let place = match self.place(ino) {
            Ok(place) => place,
            Err(errno) => return reply.error(errno),
        };
        let flags = match place {
            Place::Made(_) => {
                self.refresh();
                FopenFlags::empty()
            }
            Place::Inside(..) => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
        };
        let listing = Listing::new(ino.0, self.nodes.number(&place.parent()));
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        lock(&self.listings).insert(handle, Arc::new(Mutex::new(listing)));
        reply.opened(FileHandle(handle), flags);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        match self.hand_out(ino, fh, offset, &mut reply) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(&self, _: &Request, _: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        lock(&self.listings).remove(&fh.0);
        reply.ok();
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let value = self.xattrs(ino, |xattrs| {
            let found = xattrs.iter().find(|(known, _)| known == name.as_bytes());
            found.map(|(_, value)| value.clone())
        });
        match value {
            Ok(Some(value)) => give(&value, size, reply),
            Ok(None) => reply.error(Errno::NO_XATTR),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.xattrs(ino, |xattrs| {
            xattrs.iter().flat_map(|(name, _)| name.iter().copied().chain([0])).collect::<Vec<u8>>()
        });
        match names {
            Ok(names) => give(&names, size, reply),
            Err(errno) => reply.error(errno),
        }
    }
}

/// A value, or its size for those who have no room yet.
fn give(value: &[u8], size: u32, reply: ReplyXattr) {
    match (size as usize, u32::try_from(value.len())) {
        (0, Ok(needed)) => reply.size(needed),
        (room, Ok(_)) if value.len() <= room => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
