//! Dumps that other programs left behind, as a source of snapshots.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use backup_core::env::Timestamp;
use backup_core::source::{Content, Found, Item, Opened, Order, Piece, Preflight, Source, SourceError};
use bytes::Bytes;
use flate2::bufread::MultiGzDecoder;
use keepwell_catalog::{Entry, EntryKind, MapKey};
use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::DumpError;
use super::archive_head::archive_head;
use super::content::BytesContent;

/// Kind of the source that stores dumps of other programs.
pub const IMPORT_KIND: &str = "postgres-file";
/// Name of the entry that says what the file is.
pub const IMPORT_FILE: &str = "import.json";
/// A file with checksums is not longer.
const SUMS_BYTES_MAX: u64 = 1 << 20;
/// The head of a dump that is looked at, and its end.
const HEAD_BYTES: usize = 64 << 10;
const TAIL_BYTES: usize = 4 << 10;
const READ_BYTES: usize = 1 << 20;
/// How scripts of `pg_dump` and `pg_dumpall` begin; with one word more, they end so.
const DATABASE_SCRIPT: &str = "-- PostgreSQL database dump";
const CLUSTER_SCRIPT: &str = "-- PostgreSQL database cluster dump";

/// What a file of a dump is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DumpFormat {
    /// A script for `psql`.
    Plain,
    /// An archive, `pg_dump -Fc`.
    Custom,
    /// An archive, `pg_dump -Ft`.
    Tar,
}

/// How a file is compressed, beyond what its format does itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Not at all.
    None,
    /// `.gz`.
    Gzip,
}

/// The content of `import.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Import {
    /// 1.
    pub format: u32,
    /// Name of the file, and of the entry that holds it.
    pub name: String,
    /// What it is.
    pub dump: DumpFormat,
    /// How it is compressed.
    pub compression: Compression,
    /// RFC 3339: when it was made, as far as the file says.
    pub made: String,
    /// Where that comes from: `archive` or `file`.
    pub made_from: String,
    /// Name of the database, if the file says it.
    pub database: Option<String>,
    /// Version of the server, if the file says it.
    pub server_version: Option<String>,
    /// Hex.
    pub sha256: String,
    /// Bytes.
    pub size: u64,
    /// Files with checksums that it was compared with.
    pub checked: Vec<String>,
    /// Whether its end is there; `None` where that cannot be seen.
    pub whole: Option<bool>,
}

/// A file that is a dump, looked at from begin to end and compared with the checksums beside it.
#[derive(Debug)]
pub struct ImportSource {
    path: PathBuf,
    import: Import,
    made: Timestamp,
    content: Mutex<Option<File>>,
}

impl ImportSource {
    /// Reads the whole file once. Refuses one that is no dump, is damaged, or does not fit a checksum beside it
    /// (`FILE.md5`, `FILE.sha256`, `FILE.md5sum`, `FILE.sha256sum`). `zone` is that of the host that made it: archives have
    /// local times.
    pub fn open(path: &Path, zone: &jiff::tz::TimeZone) -> Result<Self, DumpError> {
        let failed = |operation: &str, source| DumpError::File {
            operation: operation.to_owned(),
            path: path.display().to_string(),
            source,
        };
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let name = name.filter(|name| name != IMPORT_FILE).ok_or_else(|| not_a_dump(path, "its name"))?;
        let file = File::open(path).map_err(|error| failed("open", error))?;
        let about = file.metadata().map_err(|error| failed("read", error))?;
        let read = look(&file).map_err(|error| failed("read", error))?;
        let dump = kind(&read.head).ok_or_else(|| not_a_dump(path, "it begins like none"))?;
        let checked = check(path, &name, &read)?;
        let archive = (dump == DumpFormat::Custom).then(|| archive_head(&read.head)).flatten();
        let modified = about.mtime().saturating_mul(1_000_000_000).saturating_add(about.mtime_nsec());
        let told = archive.as_ref().and_then(|archive| archive.time(zone));
        let made = told.unwrap_or(modified);
        let import = Import {
            format: 1,
            name,
            dump,
            compression: read.compression,
            made: jiff::Timestamp::from_nanosecond(made.into())
                .map_or_else(|_| String::new(), |t| t.to_string()),
            made_from: if told.is_some() { "archive" } else { "file" }.to_owned(),
            database: archive.as_ref().map(|archive| archive.database.clone()),
            server_version: archive
                .as_ref()
                .map(|archive| archive.server.clone())
                .or_else(|| comment(&read.head, "-- Dumped from database version ")),
            sha256: hex::encode(read.sha256),
            size: read.size,
            checked,
            whole: (dump == DumpFormat::Plain).then(|| is_whole(&read.head, &read.tail)),
        };
        // The same file: what is read later is what was looked at, unless somebody writes into it.
        io::Seek::rewind(&mut &file).map_err(|error| failed("read", error))?;
        Ok(Self { path: path.to_path_buf(), import, made, content: Mutex::new(Some(file)) })
    }

