//! Databases: made, set up, dropped.

use std::collections::BTreeSet;

use super::super::DumpError;
use super::super::describe::{DatabaseDump, Properties};
use super::super::names::{ident, literal};
use super::super::session::each;
use super::{Destination, LoadOptions, Owners, Privileges};
use crate::wire::{Client, PgError};

/// Settings whose value is a list of names, which the catalog holds quoted already.
const LISTS: [&str; 5] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "unix_socket_directories",
];
/// One more of them, which a session may not have where one of its tablespaces is missing. A database may.
const TABLESPACES: &str = "temp_tablespaces";

pub(super) async fn exists(client: &mut Client, name: &str) -> Result<bool, DumpError> {
    let sql = format!("SELECT 1 FROM pg_database WHERE datname = {}", literal(name));
    Ok(!client.query(&sql, "ask for databases").await?.rows.is_empty())
}

/// Makes an empty database with the encoding and the locale of the original.
pub(super) async fn create(
    client: &mut Client,
    name: &str,
    properties: &Properties,
) -> Result<(), DumpError> {
    let sql = creation(name, properties, client.major());
    client.query(&sql, &format!("create the database `{name}`")).await?;
    Ok(())
}

fn creation(name: &str, properties: &Properties, major: u32) -> String {
    let mut sql = format!(
        "CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}",
        ident(name),
        literal(&properties.encoding),
        literal(&properties.collate),
        literal(&properties.ctype)
    );
    if major >= 15 {
        let locale = properties.locale.as_deref().map(literal);
        let (provider, word) = match properties.provider.as_str() {
            "i" => ("icu", "ICU_LOCALE"),
            "b" => ("builtin", "BUILTIN_LOCALE"),
            _ => ("libc", ""),
        };
        sql.push_str(&format!(" LOCALE_PROVIDER {provider}"));
        if let Some(locale) = locale.filter(|_| !word.is_empty()) {
            sql.push_str(&format!(" {word} {locale}"));
        }
        if let Some(rules) = &properties.icu_rules {
            sql.push_str(&format!(" ICU_RULES {}", literal(rules)));
        }
    }
    sql
}

/// Sets what was set for the original: owner, privileges, settings, comment, limit. Gives the settings that the server does
/// not take, as sentences: what newer ones do not know any more is no reason to lose what was loaded.
pub(super) async fn set_up(
    client: &mut Client,
    name: &str,
    properties: &Properties,
    options: &LoadOptions,
) -> Result<Vec<String>, DumpError> {
    let action = format!("set up the database `{name}`");
    let roles = roles(client).await?;
    for sql in commands(name, properties, (&options.owners, options.privileges)) {
        client.query(&sql, &action).await?;
    }
    let mut refused = Vec::new();
    for (setting, sql) in settings(name, properties, &roles) {
        match client.query(&sql, &action).await {
            Err(PgError::Server { error, .. }) => {
                refused
                    .push(format!("the setting `{setting}` of the database is left out: {}", error.message));
            }
            answered => drop(answered?),
        }
    }
    client.query("SELECT pg_catalog.set_config('search_path', '', false)", &action).await?;
    Ok(refused)
}

fn commands(name: &str, properties: &Properties, (owners, privileges): (&Owners, Privileges)) -> Vec<String> {
    let database = ident(name);
    let mut sql = Vec::new();
    match owners {
        Owners::AsDumped => {
            sql.push(format!("ALTER DATABASE {database} OWNER TO {}", ident(&properties.owner)))
        }
        Owners::Role(role) => sql.push(format!("ALTER DATABASE {database} OWNER TO {}", ident(role))),
        Owners::Ours => {}
    }
    if let (Privileges::AsDumped, Some(privileges)) = (privileges, &properties.privileges) {
        sql.push(format!("REVOKE ALL ON DATABASE {database} FROM PUBLIC"));
        for given in privileges {
            let role = given.role.as_deref().map_or_else(|| "PUBLIC".to_owned(), ident);
            let more = if given.grantable { " WITH GRANT OPTION" } else { "" };
            let privilege = &given.privilege;
            if matches!(privilege.as_str(), "CONNECT" | "CREATE" | "TEMPORARY" | "TEMP") {
                sql.push(format!("GRANT {privilege} ON DATABASE {database} TO {role}{more}"));
            }
        }
    }
    if let Some(comment) = &properties.comment {
        sql.push(format!("COMMENT ON DATABASE {database} IS {}", literal(comment)));
    }
    if properties.connection_limit >= 0 {
        sql.push(format!("ALTER DATABASE {database} CONNECTION LIMIT {}", properties.connection_limit));
    }
    sql
}

