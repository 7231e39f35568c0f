//! Connection strings and URIs to pairs of keyword and value.

use std::collections::BTreeMap;

use super::OptionsError;

/// Longest connection string that is looked at, in bytes.
const TEXT_MAX: usize = 64 << 10;

/// Every keyword of libpq, so that a misspelt one is told from one that does not matter here.
const KEYWORDS: &[&str] = &[
    "application_name",
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "dbname",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "host",
    "hostaddr",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "oauth_client_id",
    "oauth_client_secret",
    "oauth_issuer",
    "oauth_scope",
    "options",
    "passfile",
    "password",
    "port",
    "replication",
    "require_auth",
    "requirepeer",
    "scram_client_key",
    "scram_server_key",
    "service",
    "servicefile",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkey",
    "sslkeylogfile",
    "sslmode",
    "sslnegotiation",
    "sslpassword",
    "sslrootcert",
    "sslsni",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// Secrets for which we have no use, and which a program takes in its arguments alone.
const SECRETS: [&str; 4] = ["oauth_client_secret", "scram_client_key", "scram_server_key", "sslpassword"];

/// Keywords and values as given.
pub(super) type Pairs = BTreeMap<String, String>;

fn syntax(reason: impl Into<String>) -> OptionsError {
    OptionsError::Syntax { reason: reason.into() }
}

/// Reads a list of `keyword=value`, a URI, or a mere database name.
pub(super) fn connection_string(text: &str) -> Result<Pairs, OptionsError> {
    if text.len() > TEXT_MAX {
        return Err(syntax("it is longer than 64 KiB"));
    }
    if text.contains('\0') {
        return Err(syntax("it holds a zero byte"));
    }
    if let Some(rest) = text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        return uri(rest);
    }
    if !text.trim().is_empty() && !text.contains('=') {
        return Ok(Pairs::from([("dbname".to_owned(), text.trim().to_owned())]));
    }
    keyword_values(text)
}

/// Inserts a pair after checking its keyword; a later one replaces an earlier one.
pub(super) fn insert(pairs: &mut Pairs, keyword: &str, value: String) -> Result<(), OptionsError> {
    if KEYWORDS.binary_search(&keyword).is_err() {
        return Err(OptionsError::UnknownKeyword { keyword: keyword.chars().take(64).collect() });
    }
    pairs.insert(keyword.to_owned(), value);
    Ok(())
}

/// Fails where one of these secrets is given.
pub(super) fn refuse_secrets(pairs: &Pairs) -> Result<(), OptionsError> {
    let is_given = |keyword: &&&str| pairs.get(**keyword).is_some_and(|value| !value.is_empty());
    match SECRETS.iter().find(is_given) {
        Some(&keyword) => Err(OptionsError::Unsupported { keyword, value: "…".to_owned() }),
        None => Ok(()),
    }
}

fn keyword_values(text: &str) -> Result<Pairs, OptionsError> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let (keyword, after) = rest.split_once('=').ok_or_else(|| syntax("a keyword has no `=` after it"))?;
        let keyword = keyword.trim_end();
        if keyword.is_empty() || keyword.contains(char::is_whitespace) {
            return Err(syntax("a keyword has no `=` after it"));
        }
        let (value, after) = value(after.trim_start())?;
        insert(&mut pairs, keyword, value)?;
        rest = after.trim_start();
    }
    Ok(pairs)
}

/// A value up to white space, or in single quotes; a backslash takes the next character as it is.
fn value(text: &str) -> Result<(String, &str), OptionsError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, next)) => value.push(next),
                None => return Err(syntax("it ends in a backslash")),
            },
            '\'' if quoted => return Ok((value, &body[at + 1..])),
            c if !quoted && c.is_whitespace() => return Ok((value, &body[at..])),
            c => value.push(c),
        }
    }
    if quoted { Err(syntax("a quoted value has no closing quote")) } else { Ok((value, "")) }
}

