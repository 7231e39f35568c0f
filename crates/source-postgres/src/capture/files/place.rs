//! Where a data directory is looked at: on this host, or through the server.

use std::collections::BTreeMap;
use std::fs::File;
use std::time::Duration;

use bytes::Bytes;

use super::super::CaptureError;
use super::super::tape::Head;
use super::asked::Asked;
use super::control::{self, CONTROL};
use super::file::{Bits, Plan};
use super::here::Here;
use super::listing::Fate;
use super::sessions::PIECE;
use super::there::There;
use crate::replication::Tablespace;
use crate::wire::Client;

/// `pg_control` is read so often until it is caught whole.
const ATTEMPTS: u32 = 100;

/// A data directory with its tablespaces.
pub(super) enum Place {
    /// On this host.
    Here(Here),
    /// Through functions of the server.
    There(There),
}

/// What is in a directory: names, with what is known of them already.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub names: BTreeMap<String, Option<Head>>,
    /// Names that are no UTF-8.
    pub odd: Vec<Vec<u8>>,
}

/// What a name is.
pub(super) enum Look {
    Gone,
    /// Neither file nor directory, or what cannot be told from a link; with a sentence about it.
    Left(String),
    Is(Head),
}

/// A file that is about to be read.
pub(super) enum Opening {
    File(File),
    /// By its path below the data directory.
    Path(String),
}

impl Place {
    /// The data directory itself.
    pub fn root(&self) -> Result<Head, CaptureError> {
        match self {
            Self::Here(here) => Ok(here.root(None)?),
            Self::There(there) => Ok(there.head(Vec::new(), true)),
        }
    }

    /// The directory of a tablespace, if it is still there.
    pub fn space(&self, oid: u32) -> Result<Head, CaptureError> {
        match self {
            Self::Here(here) => Ok(here.root(Some(oid))?),
            Self::There(there) => Ok(there.head(Vec::new(), true)),
        }
    }

    /// Tablespaces but the default ones.
    pub async fn spaces(&self, client: &mut Client) -> Result<Vec<Tablespace>, CaptureError> {
        match self {
            Self::Here(here) => Ok(here.spaces()?),
            Self::There(_) => Ok(super::there::spaces(client).await?),
        }
    }

    /// Names in a directory; none if it is gone.
    pub async fn list(&self, space: Option<u32>, above: &[String]) -> Result<Listing, CaptureError> {
        match self {
            Self::Here(here) => Ok(here.list(space, above)?),
            Self::There(there) => Ok(there.list(space, above).await?),
        }
    }

    /// Looks at a name of a listing.
    pub fn look(
        &self,
        listed: &Option<Head>,
        (space, path): (Option<u32>, &[String]),
        fate: Fate,
    ) -> Result<Look, CaptureError> {
        match self {
            Self::Here(here) => Ok(here.look(space, path, fate)?),
            Self::There(_) => Ok(super::there::look(listed, space, path)),
        }
    }

    /// Opens a file that was looked at; `None` if it is gone, an inner error if it cannot be opened.
    pub fn open(&self, space: Option<u32>, head: Head) -> Result<Option<(Opening, Head)>, std::io::Error> {
        match self {
            Self::Here(here) => here.open(space, head.path),
            Self::There(_) => Ok(Some((Opening::Path(below(space, &head.path)), head))),
        }
    }

    /// What reads the file.
    pub fn bits(&self, opening: Opening, plan: &Plan) -> Result<Box<dyn Bits>, CaptureError> {
        match (self, opening) {
            (_, Opening::File(file)) => Ok(Box::new(file)),
            (Self::There(there), Opening::Path(path)) => {
                let may_vanish = plan.relation.is_some();
                Ok(Box::new(Asked::new(&there.sessions, &path, &plan.stretches, may_vanish)))
            }
            (Self::Here(_), Opening::Path(path)) => {
                Err(CaptureError::Odd(format!("`{path}` was not opened")))
            }
        }
    }

    /// Whether several of such files are best read together, by [`Place::together`].
    pub fn gathers(&self, plan: &Plan, size: u64) -> bool {
        matches!(self, Self::There(_)) && size <= PIECE && plan.stretches.iter().all(|stretch| !stretch.kept)
    }

    /// Contents of small files by their paths and sizes; `None` for what is gone, an inner error for what cannot be read.
    pub async fn together(
        &self,
        files: &[(String, u64)],
    ) -> Result<Vec<Result<Option<Box<dyn Bits>>, String>>, CaptureError> {
        let Self::There(there) = self else { return Ok(Vec::new()) };
        let read = there.together(files).await?.into_iter().zip(files);
        let bits = |content: Bytes, path: &str| -> Box<dyn Bits> {
            Box::new(Asked::held(&there.sessions, path, content))
        };
        Ok(read
            .map(|(content, (path, _))| content.map(|content| content.map(|content| bits(content, path))))
            .collect())
    }

    /// `pg_control` as the server has it at one moment.
    pub async fn control(&self) -> Result<(Vec<u8>, Head), CaptureError> {
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let (bytes, head) = match self {
                Self::Here(here) => here.control()?,
                Self::There(there) => there.control().await?,
            };
            if control::is_whole(&bytes) {
                return Ok((bytes, head));
            }
        }
        Err(CaptureError::Control)
    }

    /// Fails if reading has failed in a way that all is worthless for.
    pub fn check(&self) -> Result<(), CaptureError> {
        match self {
            Self::Here(_) => Ok(()),
            Self::There(there) => Ok(there.sessions.check()?),
        }
    }
}

/// Path below the data directory.
pub(super) fn below(space: Option<u32>, path: &[String]) -> String {
    let path = path.join("/");
    space.map_or_else(|| path.clone(), |oid| format!("pg_tblspc/{oid}/{path}"))
}

/// Names of the path of `pg_control`.
pub(super) fn control_path() -> Vec<String> {
    CONTROL.split('/').map(str::to_owned).collect()
}
