//! The content of one file, front to back.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::vec;

use bytes::{Buf, Bytes};
use keepwell_catalog::{Entry, Extent, MapKey};

use super::Tree;
use super::pipe::pipe;
use crate::error::shown;
use crate::{Cancel, Error};

/// Pieces of a file that wait for the writer; each is a chunk of 4 MiB at most.
const DUMP_AHEAD: usize = 3;
/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 16 << 10;

/// A piece of a file.
#[derive(Debug, Clone)]
pub(crate) enum PieceOfFile {
    Data(Bytes),
    /// So many zeros that are not stored.
    Hole(u64),
}

/// Reads a file piece by piece, on an ordinary thread. Holds the extents of one record of the tree at a time.
#[derive(Debug)]
pub(crate) struct Pieces {
    tree: Tree,
    key: MapKey,
    extents: vec::IntoIter<Extent>,
    /// Where in the file the loaded extents end.
    loaded_to: u64,
    records_left: u32,
    size: u64,
}

impl Pieces {
    /// Of the file at `key`, whose entry (or the head of it) came from this tree.
    pub fn new(tree: &Tree, key: &MapKey, entry: &Entry) -> Self {
        let loaded_to = entry.content.iter().map(Extent::length).fold(0, u64::saturating_add);
        Self {
            tree: tree.clone(),
            key: key.clone(),
            extents: entry.content.clone().into_iter(),
            loaded_to,
            records_left: entry.more_extents,
            size: entry.size,
        }
    }

    /// The next piece, proved by the id of its chunk; `None` when all of the file's size was given.
    pub fn next(&mut self) -> Result<Option<PieceOfFile>, Error> {
        if self.extents.len() == 0 && self.records_left > 0 {
            self.load()?;
        }
        match self.extents.next() {
            None => Ok(None),
            Some(Extent::Hole { length }) => Ok(Some(PieceOfFile::Hole(length))),
            Some(Extent::Chunk { id, offset, length }) => {
                let chunk = self.tree.contents().chunk(&id)?;
                let (from, to) = (offset as usize, (offset as usize).saturating_add(length as usize));
                if to > chunk.len() {
                    return Err(Error::damaged(id, "an extent reaches past its end"));
                }
                Ok(Some(PieceOfFile::Data(chunk.slice(from..to))))
            }
        }
    }

    fn load(&mut self) -> Result<(), Error> {
        let extents = self.tree.reader().extents_from(&self.key, self.loaded_to)?;
        let length = extents.iter().map(Extent::length).fold(0, u64::saturating_add);
        self.records_left -= 1;
        self.loaded_to = self.loaded_to.saturating_add(length);
        let adds_up =
            if self.records_left == 0 { self.loaded_to == self.size } else { self.loaded_to < self.size };
        if !adds_up {
            return Err(Error::damaged(shown(&self.key), "its extents do not add up to its size"));
        }
        self.extents = extents.into_iter();
        Ok(())
    }

    /// The same as a stream of bytes, holes as zeros. Its errors carry an [`Error`]; see [`from_io`].
    pub fn reader(self) -> PiecesReader {
        PiecesReader { pieces: self, data: Bytes::new(), zeros: 0 }
    }
}

/// Reads the bytes of a file.
#[derive(Debug)]
pub(crate) struct PiecesReader {
    pieces: Pieces,
    data: Bytes,
    zeros: u64,
}

impl Read for PiecesReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.pieces.tree.repository().cancel().check().map_err(io::Error::other)?;
        while self.data.is_empty() && self.zeros == 0 {
            match self.pieces.next().map_err(io::Error::other)? {
                None => return Ok(0),
                Some(PieceOfFile::Data(data)) => self.data = data,
                Some(PieceOfFile::Hole(length)) => self.zeros = length,
            }
        }
        if self.data.is_empty() {
            let n = usize::try_from(self.zeros).unwrap_or(usize::MAX).min(buf.len());
            buf[..n].fill(0);
            self.zeros -= n as u64;
            return Ok(n);
        }
        let n = self.data.len().min(buf.len());
        self.data.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// Takes our own error out of an I/O error that carries one; another means that the output failed.
pub(super) fn from_io(error: io::Error) -> Error {
    error.downcast::<Error>().unwrap_or_else(|error| Error::Output(error.into()))
}

impl Tree {
    /// Writes the content of a file, holes as zeros. Of a further name of a file, the content of that file.
    ///
    /// Every chunk is proved by its id before it is written; damage ends the output with an error before the first byte
    /// that is lost. Reads ahead of the writer by a few chunks, and fetches what lies together in a pack together. The
    /// calling task blocks while `out` does. Fails with [`Error::NoSuchPath`], with [`Error::Invalid`] for what has no
    /// content, and with [`Error::Output`] when `out` fails.
    pub async fn dump_file(&self, key: &MapKey, out: &mut (dyn Write + Send)) -> Result<(), Error> {
        let (tree, key) = (self.clone(), key.clone());
        let produce = move |send: &mut dyn FnMut(PieceOfFile) -> ControlFlow<()>| {
            let (key, entry) = tree.carrier(&key)?;
            if !entry.kind.has_content() {
                return Err(Error::Invalid(format!("`{}` has no content: it is no file", shown(&key))));
            }
            let mut pieces = Pieces::new(&tree, &key, &entry);
            while let Some(piece) = pieces.next()? {
                if send(piece).is_break() {
                    break;
                }
            }
            Ok(())
        };
        let cancel = self.repository().cancel();
        pipe(self, DUMP_AHEAD, produce, |piece| {
            write_piece(&piece, cancel, out)?;
            Ok(ControlFlow::Continue(()))
        })
        .await?;
        out.flush().map_err(from_io)
    }
}

/// A hole may be of any length, so a wish that the work should end is heeded within it.
fn write_piece(piece: &PieceOfFile, cancel: &Cancel, out: &mut dyn Write) -> Result<(), Error> {
    match piece {
        PieceOfFile::Data(data) => out.write_all(data).map_err(from_io),
        PieceOfFile::Hole(length) => {
            let zeros = [0; ZEROS_BYTES];
            let mut left = *length;
            while left > 0 {
                cancel.check()?;
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(zeros.len());
                out.write_all(&zeros[..n]).map_err(from_io)?;
                left -= n as u64;
            }
            Ok(())
        }
    }
}
