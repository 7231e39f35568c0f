//! From pairs, service files, variables and password files to [`ConnectOptions`].

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::time::Duration;

use keepwell_crypto::Secret;

use super::files::{add_service, find_password, password_file};
use super::parse::{Pairs, connection_string, refuse_secrets};
use super::{
    ChannelBinding, ConnectOptions, HostOptions, KeepAlive, OptionsError, RootCerts, SessionKind, SslMode,
    SslNegotiation, TargetSession,
};

/// Where Debian and most others have the server's socket.
pub(super) const SOCKET_DIRECTORY: &str = "/var/run/postgresql";
/// Shorter limits make a loaded server look dead; libpq has the same minimum.
const TIMEOUT_MIN_S: u64 = 2;
/// A connection string that names more servers than this is a mistake.
const HOSTS_MAX: usize = 64;

const VARIABLES: &[(&str, &str)] = &[
    ("PGAPPNAME", "application_name"),
    ("PGCHANNELBINDING", "channel_binding"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGDATABASE", "dbname"),
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGOPTIONS", "options"),
    ("PGPASSFILE", "passfile"),
    ("PGPASSWORD", "password"),
    ("PGPORT", "port"),
    ("PGSERVICE", "service"),
    ("PGSERVICEFILE", "servicefile"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLCRL", "sslcrl"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLNEGOTIATION", "sslnegotiation"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
    ("PGUSER", "user"),
];

/// What the program that uses this library knows of its surroundings.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// Environment variables; only those whose names begin with `PG` are looked at. They may hold a password.
    pub variables: Variables,
    /// The home directory, for `.pgpass`, `.pg_service.conf` and `.postgresql/`.
    pub home: Option<PathBuf>,
    /// The name of the system's user: the role when nobody names one.
    pub user: Option<String>,
}

/// Environment variables. `Debug` shows their names only.
#[derive(Clone, Default)]
pub struct Variables(BTreeMap<String, Secret>);

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let known = |(name, value): (K, V)| (name.into(), Secret::new(value.into()));
        Self(pairs.into_iter().map(known).filter(|(name, _)| name.starts_with("PG")).collect())
    }
}

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Surroundings {
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        self.variables.0.get(name).map(|value| value.expose().to_owned()).filter(|value| !value.is_empty())
    }

    pub(super) fn in_home(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(name))
    }
}

impl ConnectOptions {
    /// Makes out where to connect from a connection string or URI and, for what it leaves open, from the service file,
    /// the `PG*` variables, and the usual defaults, in this order. Passwords may come from `.pgpass`.
    ///
    /// Reads the files that these name and connects to nothing. `name` is the application name by default.
    pub fn resolve(text: &str, surroundings: &Surroundings, name: &str) -> Result<Self, OptionsError> {
        let mut pairs = connection_string(text)?;
        add_service(&mut pairs, surroundings)?;
        for (variable, keyword) in VARIABLES {
            if let Some(value) = surroundings.variable(variable) {
                pairs.entry((*keyword).to_owned()).or_insert(value);
            }
        }
        build(pairs, surroundings, name)
    }
}

fn bad(keyword: &'static str, value: &str, reason: &str) -> OptionsError {
    OptionsError::BadValue { keyword, value: value.chars().take(64).collect(), reason: reason.to_owned() }
}

/// Takes a value out and finds it in a table.
fn choice<T: Copy + Default>(
    pairs: &mut Pairs,
    keyword: &'static str,
    table: &[(&str, T)],
) -> Result<T, OptionsError> {
    let Some(value) = take(pairs, keyword) else { return Ok(T::default()) };
    let found = table.iter().find(|(name, _)| *name == value);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        bad(keyword, &value, &format!("it is one of {}", names.join(", ")))
    })
}

fn take(pairs: &mut Pairs, keyword: &str) -> Option<String> {
    pairs.remove(keyword).filter(|value| !value.is_empty())
}

