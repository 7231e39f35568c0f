//! What kind of file system a directory is on.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

const SMB: &str = "smb";

/// Magic numbers of `statfs` (`linux/magic.h` and the file systems' own sources).
const KINDS: [(u64, &str); 20] = [
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x2FC1_2FC1, "zfs"),
    (0xCA45_1A4E, "bcachefs"),
    (0xF2F5_2010, "f2fs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58F6, "ramfs"),
    (0x794C_7630, "overlay"),
    (0x6969, "nfs"),
    (0x517B, SMB),
    (0xFF53_4D42, SMB),
    (0xFE53_4D42, SMB),
    (0x6573_5546, "fuse"),
    (0x00C3_6400, "ceph"),
    (0x0102_1997, "9p"),
    (0x4D44, "fat"),
    (0x2011_BAB0, "exfat"),
    (0x7366_746E, "ntfs"),
    (0x5346_544E, "ntfs"),
];

/// Its name, or its magic number where we have no name for it.
pub(super) fn kind_of(directory: BorrowedFd<'_>) -> Result<String, Errno> {
    Ok(name_of(rustix::fs::fstatfs(directory)?.f_type as u64))
}

fn name_of(magic: u64) -> String {
    let magic = magic & 0xFFFF_FFFF; // 32 bits, whatever the width and sign of the field
    let known = KINDS.iter().find(|(known, _)| *known == magic);
    known.map_or_else(|| format!("{magic:#010x}"), |(_, name)| (*name).to_owned())
}

/// Whether it is on a share of an SMB server.
pub(super) fn is_smb(directory: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(kind_of(directory)? == SMB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names_whatever_the_sign_of_the_field() {
        for (magic, name) in [
            (0xEF53, "ext4"),
            (0x6969, "nfs"),
            (0xFE53_4D42, "smb"),
            (0xFFFF_FFFF_FE53_4D42, "smb"),
            (7, "0x00000007"),
        ] {
            assert_eq!(name_of(magic), name);
        }
    }
}
