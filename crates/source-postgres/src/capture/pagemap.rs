//! Which pages a cluster had, for servers that do not say what changed: a hash of every page, kept on this host.
//!
//! A map belongs to one capture and says which, so that it is compared with nothing else. Without it nothing is lost but
//! room: files are then stored anew where a chunk of theirs changed. It holds hashes under a random key, and names of files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use keepwell_catalog::MapKey;
use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process};

use super::basis::{Basis, Origin};
use super::content::Part;
use super::page::{PAGE, SEGMENT_PAGES};

const MAGIC: [u8; 8] = *b"KWPAGES\x01";
/// Hashes are this long: of a milliard changed pages, one is overlooked with a chance of one in 18 milliards.
const HASH: usize = 8;
const KEY_MAX: u32 = 64 << 10;
const ORIGIN_MAX: u32 = 64 << 10;

/// Where maps are kept.
#[derive(Debug, Clone)]
pub struct PageMaps {
    /// The file of this dataset; the directory is made when it is missing.
    pub path: PathBuf,
    /// Random bytes for a first map; later ones go on with its key.
    pub key: [u8; 32],
}

/// The map of the last capture, and that of this one in the making.
#[derive(Debug)]
pub(super) struct PageMap {
    key: [u8; 32],
    basis: Option<Arc<Basis>>,
    old: Option<Old>,
    out: BufWriter<File>,
    partial: PathBuf,
    path: PathBuf,
}

#[derive(Debug)]
struct Old {
    file: File,
    /// Where the hashes of a file begin, and how many they are.
    places: HashMap<Vec<u8>, (u64, u32)>,
}

impl PageMap {
    /// Opens the map of `basis`, if it is there, and begins a new one.
    pub fn open(maps: &PageMaps, basis: Option<&Arc<Basis>>) -> io::Result<Self> {
        let found = basis.and_then(|basis| open_old(&maps.path, &basis.origin).ok());
        if let Some(directory) = maps.path.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        remove_left_over(&maps.path);
        let partial = maps.path.with_extension(format!("{}.partial", std::process::id()));
        let out = File::options().write(true).create(true).truncate(false).mode(0o600).open(&partial)?;
        // In another container a process may have our number, and write one now: hashes of its pages are not those of ours.
        // Or it has just finished, and what we opened is its map.
        if is_held(&out) || !stands(&out, &partial) {
            return Err(io::Error::other("another process writes it"));
        }
        out.set_len(0)?;
        let mut out = BufWriter::new(out);
        let (key, old) = found.map_or((maps.key, None), |(key, old)| (key, Some(old)));
        out.write_all(&MAGIC)?;
        out.write_all(&key)?;
        Ok(Self { key, basis: basis.cloned(), old, out, partial, path: maps.path.clone() })
    }

    /// Whether there is something to compare with.
    pub fn compares(&self) -> bool {
        self.old.is_some()
    }

    /// Begins to compare a file.
    pub fn begin(&self, key: &MapKey) -> Compare {
        let old = self.hashes_of(key).unwrap_or_default();
        Compare { key: self.key, old, at: 0, new: Vec::new(), part: Vec::new(), kept: 0 }
    }

    fn hashes_of(&self, key: &MapKey) -> Option<Vec<u8>> {
        let size = self.basis.as_ref()?.files.get(key)?;
        let old = self.old.as_ref()?;
        let (offset, count) = old.places.get(key.as_bytes())?;
        let pages = u64::from(*count).min(size / PAGE as u64);
        let mut hashes = vec![0; usize::try_from(pages).ok()? * HASH];
        old.file.read_exact_at(&mut hashes, *offset).ok()?;
        Some(hashes)
    }

