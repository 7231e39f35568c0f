//! The configuration file: profiles of settings, with positions in the error messages and unknown keys refused.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Result;
use keepwell_storage::Size;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::exit::Complaint;
use crate::retention::{Age, RetentionArgs};
use crate::text;

/// The profile that is used when none is named, if the file has it.
pub const DEFAULT_PROFILE: &str = "default";

/// A configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    profile: BTreeMap<String, Profile>,
}

/// The settings under one name. What is not set falls back to the defaults; options and environment win over it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Profile {
    /// The name of the profile; it is the default name of its dataset.
    #[serde(skip)]
    pub name: Option<String>,
    /// The repository.
    pub repository: Option<String>,
    /// The file with its key.
    pub key_file: Option<PathBuf>,
    /// A shell command that prints the key file.
    pub key_command: Option<String>,
    /// A file with the passphrase of the key file.
    pub passphrase_file: Option<PathBuf>,
    /// A shell command that prints the passphrase.
    pub passphrase_command: Option<String>,
    /// What `backup` backs up when no path is given.
    pub paths: Vec<PathBuf>,
    /// Patterns of what to leave out.
    pub excludes: Vec<String>,
    /// Files of such patterns.
    pub exclude_files: Vec<PathBuf>,
    /// Names of ignore files to honour inside the tree.
    pub ignore_files: Vec<String>,
    /// Stay on the file systems of the paths.
    pub one_file_system: bool,
    /// Leave out directories marked by a `CACHEDIR.TAG`.
    pub exclude_caches: bool,
    /// The dataset; by default the name of the profile.
    pub dataset: Option<String>,
    /// The host; by default that of the machine.
    pub host: Option<String>,
    /// Labels of new snapshots.
    pub tags: Vec<String>,
    /// zstd level, 1 to 22.
    #[serde(deserialize_with = "level")]
    pub compression_level: Option<i32>,
    /// Where to cache.
    pub cache: Option<PathBuf>,
    /// A mount point that must be mounted before a local repository is touched.
    pub require_mount: Option<PathBuf>,
    /// What `forget` keeps when it is told nothing else.
    pub retention: Option<RetentionArgs>,
    /// Further places that hold the snapshots, or some of them, in the order in which they are asked.
    #[serde(rename = "copy")]
    pub copies: Vec<CopyConfig>,
    /// A shell command that asks for archived packs, whose names it finds on its standard input.
    pub warm_up_command: Option<String>,
    /// How much may be used.
    pub limits: Limits,
    /// What the location of a repository in the network does not say itself.
    pub storage: keepwell_storage::Settings,
    /// What a repository in the network is opened with.
    pub credentials: keepwell_storage::CredentialSources,
}

/// A copy: where it is, what goes there, and how long it stays.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CopyConfig {
    /// Where it is.
    pub to: String,
    /// What people call it; by default the place.
    name: Option<String>,
    /// Only these datasets.
    #[serde(default)]
    pub datasets: Vec<String>,
    /// Only of these hosts.
    #[serde(default)]
    pub hosts: Vec<String>,
    /// Only with one of these tags.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Only one snapshot of each hour, day, week, month or year.
    pub only: Option<Only>,
    /// Only what is at most so much older than the newest.
    pub within: Option<Age>,
    /// What stays there; without it, everything.
    pub retention: Option<RetentionArgs>,
    /// Prune there after something was forgotten, and remove WAL that no base backup there needs.
    #[serde(default)]
    pub prune: bool,
    /// The key file, if the copy has keys of its own.
    pub key_file: Option<PathBuf>,
    /// A mount point that must be mounted before the place is touched.
    pub require_mount: Option<PathBuf>,
    /// That it is not there is no failure: a disk in a safe.
    #[serde(default)]
    pub when_attached: bool,
    /// Before anything is copied, read and prove there what was not read within this time.
    pub verify: Option<Age>,
    /// Warn when the newest snapshot there is older than this.
    pub max_age: Option<Age>,
}

impl CopyConfig {
    /// What people call it.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.to)
    }
}

/// One snapshot of each of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Only {
    /// Hour.
    Hourly,
    /// Day.
    Daily,
    /// ISO week.
    Weekly,
    /// Month.
    Monthly,
    /// Year.
    Yearly,
}

