//! Directories of a restored cluster, and whose they are.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use backup_core::target::{RestoreTarget, TargetError};
use keepwell_source_files::{FileTarget, TargetOptions};
use keepwell_source_postgres::cluster::Cluster;
use keepwell_source_postgres::recovery::{Layout, Places};

use crate::commands::restore::place::is_occupied;
use crate::context::Context;
use crate::exit::Complaint;

/// Directories that were opened.
#[derive(Debug, Default)]
pub struct Directories(Mutex<BTreeMap<PathBuf, Arc<FileTarget>>>);

impl Directories {
    fn all(&self) -> Vec<Arc<FileTarget>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// What could not be put back.
    pub fn left_out(&self) -> Vec<String> {
        self.all().iter().flat_map(|target| target.left_out()).collect()
    }
}

impl Places for Directories {
    fn open(&self, directory: &Path) -> Result<Arc<dyn RestoreTarget>, TargetError> {
        let mut opened = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = opened.get(directory) {
            return Ok(Arc::<FileTarget>::clone(target));
        }
        let target = Arc::new(FileTarget::create(directory, &TargetOptions::default())?);
        opened.insert(directory.to_path_buf(), Arc::clone(&target));
        Ok(target)
    }

    fn sync(&self) -> Result<(), TargetError> {
        self.all().iter().try_for_each(|target| target.sync())
    }
}

/// Where everything goes.
///
/// `moves` are `OLD=NEW`, where OLD is a tablespace's place, name or number. Beside the original no tablespace goes where
/// something stands: it may be the original's. One that lay inside the data directory, as a setting for developers allows,
/// becomes an ordinary one beside it.
pub fn layout(
    ctx: &Context,
    cluster: &Cluster,
    directory: &Path,
    moves: &[String],
    owner: Option<&str>,
) -> Result<Layout> {
    let directory = std::path::absolute(directory).map_err(|e| Complaint::usage(e.to_string()))?;
    let mut moved: BTreeMap<&str, &str> = BTreeMap::new();
    for text in moves {
        let (old, new) = text
            .split_once('=')
            .filter(|(old, new)| !old.is_empty() && new.starts_with('/'))
            .ok_or_else(|| {
                Complaint::usage(format!("`{text}` is not OLD=NEW"))
                    .hint("Write `--tablespace /srv/fast=/srv/copy/fast`.")
            })?;
        moved.insert(old, new);
    }
    let directory_name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut tablespaces = BTreeMap::new();
    for tablespace in &cluster.tablespaces {
        let number = tablespace.oid.to_string();
        let names = [Some(tablespace.location.as_str()), tablespace.name.as_deref(), Some(&number)];
        let new = names.into_iter().flatten().find_map(|name| moved.remove(name));
        let own_place =
            cluster.data_directory.as_ref().is_some_and(|own| same_place(Path::new(own), &directory));
        let location = Path::new(&tablespace.location);
        let place = match new {
            Some(new) => PathBuf::from(new),
            None if location.is_absolute() => location.to_path_buf(),
            None => directory.with_file_name(format!("{directory_name}.tablespace-{number}")),
        };
        if new.is_none() && !own_place && is_occupied(&place) {
            return Err(Complaint::failed(format!(
                "something stands in `{}`, a tablespace's place, and the cluster's own directory was another one",
                place.display()
            ))
            .hint(format!(
                "Say where this one's tablespace goes: `--tablespace {}=NEW`.",
                tablespace.location
            ))
            .into());
        }
        tablespaces.insert(tablespace.oid, place);
    }
    refuse_shared(&directory, &tablespaces)?;
    if let Some(unknown) = moved.keys().next() {
        return Err(Complaint::usage(format!("the cluster has no tablespace `{unknown}`")).into());
    }
    let stamp = crate::text::rfc3339(ctx.now()).replace([':', '-'], "");
    let stamp = stamp.split('.').next().unwrap_or_default();
    let saved_wal = directory.with_file_name(format!("{directory_name}.pg_wal-{stamp}"));
    Ok(Layout { owner: self::owner(&directory, owner)?, directory, tablespaces, saved_wal })
}