    /// Remembers a file.
    pub fn end(&mut self, key: &MapKey, compared: &Compare) -> io::Result<()> {
        let length = |bytes: usize| u32::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData);
        self.out.write_all(&length(key.as_bytes().len())?.to_le_bytes())?;
        self.out.write_all(key.as_bytes())?;
        self.out.write_all(&length(compared.new.len() / HASH)?.to_le_bytes())?;
        self.out.write_all(&compared.new)
    }

    /// Puts the map in the place of the last one. It is of use only if that capture is then committed.
    pub fn finish(mut self, origin: &Origin) -> io::Result<()> {
        let origin = serde_json::to_vec(origin)?;
        self.out.write_all(&0u32.to_le_bytes())?;
        self.out.write_all(&origin)?;
        self.out.write_all(&(origin.len() as u32).to_le_bytes())?;
        self.out.flush()?;
        fs::rename(&self.partial, &self.path)
    }
}

impl Drop for PageMap {
    fn drop(&mut self) {
        // Gone already if it was finished; what stands there then is another process's.
        if stands(self.out.get_ref(), &self.partial) {
            let _ = fs::remove_file(&self.partial);
        }
    }
}

/// Takes the lock of a file; whether another process has it. Where a file system knows no locks nobody has.
fn is_held(file: &File) -> bool {
    matches!(file.try_lock(), Err(TryLockError::WouldBlock))
}

/// Whether an open file is the one that stands there now.
fn stands(file: &File, path: &Path) -> bool {
    let place = |about: fs::Metadata| (about.dev(), about.ino());
    let there = fs::symlink_metadata(path).map(place);
    file.metadata().map(place).is_ok_and(|open| there.is_ok_and(|there| there == open))
}

/// Removes what captures left that were killed: those of processes that are no more, here or in another container.
fn remove_left_over(path: &Path) {
    let (Some(directory), Some(stem)) = (path.parent(), path.file_stem()) else { return };
    let process = |name: &OsStr| -> Option<i32> {
        let rest = name.to_str()?.strip_prefix(stem.to_str()?)?;
        rest.strip_prefix('.')?.strip_suffix(".partial")?.parse().ok()
    };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let process = process(&entry.file_name()).and_then(Pid::from_raw);
        let is_free = || File::open(entry.path()).is_ok_and(|file| !is_held(&file));
        if process.is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH)) && is_free() {
            // What cannot be removed costs only its room.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn open_old(path: &PathBuf, origin: &Origin) -> io::Result<([u8; 32], Old)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut file = File::open(path)?;
    let end = file.seek(SeekFrom::End(-4))?;
    let length = u32_at(&file, end)?;
    if length > ORIGIN_MAX {
        return Err(wrong());
    }
    let start = end.checked_sub(length.into()).ok_or_else(wrong)?;
    let mut text = vec![0; length as usize];
    file.read_exact_at(&mut text, start)?;
    if serde_json::from_slice::<Origin>(&text)? != *origin {
        return Err(wrong());
    }
    file.rewind()?;
    let mut reader = BufReader::new(&file);
    let (mut magic, mut key) = ([0; 8], [0; 32]);
    reader.read_exact(&mut magic)?;
    reader.read_exact(&mut key)?;
    let (mut places, mut at) = (HashMap::new(), 40);
    loop {
        let name = next_u32(&mut reader)?;
        if name == 0 && magic == MAGIC {
            break;
        }
        if name > KEY_MAX || magic != MAGIC {
            return Err(wrong());
        }
        let mut bytes = vec![0; name as usize];
        reader.read_exact(&mut bytes)?;
        let count = next_u32(&mut reader)?;
        if count > SEGMENT_PAGES {
            return Err(wrong());
        }
        at += 8 + u64::from(name);
        places.insert(bytes, (at, count));
        let hashes = u64::from(count) * HASH as u64;
        reader.seek_relative(hashes as i64)?;
        at += hashes;
    }
    drop(reader);
    Ok((key, Old { file, places }))
}

