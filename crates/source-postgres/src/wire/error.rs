//! What can go wrong between us and a server, and what to do about it.

use std::fmt;
use std::io;

use crate::options::OptionsError;

/// An error as the server sent it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerError {
    /// SQLSTATE, five characters.
    pub code: String,
    /// The message, in the server's language.
    pub message: String,
    /// More about it, if the server says more.
    pub detail: Option<String>,
    /// What the server suggests.
    pub hint: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.code)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServerError {}

/// Why a server could not be reached, did not let us in, or did not do what was asked.
///
/// Passwords appear in no variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PgError {
    /// The options do not say where to connect.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// No connection.
    #[error("connect to {host}")]
    Connect {
        /// The server.
        host: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The server took too long to let us in.
    #[error("{host} did not answer within {seconds} s")]
    Timeout {
        /// The server.
        host: String,
        /// The limit.
        seconds: u64,
    },
    /// TLS is demanded and the server has none, or the other way round.
    #[error("{host} {fact}")]
    Tls {
        /// The server.
        host: String,
        /// What stands in the way.
        fact: String,
    },
    /// The way in which the server wants to know who we are.
    #[error("{host} {fact}")]
    Authentication {
        /// The server.
        host: String,
        /// What stands in the way.
        fact: String,
    },
    /// The server refused the connection.
    #[error("{host} refuses the connection: {error}")]
    Refused {
        /// The server.
        host: String,
        /// Its words.
        error: Box<ServerError>,
    },
    /// None of several servers will do; with what each said.
    #[error("none of {count} servers will do: {reasons}")]
    NoServer {
        /// How many were tried.
        count: usize,
        /// What each said, in order.
        reasons: String,
    },
    /// The server is not of the kind that was asked for.
    #[error("{host} is {is}, and {wanted} is asked for")]
    WrongKind {
        /// The server.
        host: String,
        /// What it is.
        is: &'static str,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The server is older than what we support.
    #[error("{host} runs PostgreSQL {version}; 14 is the oldest supported")]
    TooOld {
        /// The server.
        host: String,
        /// Its version.
        version: String,
    },
    /// The server could not do what was asked.
    #[error("{action}")]
    Server {
        /// What was asked, as a verb: `create the slot \`keepwell\``.
        action: String,
        /// Its words.
        #[source]
        error: Box<ServerError>,
    },
    /// The server does not keep to the protocol, or is out to harm us.
    #[error("the server breaks the protocol: {0}")]
    Protocol(String),
    /// The connection broke.
    #[error("the connection to the server broke")]
    Broken(#[source] io::Error),
}

impl PgError {
    /// What the operator may do about it, if there is something to say.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { error, .. } => refused_hint(error),
            Self::Server { error, .. } => server_hint(error),
            Self::TooOld { .. } => {
                Some("Dump it with its own `pg_dump`, and keep the file by `keepwell pg import`.".into())
            }
            Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused => Some(
                "Nothing listens there: check host and port, and `listen_addresses` of the server.".into(),
            ),
            Self::Connect { host, source } if host.starts_with('/') && source.kind() == io::ErrorKind::NotFound => Some(
                "There is no such socket: check the directory and the port, and whether the server runs."
                    .into(),
            ),
            Self::Connect { .. } => {
                Some("Check the name of the host and the way there; `psql` with the same words fails as well.".into())
            }
            Self::Timeout { .. } => Some(
                "Something on the way swallows what is sent, a firewall perhaps, or the server hangs; `connect_timeout` says \
                 how long to wait."
                    .into(),
            ),
            Self::Tls { .. } => {
                Some("`sslmode` says how much TLS there must be, `sslrootcert` whom to trust.".into())
            }
            _ => None,
        }
    }

    /// Whether trying again later, or at another server, may help: the server is away or not yet ready.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Timeout { .. } | Self::Broken(_) | Self::NoServer { .. } => true,
            Self::WrongKind { .. } => true,
            Self::Refused { error, .. } if is_closed_to_replication(error) => false,
            Self::Refused { error, .. } | Self::Server { error, .. } => {
                // Shutting down, starting up, crash of a sibling, too many connections, slot still in use.
                matches!(error.code.as_str(), "57P01" | "57P02" | "57P03" | "53300" | "55006")
            }
            _ => false,
        }
    }
}

fn refused_hint(error: &ServerError) -> Option<String> {
    let hint = match error.code.as_str() {
        "28P01" => "The password is wrong, or none was given: use ~/.pgpass, PGPASSWORD or a service file.",
        "28000" if error.message.contains("pg_hba.conf") => {
            "Add a line for this role, database and address to pg_hba.conf, as in \
             `hostssl all keepwell 10.0.0.0/8 scram-sha-256`, and reload the server."
        }
        "28000" => "The role may not log in this way: see pg_hba.conf on the server.",
        "3D000" => "Name a database that exists, as in `dbname=postgres`.",
        "42501" if error.message.contains("for database") => {
            "`GRANT CONNECT ON DATABASE …` to the role, run by the owner of the database."
        }
        "42501" => REPLICATION_HINT,
        "53300" if is_closed_to_replication(error) => {
            "The server lets nobody replicate: set `wal_level = replica` and `max_wal_senders = 10`, and restart it."
        }
        "53300" => {
            "All connections or all walsenders are taken: see `max_connections` and `max_wal_senders`."
        }
        "57P03" => "The server is starting or stopping; try again in a moment.",
        _ => return error.hint.clone(),
    };
    Some(hint.to_owned())
}

/// `number of requested standby connections exceeds max_wal_senders (currently 0)`, as with `wal_level = minimal`.
fn is_closed_to_replication(error: &ServerError) -> bool {
    error.code == "53300" && error.message.ends_with("(currently 0)")
}

const REPLICATION_HINT: &str =
    "The role needs REPLICATION: `ALTER ROLE keepwell REPLICATION`, run by a superuser.";

fn server_hint(error: &ServerError) -> Option<String> {
    let hint = match error.code.as_str() {
        "42501" if error.message.contains("replication") => REPLICATION_HINT,
        "53400" => {
            "All replication slots are taken: raise `max_replication_slots` or drop one that nobody uses."
        }
        "55000" if error.message.starts_with("replication slots can only be used") => {
            "Set `wal_level = replica` and `max_replication_slots = 10`, and restart the server."
        }
        "58P01" => "The server has removed this WAL already. A new backup begins a new, complete history.",
        "55006" if error.message.contains("subscription") => {
            "`DROP SUBSCRIPTION` in that database first, with `slot_name = NONE` where the publisher is gone."
        }
        "55006" if !error.message.contains("slot") => {
            "Somebody is connected or at work there; see `pg_stat_activity`."
        }
        "55006" => {
            "The slot is in use, perhaps by a receiver that still runs; `pg_stat_replication` shows whose."
        }
        _ => return error.hint.clone(),
    };
    Some(hint.to_owned())
}
