//! Why there is no plan.

use crate::archive::ArchiveError;
use crate::cluster::ClusterError;
use crate::lsn::Timeline;
use crate::recovery::target::{Target, TargetTime};
use crate::replication::SystemId;

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The repository.
    #[error(transparent)]
    Repository(#[from] backup_core::Error),
    /// The archived log.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A base backup does not say what it is.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// `cluster.json` is no file, or larger than any.
    #[error("`cluster.json` is no description of a base backup")]
    NoDescription,
    /// There is nothing to begin with.
    #[error("there is no base backup of a PostgreSQL cluster here")]
    NoBackup,
    /// The base backups are of several clusters, and nothing says which is meant.
    #[error("there are base backups of {} clusters here: {}", clusters.len(), shown(clusters))]
    SeveralClusters {
        /// Each with the datasets, as `HOST/DATASET`, that have it; the newest first.
        clusters: Vec<(SystemId, Vec<String>)>,
    },
    /// At that time the cluster lived on a timeline that was left since.
    #[error("at {time} the cluster was on timeline {left}, which was left for timeline {newest}")]
    TwoPasts {
        /// What was wanted.
        time: TargetTime,
        /// Where it was then.
        left: Timeline,
        /// The timeline that would be followed.
        newest: Timeline,
    },
    /// The target cannot be reached.
    #[error("{target} cannot be reached: {reason}")]
    Unreachable {
        /// What was wanted.
        target: Box<Target>,
        /// Why not.
        reason: String,
        /// The nearest that can be reached, as options of the command.
        nearest: Option<String>,
    },
}

fn shown(clusters: &[(SystemId, Vec<String>)]) -> String {
    let each = clusters.iter().map(|(system, places)| format!("{system} (`{}`)", places.join("`, `")));
    each.collect::<Vec<_>>().join(", ")
}

impl PlanError {
    /// What the operator may do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Repository(error) => error.hint(),
            Self::Archive(error) => error.hint(),
            Self::Cluster(_) | Self::NoDescription => None,
            Self::SeveralClusters { .. } => {
                Some("Say which: `--dataset NAME` or `--host NAME`, or name a snapshot.".to_owned())
            }
            Self::NoBackup => Some("Take one with `keepwell pg backup`.".to_owned()),
            Self::TwoPasts { left, newest, .. } => Some(format!(
                "Say `--timeline {left}` for what it was then, or `--timeline {newest}` for where the timelines part."
            )),
            Self::Unreachable { nearest, .. } => {
                nearest.as_ref().map(|nearest| format!("The nearest that can be reached: {nearest}"))
            }
        }
    }
}
