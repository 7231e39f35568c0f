//! Where and how to connect: connection strings, URIs, service files, `PG*` variables and `.pgpass`, as libpq reads them.

mod files;
mod parse;
mod resolve;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use keepwell_crypto::Secret;

pub use resolve::{Surroundings, Variables};

/// Why connection options could not be made out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The text is neither a list of `keyword=value` nor a URI. The text itself is not repeated: it may hold a password.
    #[error("the connection string cannot be read: {reason}")]
    Syntax {
        /// What is wrong, without the text.
        reason: String,
    },
    /// A keyword that libpq does not know either.
    #[error("`{keyword}` is not a connection option")]
    UnknownKeyword {
        /// The keyword.
        keyword: String,
    },
    /// A value that the keyword cannot have.
    #[error("the connection option `{keyword}` cannot be `{value}`: {reason}")]
    BadValue {
        /// The keyword.
        keyword: &'static str,
        /// The value; never that of a secret.
        value: String,
        /// What it must be.
        reason: String,
    },
    /// A thing that libpq can do and this client cannot.
    #[error("the connection option `{keyword}={value}` is not supported")]
    Unsupported {
        /// The keyword.
        keyword: &'static str,
        /// The value; never that of a secret.
        value: String,
    },
    /// The service is in no service file.
    #[error("the service `{service}` is defined nowhere")]
    NoService {
        /// Its name.
        service: String,
    },
    /// A file that the options name cannot be read.
    #[error("read `{path}`")]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
}

/// How much TLS there must be. The words are libpq's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SslMode {
    /// None.
    Disable,
    /// Only if the server refuses us without.
    Allow,
    /// If the server has it.
    #[default]
    Prefer,
    /// Required. The server's certificate is checked only if there is a root certificate file.
    Require,
    /// Required, with a certificate of a known authority, for whatever name.
    VerifyCa,
    /// Required, with a certificate of a known authority for the host's name.
    VerifyFull,
}

/// Whether the password exchange must be bound to the TLS channel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If both sides can.
    #[default]
    Prefer,
    /// Required: nobody in between can then have passed the exchange on.
    Require,
}

/// Which of several servers will do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TargetSession {
    /// Any that lets us in.
    #[default]
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not.
    ReadOnly,
    /// A server that is not in recovery.
    Primary,
    /// A server in recovery.
    Standby,
    /// A standby if there is one, else any.
    PreferStandby,
}

/// What a session is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SessionKind {
    /// SQL and replication commands. The role needs REPLICATION.
    #[default]
    Replication,
    /// SQL alone: any role that may log in. Rows of a COPY may be as long as the server allows, 1 GiB.
    Ordinary,
}

/// How a TLS connection begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SslNegotiation {
    /// After a question in clear; every server knows it.
    #[default]
    Postgres,
    /// At once (PostgreSQL 17 and newer).
    Direct,
}

/// Where trusted authorities come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootCerts {
    /// A PEM file.
    File(PathBuf),
    /// Those of the operating system.
    System,
}

/// One server to try.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// What certificates and `.pgpass` know it by: a host name, an address, or a directory of a Unix socket.
    pub name: String,
    /// The address to use instead of looking the name up.
    pub address: Option<IpAddr>,
    /// TCP port, or the number in the name of the Unix socket.
    pub port: u16,
    /// The password for this server.
    pub password: Option<Secret>,
}

impl HostOptions {
    /// Whether `name` is the directory of a Unix socket.
    pub fn is_unix(&self) -> bool {
        self.name.starts_with('/')
    }

    /// The server as people name it: `db1:5432`, `/run/postgresql:5432`.
    pub fn describe(&self) -> String {
        format!("{}:{}", self.name, self.port)
    }
}

/// When a connection over which nothing comes is tried, and given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// After so long without a byte; whole seconds.
    pub idle: Duration,
    /// And then so often; whole seconds.
    pub interval: Duration,
    /// It is dead when so many were not answered.
    pub count: u32,
}

impl Default for KeepAlive {
    /// A server that vanished is noticed after two minutes; systems wait for two hours.
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), interval: Duration::from_secs(15), count: 4 }
    }
}

