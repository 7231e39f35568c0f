//! What lies within what is backed up or restored, by whatever name it goes.

use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use crate::mountinfo::Mounted;

/// The kernel follows as many symlinks on one way.
const LINKS_MAX: usize = 40;

/// What is backed up or restored.
#[derive(Debug)]
pub struct Within<'a> {
    paths: Vec<PathBuf>,
    mounted: &'a [Mounted],
}

impl<'a> Within<'a> {
    /// Of these paths, which are looked at anyway; with what is mounted.
    pub fn new(paths: &[PathBuf], mounted: &'a [Mounted]) -> Self {
        let real = paths.iter().filter_map(|path| path.canonicalize().ok()); // a symlink may lead to them
        Self { paths: paths.iter().cloned().chain(real).collect(), mounted }
    }

    /// Whether an absolute path lies there, or leads there by symlinks. Whoever looks at a share whose server is away waits for
    /// it: no such share is looked at.
    pub fn holds(&self, path: &Path) -> bool {
        let is_within = |path: &Path| self.paths.iter().any(|above| path.starts_with(above));
        is_within(path) || is_within(&real(path, self.mounted))
    }
}

/// An absolute path without the symlinks on its way, as far as that goes without a look at what lies behind a server.
fn real(path: &Path, mounted: &[Mounted]) -> PathBuf {
    let mut real = PathBuf::from("/");
    let mut rest = names_backwards(path);
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            real.pop();
            continue;
        }
        let next = real.join(&name);
        if mounted.iter().any(|mounted| mounted.is_afar() && mounted.point == next) {
            return rest.into_iter().rev().fold(next, |path, name| path.join(name));
        }
        match fs::read_link(&next) {
            Ok(link) if links < LINKS_MAX => {
                links += 1;
                if link.is_absolute() {
                    real = PathBuf::from("/");
                }
                rest.extend(names_backwards(&link));
            }
            _ => real = next,
        }
    }
    real
}

fn names_backwards(path: &Path) -> Vec<OsString> {
    let name = |component: Component<'_>| match component {
        Component::Normal(_) | Component::ParentDir => Some(component.as_os_str().to_owned()),
        _ => None,
    };
    path.components().rev().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_symlink_is_followed_unless_it_lies_behind_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        for name in ["data", "share"] {
            fs::create_dir(top.join(name)).unwrap();
        }
        symlink(top.join("data"), top.join("absolute")).unwrap();
        symlink("../data", top.join("share/relative")).unwrap();
        symlink("around", top.join("around")).unwrap();
        let share = Mounted { point: top.join("share"), kind: "nfs4".into(), source: "host:/".into() };
        let disk = Mounted { kind: "ext4".into(), point: top.join("share"), source: "/dev/sdb1".into() };
        for (path, mounted, expected) in [
            ("absolute/x/y", &share, "data/x/y"),
            ("share/relative/x", &disk, "data/x"),
            ("share/relative/x", &share, "share/relative/x"),
            ("data/../absolute", &share, "data"),
            ("around/x", &share, "around/x"),
            ("none/x", &share, "none/x"),
        ] {
            let mounted = std::slice::from_ref(mounted);
            assert_eq!(real(&top.join(path), mounted), top.join(expected), "{path}");
        }
        let (paths, mounted) = ([top.join("data")], [share]);
        let within = Within::new(&paths, &mounted);
        assert!(within.holds(&top.join("absolute/copy")) && within.holds(&top.join("data/copy")));
        assert!(!within.holds(&top.join("share/relative/copy")) && !within.holds(&top.join("database")));
    }
}
