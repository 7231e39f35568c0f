//! What is left out: patterns, ignore files, cache directories.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backup_core::source::SourceError;
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use rustix::fs::{Mode, OFlags, fstat};

use crate::beneath::open_beneath;
use crate::look::Look;
use crate::options::{FileOptions, real};

/// A larger ignore file is not one.
const IGNORE_FILE_BYTES_MAX: u64 = 1 << 20;

/// The name and the first bytes of what marks a cache directory.
pub(crate) const CACHE_TAG: &[u8] = b"CACHEDIR.TAG";
const CACHE_SIGNATURE: &[u8] = b"Signature: 8a477f597d28d172789f06886806bc55";

#[derive(Debug)]
pub(crate) struct Rules {
    excludes: Gitignore,
    except: Vec<Vec<u8>>,
    pub ignore_file_names: Vec<Vec<u8>>,
    pub one_file_system: bool,
    pub exclude_caches: bool,
    pub larger_than: u64,
}

/// The patterns of one ignore file, and those of the directories above it.
#[derive(Debug)]
pub(crate) struct Layer {
    patterns: Gitignore,
    above: Option<Arc<Layer>>,
}

impl Rules {
    pub fn new(options: &FileOptions) -> Result<Self, SourceError> {
        let ignore_file_names: Vec<_> =
            options.ignore_file_names.iter().map(|name| name.clone().into_bytes()).collect();
        if let Some(name) =
            options.ignore_file_names.iter().find(|name| name.is_empty() || name.contains(['/', '\0']))
        {
            return Err(SourceError::Other(format!("`{name}` is no name of an ignore file")));
        }
        Ok(Self {
            excludes: excludes(options)?,
            except: Vec::new(),
            ignore_file_names,
            one_file_system: options.one_file_system,
            exclude_caches: options.exclude_caches,
            larger_than: options.exclude_larger_than.unwrap_or(u64::MAX),
        })
    }

    /// Whether [`leaves_out`](Self::leaves_out) could say yes, so that the kind must be known before.
    pub fn have_patterns(&self, layer: Option<&Layer>) -> bool {
        layer.is_some() || !self.excludes.is_empty() || !self.except.is_empty()
    }

    /// Leaves absolute paths out whatever the patterns say, by every way that leads there from the given ones: these may go
    /// through symlinks.
    pub fn leave_out(&mut self, paths: &[PathBuf], given: &[Vec<u8>]) {
        for path in paths.iter().map(|path| real(path)) {
            let ways = given.iter().filter_map(|given| {
                let given = Path::new(OsStr::from_bytes(given));
                let rest = path.strip_prefix(real(given)).ok()?;
                Some(given.join(rest).components().collect::<PathBuf>())
            });
            self.except.extend(ways.chain([path.clone()]).map(|way| way.into_os_string().into_vec()));
        }
        self.except.sort();
        self.except.dedup();
    }

    /// The paths that are left out whatever the patterns say.
    pub fn except(&self) -> &[Vec<u8>] {
        &self.except
    }

    /// Whether `path` is left out, an absolute path whose parents are not.
    pub fn leaves_out(&self, mut layer: Option<&Layer>, path: &[u8], is_dir: bool) -> bool {
        if self.except.iter().any(|except| except == path) {
            return true;
        }
        let path = Path::new(OsStr::from_bytes(path));
        let mut decision = self.excludes.matched(path, is_dir);
        while let (true, Some(Layer { patterns, above })) = (decision.is_none(), layer) {
            decision = patterns.matched(path, is_dir);
            layer = above.as_deref();
        }
        decision.is_ignore()
    }
}

fn excludes(options: &FileOptions) -> Result<Gitignore, SourceError> {
    let refuse =
        |line: &str, error: ignore::Error| SourceError::Other(format!("`{line}` is no pattern: {error}"));
    let mut builder = GitignoreBuilder::new("/");
    for line in &options.excludes {
        builder.add_line(None, line).map_err(|error| refuse(line, error))?;
    }
    for file in &options.exclude_files {
        let text = std::fs::read_to_string(file).map_err(|source| SourceError::Io {
            operation: "read",
            path: file.display().to_string(),
            source,
        })?;
        for line in lines(&text) {
            builder.add_line(Some(file.clone()), line).map_err(|error| refuse(line, error))?;
        }
    }
    builder.build().map_err(|error| SourceError::Other(format!("the patterns are too much: {error}")))
}

/// The lines of a file of patterns, without the mark that editors elsewhere put before the first.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.strip_prefix('\u{feff}').unwrap_or(text).lines()
}

impl Layer {
    /// Reads the ignore file `name` of the directory open at `fd`, whose path is `directory`. The message of an `Err` is
    /// about the file or its first bad line; the good lines are in force all the same.
    pub fn read(
        fd: impl AsFd,
        name: &[u8],
        directory: &[u8],
        above: Option<Arc<Self>>,
    ) -> (Option<Arc<Self>>, Result<(), String>) {
        let bytes = match read_regular(fd, name, IGNORE_FILE_BYTES_MAX + 1) {
            Ok(bytes) if bytes.len() as u64 > IGNORE_FILE_BYTES_MAX => {
                return (
                    above,
                    Err(format!("an ignore file of more than {IGNORE_FILE_BYTES_MAX} bytes is not honoured")),
                );
            }
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (above, Ok(())),
            Err(error) => return (above, Err(format!("read ignore file: {error}"))),
        };
        let mut problem = Ok(());
        let mut builder = GitignoreBuilder::new(Path::new(OsStr::from_bytes(directory)));
        for line in lines(&String::from_utf8_lossy(&bytes)) {
            if let Err(error) = builder.add_line(None, line) {
                problem = problem.and(Err(format!("`{line}` is no pattern: {error}")));
            }
        }
        match builder.build() {
            Ok(patterns) => (Some(Arc::new(Self { patterns, above })), problem),
            Err(error) => (above, Err(format!("the ignore file is too much: {error}"))),
        }
    }
}

