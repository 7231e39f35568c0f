//! The local cache: rebuildable but for [`Cache::REMEMBERED`], never trusted for deletion. Losing it costs time, not data.
//!
//! In a directory it holds, per store, decrypted index segments (ids and places of chunks), the recipes of the last
//! capture of each dataset (names and metadata), and records as they are stored (signed or sealed), all 0600. It is the
//! only place where the engine touches files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::Error;
use crate::env::{Rng, SystemRng, Timestamp};

/// How the name of a file ends that is being written.
const PARTIAL: &str = ".partial";
/// Largest file that is read whole: a manifest of the largest size, sealed.
const RECORD_MAX: usize = 80 << 20;

/// Where cached files live.
#[derive(Debug, Clone)]
pub struct Cache(Place);

#[derive(Debug, Clone)]
enum Place {
    Directory(PathBuf),
    /// Shared by all parts of one cache; names begin with the prefix.
    Memory(Arc<Mutex<BTreeMap<String, Bytes>>>, String),
}

/// A cached file opened for reading at any place.
#[derive(Debug, Clone)]
pub(crate) enum CachedFile {
    Disk(Arc<File>, u64),
    Memory(Bytes),
}

impl Cache {
    /// Files of a store's directory that no store can give again: what was proved, that damage was found, and how far the
    /// trust chain was seen. Losing them costs no data; a chain that is set back then goes unnoticed on this host.
    pub const REMEMBERED: [&str; 3] = [crate::check::PROVED, crate::check::DAMAGE, crate::repository::HEAD];

    /// A cache in a directory, which is created (0700) when first written to.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self(Place::Directory(path.into()))
    }

    /// A cache that lives as long as the process; for tests and for services that capture little.
    pub fn memory() -> Self {
        Self(Place::Memory(Arc::default(), String::new()))
    }

    /// The directory, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.0 {
            Place::Directory(path) => Some(path),
            Place::Memory(..) => None,
        }
    }

    /// The same cache below a sub-directory.
    pub(crate) fn below(&self, name: &str) -> Self {
        match &self.0 {
            Place::Directory(path) => Self(Place::Directory(path.join(name))),
            Place::Memory(map, prefix) => Self(Place::Memory(Arc::clone(map), format!("{prefix}{name}/"))),
        }
    }

    pub(crate) fn open(&self, name: &str) -> Option<CachedFile> {
        match &self.0 {
            Place::Directory(path) => {
                let file = File::open(path.join(name)).ok()?;
                let len = file.metadata().ok()?.len();
                Some(CachedFile::Disk(Arc::new(file), len))
            }
            Place::Memory(map, prefix) => {
                let map = map.lock().unwrap_or_else(PoisonError::into_inner);
                map.get(&format!("{prefix}{name}")).cloned().map(CachedFile::Memory)
            }
        }
    }

    /// A whole file, unless it is larger than any record.
    pub(crate) fn read(&self, name: &str) -> Option<Bytes> {
        let file = self.open(name)?;
        let length = usize::try_from(file.len()).ok().filter(|length| *length <= RECORD_MAX)?;
        file.read_at(0, length).ok()
    }

    /// Starts a file that appears under its name only when published.
    pub(crate) fn create(&self, name: &str) -> Result<CacheWriter, Error> {
        let out = match &self.0 {
            Place::Directory(path) => {
                let directory = path.join(name).parent().map_or_else(|| path.clone(), Path::to_path_buf);
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&directory)
                    .map_err(Error::cache("create a directory"))?;
                // Others may be writing a file of this name: in this process, and in any that shares the directory.
                let mut random = [0; 8];
                SystemRng.fill(&mut random);
                let partial = path.join(format!("{name}.{}{PARTIAL}", hex::encode(random)));
                let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&partial);
                let file = file.map_err(Error::cache("create a file"))?;
                // Held until it is published or its process dies, so that no sweep takes it for left over. Where files cannot be
                // locked, age alone tells.
                let _ = file.try_lock();
                WriterPlace::Disk {
                    file: Some(io::BufWriter::with_capacity(256 << 10, file)),
                    partial,
                    path: path.join(name),
                }
            }
            Place::Memory(map, prefix) => {
                let name = format!("{prefix}{name}");
                WriterPlace::Memory { bytes: Vec::new(), map: Arc::clone(map), name }
            }
        };
        Ok(CacheWriter(out))
    }

    pub(crate) fn store(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut writer = self.create(name)?;
        writer.write_all(bytes).map_err(Error::cache("write"))?;
        writer.publish()
    }

    /// Removes files that were begun before this moment and neither published nor dropped: their process died. What a
    /// living process is writing stays, whatever this clock or that of the file system says.
    pub(crate) fn sweep(&self, before: Timestamp) {
        let before = Duration::from_nanos(before.max(0).unsigned_abs());
        if let Place::Directory(path) = &self.0 {
            sweep(path, std::time::UNIX_EPOCH + before);
        }
    }

    /// Names in a sub-directory.
    pub(crate) fn list(&self, directory: &str) -> Vec<String> {
        match &self.0 {
            Place::Directory(path) => fs::read_dir(path.join(directory))
                .into_iter()
                .flatten()
                .flatten()
                .filter_map(|e| e.file_name().into_string().ok())
                .collect(),
            Place::Memory(map, prefix) => {
                let map = map.lock().unwrap_or_else(PoisonError::into_inner);
                let prefix = format!("{prefix}{directory}/");
                map.keys().filter_map(|k| k.strip_prefix(&prefix)).map(str::to_owned).collect()
            }
        }
    }

    /// Removes everything below a sub-directory.
    pub(crate) fn remove_below(&self, directory: &str) {
        match &self.0 {
            Place::Directory(path) => {
                let _ = fs::remove_dir_all(path.join(directory));
            }
            Place::Memory(map, prefix) => {
                let beneath = format!("{prefix}{directory}/");
                let mut map = map.lock().unwrap_or_else(PoisonError::into_inner);
                map.retain(|name, _| !name.starts_with(&beneath));
            }
        }
    }

    pub(crate) fn remove(&self, name: &str) {
        match &self.0 {
            Place::Directory(path) => {
                let _ = fs::remove_file(path.join(name));
            }
            Place::Memory(map, prefix) => {
                map.lock().unwrap_or_else(PoisonError::into_inner).remove(&format!("{prefix}{name}"));
            }
        }
    }
}

