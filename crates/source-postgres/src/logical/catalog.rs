//! What there is to dump, asked of the server.

use super::DumpError;
use super::describe::{ForeignKey, Privilege, Properties, Sequence, Setting, Table};
use super::names::qualified;
use super::selection::Selection;
use super::session::{each, odd};
use crate::cluster::Extension;
use crate::wire::{Client, Rows};

/// Sequences that are asked in one query.
const SEQUENCES_AT_ONCE: usize = 200;

/// A table of the server.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub table: Table,
    /// Whether its rows belong to the dump.
    pub rows: bool,
    /// Whether rows can be found by their place.
    pub heap: bool,
    /// Pages of its main fork.
    pub pages: u64,
}

/// What a database holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Inventory {
    pub tables: Vec<Found>,
    /// Names of foreign tables, whose rows are elsewhere.
    pub foreign: Vec<String>,
    /// Names of tables and sequences that are not logged, on a standby: it has nothing of them, and refuses to read them.
    pub unlogged: Vec<String>,
    pub extensions: Vec<Extension>,
    pub foreign_keys: Vec<ForeignKey>,
    pub large_objects: u64,
    /// Name, and the table that it belongs to.
    pub sequences: Vec<(String, String, Option<u32>)>,
}

/// Names of the databases that can be dumped.
pub(super) async fn databases(client: &mut Client) -> Result<Vec<String>, DumpError> {
    // Into one that a DROP DATABASE left half removed nobody gets any more; PostgreSQL marks it by this limit.
    let sql = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2 \
               ORDER BY datname";
    let rows = client.query(sql, "ask for databases").await?;
    each(&rows, "databases", |text| text(0))
}

/// What a database is created with, and what is set for it.
pub(super) async fn properties(client: &mut Client, name: &str) -> Result<Properties, DumpError> {
    let major = client.major();
    let provider = if major >= 15 { "datlocprovider::text" } else { "'c'" };
    let locale = match major {
        17.. => "datlocale",
        15.. => "daticulocale",
        _ => "NULL",
    };
    let rules = if major >= 16 { "daticurules" } else { "NULL" };
    let version = if major >= 15 { "datcollversion" } else { "NULL" };
    let name = super::names::literal(name);
    let sql = format!(
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype, {provider}, {locale}, {rules}, {version}, \
         pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database'), datacl IS NOT NULL \
         FROM pg_database WHERE datname = {name}"
    );
    let rows = client.query(&sql, "ask for the database").await?;
    let mut found = each(&rows, "the database", |text| {
        Some(Properties {
            encoding: text(0)?,
            collate: text(1)?,
            ctype: text(2)?,
            provider: text(3)?,
            locale: text(4),
            icu_rules: text(5),
            collation_version: text(6),
            owner: text(7)?,
            connection_limit: text(8)?.parse().ok()?,
            comment: text(9),
            privileges: (text(10)? == "t").then(Vec::new),
            settings: Vec::new(),
        })
    })?;
    let mut properties = found.pop().ok_or_else(|| odd("the database"))?;
    if properties.privileges.is_some() {
        let sql = format!(
            "SELECT CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee) END, a.privilege_type, a.is_grantable \
             FROM pg_database d, aclexplode(d.datacl) a WHERE d.datname = {name} ORDER BY 1 NULLS FIRST, 2"
        );
        let rows = client.query(&sql, "ask for privileges of the database").await?;
        properties.privileges = Some(each(&rows, "privileges", |text| {
            Some(Privilege { role: text(0), privilege: text(1)?, grantable: text(2)? == "t" })
        })?);
    }
    let sql = format!(
        "SELECT CASE WHEN s.setrole <> 0 THEN pg_get_userbyid(s.setrole) END, c \
         FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase, \
         unnest(s.setconfig) WITH ORDINALITY AS u(c, at) WHERE d.datname = {name} ORDER BY 1 NULLS FIRST, at"
    );
    let rows = client.query(&sql, "ask for settings of the database").await?;
    properties.settings = each(&rows, "settings", |text| {
        let setting = text(1)?;
        let (name, value) = setting.split_once('=')?;
        Some(Setting { role: text(0), name: name.to_owned(), value: value.to_owned() })
    })?;
    Ok(properties)
}

