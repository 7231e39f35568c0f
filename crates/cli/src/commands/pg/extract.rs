//! `pg extract`.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use keepwell_source_postgres::options::ForProgram;
use keepwell_source_postgres::recovery::Scratch;
use serde_json::json;

use super::recover::{RecoverArgs, warn_of_incomplete};
use super::scratch::{self, Place};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell pg extract --at '2026-11-21 12:04:10+00' --database clinic --table public.patients -o patients.sql
  keepwell pg extract --at '2026-11-21 12:04:10+00' --database clinic --table public.patients \\
      --into 'host=db1 user=admin dbname=clinic'

The cluster is restored into a scratch directory, recovered to the moment, and thrown
away. Into a database the tables go in a schema of their own, `restored_…`, so that
nothing that is there is touched; foreign keys are left out. A table comes with its
partitions, and with the tables that inherit from it.";

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
    /// Write SQL to this file, which must not exist yet
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
    recover: RecoverArgs,
}

/// Runs `pg extract`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let target = args.recover.target.target()?;
    let tables: Vec<(String, String)> = args.table.iter().map(|name| table(name)).collect::<Result<_>>()?;
    if let Some(output) = &args.output {
        refuse_existing(output)?;
    }
    let into = args.into.as_deref().map(destination).transpose()?;
    let opened = open::for_reading(ctx).await?;
    let plan = args.recover.plan(&opened, args.snapshot.as_deref(), &target).await?;
    let binaries = args.recover.binaries(ctx, &plan)?;
    for program in ["pg_dump", "psql"] {
        if binaries.program(program).is_none() {
            return Err(Complaint::failed(format!("`{program}` of this major is not on this host"))
                .hint("Install the client programs beside the server's, or name their directory: `--bin-dir DIR`.")
                .into());
        }
    }
    let place = Place::make(ctx, &opened, &plan, &args.recover.scratch)?;
    ctx.interrupt.ends_by_itself();
    ctx.printer.say(format_args!("restoring snapshot {} to recover {target}", plan.backup.snapshot.short()));
    warn_of_incomplete(ctx, &plan);
    let mut scratch = place.restore(&opened, &plan, binaries).await?;
    opened.progress.end();
    let extracted = async {
        let said = scratch::start(&mut scratch, &plan).await?;
        if let Some(stopped) = &said.stopped {
            ctx.printer.say(format_args!("  {stopped}"));
        }
        extract(ctx, &scratch, &tables, &args, into.as_ref()).await
    };
    let extracted = tokio::select! {
        extracted = extracted => extracted,
        // What runs is ended, and what was made is removed.
        () = ctx.interrupt.requested() => Err(Complaint::failed("stopped").into()),
    };
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
    into: Option<&ForProgram>,
) -> Result<Vec<u64>> {
    let database = &args.database;
    let mut rows = Vec::new();
    for (schema, table) in tables {
        let sql = format!("SELECT count(*) FROM {}.{}", quoted(schema), quoted(table));
        let found =
            scratch.query(database, &sql).await.with_context(|| format!("count `{schema}.{table}`"))?;
        rows.push(found.text(0, 0).and_then(|count| count.parse().ok()).unwrap_or(0));
    }
    let all = with_parts(scratch, database, tables).await?;
    let mut dump = scratch.program("pg_dump").context("pg_dump went away")?;
    dump.args(["--no-owner", "--no-privileges", "-d"]).arg(scratch.connection(database));
    let Some(into) = into else {
        for (schema, table) in &all {
            dump.arg("-t").arg(format!("{}.{}", quoted(schema), quoted(table)));
        }
        let output = args.output.as_deref().context("neither a file nor a database is named")?;
        dump_to(dump, output).await?;
        return Ok(rows);
    };
    let stamp = text::rfc3339(ctx.now()).replace(['-', ':'], "").to_lowercase();
    let stamp = stamp.split('.').next().unwrap_or_default();
    let schema = args.schema.clone().unwrap_or_else(|| format!("restored_{stamp}"));
    move_into(scratch, database, &all, &schema).await?;
    dump.arg("-n").arg(quoted(&schema));
    load(scratch, dump, into).await?;
    ctx.printer.say(format_args!("the tables are in the schema `{schema}`"));
    Ok(rows)
}

/// The tables and all partitions and tables that inherit from them, which hold their rows; each once, parents first.
async fn with_parts(
    scratch: &Scratch,
    database: &str,
    tables: &[(String, String)],
) -> Result<Vec<(String, String)>> {
    let mut all = Vec::new();
    for (schema, table) in tables {
        let found = scratch.query(database, &parts_of(schema, table)).await;
        let found = found.with_context(|| format!("look for the partitions of `{schema}.{table}`"))?;
        for row in 0..found.rows.len() {
            let name = |column| found.text(row, column).map(str::to_owned);
            let part = name(0).zip(name(1)).context("a table has a name that is not UTF-8")?;
            if !all.contains(&part) {
                all.push(part);
            }
        }
    }
    Ok(all)
}

