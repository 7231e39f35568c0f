//! A place for a scratch cluster, and the way there.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use keepwell_source_postgres::recovery::{
    Binaries, RecoveryPlan, RestoreError, Said, Scratch, ScratchOptions,
};

use super::discard::Discarded;
use super::helper::Helper;
use super::places::{self, Directories};
use crate::context::Context;
use crate::open::Opened;

/// How long a scratch server may recover.
pub const RECOVERY_MAX: Duration = Duration::from_secs(86_400);

/// Where and as whom to run a scratch cluster.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Scratch cluster")]
pub struct ScratchArgs {
    /// A directory to make the scratch cluster in; what is made there is removed again
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub scratch: PathBuf,
    /// The user that the scratch server runs as [default: `postgres` for root, else ourselves]
    #[arg(long, value_name = "USER")]
    pub owner: Option<String>,
    /// Where the server's programs are
    #[arg(long, value_name = "DIR")]
    pub bin_dir: Option<PathBuf>,
    /// Name of a superuser of the cluster
    #[arg(long, value_name = "ROLE", default_value = "postgres")]
    pub superuser: String,
}

/// Directories of a scratch cluster and what serves its WAL; removed when this is dropped.
#[derive(Debug)]
pub struct Place {
    directory: Discarded,
    socket: Discarded,
    owner: Option<(u32, u32)>,
    helper: Helper,
    superuser: String,
}

impl Place {
    /// Makes them. Fails as the repository does, and else for want of something on this host.
    pub fn make(ctx: &Context, opened: &Opened, plan: &RecoveryPlan, args: &ScratchArgs) -> Result<Self> {
        let cluster = &plan.backup.cluster;
        let reader = opened.repository.wal_reader(cluster.system_identifier.get())?;
        // What is in it belongs to the cluster's users alone, also before a server closes its data directory.
        let owner = places::owner(&args.scratch.join("keepwell-scratch"), args.owner.as_deref())?;
        let directory = Discarded::make(ctx, &args.scratch, owner)?;
        let helper = Helper::start(ctx, reader, plan, owner)?;
        let socket = Discarded::for_socket(ctx, owner)?;
        Ok(Self { directory, socket, owner, helper, superuser: args.superuser.clone() })
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
            directory: self.directory.path().to_path_buf(),
            socket: self.socket.path().to_path_buf(),
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
        self.owner.and_then(|owner| places::obstacle(&self.directory.path().join("data"), owner))
    }
}

/// Starts the scratch server and waits until it is open, with all of the log that it was to take in.
pub async fn start(
    scratch: &mut Scratch,
    plan: &RecoveryPlan,
) -> Result<Said, keepwell_source_postgres::recovery::ServerError> {
    let said = scratch.start(&plan.backup, RECOVERY_MAX).await?;
    plan.check_end(&said)?;
    Ok(said)
}
