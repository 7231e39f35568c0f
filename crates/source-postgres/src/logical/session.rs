//! Ordinary sessions that write rows the same way, whatever is set for the database or the role.

use super::DumpError;
use crate::options::ConnectOptions;
use crate::wire::{Client, Rows};

/// Everything that changes how a value is written or read, or that could end a long session.
const SETTINGS: &str = "SELECT pg_catalog.set_config('search_path', '', false); SET datestyle = 'ISO'; \
    SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'; \
    SET lc_monetary = 'C'; SET xmloption = 'content'; SET row_security = off; SET synchronize_seqscans = off; \
    SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
    SET idle_session_timeout = 0";

/// Connects to a database and sets what counts.
pub(crate) async fn connect(options: &ConnectOptions, database: &str) -> Result<Client, DumpError> {
    let mut client = Client::connect(&options.ordinary(database)).await?;
    client.query(SETTINGS, "prepare the session").await?;
    if client.major() >= 17 {
        client.query("SET transaction_timeout = 0", "prepare the session").await?;
    }
    Ok(client)
}

/// From here on rows are sent and taken as the database has them, without conversion.
pub(crate) async fn raw(client: &mut Client, encoding: &str) -> Result<(), DumpError> {
    let sql = format!("SET client_encoding = {}", super::names::literal(encoding));
    client.query(&sql, "set the encoding").await?;
    Ok(())
}

/// The same options for one server alone: that which `client` reached.
pub(crate) fn only(options: &ConnectOptions, client: &Client) -> ConnectOptions {
    let mut options = options.clone();
    options.hosts.retain(|host| host.describe() == client.host());
    options
}

pub(crate) fn odd(what: &str) -> DumpError {
    DumpError::Odd(format!("the server's answer about {what} cannot be read"))
}

/// Every row of an answer, made into something.
pub(crate) fn each<T>(
    rows: &Rows,
    what: &str,
    make: impl Fn(&dyn Fn(usize) -> Option<String>) -> Option<T>,
) -> Result<Vec<T>, DumpError> {
    (0..rows.rows.len())
        .map(|row| make(&|column| rows.text(row, column).map(str::to_owned)).ok_or_else(|| odd(what)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_depends_on_what_is_set_for_a_database() {
        // Of `money` the text is `$1,234.56` in one database, and `1.234,56 €` in another, which takes only its own.
        for name in
            ["datestyle", "intervalstyle", "timezone", "extra_float_digits", "bytea_output", "lc_monetary"]
        {
            assert!(SETTINGS.contains(&format!("SET {name} = ")), "{name}");
        }
    }
}