const RELATIONS: &str = "\
WITH RECURSIVE config AS (
    SELECT c.oid, coalesce(c.condition, '') AS condition
    FROM pg_extension x, unnest(x.extconfig, x.extcondition) AS c(oid, condition)
), up AS (
    SELECT i.inhrelid AS leaf, i.inhparent AS parent
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relispartition
    UNION ALL
    SELECT up.leaf, i.inhparent
    FROM up JOIN pg_class c ON c.oid = up.parent JOIN pg_inherits i ON i.inhrelid = c.oid WHERE c.relispartition
), unstable AS (
    SELECT DISTINCT up.leaf
    FROM up JOIN pg_partitioned_table p ON p.partrelid = up.parent AND p.partstrat = 'h'
    JOIN pg_opclass o ON o.oid = ANY (p.partclass)
    WHERE o.opcname = 'enum_ops' AND o.opcnamespace = 'pg_catalog'::regnamespace
), root AS (
    SELECT up.leaf, n.nspname, c.relname
    FROM up JOIN unstable USING (leaf) JOIN pg_class c ON c.oid = up.parent
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT c.relispartition
)
SELECT c.oid, n.nspname, c.relname, c.relkind, coalesce(am.amname = 'heap', false),
    CASE WHEN c.relkind = 'r' THEN pg_relation_size(c.oid) / current_setting('block_size')::bigint ELSE 0 END,
    config.condition, root.nspname, root.relname,
    (SELECT coalesce(json_agg(a.attname ORDER BY a.attnum), '[]') FROM pg_attribute a
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    (SELECT d.refobjid FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
     AND d.objsubid = 0 AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND c.relkind = 'S' LIMIT 1),
    c.relpersistence = 'u' AND pg_is_in_recovery()
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_am am ON am.oid = c.relam
LEFT JOIN config ON config.oid = c.oid
LEFT JOIN root ON root.leaf = c.oid
WHERE c.relkind IN ('r', 'f', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
    AND (config.oid IS NOT NULL OR NOT EXISTS (SELECT 1 FROM pg_depend d
        WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
ORDER BY n.nspname, c.relname";

/// Everything whose rows matter, as far as it is selected.
pub(super) async fn inventory(client: &mut Client, selection: &Selection) -> Result<Inventory, DumpError> {
    // Operators and tables of the catalog are found first whatever the path; ours is empty.
    let rows = client.query(RELATIONS, "ask for tables").await?;
    let mut inventory = Inventory::default();
    let mut taken = std::collections::BTreeSet::new();
    let (mut sequences, mut unlogged) = (Vec::new(), Vec::new());
    for row in 0..rows.rows.len() {
        let text = |column| rows.text(row, column).map(str::to_owned);
        let (Some(oid), Some(schema), Some(name)) =
            (text(0).and_then(|oid| oid.parse::<u32>().ok()), text(1), text(2))
        else {
            return Err(odd("tables"));
        };
        let is_empty_here = rows.text(row, 11) == Some("t");
        match rows.text(row, 3) {
            Some("S") => {
                let table = text(10).and_then(|oid| oid.parse::<u32>().ok());
                let list = if is_empty_here { &mut unlogged } else { &mut sequences };
                list.push((schema, name, table));
            }
            _ if !selection.takes(&schema, &name) => {}
            Some("f") => inventory.foreign.push(format!("{schema}.{name}")),
            _ => {
                taken.insert(oid);
                let wanted = selection.takes_rows(&schema, &name);
                let rows_too = wanted && !is_empty_here;
                if wanted && is_empty_here {
                    inventory.unlogged.push(format!("{schema}.{name}"));
                }
                inventory.tables.push(table(&rows, row, oid, rows_too).ok_or_else(|| odd("tables"))?);
            }
        }
    }
    // A sequence of a column goes with its table.
    let is_taken = |(schema, name, table): &(String, String, Option<u32>)| match table {
        Some(table) => taken.contains(table),
        None => selection.takes(schema, name),
    };
    inventory.sequences = sequences.into_iter().filter(is_taken).collect();
    let unlogged = unlogged.into_iter().filter(is_taken);
    inventory.unlogged.extend(unlogged.map(|(schema, name, _)| format!("{schema}.{name}")));
    rest(client, &mut inventory).await?;
    Ok(inventory)
}

fn table(rows: &Rows, row: usize, oid: u32, rows_too: bool) -> Option<Found> {
    let text = |column| rows.text(row, column).map(str::to_owned);
    let table = Table {
        oid,
        schema: text(1)?,
        name: text(2)?,
        columns: serde_json::from_str(rows.text(row, 9)?).ok()?,
        rows: None,
        hash: None,
        bytes: 0,
        parts: 0,
        condition: text(6),
        root: text(7).zip(text(8)),
    };
    let heap = rows.text(row, 4)? == "t" && table.condition.is_none();
    Some(Found { table, rows: rows_too, heap, pages: rows.text(row, 5)?.parse().ok()? })
}

async fn rest(client: &mut Client, inventory: &mut Inventory) -> Result<(), DumpError> {
    let sql = "SELECT extname, extversion FROM pg_extension ORDER BY 1";
    let rows = client.query(sql, "ask for extensions").await?;
    inventory.extensions =
        each(&rows, "extensions", |text| Some(Extension { name: text(0)?, version: text(1)? }))?;
    let sql = "SELECT k.oid, k.conname, k.conrelid, k.confrelid, c.relkind = 'p' FROM pg_constraint k \
               JOIN pg_class c ON c.oid = k.confrelid WHERE k.contype = 'f' AND k.conparentid = 0 ORDER BY k.oid";
    let rows = client.query(sql, "ask for foreign keys").await?;
    inventory.foreign_keys = each(&rows, "foreign keys", |text| {
        let number = |column| text(column)?.parse().ok();
        Some(ForeignKey {
            oid: number(0)?,
            name: text(1)?,
            from: number(2)?,
            to: number(3)?,
            partitioned: text(4)? == "t",
        })
    })?;
    let rows =
        client.query("SELECT count(*) AS count FROM pg_largeobject_metadata", "count large objects").await?;
    inventory.large_objects =
        rows.first("count").and_then(|n| n.parse().ok()).ok_or_else(|| odd("large objects"))?;
    Ok(())
}

/// Where sequences stand now.
pub(super) async fn sequences(
    client: &mut Client,
    names: &[(String, String, Option<u32>)],
) -> Result<Vec<Sequence>, DumpError> {
    let mut found = Vec::new();
    for some in names.chunks(SEQUENCES_AT_ONCE) {
        let one = |(at, (schema, name, _)): (usize, &(String, String, Option<u32>))| {
            format!("SELECT {at} AS at, last_value, is_called FROM {}", qualified(schema, name))
        };
        let sql = some.iter().enumerate().map(one).collect::<Vec<_>>().join(" UNION ALL ");
        let rows = client.query(&sql, "ask for the values of sequences").await?;
        found.extend(each(&rows, "sequences", |text| {
            let (schema, name, table) = some.get(text(0)?.parse::<usize>().ok()?)?.clone();
            Some(Sequence {
                schema,
                name,
                last_value: text(1)?.parse().ok()?,
                is_called: text(2)? == "t",
                table,
            })
        })?);
    }
    found.sort_by(|a, b| (&a.schema, &a.name).cmp(&(&b.schema, &b.name)));
    Ok(found)
}