    /// What it is.
    pub fn import(&self) -> &Import {
        &self.import
    }

    /// When it was made, nanoseconds since 1970.
    pub fn made(&self) -> Timestamp {
        self.made
    }
}

fn not_a_dump(path: &Path, reason: &str) -> DumpError {
    DumpError::NotADump { path: path.display().to_string(), reason: reason.to_owned() }
}

/// What was seen of a file.
struct Look {
    head: Vec<u8>,
    tail: Vec<u8>,
    compression: Compression,
    sha256: [u8; 32],
    md5: [u8; 16],
    size: u64,
}

/// Hashes what passes.
struct Hashing<R> {
    inner: R,
    sha256: Sha256,
    md5: Md5,
    size: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.inner.read(buf)?;
        self.sha256.update(&buf[..bytes]);
        md5::Digest::update(&mut self.md5, &buf[..bytes]);
        self.size += bytes as u64;
        Ok(bytes)
    }
}

/// Reads everything, decompressed as well: a damaged stream of gzip is an error.
fn look(file: &File) -> io::Result<Look> {
    let mut magic = [0; 2];
    let gzip = std::os::unix::fs::FileExt::read_at(file, &mut magic, 0)? == 2 && magic == [0x1f, 0x8b];
    let mut hashing = Hashing { inner: file, sha256: Sha256::new(), md5: Md5::default(), size: 0 };
    let (mut head, mut tail) = (Vec::new(), Vec::new());
    {
        let plain = BufReader::with_capacity(READ_BYTES, &mut hashing);
        let mut reader: Box<dyn Read + '_> =
            if gzip { Box::new(MultiGzDecoder::new(plain)) } else { Box::new(plain) };
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let bytes = reader.read(&mut buffer)?;
            if bytes == 0 {
                break;
            }
            let data = &buffer[..bytes];
            head.extend_from_slice(&data[..bytes.min(HEAD_BYTES - head.len())]);
            tail.extend_from_slice(&data[bytes.saturating_sub(TAIL_BYTES)..]);
            let too_much = tail.len().saturating_sub(TAIL_BYTES);
            tail.drain(..too_much);
        }
    }
    Ok(Look {
        head,
        tail,
        compression: if gzip { Compression::Gzip } else { Compression::None },
        sha256: hashing.sha256.finalize().into(),
        md5: md5::Digest::finalize(hashing.md5).into(),
        size: hashing.size,
    })
}

fn kind(head: &[u8]) -> Option<DumpFormat> {
    if head.starts_with(b"PGDMP") {
        return Some(DumpFormat::Custom);
    }
    if head.get(257..262) == Some(b"ustar") && head.starts_with(b"toc.dat\0") {
        return Some(DumpFormat::Tar);
    }
    let text = String::from_utf8_lossy(head);
    [DATABASE_SCRIPT, CLUSTER_SCRIPT].iter().any(|line| text.contains(line)).then_some(DumpFormat::Plain)
}

/// Whether a script has its end. That of a cluster has within it those of its databases, each with an end of its own.
fn is_whole(head: &[u8], tail: &[u8]) -> bool {
    let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
    let begins =
        head.lines().find(|line| line.starts_with(DATABASE_SCRIPT) || line.starts_with(CLUSTER_SCRIPT));
    let begin = if begins.is_some_and(|line| line.starts_with(CLUSTER_SCRIPT)) {
        CLUSTER_SCRIPT
    } else {
        DATABASE_SCRIPT
    };
    tail.lines().any(|line| line.trim_end().strip_prefix(begin) == Some(" complete"))
}