impl CachedFile {
    pub fn len(&self) -> u64 {
        match self {
            Self::Disk(_, len) => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }

    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Bytes> {
        match self {
            Self::Disk(file, _) => {
                let mut buf = vec![0; len];
                file.read_exact_at(&mut buf, offset)?;
                Ok(buf.into())
            }
            Self::Memory(bytes) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                let to = from.checked_add(len).filter(|to| *to <= bytes.len());
                to.map(|to| bytes.slice(from..to)).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
        }
    }

    /// A reader from the front.
    pub fn reader(&self) -> CachedReader {
        CachedReader { file: self.clone(), position: 0 }
    }
}

/// Reads a cached file from the front.
#[derive(Debug)]
pub(crate) struct CachedReader {
    file: CachedFile,
    position: u64,
}

impl io::Read for CachedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = match &self.file {
            CachedFile::Disk(file, _) => file.read_at(buf, self.position)?,
            CachedFile::Memory(bytes) => {
                let from = usize::try_from(self.position).unwrap_or(usize::MAX).min(bytes.len());
                let n = (bytes.len() - from).min(buf.len());
                buf[..n].copy_from_slice(&bytes[from..from + n]);
                n
            }
        };
        self.position += n as u64;
        Ok(n)
    }
}

impl io::Seek for CachedReader {
    fn seek(&mut self, target: io::SeekFrom) -> io::Result<u64> {
        let position = match target {
            io::SeekFrom::Start(offset) => Some(offset),
            io::SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
            io::SeekFrom::End(offset) => self.file.len().checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

/// A file on its way into the cache; dropped unpublished, it leaves nothing.
#[derive(Debug)]
pub(crate) struct CacheWriter(WriterPlace);

#[derive(Debug)]
enum WriterPlace {
    Disk { file: Option<io::BufWriter<File>>, partial: PathBuf, path: PathBuf },
    Memory { bytes: Vec<u8>, map: Arc<Mutex<BTreeMap<String, Bytes>>>, name: String },
}

impl CacheWriter {
    /// Puts the file under its name, replacing an older one.
    pub fn publish(mut self) -> Result<(), Error> {
        match &mut self.0 {
            WriterPlace::Disk { file, partial, path } => {
                let mut file = file.take().expect("published once");
                file.flush().map_err(Error::cache("write"))?;
                fs::rename(partial, path).map_err(Error::cache("rename"))
            }
            WriterPlace::Memory { bytes, map, name } => {
                let bytes = Bytes::from(std::mem::take(bytes));
                map.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone(), bytes);
                Ok(())
            }
        }
    }

    /// Gives what was written so far for reading, before it is published.
    pub fn written(&mut self) -> Result<CachedFile, Error> {
        match &mut self.0 {
            WriterPlace::Disk { file, .. } => {
                let file = file.as_mut().expect("not yet published");
                file.flush().map_err(Error::cache("write"))?;
                let file = file.get_ref().try_clone().map_err(Error::cache("open"))?;
                let len = file.metadata().map_err(Error::cache("look at"))?.len();
                Ok(CachedFile::Disk(Arc::new(file), len))
            }
            WriterPlace::Memory { bytes, .. } => Ok(CachedFile::Memory(Bytes::copy_from_slice(bytes))),
        }
    }

    /// Gives what was written for reading; the file has no name and goes with its last reader.
    pub fn unnamed(mut self) -> Result<CachedFile, Error> {
        match &mut self.0 {
            WriterPlace::Disk { file, partial, .. } => {
                let file = file.take().expect("published once").into_inner();
                let file = file.map_err(|e| Error::cache("write")(e.into_error()))?;
                fs::remove_file(partial).map_err(Error::cache("remove"))?;
                let len = file.metadata().map_err(Error::cache("look at"))?.len();
                Ok(CachedFile::Disk(Arc::new(file), len))
            }
            WriterPlace::Memory { bytes, .. } => Ok(CachedFile::Memory(Bytes::from(std::mem::take(bytes)))),
        }
    }
}

fn sweep(directory: &Path, before: SystemTime) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let is_old = |metadata: fs::Metadata| metadata.modified().is_ok_and(|modified| modified < before);
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => sweep(&entry.path(), before),
            Ok(_)
                if entry.file_name().to_string_lossy().ends_with(PARTIAL)
                    && entry.metadata().is_ok_and(is_old)
                    && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) =>
            {
                let _ = fs::remove_file(entry.path());
            }
            _ => {}
        }
    }
}

