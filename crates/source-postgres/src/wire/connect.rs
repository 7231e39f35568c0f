//! Getting a session: host after host, TLS as `sslmode` has it, who we are, and whether the server is the right one.

use std::future::Future;
use std::io;
use std::net::SocketAddr;

use postgres_protocol::message::backend::Message as Parsed;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::auth::authenticate;
use super::client::Client;
use super::error::PgError;
use super::frame::{Io, Message, Wire};
use super::tls;
use crate::options::{ConnectOptions, HostOptions, SessionKind, SslMode, SslNegotiation, TargetSession};

/// Oldest server that is supported.
const MAJOR_MIN: u32 = 14;
/// An honest server reports some fifteen.
const PARAMETERS_MAX: usize = 1000;

/// What protects a connection.
pub(super) enum Channel {
    /// Nothing.
    Clear,
    /// A Unix socket: nobody but root can listen.
    Local,
    /// TLS; with what a password exchange can be bound to.
    Tls { end_point: Option<Vec<u8>> },
}

/// One way to try a host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    Clear,
    /// TLS, but a server without it is fine.
    TlsIfOffered,
    Tls,
}

impl Client {
    /// Connects to the first server that will do. A [`SessionKind::Replication`] is in the mode in which ordinary SQL and
    /// replication commands both work and an ordinary line of pg_hba.conf is enough; its role needs the REPLICATION attribute.
    ///
    /// Errors name the server; with several servers the last error lists what each said.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, PgError> {
        let mut reasons = Vec::new();
        let mut wanted = vec![options.target];
        if options.target == TargetSession::PreferStandby {
            wanted = vec![TargetSession::Standby, TargetSession::Any];
        }
        for target in wanted {
            for host in &options.hosts {
                let error = match within(options, host, one_host(options, host)).await {
                    Ok(client) => match client.is_of_kind(target) {
                        Ok(()) => return Ok(client),
                        Err(error) => error,
                    },
                    Err(error) => error,
                };
                if options.hosts.len() == 1 && options.target != TargetSession::PreferStandby {
                    return Err(error);
                }
                reasons.push(crate::one_line(&error));
            }
        }
        Err(PgError::NoServer { count: options.hosts.len(), reasons: reasons.join("; ") })
    }
}

async fn within<T>(
    options: &ConnectOptions,
    host: &HostOptions,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    match options.connect_timeout {
        None => work.await,
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .unwrap_or_else(|_| Err(PgError::Timeout { host: host.describe(), seconds: limit.as_secs() })),
    }
}

/// Tries one server in the ways that `sslmode` allows, in its order.
async fn one_host(options: &ConnectOptions, host: &HostOptions) -> Result<Client, PgError> {
    let attempts: &[Attempt] = match options.ssl_mode {
        _ if host.is_unix() => &[Attempt::Clear],
        SslMode::Disable => &[Attempt::Clear],
        SslMode::Allow => &[Attempt::Clear, Attempt::Tls],
        SslMode::Prefer => &[Attempt::TlsIfOffered, Attempt::Clear],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Attempt::Tls],
    };
    let mut first = None;
    for attempt in attempts {
        let error = match session(options, host, *attempt).await {
            Ok(client) => return Ok(client),
            Err(error) => error,
        };
        let other_way_may_help = match &error {
            PgError::Tls { .. } => true,
            // A server may have it and not be able to.
            PgError::Broken(_) => *attempt == Attempt::TlsIfOffered,
            // pg_hba.conf may have a line for one way and not for the other.
            PgError::Refused { error, .. } => error.code.starts_with("28"),
            _ => false,
        };
        if !other_way_may_help {
            return Err(first.unwrap_or(error));
        }
        first.get_or_insert(error);
    }
    Err(first.expect("there is at least one way to try"))
}

async fn session(options: &ConnectOptions, host: &HostOptions, attempt: Attempt) -> Result<Client, PgError> {
    let (io, channel) = open(options, host, attempt).await?;
    start(io, &channel, options, host).await
}

async fn open(
    options: &ConnectOptions,
    host: &HostOptions,
    attempt: Attempt,
) -> Result<(Box<dyn Io>, Channel), PgError> {
    let fail = |source| PgError::Connect { host: host.describe(), source };
    if host.is_unix() {
        let path = format!("{}/.s.PGSQL.{}", host.name, host.port);
        return Ok((Box::new(UnixStream::connect(path).await.map_err(fail)?), Channel::Local));
    }
    let mut stream = dial(host).await.map_err(fail)?;
    stream.set_nodelay(true).map_err(fail)?;
    watch_over(&stream, options).map_err(fail)?;
    if attempt == Attempt::Clear {
        return Ok((Box::new(stream), Channel::Clear));
    }
    if options.ssl_negotiation == SslNegotiation::Postgres && !ask_for_tls(&mut stream, host).await? {
        return match attempt {
            Attempt::TlsIfOffered => Ok((Box::new(stream), Channel::Clear)),
            _ => Err(PgError::Tls { host: host.describe(), fact: "does not offer TLS".to_owned() }),
        };
    }
    let broken =
        |error: String| PgError::Tls { host: host.describe(), fact: format!("fails at TLS: {error}") };
    let config = tls::config(options)?;
    let name = ServerName::try_from(host.name.clone()).map_err(|error| broken(error.to_string()))?;
    let stream = TlsConnector::from(config).connect(name, stream).await;
    let stream =
        stream.map_err(|error| match error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()) {
            true => broken(error.to_string()),
            // Nothing is the matter with TLS: the server, or what stands before it, went away.
            false => PgError::Broken(error),
        })?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let end_point = certificate.and_then(|certificate| tls::end_point(certificate));
    Ok((Box::new(stream), Channel::Tls { end_point }))
}

