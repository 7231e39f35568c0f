//! A part of a tree as a tar archive.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::ops::ControlFlow;

use bytes::Bytes;
use keepwell_catalog::{Entry, EntryKind, MapKey};

use super::content::from_io;
use super::header::{Member, member};
use super::pipe::pipe;
use super::{FirstNames, Pieces, Tree};
use crate::Error;
use crate::error::shown;

/// The archive travels to the writer in pieces of this size …
const PIECE_BYTES: usize = 256 << 10;
/// … of which so many may wait.
const PIECES_AHEAD: usize = 8;
const ZSTD_LEVEL: i32 = 3;
const LEFT_OUT_MAX: usize = 1000;

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// Not at all.
    Tar,
    /// As `gzip` reads it.
    TarGz,
    /// As `zstd` reads it.
    TarZst,
}

/// What an archive holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ArchiveReport {
    /// Members.
    pub members: u64,
    /// Bytes of content before compression.
    pub content_bytes: u64,
    /// What a tar archive cannot hold, with the reason; at most 1000.
    pub left_out: Vec<String>,
    /// All such things.
    pub left_out_count: u64,
}

impl ArchiveReport {
    fn leave_out(&mut self, key: &MapKey, reason: &str) {
        self.left_out_count += 1;
        if self.left_out.len() < LEFT_OUT_MAX {
            self.left_out.push(format!("{}: {reason}", shown(key)));
        }
    }
}

impl Tree {
    /// Writes what is below `key` as a tar archive, with names relative to it; of anything but a directory, that one
    /// thing under its own name.
    ///
    /// The archive is ustar with PAX records for long or non-ASCII names, nanoseconds, large numbers and extended
    /// attributes (`SCHILY.xattr`). Further names of a file become hard links; where the first name is outside, the next
    /// one carries the content. Holes are written as zeros. The same tree gives the same bytes. Sockets, and names that
    /// no file system has, are left out and reported.
    ///
    /// Damage in the repository ends the archive with an error, since the size of the file was promised already. The
    /// calling task blocks while `out` does.
    pub async fn dump_archive(
        &self,
        key: &MapKey,
        format: ArchiveFormat,
        out: &mut (dyn Write + Send),
    ) -> Result<ArchiveReport, Error> {
        let (tree, key) = (self.clone(), key.clone());
        let produce = move |send: &mut dyn FnMut(Bytes) -> ControlFlow<()>| {
            write_archive(&tree, &key, format, Outlet { send, buffer: Vec::new() })
        };
        let report = pipe(self, PIECES_AHEAD, produce, |piece: Bytes| {
            out.write_all(&piece).map_err(from_io)?;
            Ok(ControlFlow::Continue(()))
        })
        .await?;
        out.flush().map_err(from_io)?;
        Ok(report)
    }
}

fn write_archive(
    tree: &Tree,
    key: &MapKey,
    format: ArchiveFormat,
    outlet: Outlet<'_>,
) -> Result<ArchiveReport, Error> {
    let write = || -> io::Result<ArchiveReport> {
        let (report, mut outlet) = match format {
            ArchiveFormat::Tar => Archiver::new(tree, key, outlet).run()?,
            ArchiveFormat::TarGz => {
                let encoder = flate2::write::GzEncoder::new(outlet, flate2::Compression::default());
                let (report, encoder) = Archiver::new(tree, key, encoder).run()?;
                (report, encoder.finish()?)
            }
            ArchiveFormat::TarZst => {
                let encoder = zstd::stream::write::Encoder::new(outlet, ZSTD_LEVEL)?;
                let (report, encoder) = Archiver::new(tree, key, encoder).run()?;
                (report, encoder.finish()?)
            }
        };
        outlet.flush()?;
        Ok(report)
    };
    write().map_err(from_io)
}

/// Writes the members of one archive. Errors of the repository travel inside I/O errors.
struct Archiver<'t, W: Write> {
    tree: &'t Tree,
    top: MapKey,
    builder: tar::Builder<W>,
    first_names: FirstNames,
    report: ArchiveReport,
}

impl<'t, W: Write> Archiver<'t, W> {
    fn new(tree: &'t Tree, top: &MapKey, out: W) -> Self {
        Self {
            tree,
            top: top.clone(),
            builder: tar::Builder::new(out),
            first_names: FirstNames::default(),
            report: ArchiveReport::default(),
        }
    }