impl Write for CacheWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            WriterPlace::Disk { file, .. } => file.as_mut().expect("not yet published").write(buf),
            WriterPlace::Memory { bytes, .. } => bytes.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for CacheWriter {
    fn drop(&mut self) {
        if let WriterPlace::Disk { file: Some(_), partial, .. } = &self.0 {
            let _ = fs::remove_file(partial);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_write_one_name_at_once_do_not_meet() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::directory(directory.path());
        let [mut one, mut other] = [cache.create("d/name").unwrap(), cache.create("d/name").unwrap()];
        one.write_all(b"one").unwrap();
        other.write_all(b"other").unwrap();
        let one = one.unnamed().unwrap();
        other.publish().unwrap();
        assert_eq!(one.read_at(0, 3).unwrap(), "one");
        assert_eq!(cache.read("d/name").unwrap(), "other");
        assert_eq!(cache.list("d"), ["name"]);
    }

    #[test]
    fn what_a_dead_process_has_left_is_swept_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::directory(directory.path());
        cache.store("d/kept", b"x").unwrap();
        for name in ["d/left", "begun"] {
            fs::write(directory.path().join(format!("{name}.0123456789abcdef{PARTIAL}")), b"x").unwrap();
        }
        let day = 86_400 * 1_000_000_000;
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400);
        for entry in fs::read_dir(directory.path().join("d")).unwrap().flatten() {
            File::options().write(true).open(entry.path()).unwrap().set_modified(old).unwrap();
        }
        cache.sweep(2 * day);
        assert_eq!(cache.list("d"), ["kept"]);
        assert_eq!(cache.list("").len(), 2, "one that may be at work stays");
    }

    #[test]
    fn what_a_living_process_writes_stays_though_the_clock_has_jumped() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::directory(directory.path());
        let mut writer = cache.create("d/at-work").unwrap();
        writer.write_all(b"x").unwrap();
        cache.sweep(Timestamp::MAX);
        writer.publish().unwrap();
        assert_eq!(cache.list("d"), ["at-work"]);
    }
}
