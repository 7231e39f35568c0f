//! `keepwell pg dump`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use backup_core::chunker::ChunkSizes;
use backup_core::env::SystemClock;
use backup_core::{BackupOptions, BackupReport};
use keepwell_source_postgres::logical::{Dump, DumpOptions, DumpSource, Pattern, Selection};
use serde_json::json;

use crate::commands::backup::About;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::{open, text};

const EXAMPLES: &str = "\
Examples:
  keepwell pg dump 'host=db1 user=backup dbname=postgres'    every database, and roles
  keepwell pg dump 'service=orders' --database clinic --exclude-rows 'public.log_*'

A role with `pg_read_all_data` can dump everything. `pg_dump` of the server's major, or
a newer one, must be on this host. Get it back by `keepwell pg load`, or take it
elsewhere by `keepwell pg export`.";

/// Take a logical backup of PostgreSQL databases
///
/// Definitions come from `pg_dump`, rows over several connections that see the same moment of a database (as many as
/// `--threads`). They go straight into the repository, with the number of rows and a hash for every table. Other majors and
/// other systems can load it, and single tables of it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The server, as psql takes it; several hosts may be named
    #[arg(default_value = "")]
    connection: String,
    /// Name of what is backed up
    #[arg(long, value_name = "NAME", default_value = "databases")]
    dataset: String,
    /// A database; may be repeated [default: all but templates]
    #[arg(long, value_name = "NAME")]
    database: Vec<String>,
    #[command(flatten)]
    select: SelectArgs,
    /// Leave out tables, `*` for any characters; may be repeated
    #[arg(long, value_name = "SCHEMA.TABLE")]
    exclude_table: Vec<String>,
    /// Leave out schemas; may be repeated
    #[arg(long, value_name = "SCHEMA")]
    exclude_schema: Vec<String>,
    /// Where `pg_dump` is
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    #[command(flatten)]
    about: About,
}

/// Which tables.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SelectArgs {
    /// Only these tables, `*` for any characters; may be repeated
    #[arg(long, value_name = "SCHEMA.TABLE", conflicts_with = "schema")]
    table: Vec<String>,
    /// Only these schemas; may be repeated
    #[arg(long, value_name = "SCHEMA")]
    schema: Vec<String>,
    /// Leave out the rows of tables, not the tables; may be repeated
    #[arg(long, value_name = "SCHEMA.TABLE")]
    exclude_rows: Vec<String>,
}

impl SelectArgs {
    /// What is meant.
    pub fn selection(&self) -> Result<Selection> {
        Ok(Selection {
            schemas: schemas(&self.schema)?,
            tables: tables(&self.table)?,
            exclude_rows: tables(&self.exclude_rows)?,
            ..Selection::default()
        })
    }

    /// Whether tables or schemas are named.
    pub fn names_some(&self) -> bool {
        !self.table.is_empty() || !self.schema.is_empty()
    }
}

fn tables(texts: &[String]) -> Result<Vec<Pattern>> {
    let wrong = |text: &String| Complaint::usage(format!("`{text}` is not SCHEMA.TABLE")).into();
    texts.iter().map(|text| Pattern::table(text).ok_or_else(|| wrong(text))).collect()
}

fn schemas(texts: &[String]) -> Result<Vec<Pattern>> {
    let wrong = || Complaint::usage("the name of a schema is empty").into();
    texts.iter().map(|text| Pattern::schema(text).ok_or_else(wrong)).collect()
}

/// Runs `pg dump`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if args.select.names_some() && args.database.len() != 1 {
        return Err(Complaint::usage("tables and schemas are those of one database")
            .hint("Say `--database NAME` too.")
            .into());
    }
    let connect = super::super::wal::connection(ctx, &args.connection)?;
    let opened = open::repository(ctx).await?;
    let options = args.about.options(ctx, &opened.repository, args.dataset.clone())?;
    let options = BackupOptions { chunk_sizes: ChunkSizes::DUMPS, ..options };
    let dump = DumpOptions {
        databases: args.database.clone(),
        selection: Selection {
            exclude_tables: tables(&args.exclude_table)?,
            exclude_schemas: schemas(&args.exclude_schema)?,
            ..args.select.selection()?
        },
        bin_dir: args.bin_dir.clone(),
        path: ctx.environment.path.clone(),
        ..DumpOptions::default()
    };
    let began = Instant::now();
    let source = Arc::new(DumpSource::connect(&connect, dump, Arc::new(SystemClock)).await?);
    ctx.interrupt.ends_by_itself();
    let report = opened.repository.backup(Arc::clone(&source) as _, options).await;
    opened.progress.end();
    print(ctx, &report?, &args.dataset, source.dump().as_ref(), began);
    Ok(Exit::Done)
}

fn print(ctx: &Context, report: &BackupReport, dataset: &str, dump: Option<&Dump>, began: Instant) {
    let s = &report.statistics;
    let took = began.elapsed();
    let id = ctx.printer.strong(&report.snapshot.to_string()[..8]);
    let size = text::bytes(s.logical_bytes);
    ctx.printer.line(format_args!("snapshot {id} of {dataset}: {size}, in {}", text::duration(took)));
    ctx.printer.say(format_args!("  {} added to the repository", text::bytes(s.new_stored_bytes)));
    for database in dump.iter().flat_map(|dump| &dump.databases) {
        ctx.printer.say(format_args!(
            "  {}: {}, {}, {}",
            database.name,
            text::count(database.tables, "table", "tables"),
            text::count(database.rows, "row", "rows"),
            text::bytes(database.bytes)
        ));
    }
    let fields = json!({
        "snapshot": report.snapshot.to_string(),
        "dataset": dataset,
        "seconds": took.as_secs_f64(),
        "bytes": s.logical_bytes,
        "new_bytes": s.new_plain_bytes,
        "stored_bytes": s.new_stored_bytes,
        "verified_chunks": report.verified_chunks,
        "complete": report.complete,
        "dump": dump,
    });
    ctx.printer.json("pg_dump", fields);
}
