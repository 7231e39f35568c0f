//! The tar archives of a base backup, cut into entries as they arrive.

use bytes::{Buf, Bytes};

const BLOCK: usize = 512;

/// Why an archive cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an archive of the base backup is not what a server sends: {0}")]
pub struct TapeError(pub(super) String);

/// Head of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    /// Names from the root of the archive down; none is empty, `.` or `..`.
    pub path: Vec<String>,
    pub directory: bool,
    pub size: u64,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: i64,
}

/// What is next in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Entry(Head),
    Data(Bytes),
    /// The content of the entry is complete.
    EntryEnd,
}

/// Where in the archive it stands.
#[derive(Debug, Default)]
pub(crate) struct Tape {
    header: Vec<u8>,
    /// Bytes of content still to come, and of filling behind it.
    left: u64,
    filling: usize,
    in_entry: bool,
}

impl Tape {
    /// Takes the next step out of `data`; `None` when more is needed.
    pub fn next(&mut self, data: &mut Bytes) -> Result<Option<Step>, TapeError> {
        loop {
            if self.in_entry {
                if self.left == 0 {
                    self.in_entry = false;
                    return Ok(Some(Step::EntryEnd));
                }
                if data.is_empty() {
                    return Ok(None);
                }
                let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(data.len());
                self.left -= most as u64;
                return Ok(Some(Step::Data(data.split_to(most))));
            }
            let skipped = self.filling.min(data.len());
            data.advance(skipped);
            self.filling -= skipped;
            let wanted = (BLOCK - self.header.len()).min(data.len());
            self.header.extend_from_slice(&data.split_to(wanted));
            if self.filling > 0 || self.header.len() < BLOCK {
                return Ok(None);
            }
            let header = std::mem::take(&mut self.header);
            if header.iter().any(|byte| *byte != 0) {
                let head = head(&header)?;
                self.left = head.size;
                self.filling = (BLOCK - (head.size % BLOCK as u64) as usize) % BLOCK;
                self.in_entry = true;
                return Ok(Some(Step::Entry(head)));
            }
            // Blocks of zeros end an archive; servers before 15 leave them out.
        }
    }

    /// Whether an archive may end here.
    pub fn is_between_entries(&self) -> bool {
        !self.in_entry && self.header.is_empty() && self.filling == 0
    }
}

fn head(block: &[u8]) -> Result<Head, TapeError> {
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(block);
    let odd = |what: &str| TapeError(format!("{what} of an entry cannot be read"));
    // The sum counts its own field as spaces.
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, b)| if (148..156).contains(&at) { 32 } else { u32::from(*b) })
        .sum();
    if header.cksum().map_err(|_| odd("the checksum"))? != sum {
        return Err(TapeError("the checksum of an entry does not fit".to_owned()));
    }
    let kind = header.entry_type();
    if !kind.is_file() && !kind.is_dir() {
        return Err(TapeError("it holds an entry that is neither file nor directory".to_owned()));
    }
    let number = |n: Result<u64, std::io::Error>, what: &str| {
        n.ok().and_then(|n| u32::try_from(n).ok()).ok_or_else(|| odd(what))
    };
    let size = header.entry_size().map_err(|_| odd("the size"))?;
    if size > 1 << 50 || kind.is_dir() && size > 0 {
        return Err(odd("the size"));
    }
    Ok(Head {
        path: path(&header.path_bytes())?,
        directory: kind.is_dir(),
        size,
        mode: header.mode().map_err(|_| odd("the mode"))? & 0o7777,
        uid: number(header.uid(), "the owner")?,
        gid: number(header.gid(), "the group")?,
        mtime: header
            .mtime()
            .ok()
            .and_then(|time| i64::try_from(time).ok())
            .ok_or_else(|| odd("the time"))?,
    })
}

fn path(bytes: &[u8]) -> Result<Vec<String>, TapeError> {
    let refused = || TapeError(format!("the name `{}`", String::from_utf8_lossy(bytes).escape_default()));
    let text = std::str::from_utf8(bytes).map_err(|_| refused())?;
    // Servers write `./` before some names.
    let bare = text.strip_prefix("./").unwrap_or(text);
    let names: Vec<String> = bare.strip_suffix('/').unwrap_or(bare).split('/').map(str::to_owned).collect();
    let fine = |name: &String| !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    if names.iter().all(fine) { Ok(names) } else { Err(refused()) }
}