/// Names of settings, and what sets them.
fn settings(name: &str, properties: &Properties, roles: &BTreeSet<String>) -> Vec<(String, String)> {
    let database = ident(name);
    let mut found = Vec::new();
    for setting in &properties.settings {
        let role = setting.role.as_ref();
        if role.is_some_and(|role| !roles.contains(role)) {
            continue;
        }
        let whom = role.map_or_else(
            || format!("DATABASE {database}"),
            |role| format!("ROLE {} IN DATABASE {database}", ident(role)),
        );
        let (what, value) = (ident(&setting.name), literal(&setting.value));
        let sql = if setting.name == TABLESPACES {
            let names: Vec<String> = listed(&setting.value).iter().map(|name| literal(name)).collect();
            format!("ALTER {whom} SET {what} TO {}", names.join(", "))
        } else if LISTS.contains(&setting.name.as_str()) {
            // Taken over as it is: a list of names does not survive being quoted as one text.
            format!(
                "SELECT pg_catalog.set_config({}, {value}, false); ALTER {whom} SET {what} FROM CURRENT",
                literal(&setting.name)
            )
        } else {
            format!("ALTER {whom} SET {what} TO {value}")
        };
        found.push((setting.name.clone(), sql));
    }
    found
}

/// The names of a list as the catalog has it: `fast, "an ""odd"" one"`.
fn listed(list: &str) -> Vec<String> {
    let (mut names, mut name, mut is_quoted) = (Vec::new(), String::new(), false);
    let mut characters = list.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if is_quoted && characters.next_if_eq(&'"').is_some() => name.push('"'),
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => names.push(std::mem::take(&mut name)),
            other if is_quoted || !other.is_whitespace() => name.push(other),
            _ => {}
        }
    }
    names.push(name);
    names
}

/// What can belong to a role that is no superuser, and to no extension.
const THINGS: &str = "\
WITH own AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')
SELECT format('SCHEMA %I', n.nspname) FROM pg_namespace n
WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'public')
    AND NOT EXISTS (SELECT 1 FROM own WHERE classid = 'pg_namespace'::regclass AND objid = n.oid)
UNION ALL
SELECT format('%s %I.%I', CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
    WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, n.nspname, c.relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT 1 FROM own WHERE classid = 'pg_class'::regclass AND objid = c.oid)
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE c.relkind = 'S' AND d.classid = 'pg_class'::regclass
        AND d.objid = c.oid AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i'))
UNION ALL
SELECT format('ROUTINE %s', p.oid::regprocedure) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT 1 FROM own WHERE classid = 'pg_proc'::regclass AND objid = p.oid)
    AND NOT EXISTS (SELECT 1 FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'i')
UNION ALL
SELECT format('TYPE %s', t.oid::regtype) FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE (t.typtype IN ('e', 'd', 'r') OR (t.typtype = 'c' AND c.relkind = 'c'))
    AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND NOT EXISTS (SELECT 1 FROM own WHERE classid = 'pg_type'::regclass AND objid = t.oid)
UNION ALL
SELECT format('LARGE OBJECT %s', oid) FROM pg_largeobject_metadata";

/// Gives a role everything in a database that it may own. The session is in that database.
pub(super) async fn give_to(client: &mut Client, role: &str) -> Result<(), DumpError> {
    let rows = client.query(THINGS, "ask for what there is").await?;
    let things = each(&rows, "what there is", |text| text(0))?;
    let commands: Vec<String> =
        things.iter().map(|thing| format!("ALTER {thing} OWNER TO {}", ident(role))).collect();
    for some in commands.chunks(500) {
        client.query(&some.join("; "), &format!("give everything to `{role}`")).await?;
    }
    Ok(())
}

/// Refuses what the server cannot hold, before anything is made.
pub(super) async fn check_extensions(client: &mut Client, database: &DatabaseDump) -> Result<(), DumpError> {
    let rows = client.query("SELECT name FROM pg_available_extensions", "ask for extensions").await?;
    let there: BTreeSet<String> = each(&rows, "extensions", |text| text(0))?.into_iter().collect();
    let missing: Vec<&str> =
        database.extensions.iter().map(|e| e.name.as_str()).filter(|name| !there.contains(*name)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(DumpError::NoExtensions { names: missing.join("`, `") }),
    }
}

/// The same for roles that are asked for when everything is loaded.
pub(super) async fn check_roles(
    client: &mut Client,
    properties: &Properties,
    (owners, privileges): (&Owners, Privileges),
    place: Destination,
) -> Result<(), DumpError> {
    let there = roles(client).await?;
    let is_new = place == Destination::New;
    let owner = match owners {
        Owners::AsDumped => is_new.then_some(&properties.owner),
        Owners::Role(role) => Some(role),
        Owners::Ours => None,
    };
    let given = properties.privileges.iter().flatten().filter_map(|given| given.role.as_ref());
    let given = given.filter(|_| is_new && privileges == Privileges::AsDumped);
    let needed: BTreeSet<&String> = owner.into_iter().chain(given).collect();
    let missing: Vec<&str> =
        needed.into_iter().filter(|role| !there.contains(*role)).map(String::as_str).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(DumpError::NoRoles { names: missing.join("`, `") }),
    }
}

async fn roles(client: &mut Client) -> Result<BTreeSet<String>, DumpError> {
    let rows = client.query("SELECT rolname FROM pg_roles", "ask for roles").await?;
    Ok(each(&rows, "roles", |text| text(0))?.into_iter().collect())
}

