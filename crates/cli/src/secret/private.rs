//! Files that only their owner can read.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context as _, Result};
use keepwell_crypto::Secret;

use crate::exit::Complaint;

/// Writes a new file that only its owner can read, durably. Refuses to replace one.
pub fn write_private(path: &Path, text: &Secret) -> Result<()> {
    make_parent(path)?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let complaint = Complaint::failed(format!("`{}` exists already", path.display()));
            anyhow::Error::from(complaint.hint("Move it away, or name another file."))
        }
        _ => anyhow::Error::from(error).context(format!("create `{}`", path.display())),
    })?;
    let written = file.write_all(text.expose().as_bytes()).and_then(|()| file.sync_all());
    let written = written.and_then(|()| sync_parent(path));
    if written.is_err() {
        let _ = fs::remove_file(path); // half a secret is of no use, and not to lie about
    }
    written.with_context(|| format!("write `{}`", path.display()))
}

/// Makes the name of a file durable.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Replaces a private file, durably and at once. Of a symlink, what it leads to: that is where the old text is.
pub fn replace_private(path: &Path, text: &Secret) -> Result<()> {
    let resolved = path.canonicalize();
    let path = resolved.as_deref().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = path.with_file_name(format!(".{name}.{}", std::process::id()));
    write_private(&partial, text)?;
    let renamed = fs::rename(&partial, path);
    if renamed.is_err() {
        let _ = fs::remove_file(&partial);
    }
    renamed.with_context(|| format!("rename to `{}`", path.display()))?;
    sync_parent(path).with_context(|| format!("write `{}`", path.display()))
}

fn make_parent(path: &Path) -> Result<()> {
    let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) else { return Ok(()) };
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.with_context(|| format!("create `{}`", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_cannot_take_its_place_is_left_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let in_the_way = dir.path().join("key");
        fs::create_dir(&in_the_way).unwrap();
        replace_private(&in_the_way, &Secret::from("secret")).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
