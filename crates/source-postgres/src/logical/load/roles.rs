//! Roles that a dump needs and a server lacks.

use std::collections::BTreeSet;

use super::super::DumpError;
use super::super::session::each;
use super::MadeRoles;
use crate::wire::{Client, PgError};

const ACTION: &str = "make the roles that are missing";

/// Makes the roles that are missing, as they were: with attributes, settings, comments, and what they are members of.
/// Others are left alone. Settings that the server does not take are left out: what newer ones do not know any more is no
/// reason to load nothing.
pub(super) async fn make_missing(client: &mut Client, globals: &str) -> Result<MadeRoles, DumpError> {
    let rows = client.query("SELECT rolname FROM pg_roles", "ask for roles").await?;
    let there: BTreeSet<String> = each(&rows, "roles", |text| text(0))?.into_iter().collect();
    let missing = missing(globals, &there);
    if missing.commands.is_empty() && missing.settings.is_empty() {
        return Ok(MadeRoles { names: missing.names, notes: Vec::new() });
    }
    let made = make(client, missing).await;
    if made.is_err() {
        // What went wrong is what there is to say.
        let _ = client.query("ROLLBACK", ACTION).await;
    }
    made
}

/// Makes them in one transaction: where it ends in the middle none is there, and the next load makes them with their settings.
async fn make(client: &mut Client, missing: Missing) -> Result<MadeRoles, DumpError> {
    let begin: Vec<String> = ["BEGIN".to_owned()].into_iter().chain(missing.commands).collect();
    client.query(&begin.join(";\n"), ACTION).await?;
    let mut notes = Vec::new();
    for Setting { role, name, sql } in missing.settings {
        let sql = format!("SAVEPOINT setting;\n{sql};\nRELEASE SAVEPOINT setting");
        match client.query(&sql, ACTION).await {
            Err(PgError::Server { error, .. }) => {
                client.query("ROLLBACK TO SAVEPOINT setting", ACTION).await?;
                notes.push(format!(
                    "the setting `{name}` of the role `{role}` is left out: {}",
                    error.message
                ));
            }
            answered => drop(answered?),
        }
    }
    client.query("COMMIT", ACTION).await?;
    Ok(MadeRoles { names: missing.names, notes })
}

/// The roles that are not there, and what makes them.
#[derive(Debug, Default)]
struct Missing {
    names: Vec<String>,
    commands: Vec<String>,
    settings: Vec<Setting>,
}

/// A command that gives a role a value of its own for a parameter.
#[derive(Debug)]
struct Setting {
    role: String,
    name: String,
    sql: String,
}

fn missing(globals: &str, there: &BTreeSet<String>) -> Missing {
    let mut missing = Missing::default();
    for statement in statements(globals) {
        let words = words(&statement);
        let word = |at: usize| words.get(at).map(|(text, _)| text.as_str()).unwrap_or_default();
        let about = match (word(0), word(1), word(2)) {
            ("CREATE" | "ALTER", "ROLE", name) => name,
            ("COMMENT", "ON", "ROLE") => word(3),
            ("GRANT", _, "TO") => word(3),
            _ => continue,
        };
        if about.is_empty() || there.contains(about) {
            continue;
        }
        if word(0) == "CREATE" {
            missing.names.push(about.to_owned());
        }
        if (word(0), word(3)) == ("ALTER", "SET") {
            let (role, name) = (about.to_owned(), word(4).to_owned());
            missing.settings.push(Setting { role, name, sql: statement });
            continue;
        }
        // Who granted it may not be there; from here on it is us.
        let granted_by = words.windows(2).find(|pair| pair[0].0 == "GRANTED" && pair[1].0 == "BY");
        match granted_by.filter(|_| word(0) == "GRANT") {
            Some(pair) => missing.commands.push(statement[..pair[0].1].trim_end().to_owned()),
            None => missing.commands.push(statement),
        }
    }
    missing
}

/// The commands of a script, without comments, and without what is meant for `psql`.
fn statements(sql: &str) -> Vec<String> {
    let (mut found, mut current, mut quote, mut escapes) = (Vec::new(), String::new(), None, false);
    for line in sql.split_inclusive('\n') {
        if current.trim().is_empty() && (line.starts_with("--") || line.starts_with('\\')) {
            continue;
        }
        let mut characters = line.chars();
        while let Some(character) = characters.next() {
            match quote {
                None if character == ';' => {
                    found.push(std::mem::take(&mut current).trim().to_owned());
                    continue;
                }
                None if matches!(character, '\'' | '"') => {
                    quote = Some(character);
                    let is_doubled = current.ends_with(character);
                    escapes = character == '\'' && (is_doubled && escapes || current.ends_with(['E', 'e']));
                }
                Some(_) if escapes && character == '\\' => {
                    current.push(character);
                    current.extend(characters.next());
                    continue;
                }
                // A doubled one opens it again at once.
                Some(open) if open == character => quote = None,
                _ => {}
            }
            current.push(character);
        }
    }
    found.retain(|statement| !statement.is_empty());
    found
}