/// What is restored later into the same directory would remove what came before.
fn refuse_shared(directory: &Path, tablespaces: &BTreeMap<u32, PathBuf>) -> Result<()> {
    let mut places = vec![directory];
    for place in tablespaces.values() {
        if places.iter().any(|other| same_place(other, place)) {
            return Err(Complaint::usage(format!("`{}` is to be the place of two things", place.display()))
                .hint("Each tablespace goes into a directory of its own: `--tablespace OLD=NEW`.")
                .into());
        }
        places.push(place.as_path());
    }
    Ok(())
}

/// Whether two paths lead to the same directory.
fn same_place(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    real(one) == real(other)
}

/// User and group of the files. Only root can give files away, and a server does not run as root.
pub fn owner(directory: &Path, named: Option<&str>) -> Result<Option<(u32, u32)>> {
    let is_root = rustix::process::geteuid().is_root();
    if let Some(name) = named {
        let found = account(name).ok_or_else(|| Complaint::usage(format!("there is no user `{name}`")))?;
        return Ok(Some(found));
    }
    if !is_root {
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        return Ok(Some(own));
    }
    if let Ok(standing) = fs::metadata(directory)
        && standing.uid() != 0
    {
        return Ok(Some((standing.uid(), standing.gid())));
    }
    account("postgres").map(Some).ok_or_else(|| {
        Complaint::usage("a server does not run as root, and there is no user `postgres`")
            .hint("Say whose the files become: `--owner USER`.")
            .into()
    })
}

/// Whom a server of our own runs as; `None` for us.
pub fn server_owner() -> Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    account("postgres").or_else(|| account("nobody")).map(Some).ok_or_else(|| {
        Complaint::failed("a server does not run as root, and there are no users `postgres` and `nobody`")
            .into()
    })
}

fn account(name: &str) -> Option<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let fits = fields.first() == Some(&name);
        fits.then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))).flatten()
    })
}

/// The first directory on the way to `path` that a user cannot pass, as far as modes tell.
pub fn obstacle(path: &Path, owner: (u32, u32)) -> Option<PathBuf> {
    path.ancestors().skip(1).find(|directory| !allows(directory, owner, 0o1)).map(Path::to_path_buf)
}

/// What keeps a user from reading a file, as far as modes tell: a directory on the way, or the file itself.
pub fn unreadable(path: &Path, owner: (u32, u32)) -> Option<PathBuf> {
    obstacle(path, owner).or_else(|| (!allows(path, owner, 0o4)).then(|| path.to_path_buf()))
}