fn build(mut pairs: Pairs, surroundings: &Surroundings, name: &str) -> Result<ConnectOptions, OptionsError> {
    refuse_unsupported(&pairs)?;
    let user = take(&mut pairs, "user").or_else(|| surroundings.user.clone());
    let user = user.ok_or_else(|| bad("user", "", "no role is named, and the system's user is not known"))?;
    let database = take(&mut pairs, "dbname").unwrap_or_else(|| user.clone());
    let mut ssl_mode = choice(
        &mut pairs,
        "sslmode",
        &[
            ("disable", SslMode::Disable),
            ("allow", SslMode::Allow),
            ("prefer", SslMode::Prefer),
            ("require", SslMode::Require),
            ("verify-ca", SslMode::VerifyCa),
            ("verify-full", SslMode::VerifyFull),
        ],
    )?;
    let ssl_given = pairs.contains_key("sslrootcert");
    let root_certs = root_certs(&mut pairs, surroundings)?;
    if ssl_given && root_certs == RootCerts::System {
        // Anybody can have a certificate of a public authority, so the name must be checked; libpq demands it too.
        ssl_mode = match ssl_mode {
            SslMode::Prefer | SslMode::VerifyFull => SslMode::VerifyFull,
            _ => return Err(bad("sslrootcert", "system", "it needs sslmode=verify-full")),
        };
    }
    let hosts = hosts(&mut pairs, surroundings, &user, &database)?;
    Ok(ConnectOptions {
        hosts,
        user,
        database,
        ssl_mode,
        ssl_negotiation: choice(
            &mut pairs,
            "sslnegotiation",
            &[("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)],
        )?,
        root_certs,
        client_cert: client_cert(&mut pairs, surroundings)?,
        crl: take(&mut pairs, "sslcrl").map(PathBuf::from),
        channel_binding: choice(
            &mut pairs,
            "channel_binding",
            &[
                ("disable", ChannelBinding::Disable),
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
            ],
        )?,
        target: choice(
            &mut pairs,
            "target_session_attrs",
            &[
                ("any", TargetSession::Any),
                ("read-write", TargetSession::ReadWrite),
                ("read-only", TargetSession::ReadOnly),
                ("primary", TargetSession::Primary),
                ("standby", TargetSession::Standby),
                ("prefer-standby", TargetSession::PreferStandby),
            ],
        )?,
        connect_timeout: timeout(&mut pairs)?,
        keep_alive: keep_alive(&mut pairs)?,
        user_timeout: number(&mut pairs, "tcp_user_timeout")?.map(|ms| Duration::from_millis(ms.into())),
        application_name: take(&mut pairs, "application_name").unwrap_or_else(|| name.to_owned()),
        session_options: take(&mut pairs, "options"),
        session: SessionKind::default(),
    })
}

/// What would weaken or change a connection if it were silently left out.
fn refuse_unsupported(pairs: &Pairs) -> Result<(), OptionsError> {
    let harmless: &[(&'static str, &[&str])] = &[
        ("gssencmode", &["disable", "prefer", ""]),
        ("load_balance_hosts", &["disable", ""]),
        ("min_protocol_version", &["3.0", ""]),
        ("oauth_issuer", &[""]),
        ("require_auth", &[""]),
        ("requirepeer", &[""]),
        ("sslcrldir", &[""]),
        ("ssl_max_protocol_version", &["TLSv1.3", ""]),
        ("ssl_min_protocol_version", &["TLSv1", "TLSv1.1", "TLSv1.2", ""]),
        ("sslcertmode", &["allow", ""]),
        ("sslkeylogfile", &[""]),
    ];
    for (keyword, fine) in harmless {
        if let Some(value) = pairs.get(*keyword).filter(|value| !fine.contains(&value.as_str())) {
            return Err(OptionsError::Unsupported { keyword, value: value.clone() });
        }
    }
    refuse_secrets(pairs)
}

fn root_certs(pairs: &mut Pairs, surroundings: &Surroundings) -> Result<RootCerts, OptionsError> {
    match take(pairs, "sslrootcert") {
        Some(value) if value == "system" => Ok(RootCerts::System),
        Some(value) => Ok(RootCerts::File(value.into())),
        None => {
            let path = surroundings.in_home(".postgresql/root.crt").unwrap_or_default();
            Ok(RootCerts::File(path))
        }
    }
}

fn client_cert(
    pairs: &mut Pairs,
    surroundings: &Surroundings,
) -> Result<Option<(PathBuf, PathBuf)>, OptionsError> {
    let given = (take(pairs, "sslcert"), take(pairs, "sslkey"));
    let key = |given: Option<String>| {
        given.map(PathBuf::from).or_else(|| surroundings.in_home(".postgresql/postgresql.key"))
    };
    let (cert, key) = match given {
        (Some(cert), sslkey) => (PathBuf::from(cert), key(sslkey)),
        (None, sslkey) => {
            match surroundings.in_home(".postgresql/postgresql.crt").filter(|path| path.exists()) {
                Some(cert) => (cert, key(sslkey)),
                None => return Ok(None),
            }
        }
    };
    let key = key.ok_or_else(|| bad("sslkey", "", "a certificate needs its key"))?;
    let metadata =
        std::fs::metadata(&key).map_err(|source| OptionsError::File { path: key.clone(), source })?;
    let others = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.permissions().mode() & others != 0 {
        let reason = io::Error::new(
            io::ErrorKind::PermissionDenied,
            "a private key must not be open to others (chmod 600)",
        );
        return Err(OptionsError::File { path: key, source: reason });
    }
    Ok(Some((cert, key)))
}

fn timeout(pairs: &mut Pairs) -> Result<Option<Duration>, OptionsError> {
    let Some(value) = take(pairs, "connect_timeout") else { return Ok(None) };
    match value.trim().parse::<i64>() {
        Ok(seconds) if seconds <= 0 => Ok(None),
        Ok(seconds) => Ok(Some(Duration::from_secs((seconds as u64).max(TIMEOUT_MIN_S)))),
        Err(_) => Err(bad("connect_timeout", &value, "it is a number of seconds")),
    }
}

/// A number above zero; zero or none leaves the choice to us.
fn number(pairs: &mut Pairs, keyword: &'static str) -> Result<Option<u32>, OptionsError> {
    let Some(value) = take(pairs, keyword) else { return Ok(None) };
    match value.trim().parse::<i32>() {
        Ok(number) => Ok(u32::try_from(number).ok().filter(|number| *number > 0)),
        Err(_) => Err(bad(keyword, &value, "it is a number")),
    }
}

fn keep_alive(pairs: &mut Pairs) -> Result<Option<KeepAlive>, OptionsError> {
    let mut seconds = |keyword| Ok(number(pairs, keyword)?.map(|s| Duration::from_secs(s.into())));
    let (idle, interval) = (seconds("keepalives_idle")?, seconds("keepalives_interval")?);
    let (count, default) = (number(pairs, "keepalives_count")?, KeepAlive::default());
    match take(pairs, "keepalives").as_deref().map(str::trim) {
        Some("0") => Ok(None),
        None | Some("1" | "") => Ok(Some(KeepAlive {
            idle: idle.unwrap_or(default.idle),
            interval: interval.unwrap_or(default.interval),
            count: count.unwrap_or(default.count),
        })),
        Some(other) => Err(bad("keepalives", other, "it is 0 or 1")),
    }
}

/// Pairs up `host`, `hostaddr` and `port`, and looks for passwords.
fn hosts(
    pairs: &mut Pairs,
    surroundings: &Surroundings,
    user: &str,
    database: &str,
) -> Result<Vec<HostOptions>, OptionsError> {
    let list = |value: Option<String>| -> Vec<String> {
        value.map(|value| value.split(',').map(|part| part.trim().to_owned()).collect()).unwrap_or_default()
    };
    let (names, addresses) = (list(take(pairs, "host")), list(take(pairs, "hostaddr")));
    let ports = list(take(pairs, "port"));
    let count = names.len().max(addresses.len()).max(1);
    if count > HOSTS_MAX {
        return Err(bad("host", "…", "it names more than 64 servers"));
    }
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(bad("hostaddr", &addresses.join(","), "it has as many parts as `host`"));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(bad("port", &ports.join(","), "it has one part, or as many as `host`"));
    }
    let password = take(pairs, "password").map(Secret::new);
    let file = take(pairs, "passfile").map(PathBuf::from).or_else(|| surroundings.in_home(".pgpass"));
    let lines = if password.is_none() { password_file(file.as_deref())? } else { None };
    let mut found = Vec::with_capacity(count);
    for at in 0..count {
        let address = match addresses.get(at).filter(|text| !text.is_empty()) {
            Some(text) => Some(text.parse().map_err(|_| bad("hostaddr", text, "it is an IP address"))?),
            None => None,
        };
        let name = match (names.get(at).filter(|name| !name.is_empty()), addresses.get(at)) {
            (Some(name), _) => name.clone(),
            (None, Some(address)) if !address.is_empty() => address.clone(),
            _ => SOCKET_DIRECTORY.to_owned(),
        };
        let port = match ports.get(if ports.len() == 1 { 0 } else { at }).filter(|port| !port.is_empty()) {
            Some(port) => match port.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(bad("port", port, "it is a number from 1 to 65535")),
            },
            None => 5432,
        };
        let mut host = HostOptions { name, address, port, password: password.clone() };
        if let Some(lines) = &lines {
            host.password = find_password(lines.expose(), &host, database, user);
        }
        found.push(host);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_vanished_is_noticed_as_the_options_say() {
        let resolve = |text: &str| ConnectOptions::resolve(text, &Surroundings::default(), "t");
        let plain = resolve("host=db user=ann").unwrap();
        assert_eq!((plain.keep_alive, plain.user_timeout), (Some(KeepAlive::default()), None));
        let given = resolve(
            "host=db user=ann keepalives_idle=30 keepalives_interval=5 keepalives_count=2 tcp_user_timeout=9000",
        );
        let given = given.unwrap();
        let seconds = Duration::from_secs;
        let expected = KeepAlive { idle: seconds(30), interval: seconds(5), count: 2 };
        assert_eq!((given.keep_alive, given.user_timeout), (Some(expected), Some(seconds(9))));
        assert_eq!(resolve("host=db user=ann keepalives=0").unwrap().keep_alive, None);
        for wrong in
            ["keepalives=yes", "keepalives_idle=soon", "tcp_user_timeout=1s", "keepalives_count=9999999999"]
        {
            assert!(resolve(&format!("host=db user=ann {wrong}")).is_err(), "{wrong}");
        }
    }

    fn home(files: &[(&str, &str, u32)]) -> (tempfile::TempDir, Surroundings) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text, mode) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
        }
        let home = Some(dir.path().to_owned());
        (dir, Surroundings { home, user: Some("ann".into()), ..Surroundings::default() })
    }

    fn with(surroundings: &Surroundings, variables: &[(&str, &str)]) -> Surroundings {
        let variables = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Surroundings { variables, ..surroundings.clone() }
    }

    fn password(options: &ConnectOptions, at: usize) -> Option<&str> {
        options.hosts[at].password.as_ref().map(Secret::expose)
    }

    #[test]
    fn the_string_goes_before_the_service_and_this_before_the_variables() {
        let service = "# ours\n[main]\nhost=db1\nport=6000\nuser=svc\n[other]\nhost=no\n";
        let (_dir, plain) = home(&[(".pg_service.conf", service, 0o644)]);
        let surroundings =
            with(&plain, &[("PGUSER", "env"), ("PGDATABASE", "envdb"), ("PGPORT", "1"), ("HOME", "x")]);
        let options = ConnectOptions::resolve("service=main port=7000", &surroundings, "t").unwrap();
        assert_eq!(options.hosts[0].describe(), "db1:7000");
        assert_eq!((options.user.as_str(), options.database.as_str()), ("svc", "envdb"));
        let error = ConnectOptions::resolve("service=none", &surroundings, "t").unwrap_err();
        assert_eq!(error.to_string(), "the service `none` is defined nowhere");
        let nothing = ConnectOptions::resolve("", &plain, "t").unwrap();
        assert_eq!(
            (nothing.hosts[0].describe().as_str(), nothing.user.as_str()),
            ("/var/run/postgresql:5432", "ann")
        );
        assert_eq!(nothing.ssl_mode, SslMode::Prefer);
    }

    #[test]
    fn the_password_file_is_searched_per_host() {
        let lines =
            "# c\ndb1:5432:*:ann:one\ndb2:*:orders:*:t\\:w\\\\o\nlocalhost:*:*:ann:sock\n*:*:*:ann:rest\n";
        let (_dir, surroundings) = home(&[(".pgpass", lines, 0o600)]);
        let options = ConnectOptions::resolve(
            "host=db1,db2,db3,/var/run/postgresql,/tmp dbname=orders",
            &surroundings,
            "t",
        )
        .unwrap();
        let found: Vec<_> = (0..5).map(|at| password(&options, at).unwrap()).collect();
        assert_eq!(found, ["one", "t:w\\o", "rest", "sock", "rest"]);
        let given = ConnectOptions::resolve("host=db1 password=given", &surroundings, "t").unwrap();
        assert_eq!(password(&given, 0), Some("given"));
        assert!(!format!("{given:?}").contains("given"));
    }

    #[test]
    fn a_password_file_or_key_that_others_can_read_is_refused() {
        let (_dir, surroundings) = home(&[(".pgpass", "*:*:*:*:x\n", 0o644)]);
        let error = ConnectOptions::resolve("host=a", &surroundings, "t").unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("chmod 600"));
        let files = [(".postgresql/postgresql.crt", "c", 0o644), (".postgresql/postgresql.key", "k", 0o644)];
        let (_dir, surroundings) = home(&files);
        assert!(matches!(
            ConnectOptions::resolve("host=a", &surroundings, "t"),
            Err(OptionsError::File { .. })
        ));
    }

    #[test]
    fn hosts_addresses_and_ports_are_paired() {
        let (_dir, surroundings) = home(&[]);
        let get = |text| ConnectOptions::resolve(text, &surroundings, "t");
        let two = get("host=a,b port=1,2 target_session_attrs=primary").unwrap();
        assert_eq!(two.hosts.iter().map(HostOptions::describe).collect::<Vec<_>>(), ["a:1", "b:2"]);
        assert_eq!(two.target, TargetSession::Primary);
        assert_eq!(get("hostaddr=127.0.0.1").unwrap().hosts[0].name, "127.0.0.1");
        for bad in [
            "host=a,b port=1,2,3",
            "host=a,b hostaddr=127.0.0.1",
            "port=0",
            "port=x",
            "hostaddr=name",
            "sslmode=maybe",
        ] {
            assert!(matches!(get(bad), Err(OptionsError::BadValue { .. })), "{bad}");
        }
    }

    #[test]
    fn what_would_weaken_the_connection_is_not_ignored() {
        let (_dir, surroundings) = home(&[]);
        let get = |text| ConnectOptions::resolve(text, &surroundings, "t");
        for text in [
            "require_auth=scram-sha-256",
            "sslpassword=x",
            "ssl_min_protocol_version=TLSv1.3",
            "gssencmode=require",
            "min_protocol_version=3.2",
            "scram_client_key=x",
        ] {
            assert!(matches!(get(text), Err(OptionsError::Unsupported { .. })), "{text}");
        }
        assert!(get("max_protocol_version=latest").is_ok(), "of PostgreSQL 18");
        assert_eq!(get("sslrootcert=system").unwrap().ssl_mode, SslMode::VerifyFull);
        assert!(get("sslrootcert=system sslmode=require").is_err());
        assert!(matches!(get("host=a pasword=x"), Err(OptionsError::UnknownKeyword { .. })));
    }
}