fn level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i32>, D::Error> {
    match i32::deserialize(deserializer)? {
        level @ 1..=22 => Ok(Some(level)),
        level => Err(D::Error::custom(format!("the compression level {level} is not from 1 to 22"))),
    }
}

/// How much may be used.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// Bytes per second, as `5MiB`.
    pub upload: Option<Size>,
    /// Bytes per second.
    pub download: Option<Size>,
    /// Threads that compress and encrypt.
    pub threads: Option<u16>,
    /// Memory to use at most.
    pub memory: Option<Size>,
}

/// Where a profile is looked for.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The file, and whether somebody named it: then it must exist.
    pub file: &'a Path,
    /// See above.
    pub file_is_named: bool,
    /// The profile, if somebody named one: then it must exist.
    pub profile: Option<&'a str>,
    /// What `~/` at the start of a path means.
    pub home: &'a Path,
}

/// What a configuration file says.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The wanted profile; an empty one where there is none and nobody asked for one.
    pub profile: Profile,
    /// The others, by name.
    pub others: Vec<Profile>,
}

/// Reads the wanted profile and, for what they know of places, the others.
pub fn load(wanted: &Wanted<'_>) -> Result<Loaded> {
    let shown = wanted.file.display();
    let text = match fs::read_to_string(wanted.file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && !wanted.file_is_named => {
            return match wanted.profile {
                None => Ok(Loaded::default()),
                Some(name) => {
                    Err(Complaint::usage(format!("there is no profile `{name}`: `{shown}` does not exist"))
                        .into())
                }
            };
        }
        Err(error) => return Err(Complaint::usage(format!("read `{shown}`: {error}")).into()),
    };
    read(&text, &shown.to_string(), wanted)
}

/// The same for the text of the file, which is shown under a name.
pub fn read(text: &str, shown: &str, wanted: &Wanted<'_>) -> Result<Loaded> {
    let mut file = parse(text, shown)?;
    for (name, profile) in &mut file.profile {
        profile.name = Some(name.clone());
        profile.refuse_two_ways().map_err(|what| {
            Complaint::usage(format!("{shown}: the profile `{name}` says both {what}: one is enough"))
        })?;
        profile.expand_home(wanted.home);
    }
    let name = wanted.profile.unwrap_or(DEFAULT_PROFILE);
    let profile = match (file.profile.remove(name), wanted.profile) {
        (Some(profile), _) => profile,
        (None, None) => Profile::default(),
        (None, Some(_)) => return Err(no_profile(name, shown, &file)),
    };
    Ok(Loaded { profile, others: file.profile.into_values().collect() })
}

fn no_profile(name: &str, shown: &str, file: &File) -> anyhow::Error {
    let names: Vec<&str> = file.profile.keys().map(String::as_str).collect();
    let mut complaint = Complaint::usage(format!("there is no profile `{name}` in `{shown}`"));
    if let Some(close) = text::closest(name, names.iter().copied()) {
        complaint = complaint.hint(format!("Did you mean `{close}`?"));
    } else if !names.is_empty() {
        complaint = complaint.hint(format!("There are: {}.", names.join(", ")));
    }
    complaint.into()
}

fn parse(text: &str, shown: &str) -> Result<File> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let (message, hint) = explain(error.message());
        let complaint = Complaint::usage(located(text, shown, &span, &message));
        hint.into_iter().fold(complaint, Complaint::hint).into()
    })
}

/// The message of the TOML library in our words, and what was probably meant.
fn explain(message: &str) -> (String, Option<String>) {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match (message.strip_prefix("unknown field `"), quoted.split_first()) {
        (Some(_), Some((given, known))) => {
            let hint = match text::closest(given, known.iter().copied()) {
                Some(close) => format!("Did you mean `{close}`?"),
                None => format!("Known here: {}.", known.join(", ")),
            };
            (format!("the key `{given}` is unknown"), Some(hint))
        }
        _ => (wrong_type(message).unwrap_or_else(|| message.trim_end().replace('\n', ", ")), None),
    }
}

