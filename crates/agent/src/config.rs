//! The configuration file: jobs, each a dataset of this host. Unknown keys are refused, and mistakes shown where they are.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use jiff::{Span, SpanRelativeTo};
use keepwell_catalog::retention::{RetentionPolicy, Slots};
use keepwell_storage::{CredentialSources, InvalidLocation, Location, RateLimits, Settings, Size};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Config {
    /// Where the agent remembers when jobs succeeded, and keeps its cache.
    #[serde(default = "default_state_directory")]
    pub state_directory: AbsolutePath,
    /// Jobs by name; at least one.
    #[serde(rename = "job", deserialize_with = "some")]
    pub jobs: BTreeMap<JobName, Job>,
}

/// What to back up, where to, and how often.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Job {
    /// Where the repository is, which exists already.
    pub repository: Place,
    /// What the location of a repository in the network does not say itself.
    #[serde(default)]
    pub storage: Settings,
    /// What a repository in the network is opened with.
    #[serde(default)]
    pub credentials: CredentialSources,
    /// How fast its bytes may go and come.
    #[serde(default)]
    pub limits: Limits,
    /// Its key, not under a passphrase.
    pub key_file: AbsolutePath,
    /// What to back up.
    pub paths: Paths,
    /// Patterns of what to leave out, as in `.gitignore`, relative to `/`.
    #[serde(default)]
    pub excludes: Vec<String>,
    /// Stay on the file systems of the paths.
    #[serde(default)]
    pub one_file_system: bool,
    /// Leave out directories marked by a `CACHEDIR.TAG`.
    #[serde(default)]
    pub exclude_caches: bool,
    /// Labels of the snapshots.
    #[serde(default)]
    pub tags: Vec<String>,
    /// How long after the start of one run the next is due.
    pub every: Every,
    /// What to keep of the job's snapshots; without it, everything.
    pub retention: Option<Retention>,
    /// Further places for the job's snapshots.
    #[serde(default, rename = "copy", deserialize_with = "distinct")]
    pub copies: Vec<CopyJob>,
}

/// A further place, that is brought up to date after each run.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct CopyJob {
    /// What it is called, also in the name of a file.
    pub name: JobName,
    /// Where it is. Where there is nothing yet, a copy of the repository with the same keys is made.
    pub to: Place,
    /// What the location does not say itself.
    #[serde(default)]
    pub storage: Settings,
    /// What it is opened with.
    #[serde(default)]
    pub credentials: CredentialSources,
    /// How fast bytes may go there and come from there.
    #[serde(default)]
    pub limits: Limits,
    /// A mount point that must be mounted.
    pub require_mount: Option<AbsolutePath>,
    /// That it is not there is no failure.
    #[serde(default)]
    pub when_attached: bool,
    /// Which of the job's snapshots go there; without it, all.
    pub select: Option<Retention>,
    /// What to keep there; without it, everything.
    pub retention: Option<Retention>,
    /// Give back the space after something was forgotten.
    #[serde(default)]
    pub prune: bool,
    /// Before anything is copied, what was not read there for so long is read and proved.
    pub verify: Option<Every>,
    /// How old the newest snapshot there may be.
    pub max_age: Option<Every>,
}

/// Bytes per second; without one, as fast as it goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Limits {
    /// To the store, as `5MiB`.
    pub upload: Option<Size>,
    /// From the store.
    pub download: Option<Size>,
}

impl Limits {
    /// As the library takes it.
    pub fn rates(self) -> RateLimits {
        let rate = |size: Option<Size>| size.and_then(|Size(bytes)| NonZeroU64::new(bytes));
        RateLimits {
            upload_bytes_per_second: rate(self.upload),
            download_bytes_per_second: rate(self.download),
        }
    }
}

/// The name of a job: its dataset, and the name of a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct JobName(String);

impl JobName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for JobName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 100 || name.starts_with('.') || !name.chars().all(fits) {
            return Err(format!("`{name}` is no name of a job: letters, digits, `-`, `_` and `.` make one"));
        }
        Ok(Self(name))
    }
}

/// A path that begins with `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "PathBuf")]
pub struct AbsolutePath(PathBuf);

impl AbsolutePath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<PathBuf> for AbsolutePath {
    type Error = String;

    fn try_from(path: PathBuf) -> Result<Self, String> {
        if path.is_absolute() {
            Ok(Self(path))
        } else {
            Err(format!("`{}` does not begin with `/`", path.display()))
        }
    }
}