fn next_u32(reader: &mut impl Read) -> io::Result<u32> {
    let mut bytes = [0; 4];
    reader.read_exact(&mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

fn u32_at(file: &File, at: u64) -> io::Result<u32> {
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, at)?;
    Ok(u32::from_le_bytes(bytes))
}

/// Compares the pages of one file with those of the last capture.
#[derive(Debug)]
pub(super) struct Compare {
    key: [u8; 32],
    old: Vec<u8>,
    /// Where in `old` the next page's hash is.
    at: usize,
    new: Vec<u8>,
    /// The begin of a page whose rest has not come.
    part: Vec<u8>,
    /// Bytes that are as they were and were not said yet.
    kept: u64,
}

impl Compare {
    /// Says what the next bytes are: pages that are as they were, or new.
    pub fn push(&mut self, mut data: Bytes, out: &mut Vec<Part>) {
        if !self.part.is_empty() {
            let more = (PAGE - self.part.len()).min(data.len());
            self.part.extend_from_slice(&data[..more]);
            data.advance(more);
            if self.part.len() < PAGE {
                return;
            }
            let page = Bytes::from(std::mem::take(&mut self.part));
            self.pages(page, out);
        }
        let whole = data.len() / PAGE * PAGE;
        self.pages(data.split_to(whole), out);
        self.part = data.to_vec();
    }

    fn pages(&mut self, mut data: Bytes, out: &mut Vec<Part>) {
        let mut new = 0;
        while data.len() > new {
            if self.is_as_it_was(&data[new..new + PAGE]) {
                if new > 0 {
                    out.push(Part::Data(data.split_to(new)));
                    new = 0;
                }
                data.advance(PAGE);
                self.kept += PAGE as u64;
            } else {
                self.say_kept(out);
                new += PAGE;
            }
        }
        if new > 0 {
            out.push(Part::Data(data));
        }
    }

    /// Whether the next page is as it was.
    pub fn is_as_it_was(&mut self, page: &[u8]) -> bool {
        let hash = blake3::keyed_hash(&self.key, page);
        let hash = &hash.as_bytes()[..HASH];
        self.new.extend_from_slice(hash);
        let same = self.old.get(self.at..self.at + HASH) == Some(hash);
        self.at += HASH;
        same
    }

    fn say_kept(&mut self, out: &mut Vec<Part>) {
        if self.kept > 0 {
            out.push(Part::Kept(std::mem::take(&mut self.kept)));
        }
    }

    /// The file is over.
    pub fn end(&mut self, out: &mut Vec<Part>) {
        self.say_kept(out);
        if !self.part.is_empty() {
            out.push(Part::Data(std::mem::take(&mut self.part).into()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn origin(time: i64) -> Origin {
        Origin { major: 15, stop: "0/28".into(), time, ..Origin::example() }
    }

    fn compare(map: &mut PageMap, pages: &[u8], step: usize) -> String {
        let key = MapKey::from_components(["data", "1"]).unwrap();
        let content: Vec<u8> = pages.iter().flat_map(|byte| [*byte; PAGE]).collect();
        let (mut compare, mut parts) = (map.begin(&key), Vec::new());
        content.chunks(step).for_each(|piece| compare.push(Bytes::copy_from_slice(piece), &mut parts));
        compare.end(&mut parts);
        map.end(&key, &compare).unwrap();
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Data(data) => data.chunks(PAGE).for_each(|page| text.push(char::from(page[0]))),
                Part::Kept(bytes) => text.extend(std::iter::repeat_n('=', (bytes / PAGE as u64) as usize)),
                Part::Hole(_) | Part::End => text.push('?'),
            }
        }
        text
    }

    #[test]
    fn pages_that_are_as_they_were_are_found_and_only_against_their_own_capture() {
        let dir = tempfile::tempdir().unwrap();
        for step in [100, PAGE, 3 * PAGE + 1, 100 * PAGE] {
            let maps = PageMaps { path: dir.path().join(format!("maps/{step}")), key: [3; 32] };
            let basis = |time, pages: usize| {
                let files = BTreeMap::from([(
                    MapKey::from_components(["data", "1"]).unwrap(),
                    (pages * PAGE) as u64,
                )]);
                Arc::new(Basis { origin: origin(time), files })
            };
            let mut first = PageMap::open(&maps, None).unwrap();
            assert_eq!(compare(&mut first, b"abcd", step), "abcd");
            first.finish(&origin(1)).unwrap();
            let (last, other, short) = (basis(1, 4), basis(2, 4), basis(1, 2));
            for (basis, expected) in [(&last, "=X==Y"), (&other, "aXcdY"), (&short, "=XcdY")] {
                let mut map = PageMap::open(&maps, Some(basis)).unwrap();
                assert_eq!(compare(&mut map, b"aXcdY", step), expected, "in steps of {step}");
            }
            let mut next = PageMap::open(&maps, Some(&last)).unwrap();
            assert!(next.compares());
            assert_eq!(compare(&mut next, b"ab", step), "==");
            next.finish(&origin(3)).unwrap();
            let third = basis(3, 2);
            let mut map = PageMap::open(&maps, Some(&third)).unwrap();
            assert_eq!(compare(&mut map, b"aXc", step), "=Xc");
        }
        let names: Vec<_> =
            fs::read_dir(dir.path().join("maps")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 4, "nothing is left behind: {names:?}");
    }

    #[test]
    fn what_a_killed_capture_left_goes_with_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let maps = PageMaps { path: dir.path().join("map"), key: [3; 32] };
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let left = dir.path().join(format!("map.{}.partial", ended.id()));
        let others =
            ["map.1.partial".to_owned(), format!("other.{}.partial", ended.id()), "map.x.partial".to_owned()];
        for name in &others {
            fs::write(dir.path().join(name), "").unwrap();
        }
        fs::write(&left, "half").unwrap();
        let elsewhere = File::open(&left).unwrap();
        elsewhere.lock().unwrap();
        PageMap::open(&maps, None).unwrap();
        assert!(left.exists(), "in another container the number is somebody's");
        drop(elsewhere);
        PageMap::open(&maps, None).unwrap();
        assert!(!left.exists());
        assert!(others.iter().all(|name| dir.path().join(name).exists()));
    }

    #[test]
    fn a_map_that_another_process_of_our_number_writes_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let maps = PageMaps { path: dir.path().join("map"), key: [3; 32] };
        let mut first = PageMap::open(&maps, None).unwrap();
        compare(&mut first, b"abcd", PAGE);
        assert!(PageMap::open(&maps, None).is_err());
        first.finish(&origin(1)).unwrap();
        assert_eq!(open_old(&maps.path, &origin(1)).unwrap().1.places.len(), 1);
        // One that was killed had it, too.
        fs::write(maps.path.with_extension(format!("{}.partial", std::process::id())), [7; 999]).unwrap();
        PageMap::open(&maps, None).unwrap().finish(&origin(2)).unwrap();
        assert_eq!(fs::read(&maps.path).unwrap()[..8], MAGIC);
    }

    #[test]
    fn a_map_that_was_finished_meanwhile_is_not_the_one_that_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        let maps = PageMaps { path: dir.path().join("map"), key: [3; 32] };
        let first = PageMap::open(&maps, None).unwrap();
        let partial = first.partial.clone();
        // What another process has opened, and can lock as soon as the first one is gone.
        let opened = File::options().write(true).open(&partial).unwrap();
        assert!(stands(&opened, &partial) && is_held(&opened));
        first.finish(&origin(1)).unwrap();
        assert!(!is_held(&opened) && !stands(&opened, &partial));
        // And who is done removes nobody else's.
        let second = PageMap::open(&maps, None).unwrap();
        fs::rename(&partial, dir.path().join("finished")).unwrap();
        fs::write(&partial, "theirs").unwrap();
        drop(second);
        assert!(partial.exists());
    }

    #[test]
    fn a_damaged_map_is_no_map() {
        let dir = tempfile::tempdir().unwrap();
        let maps = PageMaps { path: dir.path().join("map"), key: [3; 32] };
        let mut map = PageMap::open(&maps, None).unwrap();
        compare(&mut map, b"abcd", PAGE);
        map.finish(&origin(1)).unwrap();
        let good = fs::read(&maps.path).unwrap();
        for at in 0..good.len() {
            fs::write(&maps.path, &good[..at]).unwrap();
            assert!(open_old(&maps.path, &origin(1)).is_err(), "cut at {at}");
        }
        let mut long = good.clone();
        long[40..44].copy_from_slice(&u32::MAX.to_le_bytes());
        fs::write(&maps.path, long).unwrap();
        assert!(open_old(&maps.path, &origin(1)).is_err());
    }
}