/// The same for a value of the wrong type, without words of Rust.
fn wrong_type(message: &str) -> Option<String> {
    let (found, expected) = message.trim_end().strip_prefix("invalid type: ")?.split_once(", expected ")?;
    let expected = match expected {
        "a sequence" if found == "map" => "a list of tables, as `[[profile.NAME.copy]]` begins one",
        "a sequence" => "a list, such as `[\"one\", \"two\"]`",
        "a boolean" => "`true` or `false`",
        "i32" | "u16" => "a whole number",
        "a string" | "path string" => "a text in quotes",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    let found = match found {
        "map" => "a table",
        "sequence" => "a list",
        other => other,
    };
    Some(format!("expected {expected}, and found {found}"))
}

/// `FILE:LINE:COLUMN: MESSAGE` with the line and a mark under the place.
fn located(text: &str, shown: &str, span: &Range<usize>, message: &str) -> String {
    let before = text.get(..span.start).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |at| at + 1);
    let line = text[start..].lines().next().unwrap_or("");
    let number = before.matches('\n').count() + 1;
    let column = before[start..].chars().count();
    let length = text.get(span.clone()).map_or(1, |t| t.lines().next().unwrap_or("").chars().count()).max(1);
    let margin = " ".repeat(number.to_string().len());
    format!(
        "{shown}:{number}:{}: {message}\n{margin} |\n{number} | {line}\n{margin} | {}{}",
        column + 1,
        " ".repeat(column),
        "^".repeat(length)
    )
}