    fn run(mut self) -> io::Result<(ArchiveReport, W)> {
        let mut found = self.top == MapKey::root();
        for item in self.tree.reader().heads_below(&self.top).map_err(ours)? {
            let (key, entry) = item.map_err(ours)?;
            found = true;
            if key != self.top {
                self.add(&key, &entry)?;
            } else if entry.kind != EntryKind::Directory {
                self.top = key.parent().unwrap_or_default();
                self.add_alone(&key)?;
                break;
            }
        }
        if !found {
            return Err(io::Error::other(self.tree.no_such_path(&self.top)));
        }
        Ok((self.report, self.builder.into_inner()?))
    }

    fn add(&mut self, key: &MapKey, entry: &Entry) -> io::Result<()> {
        let Some(mut path) = self.member_path(key) else {
            self.report.leave_out(key, "it is no file name");
            return Ok(());
        };
        let mut link = entry.link_target.clone();
        if let Some(first) = &entry.hard_link {
            match self.link_target(key, first) {
                Some(target) => link = Some(target),
                None => return self.append_carrier(key, &path),
            }
        }
        if entry.kind == EntryKind::Directory {
            path.push(b'/');
        }
        self.append(key, &path, key, entry, link.as_deref())
    }

    /// Adds what is to be the only member: other names that it may have are not there to link to.
    fn add_alone(&mut self, key: &MapKey) -> io::Result<()> {
        match self.member_path(key) {
            Some(path) => self.append_carrier(key, &path),
            None => {
                self.report.leave_out(key, "it is no file name");
                Ok(())
            }
        }
    }

    /// Appends `key` as what carries its inode.
    fn append_carrier(&mut self, key: &MapKey, path: &[u8]) -> io::Result<()> {
        let (first, carrier) = self.tree.carrier(key).map_err(io::Error::other)?;
        self.append(key, path, &first, &carrier, carrier.link_target.as_deref())
    }

    /// Appends `key` with the content of the file at `carrier`.
    fn append(
        &mut self,
        key: &MapKey,
        path: &[u8],
        carrier: &MapKey,
        entry: &Entry,
        link: Option<&[u8]>,
    ) -> io::Result<()> {
        let Some(Member { header, extensions, left_out }) = member(path, link, entry) else {
            self.report.leave_out(key, "no archive can hold it");
            return Ok(());
        };
        if let Some(reason) = left_out {
            self.report.leave_out(key, &reason);
        }
        self.builder.append_pax_extensions(extensions.iter().map(|(k, v)| (k.as_str(), v.as_slice())))?;
        self.report.members += 1;
        if entry.kind.has_content() {
            self.report.content_bytes += entry.size;
            self.builder.append(&header, Pieces::new(self.tree, carrier, entry).reader())
        } else {
            self.builder.append(&header, io::empty())
        }
    }

    /// Where a further name links to; `None` if it must carry the content itself.
    fn link_target(&mut self, key: &MapKey, first: &MapKey) -> Option<Vec<u8>> {
        let target = match self.member_path(first) {
            Some(_) => first.clone(),
            None => self.first_names.stand_in(first, key)?,
        };
        self.member_path(&target)
    }

    /// The name of a member, relative to the top; `None` for what lies outside or is no path.
    fn member_path(&self, key: &MapKey) -> Option<Vec<u8>> {
        if !key.starts_with(&self.top) || *key == self.top {
            return None;
        }
        let below: VecDeque<_> = key.components().skip(self.top.depth()).collect();
        MapKey::from_components(below).and_then(|key| key.to_os_path_bytes()).ok()
    }
}

fn ours(error: keepwell_catalog::MapError) -> io::Error {
    io::Error::other(Error::from(error))
}

/// Sends what is written in pieces.
struct Outlet<'s> {
    send: &'s mut dyn FnMut(Bytes) -> ControlFlow<()>,
    buffer: Vec<u8>,
}

impl Write for Outlet<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = std::mem::take(&mut self.buffer);
        if !piece.is_empty() && (self.send)(piece.into()).is_break() {
            return Err(io::Error::other(Error::Cancelled));
        }
        Ok(())
    }
}
