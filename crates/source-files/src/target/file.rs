//! One file being compared, changed in place, or built beside its name.

use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use backup_core::source::{Content, Piece};
use backup_core::target::{TargetError, TargetFile};
use keepwell_catalog::Entry;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, fallocate, ftruncate, seek};
use rustix::io::{Errno, Result, pread, pwrite, retry_on_intr};

use crate::content::FileContent;
use crate::handle::Handle;
use crate::look::Look;
use crate::target::metadata::Metadata;
use crate::target::place::At;
use crate::target::temporary::{Temporary, create_new};

const COPY_BYTES: usize = 256 << 10;

/// Where the kernel keeps the access control list of a file.
const ACL: &[u8] = b"system.posix_acl_access";

/// Bits that must not outlive the content they were given to.
const LENDING_BITS: u32 = 0o6000;

#[derive(Debug)]
pub(crate) struct RestoredFile {
    at: At,
    metadata: Arc<Metadata>,
    state: RwLock<State>,
}

#[derive(Debug)]
enum State {
    /// Stands under its name, nothing written yet; who may read what will be.
    Untouched(Handle, Rights),
    /// Stands under its name and is open for writing.
    InPlace(Handle),
    /// Takes its name at the end.
    Beside(Temporary, Handle),
}

/// Who may read a file.
#[derive(Debug)]
struct Rights {
    uid: u32,
    gid: u32,
    mode: u32,
    acl: Option<Vec<u8>>,
}

impl Rights {
    /// Whether somebody may use the file as it stands who may not use what it becomes.
    fn are_exceeded(&self, handle: &Handle, look: &Look) -> bool {
        (look.uid, look.gid) != (self.uid, self.gid)
            || look.mode() & !LENDING_BITS & !self.mode != 0
            || handle.xattr(ACL).ok() != self.acl
    }
}

fn acl_of(entry: &Entry) -> Option<Vec<u8>> {
    entry.xattrs.iter().find(|(name, _)| name == ACL).map(|(_, value)| value.clone())
}

impl State {
    fn handle(&self) -> &Handle {
        match self {
            Self::Untouched(handle, _) | Self::InPlace(handle) | Self::Beside(_, handle) => handle,
        }
    }
}

impl RestoredFile {
    /// A file of `size` bytes, all hole.
    pub fn create(at: At, metadata: Arc<Metadata>, size: u64) -> std::result::Result<Self, TargetError> {
        let made = Temporary::make(&at, |name| create_new(&at.parent, name));
        let (temporary, fd) = made.map_err(|error| at.failed("create", error))?;
        ftruncate(&fd, size).map_err(|error| at.failed("set the size of", error))?;
        Ok(Self { at, metadata, state: RwLock::new(State::Beside(temporary, Handle::of_data(fd))) })
    }

    /// The regular file that stands at `at` and is to become `entry`.
    pub fn open(at: At, metadata: Arc<Metadata>, entry: &Entry) -> std::result::Result<Self, TargetError> {
        let failed = |error| at.failed("open", error);
        let seen = at.look().map_err(failed)?;
        let handle = if seen.is_file() {
            open_to_read(&at, &seen).map_err(failed)?
        } else {
            return Err(no_file(&at));
        };
        if !handle.look().map_err(failed)?.is_file() {
            return Err(no_file(&at));
        }
        let rights = Rights { uid: entry.uid, gid: entry.gid, mode: entry.mode, acl: acl_of(entry) };
        Ok(Self { at, metadata, state: RwLock::new(State::Untouched(handle, rights)) })
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, in which the file may be written.
    fn writable(&self) -> Result<RwLockReadGuard<'_, State>> {
        loop {
            let state = self.read_state();
            if !matches!(*state, State::Untouched(..)) {
                return Ok(state);
            }
            drop(state);
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if let State::Untouched(handle, rights) = &*state {
                *state = make_writable(&self.at, handle, rights)?;
            }
        }
    }

    fn failed(&self, operation: &'static str) -> impl Fn(Errno) -> TargetError {
        move |error| self.at.failed(operation, error)
    }

    /// Whether giving the file the size and metadata of `entry` would change another name of the same inode.
    fn is_shared_and_differs(&self, entry: &Entry) -> Result<bool> {
        let state = self.read_state();
        let State::Untouched(handle, _) = &*state else { return Ok(false) };
        Ok(handle.look()?.nlink > 1 && self.metadata.differs(handle, entry)?)
    }
}

impl TargetFile for RestoredFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> std::result::Result<bool, TargetError> {
        let state = self.read_state();
        let mut filled = 0;
        while filled < buf.len() {
            let read = retry_on_intr(|| pread(state.handle(), &mut buf[filled..], offset + filled as u64));
            match read.map_err(self.failed("read"))? {
                0 => return Ok(false),
                count => filled += count,
            }
        }
        Ok(true)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> std::result::Result<(), TargetError> {
        let state = self.writable().map_err(self.failed("open for writing"))?;
        write_all_at(state.handle(), offset, data).map_err(self.failed("write"))
    }

