//! Files that only their owner can read.

use std::fs::{self, File, Metadata, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::Path;

use anyhow::{Context as _, Result};
use keepwell_crypto::Secret;

use crate::exit::Complaint;

/// Writes a new file that only its owner can read, durably. Refuses to replace one.
pub fn write_private(path: &Path, text: &Secret) -> Result<()> {
    write_as(path, text, None)
}

/// The same; with the owner and the mode of a file whose place it takes.
fn write_as(path: &Path, text: &Secret, replaced: Option<&Metadata>) -> Result<()> {
    make_parent(path)?;
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            let complaint = Complaint::failed(format!("`{}` exists already", path.display()));
            anyhow::Error::from(complaint.hint("Move it away, or name another file."))
        }
        _ => anyhow::Error::from(error).context(format!("create `{}`", path.display())),
    })?;
    let owned = replaced.map_or(Ok(()), |replaced| own_as(&file, replaced));
    let written =
        owned.and_then(|()| file.write_all(text.expose().as_bytes())).and_then(|()| file.sync_all());
    let written = written.and_then(|()| sync_parent(path));
    if written.is_err() {
        let _ = fs::remove_file(path); // half a secret is of no use, and not to lie about
    }
    written.with_context(|| format!("write `{}`", path.display()))
}

/// Gives a file the owner and the mode of another: what root writes anew, others are to read as before. Where it
/// cannot be given away it stays for us alone. By its descriptor, since the directory may be another user's.
fn own_as(file: &File, other: &Metadata) -> std::io::Result<()> {
    use std::io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    match fchown(file, Some(other.uid()), Some(other.gid())) {
        Ok(()) => file.set_permissions(Permissions::from_mode(other.mode() & 0o777)),
        // `InvalidInput`: a user whom a container does not know.
        Err(error) if matches!(error.kind(), PermissionDenied | Unsupported | InvalidInput) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Makes the name of a file durable.
fn sync_parent(path: &Path) -> std::io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Replaces a private file, durably and at once; its owner and its mode stay. Of a symlink, what it leads to: that is where
/// the old text is.
pub fn replace_private(path: &Path, text: &Secret) -> Result<()> {
    let resolved = path.canonicalize();
    let path = resolved.as_deref().unwrap_or(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = path.with_file_name(format!(".{name}.{}", std::process::id()));
    write_as(&partial, text, fs::metadata(path).ok().filter(Metadata::is_file).as_ref())?;
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

    #[test]
    fn what_takes_the_place_of_a_secret_has_its_owner_and_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let about = || {
            let found = fs::metadata(&path).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        replace_private(&path, &Secret::from("first")).unwrap();
        assert_eq!(about().2, 0o600);
        // Whoever is not root has nobody to give it to.
        let _ = std::os::unix::fs::chown(&path, Some(1), Some(1));
        fs::set_permissions(&path, Permissions::from_mode(0o440)).unwrap();
        let before = about();
        replace_private(&path, &Secret::from("second")).unwrap();
        assert_eq!((about(), fs::read_to_string(&path).unwrap()), (before, "second".to_owned()));
    }
}