/// `user:password@host:port,host:port/database?keyword=value&…`, after the scheme.
fn uri(rest: &str) -> Result<Pairs, OptionsError> {
    let mut pairs = Pairs::new();
    let (rest, query) = rest.split_once('?').map_or((rest, None), |(rest, query)| (rest, Some(query)));
    let (authority, database) = rest.split_once('/').map_or((rest, ""), |(a, d)| (a, d));
    let hosts = match authority.rsplit_once('@') {
        Some((login, hosts)) => {
            let (user, password) = login.split_once(':').map_or((login, None), |(u, p)| (u, Some(p)));
            for (keyword, value) in [("user", Some(user)), ("password", password)] {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    insert(&mut pairs, keyword, decoded(value)?)?;
                }
            }
            hosts
        }
        None => authority,
    };
    uri_hosts(hosts, &mut pairs)?;
    if !database.is_empty() {
        insert(&mut pairs, "dbname", decoded(database)?)?;
    }
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        let (keyword, value) =
            pair.split_once('=').ok_or_else(|| syntax("a parameter of the URI has no `=`"))?;
        let (keyword, value) = (decoded(keyword)?, decoded(value)?);
        match (keyword.as_str(), value.as_str()) {
            ("ssl", "true") => insert(&mut pairs, "sslmode", "require".to_owned())?,
            _ => insert(&mut pairs, &keyword, value)?,
        }
    }
    Ok(pairs)
}

fn uri_hosts(text: &str, pairs: &mut Pairs) -> Result<(), OptionsError> {
    if text.is_empty() {
        return Ok(());
    }
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for part in text.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(rest) => {
                let (host, after) =
                    rest.split_once(']').ok_or_else(|| syntax("an address in brackets is not closed"))?;
                match after {
                    "" => (host, ""),
                    _ => (
                        host,
                        after
                            .strip_prefix(':')
                            .ok_or_else(|| syntax("a `]` is followed by neither `:` nor `,`"))?,
                    ),
                }
            }
            None => part.split_once(':').unwrap_or((part, "")),
        };
        hosts.push(decoded(host)?);
        ports.push(decoded(port)?);
    }
    if hosts.iter().any(|host| host.contains(',')) {
        return Err(syntax("a host name holds a comma"));
    }
    if hosts.iter().any(|host| !host.is_empty()) {
        insert(pairs, "host", hosts.join(","))?;
    }
    if ports.iter().any(|port| !port.is_empty()) {
        insert(pairs, "port", ports.join(","))?;
    }
    Ok(())
}

/// Resolves `%41`.
fn decoded(text: &str) -> Result<String, OptionsError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) if (high, low) != (0, 0) => bytes.push((high * 16 + low) as u8),
            _ => return Err(syntax("a `%` of the URI is not followed by two hex digits other than 00")),
        }
    }
    String::from_utf8(bytes).map_err(|_| syntax("a part of the URI is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        connection_string(text).unwrap().into_iter().collect()
    }

    fn of(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_list_of_keywords_can_be_searched() {
        assert!(KEYWORDS.is_sorted());
    }

    #[test]
    fn strings_read_as_libpq_reads_them() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("", &[]),
            ("orders", &[("dbname", "orders")]),
            ("host=db1 port = 5433", &[("host", "db1"), ("port", "5433")]),
            (r"password='it\'s \\' user=a\ b", &[("password", r"it's \"), ("user", "a b")]),
            ("user='' dbname=x", &[("dbname", "x"), ("user", "")]),
            ("postgresql://", &[]),
            ("postgres://u:p%40@h/d", &[("dbname", "d"), ("host", "h"), ("password", "p@"), ("user", "u")]),
            (
                "postgresql://h1:1,h2,[::1]:3/d?target_session_attrs=primary",
                &[
                    ("dbname", "d"),
                    ("host", "h1,h2,::1"),
                    ("port", "1,,3"),
                    ("target_session_attrs", "primary"),
                ],
            ),
            (
                "postgresql://%2Frun%2Fpg/d?ssl=true",
                &[("dbname", "d"), ("host", "/run/pg"), ("sslmode", "require")],
            ),
            ("postgresql:///d?host=/tmp&port=1", &[("dbname", "d"), ("host", "/tmp"), ("port", "1")]),
        ];
        for (text, expected) in cases {
            assert_eq!(pairs(text), of(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_without_being_repeated() {
        for text in [
            "host=a secret",
            "host='open secret",
            r"password=secret\",
            "secret%=1",
            "postgresql://u:secret%4@h",
            "postgresql://[::1/secret",
            "postgresql://[::1]secret",
            "postgresql://h/d?secret",
            "postgresql://h/%00secret",
        ] {
            let error = connection_string(text).unwrap_err();
            assert!(
                !error.to_string().contains("secret") || matches!(error, OptionsError::UnknownKeyword { .. }),
                "{error}"
            );
        }
    }
}