/// A location; as a directory it begins with `/`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Place(String);

impl Place {
    /// The location.
    pub fn location(&self) -> Result<Location, InvalidLocation> {
        self.0.parse()
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let location: Location = text.parse().map_err(|error: InvalidLocation| match &error.hint {
            Some(hint) => format!("{error}. {hint}"),
            None => error.to_string(),
        })?;
        match &location.place {
            keepwell_storage::Place::Directory(path) if !path.is_absolute() => {
                Err(format!("`{}` does not begin with `/`", path.display()))
            }
            _ => Ok(Self(location.to_string())),
        }
    }
}

/// One or more paths.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Vec<AbsolutePath>")]
pub struct Paths(Vec<AbsolutePath>);

impl Paths {
    /// The paths.
    pub fn to_vec(&self) -> Vec<PathBuf> {
        self.0.iter().map(|path| path.0.clone()).collect()
    }
}

impl TryFrom<Vec<AbsolutePath>> for Paths {
    type Error = &'static str;

    fn try_from(paths: Vec<AbsolutePath>) -> Result<Self, Self::Error> {
        if paths.is_empty() { Err("no path is given") } else { Ok(Self(paths)) }
    }
}

/// A length of time of at least a second; a day has 24 hours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Every(Duration);

impl Every {
    /// The length.
    pub fn duration(self) -> Duration {
        self.0
    }
}

impl TryFrom<String> for Every {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let span: Span =
            text.parse().map_err(|_| format!("`{text}` is no length of time such as `1h` or `1d`"))?;
        let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok();
        let length = length.and_then(|length| Duration::try_from(length).ok());
        match length {
            Some(length) if length >= Duration::from_secs(1) => Ok(Self(length)),
            _ => Err(format!("`{text}` is not at least a second long, or has months or years")),
        }
    }
}

/// What to keep. Rules add up; `docs/guide/retention.md` has them.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Retention {
    /// The newest so many.
    pub last: Option<Slots>,
    /// One of each of the newest hours.
    pub hourly: Option<Slots>,
    /// One of each of the newest days.
    pub daily: Option<Slots>,
    /// One of each of the newest weeks.
    pub weekly: Option<Slots>,
    /// One of each of the newest months.
    pub monthly: Option<Slots>,
    /// One of each of the newest years.
    pub yearly: Option<Slots>,
}

impl Retention {
    /// As the library takes it.
    pub fn policy(&self) -> RetentionPolicy {
        RetentionPolicy {
            last: self.last,
            hourly: self.hourly,
            daily: self.daily,
            weekly: self.weekly,
            monthly: self.monthly,
            yearly: self.yearly,
            ..RetentionPolicy::default()
        }
    }
}

/// An agent without a job would end at once, and nobody would be told that nothing is backed up.
fn some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<JobName, Job>, D::Error> {
    let jobs = BTreeMap::<JobName, Job>::deserialize(deserializer)?;
    if jobs.is_empty() {
        return Err(D::Error::custom("there is no job: `[job.NAME]` begins one"));
    }
    Ok(jobs)
}

/// Copies whose names differ: by its name it is remembered how new each is.
fn distinct<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<CopyJob>, D::Error> {
    let copies = Vec::<CopyJob>::deserialize(deserializer)?;
    for (number, copy) in copies.iter().enumerate() {
        if copies[..number].iter().any(|other| other.name == copy.name) {
            return Err(D::Error::custom(format!(
                "two copies of one job are called `{}`",
                copy.name.as_str()
            )));
        }
    }
    Ok(copies)
}

fn default_state_directory() -> AbsolutePath {
    AbsolutePath("/var/lib/keepwell-agent".into())
}

/// Reads a configuration file.
pub fn load(path: &Path) -> Result<Config> {
    let text = fs::read_to_string(path).with_context(|| format!("read `{}`", path.display()))?;
    parse(&text).map_err(|error| anyhow!("{}:{error}", path.display()))
}