/// Removes a database and ends who is connected to it.
pub(super) async fn drop_database(client: &mut Client, name: &str) -> Result<(), DumpError> {
    let sql = format!("DROP DATABASE {} WITH (FORCE)", ident(name));
    client.query(&sql, &format!("drop the database `{name}`")).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::describe::{Privilege, Setting};
    use super::*;

    #[tokio::test]
    async fn extensions_that_a_server_lacks_are_named_before_anything_is_made() {
        let there = crate::testing::row(&[("name", "plpgsql")]);
        let (_dir, mut client) = crate::testing::played(vec![("SELECT name FROM pg_avail", there)]).await;
        let json = r#"{ "format": 1, "name": "clinic", "encoding": "UTF8", "collate": "C", "ctype": "C",
            "provider": "c", "locale": null, "icu_rules": null, "collation_version": null, "owner": "ann",
            "connection_limit": -1, "comment": null, "privileges": null, "settings": [],
            "extensions": [{ "name": "plpgsql", "version": "1.0" }, { "name": "postgis", "version": "3.3" }],
            "tables": [], "sequences": [], "foreign_keys": [], "large_objects": null }"#;
        let dumped: DatabaseDump = serde_json::from_str(json).unwrap();
        let refused = check_extensions(&mut client, &dumped).await.unwrap_err();
        assert_eq!(refused.to_string(), "the server does not have the extensions `postgis`");
        assert_eq!(
            refused.hint().as_deref(),
            Some(
                "Install them on the server's host, for its major; PostgreSQL's own are in the package \
                 `postgresql-contrib`."
            )
        );
    }

    #[tokio::test]
    async fn roles_that_a_server_lacks_are_named_before_anything_is_made() {
        let given = |role: Option<&str>| Privilege {
            role: role.map(str::to_owned),
            privilege: "CONNECT".into(),
            grantable: false,
        };
        let properties = Properties {
            owner: "ann".into(),
            privileges: Some(vec![given(None), given(Some("reader")), given(Some("me"))]),
            ..Properties::default()
        };
        let there = crate::testing::row(&[("rolname", "me")]);
        let (_dir, mut client) = crate::testing::played(vec![("SELECT rolname", there)]).await;
        let (new, clean) = (Destination::New, Destination::Clean);
        let as_dumped = (&Owners::AsDumped, Privileges::AsDumped);
        let refused = check_roles(&mut client, &properties, as_dumped, new).await.unwrap_err();
        assert_eq!(refused.to_string(), "the server does not have the roles `ann`, `reader`");
        check_roles(&mut client, &properties, as_dumped, clean).await.unwrap();
        check_roles(&mut client, &properties, (&Owners::Ours, Privileges::None), new).await.unwrap();
        let typo = Owners::Role("reeder".into());
        for place in [new, clean] {
            let refused = check_roles(&mut client, &properties, (&typo, Privileges::None), place).await;
            let refused = refused.unwrap_err().to_string();
            assert_eq!(refused, "the server does not have the roles `reeder`");
        }
    }

    #[test]
    fn a_database_is_made_as_it_was_as_far_as_the_server_knows_the_words() {
        let libc = Properties {
            encoding: "UTF8".into(),
            collate: "C".into(),
            ctype: "C".into(),
            provider: "c".into(),
            ..Properties::default()
        };
        let begin = "CREATE DATABASE \"x\" TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C'";
        assert_eq!(creation("x", &libc, 14), begin);
        assert_eq!(creation("x", &libc, 15), format!("{begin} LOCALE_PROVIDER libc"));
        let icu = Properties { provider: "i".into(), locale: Some("de".into()), ..libc };
        assert_eq!(creation("x", &icu, 17), format!("{begin} LOCALE_PROVIDER icu ICU_LOCALE 'de'"));
    }

    #[test]
    fn lists_are_set_without_being_quoted_as_one_name() {
        let setting = |name: &str, value: &str, role: Option<&str>| Setting {
            role: role.map(str::to_owned),
            name: name.into(),
            value: value.into(),
        };
        let properties = Properties {
            settings: vec![
                setting("search_path", "\"$user\", app", None),
                setting("work_mem", "5MB", Some("ann")),
                setting("work_mem", "6MB", Some("gone")),
                setting("temp_tablespaces", "fast, \"an \"\"odd, one\"", None),
            ],
            ..Properties::default()
        };
        let roles = BTreeSet::from(["ann".to_owned()]);
        let found: Vec<String> =
            settings("db", &properties, &roles).into_iter().map(|(_, sql)| sql).collect();
        assert_eq!(
            found,
            [
                "SELECT pg_catalog.set_config('search_path', '\"$user\", app', false); \
                 ALTER DATABASE \"db\" SET \"search_path\" FROM CURRENT",
                "ALTER ROLE \"ann\" IN DATABASE \"db\" SET \"work_mem\" TO '5MB'",
                "ALTER DATABASE \"db\" SET \"temp_tablespaces\" TO 'fast', 'an \"odd, one'",
            ]
        );
        assert_eq!(listed(""), [""]);
    }
}
