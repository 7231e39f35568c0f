//! A place for a scratch cluster, and the way there.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use keepwell_source_postgres::recovery::{
    Binaries, RecoveryPlan, RestoreError, Said, Scratch, ScratchOptions,
};

use super::helper::{Helper, private_directory};
use super::places::{self, Directories};
use crate::exit::Complaint;
use crate::open::Opened;

/// How long a scratch server may recover.
const RECOVERY_MAX: Duration = Duration::from_secs(86_400);

/// Where and as whom to run a scratch cluster.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Scratch cluster")]
pub struct ScratchArgs {
    /// A directory to make the scratch cluster in; what is made there is removed again
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
    /// The user that the scratch server runs as [default: `postgres` for root, else ourselves]
    #[arg(long, value_name = "USER")]
    owner: Option<String>,
    /// Where the server's programs are
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Name of a superuser of the cluster
    #[arg(long, value_name = "ROLE", default_value = "postgres")]
    superuser: String,
}

/// Directories of a scratch cluster and what serves its WAL; removed when this is dropped.
#[derive(Debug)]
pub struct Place {
    directory: PathBuf,
    socket: PathBuf,
    owner: Option<(u32, u32)>,
    helper: Helper,
    superuser: String,
}

impl Place {
    /// Makes them.
    pub fn make(opened: &Opened, plan: &RecoveryPlan, args: &ScratchArgs) -> Result<Self> {
        let cluster = &plan.backup.cluster;
        let name = format!("keepwell-scratch-{}-{}", std::process::id(), plan.backup.snapshot.short());
        let directory =
            std::path::absolute(args.scratch.join(name)).map_err(|e| Complaint::usage(e.to_string()))?;
        let owner = places::owner(&directory, args.owner.as_deref())?;
        fs::create_dir(&directory).with_context(|| format!("create `{}`", directory.display()))?;
        let made = || {
            if let Some((user, group)) = owner {
                chown(&directory, Some(user), Some(group)).context("hand over the scratch directory")?;
            }
            let helper =
                Helper::start(opened.repository.wal_reader(cluster.system_identifier.get())?, owner)?;
            Ok::<_, anyhow::Error>((private_directory(owner)?, helper))
        };
        match made() {
            Ok((socket, helper)) => {
                Ok(Self { directory, socket, owner, helper, superuser: args.superuser.clone() })
            }
            Err(error) => {
                remove(&directory);
                Err(error)
            }
        }
    }

    /// Restores the files of a plan there.
    pub async fn restore(
        &self,
        opened: &Opened,
        plan: &RecoveryPlan,
        binaries: Binaries,
    ) -> Result<Scratch, RestoreError> {
        let restore_command = self.helper.restore_command(plan).map_err(|error| RestoreError::Io {
            operation: "find",
            path: "our own program".to_owned(),
            source: std::io::Error::other(error.to_string()),
        })?;
        let options = ScratchOptions {
            directory: self.directory.clone(),
            socket: self.socket.clone(),
            owner: self.owner,
            restore_command,
            superuser: self.superuser.clone(),
        };
        let directories = Directories::default();
        let restored = Scratch::restore(&opened.repository, plan, binaries, options, &directories).await;
        restored.map(|(scratch, _)| scratch)
    }

    /// Whether the programs of the cluster's major are here, and the first obstacle on the way to the scratch directory.
    pub fn obstacle(&self) -> Option<PathBuf> {
        self.owner.and_then(|owner| places::obstacle(&self.directory.join("data"), owner))
    }
}

/// Starts the scratch server and waits until it is open.
pub async fn start(
    scratch: &mut Scratch,
    plan: &RecoveryPlan,
) -> Result<Said, keepwell_source_postgres::recovery::ServerError> {
    scratch.start(&plan.backup, RECOVERY_MAX).await
}

impl Drop for Place {
    fn drop(&mut self) {
        remove(&self.socket);
        remove(&self.directory);
    }
}

fn remove(directory: &Path) {
    // Nobody uses it any more; what cannot be removed is left in plain sight.
    let _ = fs::remove_dir_all(directory);
}
