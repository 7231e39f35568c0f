//! `pg extract`.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use keepwell_source_postgres::recovery::{Planner, Scratch};
use serde_json::json;

use super::restore::{find_backups, find_binaries};
use super::scratch::{self, Place, ScratchArgs};
use super::target::TargetArgs;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::select::Filter;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell pg extract --at '2026-11-21 12:04:10+00' --database clinic --table public.patients -o patients.sql
  keepwell pg extract --at '2026-11-21 12:04:10+00' --database clinic --table public.patients \\
      --into 'host=db1 user=admin dbname=clinic'

The cluster is restored into a scratch directory, recovered to the moment, and thrown
away. Into a database the tables go in a schema of their own, `restored_…`, so that
nothing that is there is touched; foreign keys are left out.";

/// Get single tables back, out of any moment
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A table, with its schema; may be repeated
    #[arg(long, value_name = "SCHEMA.TABLE", required = true)]
    table: Vec<String>,
    /// The database they are in
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    database: String,
    /// Write SQL to this file
    #[arg(short, long, value_name = "FILE", required_unless_present = "into")]
    output: Option<PathBuf>,
    /// Load them into this database, as psql takes it
    #[arg(long, value_name = "CONNECTION", conflicts_with = "output")]
    into: Option<String>,
    /// The schema that they are put into [default: `restored_` and the time of now]
    #[arg(long, value_name = "NAME")]
    schema: Option<String>,
    /// The base backup to begin with [default: the newest that ended before the target]
    #[arg(long, value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    scratch: ScratchArgs,
    #[command(flatten)]
    filter: Filter,
}

/// Runs `pg extract`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let target = args.target.target()?;
    let tables: Vec<(String, String)> = args.table.iter().map(|name| table(name)).collect::<Result<_>>()?;
    let opened = open::for_reading(ctx).await?;
    let backups = find_backups(&opened, args.snapshot.as_deref(), &args.filter).await?;
    let planner = Planner::new(opened.repository.clone(), backups)?;
    let plan = planner.plan(&target, args.target.timeline).await?;
    let binaries = find_binaries(ctx, plan.backup.cluster.major(), args.scratch.bin_dir.as_deref())?;
    for program in ["pg_dump", "psql"] {
        if binaries.program(program).is_none() {
            return Err(Complaint::failed(format!("`{program}` of this major is not on this host")).into());
        }
    }
    let place = Place::make(ctx, &opened, &plan, &args.scratch)?;
    ctx.interrupt.ends_by_itself();
    ctx.printer.say(format_args!("restoring snapshot {} to recover {target}", plan.backup.snapshot.short()));
    let mut scratch = place.restore(&opened, &plan, binaries).await?;
    opened.progress.end();
    let said = scratch::start(&mut scratch, &plan).await?;
    if let Some(stopped) = &said.stopped {
        ctx.printer.say(format_args!("  {stopped}"));
    }
    let extracted = extract(ctx, &scratch, &tables, &args).await;
    let stopped = scratch.stop().await;
    let rows = extracted?;
    stopped?;
    for ((schema, table), rows) in tables.iter().zip(&rows) {
        ctx.printer.line(format_args!("{schema}.{table}: {}", text::count(*rows, "row", "rows")));
        ctx.printer.json(
            "extracted",
            json!({ "schema": schema, "table": table, "rows": rows,
            "target": target.to_string(), "snapshot": plan.backup.snapshot.id.to_string() }),
        );
    }
    Ok(Exit::Done)
}