/// Whether the directory open at `fd` has a tag that makes it a cache.
pub(crate) fn is_cache(fd: impl AsFd) -> bool {
    read_regular(fd, CACHE_TAG, CACHE_SIGNATURE.len() as u64).is_ok_and(|start| start == CACHE_SIGNATURE)
}

/// At most `bytes_max` bytes of a regular file; a FIFO or symlink of that name is an error and waits for nobody.
fn read_regular(fd: impl AsFd, name: &[u8], bytes_max: u64) -> io::Result<Vec<u8>> {
    let file = open_beneath(fd, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
    if !Look::from(fstat(&file)?).is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::from(file).take(bytes_max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excludes_follow_the_rules_of_gitignore() {
        let patterns =
            ["*.tmp", "!keep.tmp", "/var/cache/", "node_modules/", "a/**/z", "# comment", "\\#hash"];
        let options = FileOptions { excludes: patterns.map(str::to_owned).to_vec(), ..Default::default() };
        let rules = Rules::new(&options).unwrap();
        for (path, is_dir, out) in [
            (&b"/x/y.tmp"[..], false, true),
            (b"/x/keep.tmp", false, false),
            (b"/var/cache", true, true),
            (b"/var/cache", false, false),
            (b"/x/var/cache", true, false),
            (b"/deep/node_modules", true, true),
            (b"/a/b/c/z", false, true),
            (b"/x/a/b/z", false, false),
            (b"/#hash", false, true),
            (b"/x/\xff.tmp", false, true),
        ] {
            assert_eq!(rules.leaves_out(None, path, is_dir), out, "{}", String::from_utf8_lossy(path));
        }
    }

    #[test]
    fn no_pattern_keeps_what_is_excepted() {
        let options = FileOptions { excludes: vec!["!/d/[x] y".to_owned()], ..Default::default() };
        let mut rules = Rules::new(&options).unwrap();
        rules.leave_out(&["/d/[x] y".into()], &[]);
        assert!(rules.have_patterns(None) && rules.leaves_out(None, b"/d/[x] y", true));
        assert!(!rules.leaves_out(None, b"/d/x y", true) && !rules.leaves_out(None, b"/d", true));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_pattern() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(".ignore");
        std::fs::write(&file, "\u{feff}*.tmp\r\n*.log\r\n").unwrap();
        let listed = FileOptions { exclude_files: vec![file], ..Default::default() };
        let (listed, none) = (Rules::new(&listed).unwrap(), Rules::new(&FileOptions::default()).unwrap());
        let (layer, problem) = Layer::read(File::open(dir.path()).unwrap(), b".ignore", b"/d", None);
        assert_eq!(problem, Ok(()));
        for path in [&b"/d/x.tmp"[..], b"/d/x.log"] {
            assert!(listed.leaves_out(None, path, false) && none.leaves_out(layer.as_deref(), path, false));
        }
    }

    #[test]
    fn a_bad_pattern_is_named() {
        let options = FileOptions { excludes: vec!["[z-a]".to_owned()], ..Default::default() };
        let message = Rules::new(&options).unwrap_err().to_string();
        assert!(message.starts_with("`[z-a]` is no pattern: "), "{message}");
    }

    #[test]
    fn a_deeper_ignore_file_wins_and_excludes_win_over_all() {
        let dir = tempfile::tempdir().unwrap();
        let layer = |text: &str, path: &str, above| {
            std::fs::write(dir.path().join(".ignore"), text).unwrap();
            let fd = File::open(dir.path()).unwrap();
            Layer::read(&fd, b".ignore", path.as_bytes(), above).0
        };
        let top = layer("*.log\nsecret", "/d", None);
        let deep = layer("!*.log\n/only_here", "/d/e", top);
        let rules =
            Rules::new(&FileOptions { excludes: vec!["!secret".to_owned()], ..Default::default() }).unwrap();
        for (path, out) in [
            ("/d/e/x.log", false),
            ("/d/e/secret", false),
            ("/d/e/only_here", true),
            ("/d/e/f/only_here", false),
            ("/d/e/other", false),
        ] {
            assert_eq!(rules.leaves_out(deep.as_deref(), path.as_bytes(), false), out, "{path}");
        }
    }

    #[test]
    fn an_ignore_file_that_is_no_file_is_a_problem_and_blocks_nothing() {
        let dir = tempfile::tempdir().unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, dir.path().join("fifo"), Mode::RWXU).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let fd = File::open(dir.path()).unwrap();
        for name in ["fifo", "link"] {
            let (layer, problem) = Layer::read(&fd, name.as_bytes(), b"/d", None);
            assert!(layer.is_none() && problem.is_err(), "{name}");
        }
        let (layer, problem) = Layer::read(&fd, b"absent", b"/d", None);
        assert!(layer.is_none() && problem.is_ok());
    }
}