/// The first words of a command, identifiers without their quotes, with where each begins.
fn words(statement: &str) -> Vec<(String, usize)> {
    let mut found: Vec<(String, usize)> = Vec::new();
    let mut characters = statement.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let mut word = String::new();
        match character {
            c if c.is_whitespace() => continue,
            '"' => {
                while let Some((_, c)) = characters.next() {
                    match c {
                        '"' if characters.peek().is_some_and(|(_, next)| *next == '"') => {
                            characters.next();
                            word.push('"');
                        }
                        '"' => break,
                        c => word.push(c),
                    }
                }
            }
            c => {
                word.push(c);
                while let Some((_, c)) = characters.next_if(|(_, c)| !c.is_whitespace() && *c != '"') {
                    word.push(c);
                }
            }
        }
        found.push((word, at));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const GLOBALS: &str = r#"--
-- PostgreSQL database cluster dump
--

\restrict abc

SET default_transaction_read_only = off;

CREATE ROLE postgres;
ALTER ROLE postgres WITH SUPERUSER;
CREATE ROLE "o'hara; x";
ALTER ROLE "o'hara; x" WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$4096:x;y';
COMMENT ON ROLE "o'hara; x" IS E'it''s \' a
; line';
CREATE ROLE reader;
ALTER ROLE reader SET search_path TO 'a', 'b';
GRANT reader TO "o'hara; x" WITH INHERIT TRUE GRANTED BY postgres;
GRANT reader TO postgres GRANTED BY postgres;
CREATE TABLESPACE fast OWNER postgres LOCATION '/x';
\unrestrict abc
"#;

    #[test]
    fn only_missing_roles_are_made_with_all_that_belongs_to_them() {
        let there = BTreeSet::from(["postgres".to_owned(), "reader".to_owned()]);
        let found = missing(GLOBALS, &there);
        assert_eq!(found.names, ["o'hara; x"]);
        assert_eq!(
            found.commands,
            [
                r#"CREATE ROLE "o'hara; x""#,
                r#"ALTER ROLE "o'hara; x" WITH NOSUPERUSER LOGIN PASSWORD 'SCRAM-SHA-256$4096:x;y'"#,
                "COMMENT ON ROLE \"o'hara; x\" IS E'it''s \\' a\n; line'",
                r#"GRANT reader TO "o'hara; x" WITH INHERIT TRUE"#,
            ]
        );
        assert!(found.settings.is_empty());
        let found = missing(GLOBALS, &BTreeSet::from(["postgres".to_owned()]));
        assert_eq!((found.names.len(), found.commands.len(), found.settings.len()), (2, 5, 1), "{found:?}");
    }

    #[tokio::test]
    async fn a_setting_that_the_server_does_not_know_costs_no_role() {
        let globals = "CREATE ROLE ann;\nALTER ROLE ann WITH LOGIN;\nALTER ROLE ann SET old_one TO 'on';\n\
                       ALTER ROLE ann SET work_mem TO '5MB';\n";
        let done = |tag: &[u8]| crate::testing::message(b'C', tag);
        let (_dir, mut client) = crate::testing::played(vec![
            ("SELECT rolname", crate::testing::row(&[("rolname", "postgres")])),
            // Not without its settings, whatever comes between: who finds it makes it no more.
            ("BEGIN;\nCREATE ROLE ann;\nALTER ROLE ann WITH LOGIN\0", done(b"ALTER ROLE\0")),
            ("SAVEPOINT setting;\nALTER ROLE ann SET work_mem", done(b"RELEASE\0")),
            ("ROLLBACK TO SAVEPOINT setting\0", done(b"ROLLBACK\0")),
            ("COMMIT\0", done(b"COMMIT\0")),
        ])
        .await;
        let made = make_missing(&mut client, globals).await.unwrap();
        assert_eq!(made.names, ["ann"]);
        assert_eq!(made.notes, ["the setting `old_one` of the role `ann` is left out: what?"]);
    }
}
