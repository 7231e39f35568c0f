//! Listing: depth first through sorted directories, never more than a page of names of each in memory.

use std::collections::BinaryHeap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType};
use rustix::io::Errno;

use super::Disk;
use super::beneath::open_directory;
use super::errno::storage_error;
use super::put::TEMP_DIRECTORY;
use crate::key::{KEY_MAX_BYTES, is_component};
use crate::{Key, LIST_PAGE_MAX, ObjectInfo, Page, StorageError};

impl Disk {
    pub(super) fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        let after = after.map_or("", Key::as_str);
        let within = match after.strip_prefix(prefix) {
            Some(rest) => rest,
            None if after < prefix => "",
            None => return Ok(Page::default()),
        };
        let fail = |error| storage_error("list", prefix, error);
        for _ in 0..STALE_ATTEMPTS {
            let directory = match open_directory(self.root.as_fd(), prefix.trim_end_matches('/')) {
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Page::default()),
                result => result.map_err(fail)?,
            };
            let mut objects = Vec::new();
            match collect(&directory, prefix, within, &mut objects) {
                Err(Errno::STALE) => continue,
                result => result.map_err(fail)?,
            }
            let more = objects.len() > LIST_PAGE_MAX;
            objects.truncate(LIST_PAGE_MAX);
            return Ok(Page { objects, more });
        }
        Err(fail(Errno::STALE))
    }
}

/// How often a directory is opened again that another host removed while it was read: on NFS it is stale then.
const STALE_ATTEMPTS: u32 = 3;
/// Objects gathered for a page: one more than it takes, to know whether there are more.
const WANTED: usize = LIST_PAGE_MAX + 1;

/// Fills `page` with the objects beneath `directory` whose name from there is greater than `after`.
fn collect(directory: &OwnedFd, prefix: &str, after: &str, page: &mut Vec<ObjectInfo>) -> Result<(), Errno> {
    let mut resume: Option<String> = None;
    loop {
        let wanted = WANTED - page.len();
        let names = smallest_names(directory, prefix, after, resume.as_deref(), wanted)?;
        for name in &names {
            match name.strip_suffix('/') {
                Some(child) => collect_child(directory, prefix, child, after, page)?,
                None => page.extend(object_info(directory, prefix, name)?),
            }
            if page.len() >= WANTED {
                return Ok(());
            }
        }
        if names.len() < wanted {
            return Ok(());
        }
        resume = names.into_iter().next_back();
    }
}

fn collect_child(
    directory: &OwnedFd,
    prefix: &str,
    child: &str,
    after: &str,
    page: &mut Vec<ObjectInfo>,
) -> Result<(), Errno> {
    if prefix.len() + child.len() + "/x".len() > KEY_MAX_BYTES {
        return Ok(()); // no key fits beneath it; this also bounds the depth
    }
    let within = after.strip_prefix(child).and_then(|rest| rest.strip_prefix('/')).unwrap_or("");
    let before = page.len();
    for _ in 0..STALE_ATTEMPTS {
        match open_directory(directory.as_fd(), child) {
            Ok(opened) => match collect(&opened, &format!("{prefix}{child}/"), within, page) {
                Err(Errno::STALE) => page.truncate(before),
                result => return result,
            },
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()), // removed or replaced since it was read
            Err(error) => return Err(error),
        }
    }
    Err(Errno::STALE)
}

/// The `wanted` smallest names in a directory that come after both marks; those of directories end in `/`, because
/// that is how the keys beneath them sort.
fn smallest_names(
    directory: &OwnedFd,
    prefix: &str,
    after: &str,
    resume: Option<&str>,
    wanted: usize,
) -> Result<Vec<String>, Errno> {
    let mut smallest: BinaryHeap<String> = BinaryHeap::new();
    let mut name = String::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let Ok(text) = entry.file_name().to_str() else { continue };
        let is_temp = prefix.is_empty() && text == TEMP_DIRECTORY;
        if is_temp || !is_component(text) {
            continue;
        }
        name.clear();
        name.push_str(text);
        match kind_of(directory, &entry)? {
            FileType::RegularFile => {}
            FileType::Directory => name.push('/'),
            _ => continue,
        }
        let is_after = name.as_str() > after || name.ends_with('/') && after.starts_with(&name);
        let is_before_resume = resume.is_some_and(|resume| name.as_str() <= resume);
        let is_beyond = smallest.len() == wanted && smallest.peek().is_some_and(|largest| *largest < name);
        if !is_after || is_before_resume || is_beyond {
            continue;
        }
        smallest.push(name.clone());
        if smallest.len() > wanted {
            smallest.pop();
        }
    }
    Ok(smallest.into_sorted_vec())
}

fn kind_of(directory: &OwnedFd, entry: &rustix::fs::DirEntry) -> Result<FileType, Errno> {
    if entry.file_type() != FileType::Unknown {
        return Ok(entry.file_type());
    }
    match rustix::fs::statat(directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(facts) => Ok(FileType::from_raw_mode(facts.st_mode)),
        Err(Errno::NOENT) => Ok(FileType::Unknown),
        Err(error) => Err(error),
    }
}

/// The object's size; nothing if it was deleted since the directory was read, or its path is too long for a key.
fn object_info(directory: &OwnedFd, prefix: &str, name: &str) -> Result<Option<ObjectInfo>, Errno> {
    let Ok(key) = Key::new(&format!("{prefix}{name}")) else { return Ok(None) };
    match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(facts) => Ok(Some(super::read::info_of(key, &facts))),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}