/// Understands a configuration; an error begins with its line and column.
fn parse(text: &str) -> Result<Config, String> {
    toml::from_str(text).map_err(|error| {
        let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let message = error.message().trim_end().replace('\n', ", ");
        format!("{}:{column}: {message}", before.matches('\n').count() + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
state-directory = "/srv/state"
[job.home]
repository = "/srv/backup"
key-file = "/etc/keepwell/home.key"
paths = ["/home", "/etc"]
excludes = ["*.tmp"]
every = "1h 30m"
[job.home.retention]
daily = 14
yearly = "all"
[job.mail]
repository = "s3://backups/mail?region=eu-central-1"
key-file = "/etc/keepwell/home.key"
paths = ["/var/mail"]
every = "1d"
[job.mail.limits]
upload = "5MiB"
[job.mail.credentials]
access-key = "AK"
secret-key-file = "/etc/keepwell/s3"
"#;

    #[test]
    fn jobs_are_read() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.state_directory.as_path(), Path::new("/srv/state"));
        let jobs: Vec<(&str, &Job)> = config.jobs.iter().map(|(name, job)| (name.as_str(), job)).collect();
        let [("home", home), ("mail", mail)] = jobs.as_slice() else { panic!("{jobs:?}") };
        assert_eq!(home.every.duration(), Duration::from_secs(5400));
        assert_eq!(mail.every.duration(), Duration::from_secs(86_400));
        let policy = home.retention.as_ref().unwrap().policy();
        assert_eq!(policy.daily, Some(Slots::Newest(14)));
        assert_eq!(policy.yearly, Some(Slots::Forever));
        assert!(mail.retention.is_none());
        assert_eq!(mail.limits.rates().upload_bytes_per_second, NonZeroU64::new(5 << 20));
        assert_eq!(mail.limits.rates().download_bytes_per_second, None);
        assert_eq!(home.limits.rates(), RateLimits::default());
    }

    #[test]
    fn copies_of_one_job_have_different_names() {
        let copy =
            |job: &str, name: &str| format!("[[job.{job}.copy]]\nname = \"{name}\"\nto = \"/{name}\"\n");
        let with = |copies: String| parse(&format!("{GOOD}{copies}"));
        let config = with(copy("home", "near") + &copy("home", "far") + &copy("mail", "near")).unwrap();
        assert!(config.jobs.values().all(|job| !job.copies.is_empty()));
        let error = with(copy("home", "near") + &copy("home", "near")).unwrap_err();
        assert!(error.ends_with("two copies of one job are called `near`"), "{error}");
    }

    #[test]
    fn mistakes_are_shown_where_they_are() {
        let job = |lines: &str| format!("[job.a]\nrepository = \"/r\"\nkey-file = \"/k\"\n{lines}\n");
        for (text, expected) in [
            (job("paths = [\"/x\"]\nevry = \"1h\""), "5:1: unknown field `evry`"),
            (job("paths = [\"x\"]\nevery = \"1h\""), "4:9: `x` does not begin with `/`"),
            (job("paths = [\"/x\"]\nevery = \"soon\""), "5:9: `soon` is no length of time"),
            (job("paths = [\"/x\"]\nevery = \"0s\""), "5:9: `0s` is not at least a second"),
            (
                job("paths = [\"/x\"]\nevery = \"1mo\""),
                "5:9: `1mo` is not at least a second long, or has months",
            ),
            (job("paths = []\nevery = \"1h\""), "4:9: no path is given"),
            (job("paths = [\"/x\"]"), "1:1: missing field `every`"),
            (
                job("every = \"1h\"\npaths = [\"/x\"]\n[job.a.retention]\ndayly = 1"),
                "7:1: unknown field `dayly`",
            ),
            (
                job("every = \"1h\"\npaths = [\"/x\"]\n[job.a.retention]\ndaily = \"some\""),
                "7:9: `some` is no number",
            ),
            (
                "[job.a]\nrepository = \"s3://b?secret-key=x\"".to_owned(),
                "2:14: `s3://b` is no place for a repository: the parameter `secret-key` looks like a secret",
            ),
            ("[job.\"../a\"]\n".to_owned(), "1:6: `../a` is no name of a job"),
            (
                job("every = \"1h\"\npaths = [\"/x\"]\n[job.a.limits]\nupload = \"5 miles\""),
                "7:10: `miles` is no unit",
            ),
            ("[jobs.a]\n".to_owned(), "1:2: unknown field `jobs`"),
            ("[job.a\n".to_owned(), "1:7: "),
            (String::new(), "1:1: missing field `job`"),
            ("[job]\n".to_owned(), "1:1: there is no job"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.starts_with(expected), "{error} instead of {expected}");
        }
    }
}
