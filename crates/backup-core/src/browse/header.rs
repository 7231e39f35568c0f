//! From an entry to the header of an archive member: ustar where it fits, PAX records (POSIX.1-2017, pax) for the rest.

use keepwell_catalog::{Entry, EntryKind};
use tar::{EntryType, Header};

/// Largest number in an eight byte octal field.
const OCTAL_8_MAX: u64 = 0o7_777_777;
/// Largest number in a twelve byte octal field.
const OCTAL_12_MAX: u64 = 0o77_777_777_777;
const NAME_BYTES_MAX: usize = 100;
const OWNER_BYTES_MAX: usize = 31;

/// A member of an archive, without its data.
pub(super) struct Member {
    pub header: Header,
    /// Records for what the header cannot say, in the order in which they are written.
    pub extensions: Vec<(String, Vec<u8>)>,
    /// What was left out on purpose, as a fact.
    pub left_out: Option<String>,
}

/// Builds the header of a member named `path`, linked to `link` if it is a link. `None` for what no archive can hold.
///
/// The same entry gives the same bytes. Fields that do not fit the header stand in PAX records, which the header then
/// repeats as far as it can.
pub(super) fn member(path: &[u8], link: Option<&[u8]>, entry: &Entry) -> Option<Member> {
    let mut member = Member { header: Header::new_ustar(), extensions: Vec::new(), left_out: None };
    member.header.set_entry_type(entry_type(entry.kind)?);
    member.set_device(entry)?;
    member.set_names(path, link);
    member.header.set_mode(entry.shown_mode());
    member.set_number("uid", u64::from(entry.uid), OCTAL_8_MAX, Header::set_uid);
    member.set_number("gid", u64::from(entry.gid), OCTAL_8_MAX, Header::set_gid);
    let size = if entry.kind.has_content() { entry.size } else { 0 };
    member.set_number("size", size, OCTAL_12_MAX, Header::set_size);
    member.set_time(entry.mtime);
    member.set_owner("uname", entry.user.as_deref());
    member.set_owner("gname", entry.group.as_deref());
    if entry.kind != EntryKind::HardLink {
        member.set_xattrs(&entry.xattrs);
    }
    member.header.set_cksum();
    Some(member)
}

fn entry_type(kind: EntryKind) -> Option<EntryType> {
    Some(match kind {
        EntryKind::File | EntryKind::Object => EntryType::Regular,
        EntryKind::Directory => EntryType::Directory,
        EntryKind::Symlink => EntryType::Symlink,
        EntryKind::Fifo => EntryType::Fifo,
        EntryKind::CharDevice => EntryType::Char,
        EntryKind::BlockDevice => EntryType::Block,
        EntryKind::HardLink => EntryType::Link,
        EntryKind::Socket => return None,
    })
}

impl Member {
    fn extend(&mut self, key: &str, value: impl Into<Vec<u8>>) {
        self.extensions.push((key.to_owned(), value.into()));
    }

    /// Paths that are not UTF-8 are announced by `hdrcharset`, as the standard has it.
    fn set_names(&mut self, path: &[u8], link: Option<&[u8]>) {
        let names = [("path", Some(path)), ("linkpath", link)];
        let is_long = |name: &[u8]| name.len() > NAME_BYTES_MAX;
        let is_text = |name: &[u8]| std::str::from_utf8(name).is_ok();
        let written =
            names.iter().filter_map(|(_, name)| *name).filter(|name| is_long(name) || !name.is_ascii());
        if written.clone().any(|name| !is_text(name)) {
            self.extend("hdrcharset", "BINARY");
        }
        for (key, name) in names {
            if let Some(name) = name.filter(|name| is_long(name) || !name.is_ascii()) {
                self.extend(key, name);
            }
        }
        let header = self.header.as_old_mut();
        fill(&mut header.name, path);
        fill(&mut header.linkname, link.unwrap_or_default());
    }

    /// Device numbers have no PAX record: larger ones do not fit any archive.
    fn set_device(&mut self, entry: &Entry) -> Option<()> {
        let (major, minor) = entry.device.unwrap_or_default();
        if u64::from(major.max(minor)) > OCTAL_8_MAX {
            return None;
        }
        let ustar = self.header.as_ustar_mut()?;
        ustar.set_device_major(major);
        ustar.set_device_minor(minor);
        Some(())
    }

    fn set_number(&mut self, key: &str, number: u64, largest: u64, set: fn(&mut Header, u64)) {
        if number > largest {
            self.extend(key, number.to_string());
        }
        set(&mut self.header, number.min(largest));
    }

    fn set_time(&mut self, (seconds, nanoseconds): (i64, u32)) {
        let in_header = u64::try_from(seconds).unwrap_or(0).min(OCTAL_12_MAX);
        if nanoseconds != 0 || i64::try_from(in_header) != Ok(seconds) {
            self.extend("mtime", decimal_time(seconds, nanoseconds));
        }
        self.header.set_mtime(in_header);
    }

    fn set_owner(&mut self, key: &str, name: Option<&str>) {
        let name = name.unwrap_or_default();
        if name.len() > OWNER_BYTES_MAX || !name.is_ascii() {
            self.extend(key, name);
        }
        if let Some(ustar) = self.header.as_ustar_mut() {
            let field = if key == "uname" { &mut ustar.uname } else { &mut ustar.gname };
            fill(&mut field[..OWNER_BYTES_MAX], name.as_bytes());
        }
    }

    /// As GNU tar and star write them; `%` and `=` in a name are escaped as GNU tar does.
    fn set_xattrs(&mut self, xattrs: &[(Vec<u8>, Vec<u8>)]) {
        for (name, value) in xattrs {
            match std::str::from_utf8(name) {
                Ok(name) => {
                    let name = name.replace('%', "%25").replace('=', "%3D");
                    self.extend(&format!("SCHILY.xattr.{name}"), value.as_slice());
                }
                Err(_) => self.left_out = Some("an extended attribute whose name is not UTF-8".to_owned()),
            }
        }
    }
}

/// Seconds since 1970 as a decimal fraction. The nanoseconds count forward from `seconds`, also before 1970.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if total < 0 { "-" } else { "" };
    let (whole, rest) = (total.abs() / 1_000_000_000, total.abs() % 1_000_000_000);
    if rest == 0 { format!("{sign}{whole}") } else { format!("{sign}{whole}.{rest:09}") }
}

fn fill(field: &mut [u8], value: &[u8]) {
    field.fill(0);
    let n = value.len().min(field.len());
    field[..n].copy_from_slice(&value[..n]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_decimal_fractions() {
        for (time, text) in [
            ((0, 0), "0"),
            ((1, 5), "1.000000005"),
            ((-1, 0), "-1"),
            ((-2, 500_000_000), "-1.500000000"),
            ((-1, 999_999_999), "-0.000000001"),
            ((i64::MAX, 999_999_999), "9223372036854775807.999999999"),
            ((i64::MIN, 0), "-9223372036854775808"),
        ] {
            assert_eq!(decimal_time(time.0, time.1), text);
        }
    }

    #[test]
    fn what_no_archive_can_hold_is_refused() {
        assert!(member(b"socket", None, &Entry::new(EntryKind::Socket)).is_none());
        let mut device = Entry::new(EntryKind::CharDevice);
        device.device = Some((1, 1 << 21));
        assert!(member(b"tty", None, &device).is_none());
    }
}