async fn dial(host: &HostOptions) -> io::Result<TcpStream> {
    let addresses: Vec<SocketAddr> = match host.address {
        Some(address) => vec![(address, host.port).into()],
        None => lookup_host((host.name.as_str(), host.port)).await?.collect(),
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Has the system notice when the server is gone without a word.
fn watch_over(stream: &TcpStream, options: &ConnectOptions) -> io::Result<()> {
    let socket = SockRef::from(stream);
    if let Some(keep_alive) = options.keep_alive {
        let settings = TcpKeepalive::new()
            .with_time(keep_alive.idle)
            .with_interval(keep_alive.interval)
            .with_retries(keep_alive.count);
        socket.set_tcp_keepalive(&settings)?;
    }
    socket.set_tcp_user_timeout(options.user_timeout)
}

/// Asks whether the server does TLS. Reads one byte and no more: what follows it in clear must not be trusted later.
async fn ask_for_tls(stream: &mut TcpStream, host: &HostOptions) -> Result<bool, PgError> {
    let mut request = bytes::BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await.map_err(PgError::Broken)?;
    match stream.read_u8().await.map_err(PgError::Broken)? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(PgError::Tls { host: host.describe(), fact: "gives no answer about TLS".to_owned() }),
    }
}

/// From an open connection to a session that waits for commands.
pub(super) async fn start(
    io: Box<dyn Io>,
    channel: &Channel,
    options: &ConnectOptions,
    host: &HostOptions,
) -> Result<Client, PgError> {
    let mut wire = Wire::new(io);
    let mut parameters = vec![
        ("user", options.user.as_str()),
        ("database", options.database.as_str()),
        ("application_name", options.application_name.as_str()),
        ("client_encoding", "UTF8"),
        // Base backups and streams take as long as they take.
        ("statement_timeout", "0"),
    ];
    if options.session == SessionKind::Replication {
        parameters.push(("replication", "database"));
    }
    wire.long_rows = options.session == SessionKind::Ordinary;
    if let Some(session) = &options.session_options {
        parameters.push(("options", session));
    }
    frontend::startup_message(parameters, &mut wire.output)
        .map_err(|_| PgError::Protocol("a connection option holds a zero byte".to_owned()))?;
    wire.flush().await?;
    authenticate(&mut wire, options, host, channel).await?;
    let mut client = Client::new(wire, host.describe());
    loop {
        match client.wire.next().await? {
            Message::Other(Parsed::ParameterStatus(body)) => client.remember(&body, PARAMETERS_MAX)?,
            Message::Other(Parsed::BackendKeyData(_)) | Message::Notice => {}
            Message::Other(Parsed::ReadyForQuery(_)) => break,
            Message::Error(error) => return Err(PgError::Refused { host: host.describe(), error }),
            _ => {
                return Err(PgError::Protocol(
                    "a message that does not belong into the start of a session".to_owned(),
                ));
            }
        }
    }
    if client.major() < MAJOR_MIN {
        let version = client.parameter("server_version").unwrap_or("of unknown version").to_owned();
        return Err(PgError::TooOld { host: host.describe(), version });
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::options::Surroundings;

    #[tokio::test]
    async fn the_system_watches_over_a_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let text = format!("host=127.0.0.1 port={port} user=ann keepalives_count=7 tcp_user_timeout=9000");
        let mut options = ConnectOptions::resolve(&text, &Surroundings::default(), "t").unwrap();
        let stream = dial(&options.hosts[0]).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(!socket.keepalive().unwrap());
        watch_over(&stream, &options).unwrap();
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 7);
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(9)));
        options.keep_alive = None;
        let stream = dial(&options.hosts[0]).await.unwrap();
        watch_over(&stream, &options).unwrap();
        assert!(!SockRef::from(&stream).keepalive().unwrap());
    }

    #[tokio::test]
    async fn a_server_that_goes_away_in_the_middle_of_a_handshake_may_come_back() {
        for mode in ["prefer", "require"] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let server = tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    // Whoever asks for TLS is promised some; whoever does not hears nothing that makes sense.
                    let _ = stream.read_exact(&mut [0; 8]).await;
                    let _ = stream.write_all(b"S").await;
                }
            });
            let text = format!("host=127.0.0.1 port={port} user=ann dbname=x sslmode={mode}");
            let options = ConnectOptions::resolve(&text, &Surroundings::default(), "t").unwrap();
            let error = Client::connect(&options).await.expect_err("it went away");
            assert!(error.is_passing(), "{mode}: {error:?}");
            server.abort();
        }
    }
}