fn comment(head: &[u8], begin: &str) -> Option<String> {
    let text = String::from_utf8_lossy(head);
    text.lines().find_map(|line| line.strip_prefix(begin)).map(|rest| rest.trim().to_owned())
}

/// Compares with every file of checksums that stands beside it. Gives their names.
fn check(path: &Path, name: &str, read: &Look) -> Result<Vec<String>, DumpError> {
    let sums: [(&str, &[u8]); 4] =
        [("md5", &read.md5), ("md5sum", &read.md5), ("sha256", &read.sha256), ("sha256sum", &read.sha256)];
    let mut checked = Vec::new();
    for (ending, found) in sums {
        let beside = PathBuf::from(format!("{}.{ending}", path.display()));
        let mut text = String::new();
        let read = File::open(&beside).and_then(|file| file.take(SUMS_BYTES_MAX).read_to_string(&mut text));
        let shown = || beside.display().to_string();
        match read {
            // A name may be so long that none can stand beside it.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidFilename) =>
            {
                continue;
            }
            Err(source) => {
                return Err(DumpError::File { operation: "read".to_owned(), path: shown(), source });
            }
            Ok(_) => {}
        }
        let found = hex::encode(found);
        match expected(&text, name, found.len()) {
            Some(expected) if expected.eq_ignore_ascii_case(&found) => checked.push(shown()),
            Some(expected) => {
                let path = path.display().to_string();
                return Err(DumpError::Checksum { path, beside: shown(), expected, found });
            }
            None => return Err(DumpError::NoChecksum { beside: shown(), name: name.to_owned() }),
        }
    }
    let name = |path: &String| Path::new(path).file_name().map(|name| name.to_string_lossy().into_owned());
    Ok(checked.iter().filter_map(name).collect())
}

/// The checksum of a file, as `md5sum`, `openssl` or BSD's `md5` write it; alone in the file, or on the line that names it.
fn expected(text: &str, name: &str, digits: usize) -> Option<String> {
    let sum = |line: &str| {
        let fits = |word: &&str| word.len() == digits && word.bytes().all(|b| b.is_ascii_hexdigit());
        line.split_whitespace().find(fits).map(str::to_owned)
    };
    let found: Vec<(&str, String)> =
        text.lines().filter_map(|line| sum(line).map(|sum| (line, sum))).collect();
    let named = |line: &str| {
        line.split(|c: char| c.is_whitespace() || matches!(c, '(' | ')' | '*' | '/')).any(|word| word == name)
    };
    match found.as_slice() {
        [(_, only)] => Some(only.clone()),
        several => several.iter().find(|(line, _)| named(line)).map(|(_, sum)| sum.clone()),
    }
}

/// Reads the file again and sees whether it is what was looked at.
struct Checked {
    file: File,
    sha256: Sha256,
    expected: String,
}

impl Content for Checked {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        let bytes = self.file.read(buf)?;
        self.sha256.update(&buf[..bytes]);
        Ok(if bytes == 0 { Piece::End } else { Piece::Data(bytes) })
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(hex::encode(std::mem::take(&mut self.sha256).finalize()) != self.expected)
    }
}