fn parts_of(schema: &str, table: &str) -> String {
    let name = literal(&format!("{}.{}", quoted(schema), quoted(table)));
    format!(
        "WITH RECURSIVE part(oid, depth) AS (SELECT {name}::regclass::oid, 0 UNION ALL \
         SELECT inhrelid, depth + 1 FROM pg_inherits JOIN part ON inhparent = part.oid) \
         SELECT nspname, relname FROM part JOIN pg_class USING (oid) JOIN pg_namespace n ON n.oid = relnamespace \
         ORDER BY depth, nspname, relname"
    )
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
            "SELECT conname FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND coninhcount = 0 \
             AND conrelid = {}::regclass",
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

/// All or nothing: only a dump that came to its end is loaded.
async fn load(scratch: &Scratch, dump: Command, into: &ForProgram) -> Result<()> {
    let file = scratch.file("tables.sql");
    dump_to(dump, &file).await?;
    let program = scratch.program("psql").context("psql went away")?;
    finish(psql(program.get_program(), into, &file), "psql").await
}

/// What loads a file, with our own environment: what the connection leaves open is found as whoever calls us has it.
fn psql(program: &OsStr, into: &ForProgram, file: &Path) -> Command {
    let mut psql = Command::new(program);
    psql.args(["-X", "-q", "--single-transaction", "-v", "ON_ERROR_STOP=1", "-d", &into.text, "-f"])
        .arg(file);
    if let Some(password) = &into.password {
        psql.env("PGPASSWORD", password.expose());
    }
    // A dump asks for settings, and the answers are nobody's data.
    psql.stdout(Stdio::null());
    psql
}

fn destination(text: &str) -> Result<ForProgram> {
    ForProgram::of(text)
        .map_err(|error| anyhow::Error::from(error).context(Complaint::usage("the connection is not clear")))
}

/// What stands there may be the only copy of something. A terminal or a pipe is written to.
fn refuse_existing(output: &Path) -> Result<()> {
    match fs::metadata(output) {
        Ok(found) if found.is_file() || found.is_dir() => {
            Err(Complaint::failed(format!("`{}` exists", output.display())).into())
        }
        _ => Ok(()),
    }
}

/// Runs a command that writes a dump; half a dump is not left behind, and none takes the place of anything.
async fn dump_to(mut dump: Command, output: &Path) -> Result<()> {
    let create = |options: &mut OpenOptions, path: &Path| {
        options.write(true).open(path).with_context(|| format!("create `{}`", path.display()))
    };
    // Of a terminal or a pipe nothing can be taken back.
    if fs::metadata(output).is_ok_and(|found| !found.is_file()) {
        dump.stdout(create(&mut File::options(), output)?);
        return finish(dump, "pg_dump").await;
    }
    let mut partial = output.as_os_str().to_owned();
    partial.push(".partial");
    let partial = Partial(PathBuf::from(partial));
    // For us alone: it holds what the tables hold. What a killed run left may be open to others.
    let _ = fs::remove_file(&partial.0);
    dump.stdout(create(File::options().create_new(true).mode(0o600), &partial.0)?);
    finish(dump, "pg_dump").await?;
    refuse_existing(output)?;
    fs::rename(&partial.0, output).with_context(|| format!("create `{}`", output.display()))
}

/// A file that goes unless it was renamed.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Runs a program to its end; when nobody waits for it any more, it is killed.
async fn finish(command: Command, name: &str) -> Result<()> {
    let mut command = tokio::process::Command::from(command);
    let status = command.kill_on_drop(true).status().await.with_context(|| format!("run {name}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(Complaint::failed(format!("{name} failed ({status})")).into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_table_is_named_with_its_schema() {
        assert_eq!(table("public.t").unwrap(), ("public".to_owned(), "t".to_owned()));
        for wrong in ["t", ".t", "public.", "a.b.c", ""] {
            assert!(table(wrong).is_err(), "{wrong}");
        }
        assert_eq!(quoted("a\"b"), "\"a\"\"b\"");
    }

    #[tokio::test]
    async fn half_a_dump_is_not_left_behind_and_a_whole_one_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("tables.sql");
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(script);
            command
        };
        fs::write(dir.path().join("tables.sql.partial"), "of a killed run").unwrap();
        dump_to(shell("echo whole"), &output).await.unwrap();
        assert_eq!(fs::metadata(&output).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(dump_to(shell("echo half; exit 3"), &dir.path().join("half.sql")).await.is_err());
        let refused = dump_to(shell("echo other"), &output).await.unwrap_err();
        assert!(refused.to_string().ends_with("tables.sql` exists"), "{refused}");
        assert_eq!(fs::read_to_string(&output).unwrap(), "whole\n");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(refuse_existing(dir.path()).is_err() && refuse_existing(&dir.path().join("new")).is_ok());
        refuse_existing(Path::new("/dev/null")).unwrap();
        dump_to(shell("echo said"), Path::new("/dev/null")).await.unwrap();
    }

    #[test]
    fn the_arguments_of_psql_hold_no_password() {
        let into = destination("postgresql://ann:sesame@db1/clinic").unwrap();
        let psql = psql(OsStr::new("/usr/bin/psql"), &into, Path::new("/tmp/tables.sql"));
        let arguments: Vec<_> = psql.get_args().map(|argument| argument.to_string_lossy()).collect();
        assert!(arguments.contains(&"dbname='clinic' host='db1' user='ann'".into()), "{arguments:?}");
        assert!(!arguments.iter().any(|argument| argument.contains("sesame")), "{arguments:?}");
        assert!(psql.get_envs().any(|it| it == (OsStr::new("PGPASSWORD"), Some(OsStr::new("sesame")))));
        assert!(destination("hots=db1").is_err());
    }

    #[test]
    fn names_in_a_question_stay_names() {
        let sql = parts_of("a\"b", "o'c");
        assert!(sql.contains(r#"SELECT '"a""b"."o''c"'::regclass::oid"#), "{sql}");
    }
}