impl Profile {
    /// One of two ways to give a secret would be silently ignored.
    fn refuse_two_ways(&self) -> Result<(), &'static str> {
        if self.key_file.is_some() && self.key_command.is_some() {
            return Err("`key-file` and `key-command`");
        }
        if self.passphrase_file.is_some() && self.passphrase_command.is_some() {
            return Err("`passphrase-file` and `passphrase-command`");
        }
        Ok(())
    }

    fn expand_home(&mut self, home: &Path) {
        let lists = [&mut self.paths, &mut self.exclude_files].into_iter().flatten();
        let single =
            [&mut self.key_file, &mut self.passphrase_file, &mut self.cache, &mut self.require_mount];
        let storage = &mut self.storage;
        let storage = [&mut storage.ca_file, &mut storage.identity_file, &mut storage.known_hosts_file];
        let all = lists.chain(single.into_iter().flatten()).chain(storage.into_iter().flatten());
        let copies =
            self.copies.iter_mut().flat_map(|copy| copy.key_file.iter_mut().chain(&mut copy.require_mount));
        for path in all.chain(self.credentials.files_mut()).chain(copies) {
            if let Ok(rest) = path.strip_prefix("~") {
                *path = home.join(rest);
            }
        }
        let places = self.repository.iter_mut().chain(self.copies.iter_mut().map(|copy| &mut copy.to));
        for place in places {
            if let Some(rest) = place.strip_prefix("~/") {
                *place = home.join(rest).display().to_string();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::{Exit, exit_of, hints_of};

    const GOOD: &str = r#"
[profile.default]
repository = "~/backup"
key-file = "~/keys/x.key"
paths = ["/etc", "~"]
tags = ["daily"]
compression-level = 3
[profile.default.retention]
last = 3
daily = 14
yearly = "all"
within = "2d"
[profile.default.limits]
upload = "5MiB"
memory = 134217728
[[profile.default.copy]]
name = "archive"
to = "~/archive"
only = "weekly"
within = "1y"
prune = true
when-attached = true
max-age = "14d"
require-mount = "/mnt/archive"
[profile.default.copy.retention]
yearly = 7
[profile.other]
[profile.other.storage]
endpoint = "https://s3.example.org"
ca-file = "~/ca.pem"
[profile.other.credentials]
access-key = "AK"
secret-key-file = "~/secret"
"#;

    fn read(text: &str, profile: Option<&str>) -> Result<Profile> {
        read_all(text, profile).map(|loaded| loaded.profile)
    }

    fn read_all(text: &str, profile: Option<&str>) -> Result<Loaded> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        fs::write(&file, text).unwrap();
        load(&Wanted { file: &file, file_is_named: true, profile, home: Path::new("/home/me") })
    }

    #[test]
    fn a_profile_has_its_name_and_paths_below_home() {
        let profile = read(GOOD, None).unwrap();
        assert_eq!(profile.name.as_deref(), Some("default"));
        assert_eq!(profile.repository.as_deref(), Some("/home/me/backup"));
        assert_eq!(profile.key_file, Some("/home/me/keys/x.key".into()));
        assert_eq!(profile.paths, [PathBuf::from("/etc"), "/home/me/".into()]);
        assert_eq!(profile.limits.upload, Some(Size(5 << 20)));
        assert_eq!(profile.limits.memory, Some(Size(128 << 20)));
        let policy = profile.retention.unwrap().policy();
        assert!(policy.daily.is_some() && policy.within.is_some() && policy.hourly.is_none());
        let [copy] = profile.copies.as_slice() else { panic!("{:?}", profile.copies) };
        assert_eq!((copy.name(), copy.to.as_str()), ("archive", "/home/me/archive"));
        assert!(copy.only == Some(Only::Weekly) && copy.when_attached && copy.retention.is_some());
        let other = read(GOOD, Some("other")).unwrap();
        assert_eq!(other.name.as_deref(), Some("other"));
        assert_eq!(other.storage.ca_file, Some("/home/me/ca.pem".into()));
        assert_eq!(other.credentials.secret_key_file, Some("/home/me/secret".into()));
        let others = read_all(GOOD, None).unwrap().others;
        assert!(others.len() == 1 && others[0].credentials == other.credentials, "{others:?}");
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        for (text, place, message, hint) in [
            ("[profile.a]\nrepositry = \"/x\"\n", ":2:1:", "the key `repositry` is unknown", "`repository`"),
            ("[profile.a]\ncompression-level = \"high\"\n", ":2:21:", "expected a whole number", ""),
            ("[profile.a]\npaths = \"/etc\"\n", ":2:9:", "expected a list, such as `[", ""),
            ("[profile.a]\nexclude-caches = \"yes\"\n", ":2:18:", "expected `true` or `false`", ""),
            ("[profile.a.copy]\nto = \"/x\"\n", ":1:1:", "`[[profile.NAME.copy]]`", ""),
            ("[profile]\nrepository = \"/x\"\n", ":2:14:", "expected a table, and found string", ""),
            ("[profile.a]\ncompression-level = 99\n", ":2:21:", "99 is not from 1 to 22", ""),
            ("[profile.a\n", ":1:11:", "", ""),
            ("[profile.a.retention]\ndaily = \"many\"\n", ":2:9:", "`many` is no number", ""),
            ("[[profile.a.copy]]\nonly = \"weekly\"\n", ":1:1:", "missing field `to`", ""),
            ("[[profile.a.copy]]\nto = \"/x\"\nonly = \"weakly\"\n", ":3:8:", "unknown variant `weakly`", ""),
            ("[profile.a.storage]\npath-stile = true\n", ":2:1:", "`path-stile` is unknown", "`path-style`"),
            ("[profile.a.storage]\ntls-min = \"1.1\"\n", ":2:11:", "`1.1` is none of `1.2`, `1.3`", ""),
            (
                "[profile.a.credentials]\nsecret-key = \"x\"\n",
                ":2:1:",
                "`secret-key` is unknown",
                "secret-key-file",
            ),
            ("[profile.a.limits]\nupload = \"5 miles\"\n", ":2:10:", "is no unit", ""),
            ("[profiles.a]\n", ":1:2:", "the key `profiles` is unknown", "`profile`"),
        ] {
            let error = read(text, Some("a")).unwrap_err();
            let shown = error.to_string();
            assert!(shown.contains(place) && shown.contains(message), "{shown}");
            assert!(hints_of(&error).concat().contains(hint), "{error:?}");
            assert_eq!(exit_of(&error), Exit::Usage);
        }
    }

    #[test]
    fn two_ways_to_give_a_secret_are_refused() {
        for what in ["key", "passphrase"] {
            let text = format!("[profile.a]\n{what}-file = \"/x\"\n{what}-command = \"cat /y\"\n");
            let error = read(&text, Some("a")).unwrap_err();
            assert!(error.to_string().contains(&format!("`{what}-file` and `{what}-command`")), "{error}");
            assert_eq!(exit_of(&error), Exit::Usage);
        }
    }

    #[test]
    fn a_named_profile_must_exist_and_the_default_need_not() {
        let error = read(GOOD, Some("othr")).unwrap_err();
        assert_eq!(hints_of(&error), ["Did you mean `other`?"]);
        assert!(read("", None).unwrap().name.is_none());
        let nowhere = Path::new("/nonexistent/config.toml");
        let load = |file_is_named, profile| {
            load(&Wanted { file: nowhere, file_is_named, profile, home: Path::new("/") })
        };
        assert!(load(false, None).is_ok());
        assert!(load(true, None).is_err());
        assert!(load(false, Some("x")).is_err());
    }
}