/// `public.patients`; a name alone would be in whatever schema comes first.
fn table(text: &str) -> Result<(String, String)> {
    let parts: Vec<&str> = text.split('.').collect();
    match parts[..] {
        [schema, table] if !schema.is_empty() && !table.is_empty() => {
            Ok((schema.to_owned(), table.to_owned()))
        }
        _ => Err(Complaint::usage(format!("`{text}` is not SCHEMA.TABLE")).into()),
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Dumps the tables, or moves them into a schema of their own and loads that; gives the rows of each.
async fn extract(
    ctx: &Context,
    scratch: &Scratch,
    tables: &[(String, String)],
    args: &Args,
) -> Result<Vec<u64>> {
    let database = &args.database;
    let mut rows = Vec::new();
    for (schema, table) in tables {
        let sql = format!("SELECT count(*) FROM {}.{}", quoted(schema), quoted(table));
        let found =
            scratch.query(database, &sql).await.with_context(|| format!("count `{schema}.{table}`"))?;
        rows.push(found.text(0, 0).and_then(|count| count.parse().ok()).unwrap_or(0));
    }
    let mut dump = scratch.program("pg_dump").context("pg_dump went away")?;
    dump.args(["--no-owner", "--no-privileges", "-d"]).arg(scratch.connection(database));
    if let Some(output) = &args.output {
        let file = std::fs::File::create(output).with_context(|| format!("create `{}`", output.display()))?;
        for (schema, table) in tables {
            dump.arg("-t").arg(format!("{}.{}", quoted(schema), quoted(table)));
        }
        finish(dump.stdout(file), "pg_dump").await?;
        return Ok(rows);
    }
    let stamp = text::rfc3339(ctx.now()).replace(['-', ':'], "").to_lowercase();
    let stamp = stamp.split('.').next().unwrap_or_default();
    let schema = args.schema.clone().unwrap_or_else(|| format!("restored_{stamp}"));
    move_into(scratch, database, tables, &schema).await?;
    dump.arg("-n").arg(quoted(&schema));
    load(scratch, dump, args.into.as_deref().unwrap_or_default()).await?;
    ctx.printer.say(format_args!("the tables are in the schema `{schema}`"));
    Ok(rows)
}

async fn move_into(
    scratch: &Scratch,
    database: &str,
    tables: &[(String, String)],
    schema: &str,
) -> Result<()> {
    let run = async |sql: String| scratch.query(database, &sql).await.with_context(|| format!("run `{sql}`"));
    run(format!("CREATE SCHEMA {}", quoted(schema))).await?;
    for (from, table) in tables {
        let name = format!("{}.{}", quoted(from), quoted(table));
        let keys = run(format!(
            "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conrelid = {}::regclass",
            literal(&name)
        ))
        .await?;
        for row in 0..keys.rows.len() {
            let key = keys.text(row, 0).unwrap_or_default();
            run(format!("ALTER TABLE {name} DROP CONSTRAINT {}", quoted(key))).await?;
        }
        run(format!("ALTER TABLE {name} SET SCHEMA {}", quoted(schema))).await?;
    }
    Ok(())
}

/// All or nothing.
async fn load(scratch: &Scratch, mut dump: std::process::Command, into: &str) -> Result<()> {
    let mut psql =
        std::process::Command::new(scratch.program("psql").context("psql went away")?.get_program());
    psql.args(["-X", "-q", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-d", into]);
    let mut dumping = dump.stdout(Stdio::piped()).spawn().context("run pg_dump")?;
    let from = dumping.stdout.take().context("read from pg_dump")?;
    finish(psql.stdin(from).stdout(Stdio::null()), "psql").await?;
    let status = tokio::task::spawn_blocking(move || dumping.wait()).await?.context("wait for pg_dump")?;
    match status.success() {
        true => Ok(()),
        false => Err(Complaint::failed(format!("pg_dump failed ({status})")).into()),
    }
}

async fn finish(command: &mut std::process::Command, name: &str) -> Result<()> {
    let mut child = command.spawn().with_context(|| format!("run {name}"))?;
    let status = tokio::task::spawn_blocking(move || child.wait())
        .await?
        .with_context(|| format!("wait for {name}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(Complaint::failed(format!("{name} failed ({status})")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_named_with_its_schema() {
        assert_eq!(table("public.t").unwrap(), ("public".to_owned(), "t".to_owned()));
        for wrong in ["t", ".t", "public.", "a.b.c", ""] {
            assert!(table(wrong).is_err(), "{wrong}");
        }
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }
}