    fn punch_hole(&self, offset: u64, length: u64) -> std::result::Result<(), TargetError> {
        if is_hole(self.read_state().handle(), offset, length) {
            return Ok(());
        }
        let state = self.writable().map_err(self.failed("open for writing"))?;
        punch(state.handle(), offset, length).map_err(self.failed("make a hole in"))
    }

    fn finish(self: Box<Self>, entry: &Entry) -> std::result::Result<(), TargetError> {
        let size = self.read_state().handle().look().map_err(self.failed("look at"))?.size;
        if size != entry.size || self.is_shared_and_differs(entry).map_err(self.failed("look at"))? {
            let state = self.writable().map_err(self.failed("open for writing"))?;
            ftruncate(state.handle(), entry.size).map_err(self.failed("set the size of"))?;
        }
        let Self { at, metadata, state } = *self;
        let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
        metadata.apply(&at, state.handle(), entry)?;
        match state {
            State::Beside(temporary, _) => temporary.rename_to(&at),
            State::Untouched(..) | State::InPlace(_) => Ok(()),
        }
    }
}

/// Writes all of `data` at `offset`.
pub(crate) fn write_all_at(fd: impl AsFd, mut offset: u64, mut data: &[u8]) -> Result<()> {
    while !data.is_empty() {
        let count = retry_on_intr(|| pwrite(&fd, data, offset))?;
        if count == 0 {
            return Err(Errno::IO);
        }
        offset += count as u64;
        data = &data[count..];
    }
    Ok(())
}

fn no_file(at: &At) -> TargetError {
    at.refused("it is no regular file")
}

/// Its owner may read a file whatever its mode says, after changing that; it gets its final mode at the end anyway.
fn open_to_read(at: &At, seen: &Look) -> Result<Handle> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    match at.open(flags) {
        Err(Errno::ACCESS) if seen.nlink == 1 => {
            at.open_place()?.set_mode(seen.mode() | 0o400)?;
            at.open(flags).map(Handle::of_data)
        }
        opened => opened.map(Handle::of_data),
    }
}

/// Opens for writing what is open for reading. A copy takes its place where writing would reach further than this name
/// (other hard links, perhaps outside the target) or further than those who may read what is written (also who has the
/// old file open), or is not possible (a running program, a mode without writing).
fn make_writable(at: &At, handle: &Handle, rights: &Rights) -> Result<State> {
    let look = handle.look()?;
    let opened = match look.nlink {
        1 if !rights.are_exceeded(handle, &look) => {
            at.open(OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOCTTY).map(Handle::of_data)
        }
        _ => Err(Errno::MLINK),
    };
    match opened {
        Ok(writable) if writable.look()?.identity() == look.identity() => {
            if look.mode() & LENDING_BITS != 0 {
                writable.set_mode(look.mode() & !LENDING_BITS)?;
            }
            Ok(State::InPlace(writable))
        }
        Ok(_)
        | Err(Errno::MLINK | Errno::ACCESS | Errno::PERM | Errno::TXTBSY | Errno::NOENT | Errno::LOOP) => {
            copy_beside(at, handle, look)
        }
        Err(error) => Err(error),
    }
}

fn copy_beside(at: &At, handle: &Handle, look: Look) -> Result<State> {
    let (temporary, fd) = Temporary::make(at, |name| create_new(&at.parent, name))?;
    ftruncate(&fd, look.size)?;
    let source = handle.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let mut content = FileContent::new(source, look);
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    loop {
        let piece =
            content.read(&mut buffer).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        match piece {
            Piece::Data(count) => {
                write_all_at(&fd, offset, &buffer[..count])?;
                offset += count as u64;
            }
            Piece::Hole(length) => offset += length,
            // No file refers to an earlier capture.
            Piece::Kept(_) => return Err(Errno::IO),
            Piece::End => return Ok(State::Beside(temporary, Handle::of_data(fd))),
        }
    }
}

/// Whether there is no data between `offset` and `offset + length`, as far as the file system can tell.
fn is_hole(fd: impl AsFd, offset: u64, length: u64) -> bool {
    match seek(fd, SeekFrom::Data(offset)) {
        Ok(data) => data >= offset.saturating_add(length),
        Err(error) => error == Errno::NXIO,
    }
}

fn punch(fd: impl AsFd, offset: u64, length: u64) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match retry_on_intr(|| fallocate(&fd, flags, offset, length)) {
        Err(Errno::NOTSUP | Errno::NOSYS) => write_zeros(fd, offset, length),
        done => done,
    }
}

fn write_zeros(fd: impl AsFd, offset: u64, length: u64) -> Result<()> {
    let zeros = [0; 64 << 10];
    let mut done = 0;
    while done < length {
        let count = zeros.len().min(usize::try_from(length - done).unwrap_or(usize::MAX));
        write_all_at(&fd, offset + done, &zeros[..count])?;
        done += count as u64;
    }
    Ok(())
}
