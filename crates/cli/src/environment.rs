//! The one place that reads environment variables.

use std::ffi::OsString;
use std::path::PathBuf;

use keepwell_source_postgres::options::{Surroundings, Variables};

/// What the environment says, read once at the start.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `KEEPWELL_REPOSITORY`
    pub repository: Option<String>,
    /// `KEEPWELL_KEY_FILE`
    pub key_file: Option<PathBuf>,
    /// `KEEPWELL_KEY_COMMAND`
    pub key_command: Option<String>,
    /// `KEEPWELL_KEY_FD`
    pub key_fd: Option<String>,
    /// `KEEPWELL_PASSPHRASE_FILE`
    pub passphrase_file: Option<PathBuf>,
    /// `KEEPWELL_PASSPHRASE_COMMAND`
    pub passphrase_command: Option<String>,
    /// `KEEPWELL_PASSPHRASE_FD`
    pub passphrase_fd: Option<String>,
    /// `CREDENTIALS_DIRECTORY`, set by systemd for `LoadCredential=`.
    pub credentials: Option<PathBuf>,
    /// `KEEPWELL_CONFIG`
    pub config: Option<PathBuf>,
    /// `KEEPWELL_PROFILE`
    pub profile: Option<String>,
    /// `KEEPWELL_CACHE_DIR`
    pub cache_dir: Option<PathBuf>,
    /// Variables whose names begin with `PG`, as libpq reads them. `Debug` shows no value.
    pub postgres: Variables,
    /// The directories of `PATH`.
    pub path: Vec<PathBuf>,
    /// `USER` or `LOGNAME`: the database role by default.
    pub user: Option<String>,
    /// `KEEPWELL_LOG`: a filter such as `debug` or `backup_core=trace`.
    pub log: Option<String>,
    /// `NO_COLOR`, when it is not empty.
    pub no_color: bool,
    /// `TERM=dumb`
    pub dumb_terminal: bool,
    home: Option<PathBuf>,
    xdg_config: Option<PathBuf>,
    xdg_data: Option<PathBuf>,
    xdg_cache: Option<PathBuf>,
}

impl Environment {
    /// Reads the environment of this process. An empty variable counts as one that is not set.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    pub fn read() -> Self {
        let text = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let path =
            |name: &str| std::env::var_os(name).filter(|v: &OsString| !v.is_empty()).map(PathBuf::from);
        let absolute = |name: &str| path(name).filter(|path| path.is_absolute());
        Self {
            repository: text("KEEPWELL_REPOSITORY"),
            key_file: path("KEEPWELL_KEY_FILE"),
            key_command: text("KEEPWELL_KEY_COMMAND"),
            key_fd: text("KEEPWELL_KEY_FD"),
            passphrase_file: path("KEEPWELL_PASSPHRASE_FILE"),
            passphrase_command: text("KEEPWELL_PASSPHRASE_COMMAND"),
            passphrase_fd: text("KEEPWELL_PASSPHRASE_FD"),
            credentials: path("CREDENTIALS_DIRECTORY"),
            config: path("KEEPWELL_CONFIG"),
            profile: text("KEEPWELL_PROFILE"),
            cache_dir: path("KEEPWELL_CACHE_DIR"),
            postgres: std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
                .collect(),
            path: std::env::var_os("PATH")
                .map_or_else(Vec::new, |dirs| std::env::split_paths(&dirs).collect()),
            user: text("USER").or_else(|| text("LOGNAME")),
            log: text("KEEPWELL_LOG"),
            no_color: text("NO_COLOR").is_some(),
            dumb_terminal: text("TERM").is_some_and(|term| term == "dumb"),
            home: absolute("HOME").or_else(home_of_this_user),
            xdg_config: absolute("XDG_CONFIG_HOME"),
            xdg_data: absolute("XDG_DATA_HOME"),
            xdg_cache: absolute("XDG_CACHE_HOME"),
        }
    }

    /// Where configuration and key files live: `$XDG_CONFIG_HOME/keepwell`.
    pub fn config_dir(&self) -> PathBuf {
        self.user_dir(self.xdg_config.as_ref(), ".config")
    }

    /// Where the default repository lives: `$XDG_DATA_HOME/keepwell`.
    pub fn data_dir(&self) -> PathBuf {
        self.user_dir(self.xdg_data.as_ref(), ".local/share")
    }

    /// Where the cache lives unless told otherwise: `$XDG_CACHE_HOME/keepwell`.
    pub fn default_cache_dir(&self) -> PathBuf {
        self.user_dir(self.xdg_cache.as_ref(), ".cache")
    }

    /// The home directory; `/` for a user without one.
    pub fn home(&self) -> PathBuf {
        self.home.clone().unwrap_or_else(|| PathBuf::from("/"))
    }

    /// What a connection to PostgreSQL is made out from, beside its connection string.
    pub fn surroundings(&self) -> Surroundings {
        Surroundings { variables: self.postgres.clone(), home: self.home.clone(), user: self.user.clone() }
    }

    fn user_dir(&self, xdg: Option<&PathBuf>, below_home: &str) -> PathBuf {
        xdg.cloned().unwrap_or_else(|| self.home().join(below_home)).join("keepwell")
    }
}

/// What the machine says, as libpq and shells ask it: a service may have no `HOME`.
fn home_of_this_user() -> Option<PathBuf> {
    let passwd = std::fs::read("/etc/passwd").ok()?;
    home_in(&String::from_utf8_lossy(&passwd), rustix::process::getuid().as_raw())
}

fn home_in(passwd: &str, user: u32) -> Option<PathBuf> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':').skip(2);
        let (id, home) = (fields.next()?, fields.nth(2)?);
        (id.parse::<u32>() == Ok(user) && home.starts_with('/')).then(|| PathBuf::from(home))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_at_home_where_the_machine_says() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# odd\nshort:x:7\nhomeless:x:8:8:::\nme:x:1000:1000:Me:/home/me:\n";
        for (user, home) in [(0, Some("/root")), (1000, Some("/home/me")), (7, None), (8, None), (9, None)] {
            assert_eq!(home_in(passwd, user), home.map(PathBuf::from), "{user}");
        }
    }
}
