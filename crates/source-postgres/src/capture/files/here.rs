//! A data directory on this host.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::super::tape::Head;
use super::control::{self, LocalError, Marks, read_error};
use super::listing::Fate;
use super::place::{Listing, Look, Opening, control_path};
use crate::replication::Tablespace;

/// A data directory that was proved to be that of the server.
pub(super) struct Here {
    directory: PathBuf,
}

impl Here {
    /// The directory, if it bears the marks of the server.
    pub fn prove(directory: PathBuf, marks: &Marks<'_>) -> Result<Self, LocalError> {
        control::prove(&directory, marks)?;
        Ok(Self { directory })
    }

    fn root_of(&self, space: Option<u32>) -> PathBuf {
        match space {
            None => self.directory.clone(),
            Some(oid) => self.directory.join("pg_tblspc").join(oid.to_string()),
        }
    }

    fn place(&self, space: Option<u32>, path: &[String]) -> PathBuf {
        self.root_of(space).join(path.join("/"))
    }

    /// The data directory itself, or that of a tablespace.
    pub fn root(&self, space: Option<u32>) -> Result<Head, LocalError> {
        let path = self.root_of(space);
        let metadata = fs::metadata(&path).map_err(read_error(&path))?;
        Ok(head(Vec::new(), &metadata))
    }

    /// Tablespaces of the cluster, as links in `pg_tblspc` say.
    pub fn spaces(&self) -> Result<Vec<Tablespace>, LocalError> {
        let path = self.directory.join("pg_tblspc");
        let mut found = Vec::new();
        for item in fs::read_dir(&path).map_err(read_error(&path))? {
            let item = item.map_err(read_error(&path))?;
            let Some(oid) = item.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Under a setting for developers it is a directory and no link.
            let location = match fs::read_link(item.path()) {
                Ok(location) => location,
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    Path::new("pg_tblspc").join(item.file_name())
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(read_error(&item.path())(error)),
            };
            found.push(Tablespace { oid, location: location.to_string_lossy().into_owned() });
        }
        found.sort_by_key(|space| space.oid);
        Ok(found)
    }

    /// Names in a directory; none if it is gone.
    pub fn list(&self, space: Option<u32>, above: &[String]) -> Result<Listing, LocalError> {
        let path = self.place(space, above);
        let mut listing = Listing::default();
        for item in unless_gone(&path, fs::read_dir(&path))?.into_iter().flatten() {
            match item.map_err(read_error(&path))?.file_name().into_string() {
                Ok(name) => drop(listing.names.insert(name, None)),
                Err(name) => listing.odd.push(name.into_vec()),
            }
        }
        Ok(listing)
    }

    /// Looks at a name.
    pub fn look(&self, space: Option<u32>, path: &[String], fate: Fate) -> Result<Look, LocalError> {
        let place = self.place(space, path);
        // Where the server puts a link to elsewhere, such as for its WAL, the backup has a directory.
        let metadata =
            if fate == Fate::Emptied { fs::metadata(&place) } else { fs::symlink_metadata(&place) };
        Ok(match unless_gone(&place, metadata)? {
            None => Look::Gone,
            Some(metadata) if metadata.is_dir() || metadata.is_file() => {
                Look::Is(head(path.to_vec(), &metadata))
            }
            Some(_) => Look::Left(format!(
                "`{}` is no file and no directory, and a base backup leaves it out",
                place.display()
            )),
        })
    }

    /// Opens a file that is one; what has been put in its place meanwhile is not followed. `None` if it is gone.
    pub fn open(&self, space: Option<u32>, path: Vec<String>) -> io::Result<Option<(Opening, Head)>> {
        let place = self.place(space, &path);
        let flags = OFlags::NOFOLLOW.bits() as i32;
        let file = match File::options().read(true).custom_flags(flags).open(place) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        Ok(Some((Opening::File(file), head(path, &metadata))))
    }

    /// `pg_control`, which may be caught half written.
    pub fn control(&self) -> Result<(Vec<u8>, Head), LocalError> {
        let (bytes, metadata) = control::read(&self.directory)?;
        Ok((bytes, head(control_path(), &metadata)))
    }
}

/// Metadata as an archive of the server would have it.
fn head(path: Vec<String>, metadata: &Metadata) -> Head {
    Head {
        path,
        directory: metadata.is_dir(),
        size: metadata.size(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        mtime: metadata.mtime(),
    }
}

/// `None` for what is gone: files of a running server come and go.
fn unless_gone<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, LocalError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(read_error(path)(error)),
    }
}
