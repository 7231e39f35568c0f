//! Why the engine stopped.

use std::sync::Arc;

use keepwell_catalog::{CatalogError, MapKey};
use keepwell_crypto::trust::TrustError;
use keepwell_crypto::{ChunkId, CryptoError, DomainId};
use keepwell_storage::{Size, StorageError};

use crate::pack::PackError;
use crate::source::SourceError;
use crate::target::TargetError;

/// What can end an operation of the engine. Cheap to clone, so that every waiting part can be told.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A storage call failed for good.
    #[error(transparent)]
    Storage(Arc<StorageError>),
    /// A record, node or index segment is not what it should be.
    #[error(transparent)]
    Catalog(Arc<CatalogError>),
    /// A key does not fit, or a sealed object is damaged.
    #[error(transparent)]
    Crypto(Arc<CryptoError>),
    /// The trust chain is broken, or is not the one that the key file pins.
    #[error(transparent)]
    Trust(Arc<TrustError>),
    /// The store shows less of the trust chain than this host has seen there, or another chain: revocations and keys
    /// may have been taken back.
    #[error(
        "the trust chain ends with record {head}, or goes another way; this host has seen record {seen} in this store"
    )]
    TrustSetBack {
        /// The newest record that was seen.
        seen: u64,
        /// The newest record that is there now.
        head: u64,
    },
    /// Two stores of a repository have different objects of trust under one name.
    #[error("`{object}` is another one in the copy than in the origin")]
    TrustApart {
        /// The record of the trust chain, or the key object.
        object: String,
    },
    /// A copy has more of the trust chain than the store that it is a copy of.
    #[error(
        "the trust chain of the copy ends with record {copy}, and that of the origin with record {origin}"
    )]
    TrustAhead {
        /// The newest record of the copy.
        copy: u64,
        /// The newest record of the origin.
        origin: u64,
    },
    /// A source failed as a whole.
    #[error(transparent)]
    Source(Arc<SourceError>),
    /// A restore target refused or failed.
    #[error(transparent)]
    Target(Arc<TargetError>),
    /// An object exists and is damaged.
    #[error("`{object}` is damaged: {reason}")]
    Damaged {
        /// Its name.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A pack could not be built.
    #[error("build a pack")]
    Pack(#[source] Arc<PackError>),
    /// No location of a chunk could be read; with the last reason.
    #[error("chunk {id} cannot be read: {reason}")]
    ChunkLost {
        /// The chunk.
        id: ChunkId,
        /// Why the last location failed, or that there is none.
        reason: String,
    },
    /// There is no repository.
    #[error("there is no repository at {place}")]
    NoRepository {
        /// Where it was looked for.
        place: String,
    },
    /// There is one already.
    #[error("there is a repository at {place} already")]
    RepositoryExists {
        /// Where.
        place: String,
    },
    /// The keys of an erasable domain were destroyed; nobody can read what was backed up into it.
    #[error("the data was erased with the keys of its domain {domain}")]
    Erased {
        /// The domain.
        domain: DomainId,
    },
    /// The key file does not belong to this repository, or is unknown to it.
    #[error("this key does not open the repository: {0}")]
    WrongKey(String),
    /// The credential lacks a role.
    #[error("this credential cannot {action}: it has the role {role}")]
    NotAllowed {
        /// What was attempted: `decrypt what it wrote`, `prune`, …
        action: &'static str,
        /// The roles it has.
        role: String,
    },
    /// A keeper ended our session, or another process with our credential that had its number; nothing was published.
    #[error("session {seq} of writer {writer} was ended by another process while this one worked")]
    Fenced {
        /// The writer.
        writer: String,
        /// The session.
        seq: u64,
    },
    /// A name given by a person fits no snapshot, or several; or a snapshot that was listed counts no longer.
    #[error("{0}")]
    NoSuchSnapshot(String),
    /// A path is not in the snapshot.
    #[error("`{path}` is not in snapshot {snapshot}")]
    NoSuchPath {
        /// The path.
        path: String,
        /// The snapshot.
        snapshot: String,
    },
    /// The local cache cannot be used.
    #[error("{operation} in the local cache")]
    Cache {
        /// The verb.
        operation: &'static str,
        /// The reason.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The target has not enough room.
    #[error("the restore needs {}, and {place} has {} free", Size(*needed), Size(*free))]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// The target.
        place: String,
    },
    /// What was read could not be passed on to where the caller wants it.
    #[error("write the output")]
    Output(#[source] Arc<std::io::Error>),
    /// Asked for something that cannot be done, as a fact.
    #[error("{0}")]
    Invalid(String),
    /// A background task died.
    #[error("a worker died: {0}")]
    Task(String),
    /// Somebody wanted the work to end ([`crate::Cancel`]), or another part failed first and its error is the one to show.
    #[error("the work was cancelled")]
    Cancelled,
}

macro_rules! from_arc {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for Error {
            fn from(error: $from) -> Self {
                Self::$variant(Arc::new(error))
            }
        }
    )*};
}

