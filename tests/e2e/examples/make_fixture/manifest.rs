//! What a restored tree looks like, as text: one line per entry, sorted by path.
//!
//! `kind mode size mtime names content xattrs path`: octal mode without the type; `-` where a field has no meaning;
//! `names` counts the names of a file; `content` is the BLAKE3 hash of a file or the target of a link; `xattrs` are those
//! of `user.`; a path is relative, with everything but printable ASCII escaped.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};

/// Describes everything below `top`, and `top` itself as `.`.
pub fn describe(top: &Path) -> io::Result<String> {
    let mut lines = vec![line(top, OsStr::new("."))?];
    describe_below(top, Path::new(""), &mut lines)?;
    Ok(lines.concat())
}

fn describe_below(top: &Path, below: &Path, lines: &mut Vec<String>) -> io::Result<()> {
    let mut names: Vec<_> =
        fs::read_dir(top.join(below))?.map(|entry| entry.map(|e| e.file_name())).collect::<Result<_, _>>()?;
    names.sort();
    for name in names {
        let path = below.join(name);
        lines.push(line(&top.join(&path), path.as_os_str())?);
        if top.join(&path).symlink_metadata()?.is_dir() {
            describe_below(top, &path, lines)?;
        }
    }
    Ok(())
}

fn line(path: &Path, shown: &OsStr) -> io::Result<String> {
    let facts = path.symlink_metadata()?;
    let kind = facts.file_type();
    let (kind, size, names, content) = if kind.is_file() {
        let hash = blake3::hash(&fs::read(path)?).to_string();
        ("file", facts.size().to_string(), facts.nlink().to_string(), hash)
    } else if kind.is_symlink() {
        let target = fs::read_link(path)?;
        ("symlink", "-".to_owned(), "-".to_owned(), escape(target.as_os_str().as_bytes()))
    } else {
        let kind = match kind {
            _ if kind.is_dir() => "directory",
            _ if kind.is_fifo() => "fifo",
            _ => "other",
        };
        (kind, "-".to_owned(), "-".to_owned(), "-".to_owned())
    };
    let mode = if kind == "symlink" { "-".to_owned() } else { format!("{:04o}", facts.mode() & 0o7777) };
    let (seconds, nanoseconds) = (facts.mtime(), facts.mtime_nsec());
    let (xattrs, shown) = (xattrs(path)?, escape(shown.as_bytes()));
    Ok(format!("{kind} {mode} {size} {seconds}.{nanoseconds:09} {names} {content} {xattrs} {shown}\n"))
}

fn xattrs(path: &Path) -> io::Result<String> {
    let (mut names, mut value) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let length = llistxattr(path, &mut names)?;
    let mut found = Vec::new();
    for name in names[..length].split(|b| *b == 0).filter(|name| name.starts_with(b"user.")) {
        let length = lgetxattr(path, name, &mut value)?;
        found.push(format!("{}={}", escape(name), escape(&value[..length])));
    }
    found.sort();
    Ok(if found.is_empty() { "-".to_owned() } else { found.join(",") })
}

fn escape(text: &[u8]) -> String {
    text.escape_ascii().to_string().replace(' ', "\\x20")
}
