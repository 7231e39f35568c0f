//! Contents on their way from the stream to a worker.

use std::io;

use backup_core::source::{Content, Piece};
use bytes::{Buf, Bytes};
use crossbeam_channel::{Receiver, Sender, bounded};

/// Relation files are cut into chunks of this many bytes.
pub(crate) const CHUNK: usize = 1 << 20;
/// Messages between the stream and a worker; a server sends at most 32 KiB in one.
const AHEAD: usize = 256;

/// A stretch of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    Data(Bytes),
    /// As in the last capture.
    Kept(u64),
    Hole(u64),
    /// All of it was sent.
    End,
}

/// Sends parts to the worker that reads the content.
#[derive(Debug)]
pub(crate) struct Feed(Sender<Part>);

impl Feed {
    /// `false` when nobody reads any more.
    pub fn send(&self, part: Part) -> bool {
        self.0.send(part).is_ok()
    }
}

/// A content that arrives in parts.
#[derive(Debug)]
pub(crate) struct Arriving {
    parts: Receiver<Part>,
    data: Bytes,
    pages: bool,
}

/// A content and what fills it. `pages` says whether it is made of pages.
pub(crate) fn arriving(pages: bool) -> (Feed, Arriving) {
    let (sender, parts) = bounded(AHEAD);
    (Feed(sender), Arriving { parts, data: Bytes::new(), pages })
}

/// A content that is there as a whole.
pub(crate) fn complete(parts: Vec<Part>, pages: bool) -> Arriving {
    let (sender, receiver) = bounded(parts.len() + 1);
    for part in parts.into_iter().chain([Part::End]) {
        // There is room for all of them, and the receiver is here.
        let _ = sender.send(part);
    }
    Arriving { parts: receiver, data: Bytes::new(), pages }
}

impl Content for Arriving {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        while self.data.is_empty() {
            match self.parts.recv() {
                Ok(Part::Data(data)) => self.data = data,
                Ok(Part::Kept(bytes)) => return Ok(Piece::Kept(bytes)),
                Ok(Part::Hole(bytes)) => return Ok(Piece::Hole(bytes)),
                Ok(Part::End) => return Ok(Piece::End),
                Err(_) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the base backup broke off"));
                }
            }
        }
        let bytes = self.data.len().min(buf.len());
        buf[..bytes].copy_from_slice(&self.data[..bytes]);
        self.data.advance(bytes);
        Ok(Piece::Data(bytes))
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }

    fn chunk_bytes(&self) -> Option<usize> {
        self.pages.then_some(CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_that_is_cut_short_is_an_error_and_not_an_end() {
        let (feed, mut content) = arriving(true);
        assert!(feed.send(Part::Data(Bytes::from_static(b"abc"))) && feed.send(Part::Kept(9)));
        drop(feed);
        let mut buffer = [0; 2];
        assert_eq!(content.read(&mut buffer).unwrap(), Piece::Data(2));
        assert_eq!(content.read(&mut buffer).unwrap(), Piece::Data(1));
        assert_eq!(content.read(&mut buffer).unwrap(), Piece::Kept(9));
        assert!(content.read(&mut buffer).is_err());
        let mut whole = complete(vec![Part::Data(Bytes::from_static(b"x"))], false);
        assert_eq!(whole.read(&mut buffer).unwrap(), Piece::Data(1));
        assert_eq!(whole.read(&mut buffer).unwrap(), Piece::End);
        let (feed, content) = arriving(true);
        drop(content);
        assert!(!feed.send(Part::End), "nobody reads");
    }
}