/// Everything needed to connect; made by [`ConnectOptions::resolve`].
///
/// `Debug` shows no password.
/// ```
/// use keepwell_source_postgres::options::{ConnectOptions, SslMode, Surroundings};
///
/// let surroundings = Surroundings {
///     variables: [("PGUSER", "backup"), ("PGPASSWORD", "secret")].into_iter().collect(),
///     ..Surroundings::default()
/// };
/// let text = "postgresql://db1,db2:5433/orders?sslmode=require";
/// let options = ConnectOptions::resolve(text, &surroundings, "my service")?;
/// let hosts: Vec<String> = options.hosts.iter().map(|host| host.describe()).collect();
/// assert_eq!(hosts, ["db1:5432", "db2:5433"]);
/// assert_eq!((options.user.as_str(), options.ssl_mode), ("backup", SslMode::Require));
/// assert!(!format!("{options:?}").contains("secret"));
/// # Ok::<(), keepwell_source_postgres::options::OptionsError>(())
/// ```
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Servers in the order in which they are tried; at least one.
    pub hosts: Vec<HostOptions>,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// TLS or not.
    pub ssl_mode: SslMode,
    /// How TLS begins.
    pub ssl_negotiation: SslNegotiation,
    /// Trusted authorities.
    pub root_certs: RootCerts,
    /// Our certificate and key, PEM files.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Certificate revocation list, a PEM file.
    pub crl: Option<PathBuf>,
    /// Channel binding of the password exchange.
    pub channel_binding: ChannelBinding,
    /// Which server will do.
    pub target: TargetSession,
    /// How long one server may take to let us in; `None` waits for as long as the system does.
    pub connect_timeout: Option<Duration>,
    /// Over TCP; `None` never asks whether the server is still there.
    pub keep_alive: Option<KeepAlive>,
    /// How long the server may take to acknowledge what was sent, over TCP; `None` leaves that to the system.
    pub user_timeout: Option<Duration>,
    /// Shown in `pg_stat_activity` and `pg_stat_replication`.
    pub application_name: String,
    /// Settings for the session, as in `-c work_mem=8MB`.
    pub session_options: Option<String>,
    /// What the session is for; never part of a connection string.
    pub session: SessionKind,
}

/// A connection string as a program may be told it: the arguments of programs are seen by everybody on the host.
///
/// Unlike [`ConnectOptions`] it leaves to the program whatever the string does not say.
#[derive(Debug, Clone)]
pub struct ForProgram {
    /// The string, without its password.
    pub text: String,
    /// The password, which the program takes from `PGPASSWORD`.
    pub password: Option<Secret>,
}

impl ForProgram {
    /// Takes the password out of a connection string or URI. There is no such way for other secrets, as the password of a key,
    /// which are refused.
    /// ```
    /// use keepwell_source_postgres::options::ForProgram;
    ///
    /// let told = ForProgram::of("postgresql://ann:sesame@db1/clinic?sslmode=require")?;
    /// assert_eq!(told.text, "dbname='clinic' host='db1' sslmode='require' user='ann'");
    /// assert_eq!(told.password.map(|password| password.expose().to_owned()).as_deref(), Some("sesame"));
    /// # Ok::<(), keepwell_source_postgres::options::OptionsError>(())
    /// ```
    pub fn of(text: &str) -> Result<Self, OptionsError> {
        let mut pairs = parse::connection_string(text)?;
        parse::refuse_secrets(&pairs)?;
        let password = pairs.remove("password").filter(|value| !value.is_empty()).map(Secret::new);
        let pair = |(keyword, value): (String, String)| {
            format!("{keyword}='{}'", value.replace('\\', r"\\").replace('\'', r"\'"))
        };
        Ok(Self { text: pairs.into_iter().map(pair).collect::<Vec<_>>().join(" "), password })
    }
}

impl ConnectOptions {
    /// The same way to another database, in an ordinary session.
    pub fn ordinary(&self, database: &str) -> Self {
        Self { database: database.to_owned(), session: SessionKind::Ordinary, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_told_everything_but_the_password() {
        for (text, told, password) in [
            ("", "", None),
            ("clinic", "dbname='clinic'", None),
            ("service=main connect_timeout=3", "connect_timeout='3' service='main'", None),
            (r"host=db1 password='it\'s \\' dbname='a=b\'c'", r"dbname='a=b\'c' host='db1'", Some(r"it's \")),
            ("postgres://ann:p%40ss@db1:5433,db2/", "host='db1,db2' port='5433,' user='ann'", Some("p@ss")),
            ("max_protocol_version=3.2 host=db1", "host='db1' max_protocol_version='3.2'", None),
            ("postgres://db1/?password=sesame", "host='db1'", Some("sesame")),
        ] {
            let found = ForProgram::of(text).unwrap();
            assert_eq!(found.text, told, "{text}");
            assert_eq!(found.password.map(|password| password.expose().to_owned()).as_deref(), password);
        }
        for secret in ["sslkey=/k sslpassword", "scram_client_key", "scram_server_key", "oauth_client_secret"]
        {
            let refused = ForProgram::of(&format!("{secret}=sesame")).unwrap_err();
            assert!(!refused.to_string().contains("sesame"), "{refused}");
        }
    }
}
