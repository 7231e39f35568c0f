//! What a process left mounted that was killed.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::NAME;
use crate::MountError;

const TABLE: &str = "/proc/self/mountinfo";

/// Takes away what [`fill_as_needed`](super::fill_as_needed) left mounted at a directory or below it, in use or not; returns
/// how many there were. The process that served them must have ended.
///
/// `directory` is absolute and without links. Users other than root can take away what they have mounted themselves.
pub fn take_away_left(directory: &Path) -> Result<usize, MountError> {
    let broken = |at: &Path, source| MountError::Broken { directory: at.to_path_buf(), source };
    let table = fs::read(TABLE).map_err(|error| broken(Path::new(TABLE), error))?;
    let left = mounted(&table, directory);
    for at in &left {
        crate::take_away(at).map_err(|error| broken(at, error))?;
    }
    Ok(left.len())
}

/// Where file systems of ours stand, at a directory or below it; those last that were mounted first.
fn mounted(table: &[u8], directory: &Path) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    let mut found: Vec<PathBuf> = lines.filter_map(place).filter(|at| at.starts_with(directory)).collect();
    found.reverse();
    found
}

/// Where a line of the kernel's table says that one of ours is mounted.
fn place(line: &[u8]) -> Option<PathBuf> {
    let mut fields = line.split(|byte| *byte == b' ');
    let at = fields.nth(4)?;
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (rest.next()?, rest.next()?);
    let is_ours = kind.starts_with(b"fuse") && source == NAME.as_bytes();
    is_ours.then(|| PathBuf::from(OsStr::from_bytes(&plain(at))))
}

/// The kernel writes blanks and the like as `\040`.
fn plain(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| *first == b'\\').and_then(|digits| {
            digits.iter().try_fold(0_u8, |number, digit| {
                matches!(digit, b'0'..=b'7').then(|| number.wrapping_mul(8).wrapping_add(digit - b'0'))
            })
        });
        plain.push(octal.unwrap_or(*first));
        rest = if octal.is_some() { &behind[3..] } else { behind };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_ours_and_below_the_directory_is_found() {
        let table = b"\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw\n\
40 22 0:50 / /srv/a\\040b/data rw,nosuid shared:5 - fuse keepwell-instant rw,user_id=0\n\
41 22 0:51 / /srv/a\\040b/tablespace-1 rw,nosuid - fuse keepwell-instant rw,user_id=0\n\
42 22 0:52 / /srv/a\\040bc rw,nosuid - fuse keepwell-instant rw,user_id=0\n\
43 22 0:53 / /srv/a\\040b/other rw,nosuid - fuse sshfs rw,user_id=0\n\
44 22 0:54 / /srv/a\\040b/mnt rw - tmpfs keepwell-instant rw\n\
short\n";
        let found = mounted(table, Path::new("/srv/a b"));
        assert_eq!(found, ["/srv/a b/tablespace-1", "/srv/a b/data"].map(PathBuf::from));
        assert_eq!(mounted(table, Path::new("/srv/b")), Vec::<PathBuf>::new());
    }

    #[test]
    fn what_is_no_octal_number_stays() {
        assert_eq!(plain(b"a\\134\\012\\9\\04"), b"a\\\n\\9\\04");
    }
}