/// Reads an archive in pieces of some length, as the first byte says, until it ends or is refused.
pub(super) fn fuzz(bytes: &[u8]) {
    let Some((step, rest)) = bytes.split_first() else { return };
    let (mut tape, mut open) = (Tape::default(), None);
    for piece in rest.chunks(usize::from(*step) * 4 + 1) {
        let mut data = Bytes::copy_from_slice(piece);
        loop {
            match tape.next(&mut data) {
                Err(_) => return,
                Ok(None) => break,
                Ok(Some(Step::Entry(head))) => {
                    assert!(
                        !head.path.iter().any(|name| name.is_empty() || name == ".." || name.contains('/'))
                    );
                    open = Some(head.size);
                }
                Ok(Some(Step::Data(content))) => {
                    let left = open.expect("content belongs to an entry");
                    open = Some(left.checked_sub(content.len() as u64).expect("no more than was announced"));
                }
                Ok(Some(Step::EntryEnd)) => assert_eq!(open.take(), Some(0)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o600);
            header.set_mtime(1_700_000_000);
            header.set_uid(26);
            header.set_gid(26);
            header.set_size(content.len() as u64);
            if name.ends_with('/') {
                header.set_entry_type(tar::EntryType::Directory);
            }
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8], step: usize) -> Result<Vec<(Head, Vec<u8>)>, TapeError> {
        let (mut tape, mut found) = (Tape::default(), Vec::new());
        for piece in bytes.chunks(step) {
            let mut piece = Bytes::copy_from_slice(piece);
            while let Some(step) = tape.next(&mut piece)? {
                match step {
                    Step::Entry(head) => found.push((head, Vec::new())),
                    Step::Data(data) => found.last_mut().unwrap().1.extend_from_slice(&data),
                    Step::EntryEnd => {
                        assert_eq!(found.last().unwrap().0.size, found.last().unwrap().1.len() as u64)
                    }
                }
            }
            assert!(piece.is_empty());
        }
        assert!(tape.is_between_entries());
        Ok(found)
    }

    #[test]
    fn entries_are_found_wherever_the_stream_is_cut() {
        let content = vec![7; 1300];
        let bytes = archive(&[("./base/", b""), ("base/1", &content), ("empty", b""), ("global/x", b"abc")]);
        for step in [1, 100, 512, 513, 10_000] {
            let found = read(&bytes, step).unwrap();
            let names: Vec<String> = found.iter().map(|(head, _)| head.path.join("/")).collect();
            assert_eq!(names, ["base", "base/1", "empty", "global/x"]);
            assert!(found[0].0.directory && !found[1].0.directory);
            assert_eq!((found[1].0.mode, found[1].0.uid, found[1].0.mtime), (0o600, 26, 1_700_000_000));
            assert_eq!((&found[1].1, found[3].1.as_slice()), (&content, b"abc".as_slice()));
        }
    }

    #[test]
    fn what_leads_astray_or_is_damaged_is_refused() {
        for name in ["../x", "/etc/passwd", "a//b", "a/./b", "a/..", "..", "\u{0}a"] {
            assert!(read(&archive(&[(name, b"x")]), 512).is_err(), "{name}");
        }
        let mut damaged = archive(&[("a", b"x")]);
        damaged[100] ^= 1;
        assert!(read(&damaged, 512).is_err());
        let mut link = tar::Header::new_ustar();
        link.set_entry_type(tar::EntryType::Symlink);
        link.as_mut_bytes()[..1].copy_from_slice(b"l");
        link.set_size(0);
        link.set_mode(0);
        link.set_mtime(0);
        link.set_uid(0);
        link.set_gid(0);
        link.set_gid(0);
        link.set_cksum();
        assert!(read(link.as_bytes(), 512).is_err());
    }

    proptest! {
        #[test]
        fn no_archive_makes_it_panic_or_leads_astray(
            at in prop::collection::vec((0usize..6000, any::<u8>()), 0..4),
            sums: bool,
            step: u8,
        ) {
            let content = vec![7; 1300];
            let mut bytes = archive(&[("./base/", b""), ("base/1", &content), ("empty", b""), ("global/x", b"abc")]);
            for (at, to) in at {
                let length = bytes.len();
                bytes[at % length] = to;
            }
            // Heads that were changed, with checksums that fit.
            for block in bytes.chunks_exact_mut(BLOCK).filter(|_| sums) {
                if block.get(257..262) == Some(b"ustar") {
                    block[148..156].copy_from_slice(b"        ");
                    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                }
            }
            fuzz(&[&[step][..], &bytes].concat());
        }
    }
}