impl Source for ImportSource {
    fn kind(&self) -> &str {
        IMPORT_KIND
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        vec![self.path.display().to_string().into_bytes()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn order(&self) -> Order {
        Order::Any
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        let other = |error: &dyn std::fmt::Display| SourceError::Other(error.to_string());
        let file = self.content.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let file = file.ok_or_else(|| SourceError::Other("this source was captured already".to_owned()))?;
        let mut json = serde_json::to_vec_pretty(&self.import).map_err(|error| other(&error))?;
        json.push(b'\n');
        let description: Box<dyn Content> = Box::new(BytesContent(Bytes::from(json)));
        let expected = self.import.sha256.clone();
        let content: Box<dyn Content> = Box::new(Checked { file, sha256: Sha256::new(), expected });
        for (name, size, content) in
            [(IMPORT_FILE, 0, description), (self.import.name.as_str(), self.import.size, content)]
        {
            let key = MapKey::from_components([name]).map_err(|error| other(&error))?;
            let item = Item { key, kind: EntryKind::File, size, fingerprint: [0; 16], hard_link: None };
            let mtime = (self.made.div_euclid(1_000_000_000), 0);
            let entry = Entry { mode: 0o600, mtime, ..Entry::new(EntryKind::File) };
            if visit(Found::Opened(item, Box::new(Opened { entry, content: Some(content) }))).is_break() {
                return Ok(());
            }
        }
        if self.import.whole == Some(false) {
            let key = MapKey::from_components([self.import.name.as_str()]).map_err(|error| other(&error))?;
            // The engine, if it wants no more, knows why.
            let _ = visit(Found::Problem { key, message: "does not have the end of a dump".to_owned() });
        }
        Ok(())
    }

    fn open(&self, item: &Item) -> Result<Option<Opened>, SourceError> {
        Err(SourceError::Other(format!("`{}` came without its content", item.key.display_path())))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    const SCRIPT: &[u8] =
        b"--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 13.4\n\nSELECT 1;\n\
                            --\n-- PostgreSQL database dump complete\n--\n\n";

    fn open(path: &Path) -> Result<ImportSource, DumpError> {
        ImportSource::open(path, &jiff::tz::TimeZone::UTC)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[test]
    fn a_script_is_known_compressed_or_not_and_a_damaged_or_cut_one_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sql.gz");
        fs::write(&path, gzip(SCRIPT)).unwrap();
        let import = open(&path).unwrap().import;
        assert_eq!((import.dump, import.compression), (DumpFormat::Plain, Compression::Gzip));
        assert_eq!(import.server_version.as_deref(), Some("13.4"));
        assert_eq!((import.whole, import.made_from.as_str()), (Some(true), "file"));
        let whole = gzip(SCRIPT);
        fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        assert!(matches!(open(&path), Err(DumpError::File { .. })), "the stream breaks off");
        fs::write(&path, gzip(&SCRIPT[..80])).unwrap();
        assert_eq!(open(&path).unwrap().import.whole, Some(false));
        fs::write(&path, b"something else").unwrap();
        let text = open(&path).unwrap_err().to_string();
        assert!(text.ends_with("is no dump of PostgreSQL: it begins like none"), "{text}");
    }

    #[test]
    fn the_end_of_a_database_is_not_that_of_a_cluster() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("all.sql");
        let begun =
            [&b"--\n-- PostgreSQL database cluster dump\n--\n\n\\restrict x\n\n"[..], SCRIPT].concat();
        // `pg_dumpall` ends so when `pg_dump` fails with the next database.
        let broken = [&begun[..], b"--\n-- Database \"clinic\" dump\n--\n\n"].concat();
        let end = b"\\unrestrict x\n\n--\n-- PostgreSQL database cluster dump complete\n--\n\n";
        for (text, whole) in [(broken, false), ([&begun[..], end].concat(), true)] {
            fs::write(&path, &text).unwrap();
            assert_eq!(open(&path).unwrap().import.whole, Some(whole));
        }
    }

    #[test]
    fn a_checksum_beside_it_must_fit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sql");
        fs::write(&path, SCRIPT).unwrap();
        let sum = hex::encode(Sha256::digest(SCRIPT));
        let beside = dir.path().join("a.sql.sha256");
        for text in [
            format!("{sum}  a.sql\n"),
            sum.to_uppercase(),
            format!("SHA256 (/old/a.sql) = {sum}\n"),
            format!("{}  b.sql\n{sum} *a.sql\n", "0".repeat(64)),
        ] {
            fs::write(&beside, &text).unwrap();
            assert_eq!(open(&path).unwrap().import.checked, ["a.sql.sha256"], "{text}");
        }
        fs::write(&beside, format!("{}  a.sql\n", "0".repeat(64))).unwrap();
        assert!(matches!(open(&path), Err(DumpError::Checksum { .. })));
        fs::write(&beside, "no checksum\n").unwrap();
        assert!(matches!(open(&path), Err(DumpError::NoChecksum { .. })));
        fs::remove_file(&beside).unwrap();
        assert!(open(&path).unwrap().import.checked.is_empty());
        // One that is there and cannot be read is not passed over: this link leads to itself.
        std::os::unix::fs::symlink(&beside, &beside).unwrap();
        assert!(matches!(open(&path), Err(DumpError::File { .. })));
        // Beside a name as long as one can be stands nothing.
        let path = dir.path().join("x".repeat(255));
        fs::write(&path, SCRIPT).unwrap();
        assert!(open(&path).unwrap().import.checked.is_empty());
    }
}
