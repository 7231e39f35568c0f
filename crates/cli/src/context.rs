//! What every command is given.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use backup_core::env::{Clock, SystemClock};

use crate::args::GlobalArgs;
use crate::config::{self, Profile, Wanted};
use crate::environment::Environment;
use crate::interrupt::Interrupt;
use crate::printer::Printer;
use crate::secret::Keys;

/// Options, environment, profile and terminal.
#[derive(Debug, Clone)]
pub struct Context {
    /// Options of every command.
    pub global: GlobalArgs,
    /// The environment.
    pub environment: Environment,
    /// The profile in force; empty where there is none.
    pub profile: Profile,
    /// The other profiles of the file: they know other places.
    pub other_profiles: Vec<Profile>,
    /// Where output goes.
    pub printer: Arc<Printer>,
    /// Whether the work should stop.
    pub interrupt: Interrupt,
    /// The keys that were read.
    pub keys: Keys,
}

impl Context {
    /// Reads the configuration.
    pub fn new(global: GlobalArgs, environment: Environment, printer: Arc<Printer>) -> Result<Self> {
        let named_file = global.config.clone().or_else(|| environment.config.clone());
        let file_is_named = named_file.is_some();
        let file = named_file.unwrap_or_else(|| environment.config_dir().join("config.toml"));
        let named_profile = global.profile.clone().or_else(|| environment.profile.clone());
        let loaded = config::load(&Wanted {
            file: &file,
            file_is_named,
            profile: named_profile.as_deref(),
            home: &environment.home(),
        })?;
        Ok(Self::with(global, environment, loaded, printer))
    }

    fn with(
        global: GlobalArgs,
        environment: Environment,
        loaded: config::Loaded,
        printer: Arc<Printer>,
    ) -> Self {
        Self {
            global,
            environment,
            profile: loaded.profile,
            other_profiles: loaded.others,
            printer,
            interrupt: Interrupt::default(),
            keys: Keys::default(),
        }
    }

    /// Nanoseconds since 1970.
    pub fn now(&self) -> i64 {
        SystemClock.now()
    }

    /// Where the cache is.
    pub fn cache_dir(&self) -> PathBuf {
        let given = self.global.cache_dir.clone().or_else(|| self.environment.cache_dir.clone());
        given.or_else(|| self.profile.cache.clone()).unwrap_or_else(|| self.environment.default_cache_dir())
    }

    /// The name of this machine, for people and for retention.
    pub fn host(&self) -> String {
        self.profile
            .host
            .clone()
            .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
    }
}

#[cfg(test)]
impl Context {
    /// With the profile `default` of a configuration, and nothing else.
    pub fn of_profiles(text: &str) -> Self {
        let (global, environment) = (GlobalArgs::default(), Environment::default());
        let file = std::path::Path::new("config.toml");
        let home = std::path::Path::new("/home/me");
        let wanted = Wanted { file, file_is_named: true, profile: None, home };
        let loaded = config::read(text, "config.toml", &wanted).unwrap();
        let printer = Arc::new(Printer::new(&global, &environment));
        Self::with(global, environment, loaded, printer)
    }
}