/// Whether a user has a right, as the last three bits of a mode have it. What cannot be looked at is left to others to judge.
fn allows(path: &Path, (user, group): (u32, u32), right: u32) -> bool {
    let Ok(found) = fs::metadata(path) else { return true };
    let right = match () {
        () if user == 0 => return true,
        () if found.uid() == user => right << 6,
        () if found.gid() == group => right << 3,
        () => right,
    };
    found.mode() & right != 0
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn a_copy_does_not_take_the_tablespaces_of_the_original() {
        let dir = tempfile::tempdir().unwrap();
        let (fast, data) = (dir.path().join("fast"), dir.path().join("data"));
        fs::create_dir_all(fast.join("PG_15_202209061")).unwrap();
        fs::create_dir(&data).unwrap();
        let json = format!(
            r#"{{ "format": 1, "system_identifier": "7", "server_version_num": 150018, "timeline": 1,
            "start_lsn": "0/28", "stop_lsn": "0/100", "start_time": 0, "stop_time": 0, "wal_segment_size": 16777216,
            "data_directory": "{}", "tablespaces": [{{ "oid": 16400, "location": "{}", "name": "fast" }}] }}"#,
            data.display(),
            fast.display()
        );
        let cluster = Cluster::parse(json.as_bytes()).unwrap();
        let global = crate::args::Arguments::try_parse_from(["keepwell", "version"]).unwrap().global;
        let printer = crate::printer::Printer::new(&global, &Default::default());
        let ctx = Context::new(global, Default::default(), printer.into()).unwrap();
        let layout = |directory: &Path, moves: &[String]| {
            super::layout(&ctx, &cluster, directory, moves, Some("root"))
                .map(|l| l.tablespaces[&16400].clone())
        };
        let copy = dir.path().join("copy");
        let refused = layout(&copy, &[]).unwrap_err().to_string();
        assert!(refused.contains("something stands in"), "{refused}");
        let elsewhere = format!("fast={}/elsewhere", dir.path().display());
        assert_eq!(layout(&copy, &[elsewhere]).unwrap(), dir.path().join("elsewhere"));
        assert_eq!(layout(&data, &[]).unwrap(), fast, "in its own place");
        let into = |place: &Path| layout(&copy, &[format!("fast={}", place.display())]);
        assert!(into(&copy).unwrap_err().to_string().ends_with("is to be the place of two things"));
        let two = |second: &Path| {
            let tablespaces = BTreeMap::from([(1, fast.clone()), (2, second.to_path_buf())]);
            refuse_shared(&copy, &tablespaces)
        };
        assert!(two(&fast).is_err() && two(&dir.path().join("./fast")).is_err() && two(&data).is_ok());
        fs::remove_dir(fast.join("PG_15_202209061")).unwrap();
        assert_eq!(layout(&copy, &[]).unwrap(), fast, "nothing is there");
    }

    #[test]
    fn a_tablespace_inside_the_data_directory_becomes_one_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let json = r#"{ "format": 1, "system_identifier": "7", "server_version_num": 170010, "timeline": 1,
            "start_lsn": "0/28", "stop_lsn": "0/100", "start_time": 0, "stop_time": 0, "wal_segment_size": 16777216,
            "data_directory": "/data", "tablespaces": [{ "oid": 16400, "location": "pg_tblspc/16400", "name": "in" }] }"#;
        let cluster = Cluster::parse(json.as_bytes()).unwrap();
        let ctx = Context::of_profiles("");
        let copy = dir.path().join("copy");
        let layout = |moves: &[String]| layout(&ctx, &cluster, &copy, moves, Some("root"));
        let place = dir.path().join("copy.tablespace-16400");
        assert_eq!(layout(&[]).unwrap().tablespaces[&16400], place);
        assert_eq!(layout(&["in=/srv/x".to_owned()]).unwrap().tablespaces[&16400], Path::new("/srv/x"));
        fs::create_dir(&place).unwrap();
        fs::write(place.join("theirs"), "").unwrap();
        assert!(layout(&[]).unwrap_err().to_string().contains("copy.tablespace-16400"));
    }

    #[test]
    fn what_a_user_cannot_read_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("key");
        fs::write(&key, "").unwrap();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        let found = fs::metadata(&key).unwrap();
        let (own, other) = ((found.uid(), found.gid()), (found.uid() + 1, found.gid() + 1));
        set(dir.path(), 0o700);
        set(&key, 0o600);
        assert_eq!(unreadable(&key, own), None);
        assert_eq!(unreadable(&key, other), Some(dir.path().to_owned()));
        // Directories above may be closed to others as well.
        for (mode, by_group, by_others) in [(0o600, false, false), (0o640, true, false), (0o604, false, true)]
        {
            set(&key, mode);
            let reads = [(other.0, own.1), other].map(|who| allows(&key, who, 0o4));
            assert_eq!(reads, [by_group, by_others], "{mode:o}");
        }
        set(&key, 0o200);
        assert_eq!(unreadable(&key, own), (own.0 != 0).then(|| key.clone()));
        assert_eq!(unreadable(&dir.path().join("missing"), own), None, "that is another error");
    }
}