from_arc!(
    StorageError => Storage, CatalogError => Catalog, CryptoError => Crypto,
    keepwell_crypto::trust::TrustError => Trust, SourceError => Source, TargetError => Target, PackError => Pack
);

impl From<keepwell_catalog::MapError> for Error {
    /// An error of ours that passed through the map comes out as it was.
    fn from(error: keepwell_catalog::MapError) -> Self {
        use keepwell_catalog::MapError as M;
        match error {
            M::Read { node, source } => match source.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(source) => CatalogError::from(M::Read { node, source }).into(),
            },
            M::Write { source } => match source.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(source) => CatalogError::from(M::Write { source }).into(),
            },
            other => CatalogError::from(other).into(),
        }
    }
}

impl Error {
    /// Marks an error from decoding as damage of a named object.
    pub(crate) fn damaged(object: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self::Damaged { object: object.to_string(), reason: reason.to_string() }
    }

    pub(crate) fn cache(operation: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Cache { operation, source: Arc::new(source) }
    }

    /// What the operator may do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Storage(e) => e.hint.clone(),
            Self::NoRepository { .. } => {
                Some("`keepwell init` makes one; check the location if it should exist.".into())
            }
            Self::Trust(error) if matches!(**error, TrustError::WrongGenesis { .. }) => Some(
                "This key belongs to another repository: name the right one with `--key-file`. If it is the right one, somebody has put another repository in this place.".into(),
            ),
            Self::TrustSetBack { .. } => Some(
                "Somebody may be taking back a revocation. What was lost `keepwell repair --from COPY` puts back. If the store was set back on purpose, clear the local cache with all that it remembers (`keepwell cache clear --all`) and look at `keepwell key list` before you go on.".into(),
            ),
            Self::TrustApart { .. } => Some(
                "Owners have changed the keys in both stores apart from each other, or something else is left there. Nothing was copied. Change keys in one store and let `keepwell copy` take that along; make this copy anew in an empty place.".into(),
            ),
            Self::TrustAhead { .. } => Some(
                "Owners have changed the keys in the copy, or the origin was set back. `keepwell repair --from COPY` brings the origin as far; from then on change keys there.".into(),
            ),
            Self::NotAllowed { .. } => Some(
                "Use a key whose role allows it: a writer or keeper backs up; a reader, keeper or owner reads; a keeper forgets, prunes and repairs; an owner changes keys.".into(),
            ),
            Self::Fenced { .. } => {
                Some("A prune took this host for dead, or another process that works with the same key had the same number. Nothing is lost; run the command again.".into())
            }
            Self::NoSuchSnapshot(_) => Some("`keepwell snapshots` lists what there is.".into()),
            Self::NoSuchPath { snapshot, .. } => Some(format!(
                "`keepwell ls {snapshot}` shows what is in it, `keepwell find NAME` which snapshots have a thing. Where there are several datasets or hosts, `--dataset` and `--host` say whose `latest` is meant."
            )),
            Self::Damaged { .. } | Self::ChunkLost { .. } => {
                Some("`keepwell check` says what is affected; `keepwell repair --from COPY` heals it.".into())
            }
            _ => None,
        }
    }
}

/// A key as people know it: as an absolute path.
pub(crate) fn shown(key: &MapKey) -> String {
    format!("/{}", key.display_path())
}

/// An error with its causes, on one line.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use keepwell_crypto::Digest;

    use super::*;

    #[test]
    fn whoever_has_the_key_to_another_repository_is_told_so() {
        let (expected, found) = (Digest::of(b"mine"), Digest::of(b"theirs"));
        let hint = |error: TrustError| Error::Trust(Arc::new(error)).hint();
        let told = hint(TrustError::WrongGenesis { expected, found }).unwrap();
        assert!(told.contains("another repository") && told.contains("`--key-file`"), "{told}");
        assert_eq!(hint(TrustError::Empty), None);
    }

    #[test]
    fn sizes_are_said_as_people_read_them() {
        let full = Error::NoSpace { needed: 3_000_019, free: 1 << 20, place: "the target".to_owned() };
        assert_eq!(full.to_string(), "the restore needs 2.86 MiB, and the target has 1.00 MiB free");
    }

    /// Who was refused a backup or a prune once was told to take a reader's key.
    #[test]
    fn who_may_not_is_told_which_role_may() {
        let hint = Error::NotAllowed { action: "prune", role: "reader".to_owned() }.hint().unwrap();
        for told in ["a writer or keeper backs up", "a keeper forgets, prunes", "an owner changes keys"] {
            assert!(hint.contains(told), "{hint}");
        }
    }

    /// `cache clear` alone keeps what this host has seen of the trust chain.
    #[test]
    fn who_set_a_store_back_on_purpose_is_told_what_forgets_that() {
        let hint = Error::TrustSetBack { seen: 3, head: 2 }.hint().unwrap();
        assert!(hint.contains("`keepwell cache clear --all`"), "{hint}");
    }
}
