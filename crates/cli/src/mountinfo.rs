//! What is mounted where, by the table of the kernel: `36 35 98:0 /root /point options … - type source …`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::{fs, io};

/// Kinds of file systems behind which somebody else answers, or does not; beside those of FUSE.
const AFAR: &[&[u8]] =
    &[b"9p", b"afs", b"autofs", b"beegfs", b"ceph", b"cifs", b"lustre", b"nfs", b"nfs4", b"smb3"];

/// Something that is mounted.
#[derive(Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Where.
    pub point: PathBuf,
    /// The kind of file system, as `ext4` or `fuse.sshfs`.
    pub kind: Vec<u8>,
    /// What it calls its device.
    pub source: Vec<u8>,
}

impl Mounted {
    /// Whether a look at it may have to wait for somebody who is away.
    pub fn is_afar(&self) -> bool {
        self.kind.starts_with(b"fuse") || AFAR.contains(&self.kind.as_slice())
    }
}

/// All that is mounted; nothing where the kernel does not tell.
pub fn all() -> Vec<Mounted> {
    read().unwrap_or_default()
}

/// All that is mounted, in the order in which it was.
pub fn read() -> io::Result<Vec<Mounted>> {
    fs::read("/proc/self/mountinfo").map(|table| parse(&table))
}

fn parse(table: &[u8]) -> Vec<Mounted> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mounted> {
    let mut words = line.split(|byte| *byte == b' ');
    let point = unescaped(words.nth(4)?);
    let mut words = words.skip_while(|word| *word != b"-".as_slice()).skip(1);
    Some(Mounted { point, kind: words.next()?.to_vec(), source: words.next()?.to_vec() })
}

/// Spaces, tabs, newlines and backslashes are written as three octal digits behind a backslash.
fn unescaped(word: &[u8]) -> PathBuf {
    let (mut path, mut rest) = (Vec::with_capacity(word.len()), word);
    while let Some((byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|digits| *byte == b'\\' && digits.iter().all(u8::is_ascii_digit));
        let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(escaped.unwrap_or(*byte));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read_as_the_kernel_writes_it() {
        let table = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
            23 22 0:21 / /proc rw - proc proc rw\n\
            24 22 8:17 / /mnt/my\\040disk\\134 rw - ext4 /dev/sdb1 rw\n\
            41 22 0:51 / /mnt/b ro shared:7 master:1 - fuse.keepwell keepwell ro\n\
            odd\n43 22\n\n";
        let found = parse(table);
        let found: Vec<_> = found
            .iter()
            .map(|Mounted { point, kind, source }| {
                (point.to_str(), str::from_utf8(kind), str::from_utf8(source))
            })
            .collect();
        let expected = [
            ("/", "ext4", "/dev/sda1"),
            ("/proc", "proc", "proc"),
            ("/mnt/my disk\\", "ext4", "/dev/sdb1"),
            ("/mnt/b", "fuse.keepwell", "keepwell"),
        ];
        assert_eq!(found, expected.map(|(point, kind, source)| (Some(point), Ok(kind), Ok(source))));
    }

    #[test]
    fn what_is_no_octal_number_stays() {
        assert_eq!(unescaped(b"a\\134\\012\\9\\+12\\04"), PathBuf::from("a\\\n\\9\\+12\\04"));
    }
}
