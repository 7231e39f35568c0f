//! `keepwell pg load`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use backup_core::Snapshot;
use keepwell_source_postgres::logical::{
    DUMP_KIND, Destination, DumpError, DumpSnapshot, LoadOptions, Loaded, Loader, Owners, Privileges,
    Programs, Proof, Roles,
};
use serde_json::json;

use super::discard::Discarded;
use super::dump::SelectArgs;
use crate::confirm::{Unattended, confirm};
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::{self, Filter};
use crate::text;

/// A server has it from the beginning.
const OWN_DATABASE: &str = "postgres";
/// The longest name of a database.
const NAME_BYTES_MAX: usize = 63;

const EXAMPLES: &str = "\
Examples:
  keepwell pg load --to 'host=db2 user=admin'                                 everything, into an empty server
  keepwell pg load --to 'host=db1 user=admin' --database clinic --into clinic_old
  keepwell pg load --to 'host=db1 user=admin' --database clinic --table public.patients --into lost
  keepwell pg load --to 'host=db1 user=admin' --database clinic --replace

With `--replace` the database is loaded under another name, its rows are counted, and
only then the two change names in one transaction. The old one is kept.";

/// Load a logical backup into a server
///
/// Into new databases, unless `--replace` or `--clean` is given. Missing roles are made; rows go over several connections;
/// the rows of every table are counted against the backup, and statistics are gathered, before it is called done. A new
/// database that could not be filled, or whose load was interrupted, is dropped again.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The logical backup
    #[arg(default_value = "latest")]
    snapshot: String,
    /// The server, as psql takes it
    #[arg(long, value_name = "CONNECTION", default_value = "")]
    to: String,
    /// One of its databases [default: all]
    #[arg(long, value_name = "NAME")]
    database: Option<String>,
    /// The name that it gets [default: its own]
    #[arg(long, value_name = "NAME", requires = "database")]
    into: Option<String>,
    #[command(flatten)]
    select: SelectArgs,
    /// Put it in the place of the database of that name
    #[arg(long, requires = "database", conflicts_with_all = ["clean", "schema", "table", "exclude_rows"])]
    replace: bool,
    /// With `--replace`: drop the old database once the new one is in its place
    #[arg(long, requires = "replace")]
    drop_old: bool,
    /// Load into the database that is there; drop what the backup has from it first
    #[arg(long, requires = "database", conflicts_with_all = ["schema", "table", "exclude_rows"])]
    clean: bool,
    /// Everything belongs to this role
    #[arg(long, value_name = "ROLE", conflicts_with = "no_owner")]
    owner: Option<String>,
    /// Everything belongs to the role of the connection
    #[arg(long)]
    no_owner: bool,
    /// Give nobody privileges
    #[arg(long)]
    no_privileges: bool,
    /// Make no roles
    #[arg(long)]
    no_roles: bool,
    /// Read every row back and compare its hash, instead of counting rows
    #[arg(long)]
    verify: bool,
    /// Connections at once
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Where `pg_restore` is
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
}

/// The logical backup that a name means.
pub async fn find_dump(opened: &Opened, name: &str, filter: &Filter, kind: &str) -> Result<Snapshot> {
    let snapshots = opened.repository.snapshots().await?;
    let fits = |s: &Snapshot| {
        s.commit.complete && filter.accepts(s) && s.manifest().is_ok_and(|m| m.source_kind == kind)
    };
    let candidates: Vec<Snapshot> = snapshots.into_iter().filter(fits).collect();
    if candidates.is_empty() {
        return Err(Complaint::failed("there is no logical backup here that is complete and matches")
            .hint("`keepwell pg dump` takes one; `keepwell snapshots` lists what there is.")
            .into());
    }
    Ok(select::select(&candidates, &Filter::default(), name)?.clone())
}

/// Runs `pg load`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let mut connect = super::super::wal::connection(ctx, &args.to)?;
    let name = args.into.as_ref().or(args.database.as_ref());
    if args.replace && name == Some(&connect.database) {
        // Nobody can rename the database that he is in.
        OWN_DATABASE.clone_into(&mut connect.database);
    }
    let selection = args.select.selection()?;
    if args.select.names_some() && args.database.is_none() {
        return Err(Complaint::usage("tables and schemas are those of one database")
            .hint("Say `--database NAME` too.")
            .into());
    }
    let opened = open::for_reading(ctx).await?;
    let snapshot = find_dump(&opened, &args.snapshot, &args.filter, DUMP_KIND).await?;
    let dump = DumpSnapshot::open(&opened.repository, &snapshot).await?.dump().clone();
    let private = Discarded::for_socket(ctx, None)?;
    let options = LoadOptions {
        programs: Programs::find(dump.program_major, args.bin_dir.as_deref(), &ctx.environment.path)?,
        jobs: usize::from(args.jobs),
        selection,
        owners: match &args.owner {
            Some(role) => Owners::Role(role.clone()),
            None if args.no_owner => Owners::Ours,
            None => Owners::AsDumped,
        },
        privileges: if args.no_privileges { Privileges::None } else { Privileges::AsDumped },
        roles: if args.no_roles { Roles::Leave } else { Roles::MakeMissing },
        proof: if args.verify { Proof::Content } else { Proof::Counts },
        directory: private.path().to_path_buf(),
        cancel: ctx.interrupt.cancel(),
    };
    let mut loader = Loader::new(&opened.repository, &snapshot, &connect, options).await?;
    let names = plan(ctx, &mut loader, &args).await?;
    // From here on half a database may be there, which must not be taken for a whole one.
    ctx.interrupt.ends_by_itself();
    let roles = loader.make_roles().await?;
    if !roles.names.is_empty() {
        ctx.printer.say(format_args!("made roles: {}", roles.names.join(", ")));
        for note in &roles.notes {
            ctx.printer.say(format_args!("  {note}"));
        }
        ctx.printer.json("roles_made", json!({ "roles": roles.names, "notes": roles.notes }));
    }
    for (name, into) in names {
        if ctx.interrupt.is_requested() {
            return Err(Complaint::failed("stopped").into());
        }
        let began = Instant::now();
        if args.replace {
            replace(ctx, &mut loader, &name, &into, args.drop_old).await?;
            continue;
        }
        let place = if args.clean { Destination::Clean } else { Destination::New };
        let loaded = loader.load(&name, &into, place).await?;
        print(ctx, &name, &into, &loaded, began);
    }
    opened.progress.end();
    Ok(Exit::Done)
}

/// What is loaded under which name. Refuses what would touch something that is there, unless that is asked for.
async fn plan(ctx: &Context, loader: &mut Loader, args: &Args) -> Result<Vec<(String, String)>> {
    let databases = loader.snapshot().dump().databases.clone();
    let mut names = Vec::new();
    for database in &databases {
        if args.database.as_ref().is_some_and(|name| *name != database.name) {
            continue;
        }
        let into = args.into.clone().unwrap_or_else(|| database.name.clone());
        let exists = loader.exists(&into).await?;
        if exists && args.database.is_none() && database.name == OWN_DATABASE && database.tables == 0 {
            ctx.printer.say(format_args!("`{OWN_DATABASE}` has no tables in the backup, and is left alone"));
            continue;
        }
        match (exists, args.replace || args.clean) {
            (true, false) => {
                return Err(Complaint::failed(format!("the server has a database `{into}`"))
                    .hint("Say `--into NAME` for another name, or `--replace` to put it in its place.")
                    .into());
            }
            (false, true) => {
                return Err(Complaint::failed(format!("the server has no database `{into}`"))
                    .hint("Without `--replace` and `--clean` it is made.")
                    .into());
            }
            _ => names.push((database.name.clone(), into)),
        }
    }
    if let (Some(name), true) = (&args.database, names.is_empty()) {
        return Err(Complaint::failed(format!("there is no database `{name}` in the snapshot")).into());
    }
    for (_, into) in names.iter().filter(|_| args.replace || args.clean) {
        let question = match args.replace {
            true => format!("Replace the database `{into}`, and end all connections to it?"),
            false => format!("Drop from the database `{into}` what the backup has, and load it anew?"),
        };
        confirm(ctx, &question, Unattended::Refuse)?;
    }
    Ok(names)
}

async fn replace(ctx: &Context, loader: &mut Loader, name: &str, into: &str, drop_old: bool) -> Result<()> {
    let began = Instant::now();
    let stamp = text::rfc3339(ctx.now()).replace(['-', ':'], "").to_lowercase();
    let stamp = stamp.split('.').next().unwrap_or_default();
    let (new, old) = (beside(into, "new", stamp), beside(into, "old", stamp));
    let loaded = loader.load(name, &new, Destination::New).await?;
    if ctx.interrupt.is_requested() {
        loader.drop_database(&new).await?;
        return Err(Complaint::failed("stopped").into());
    }
    if let Err(error) = loader.swap(&new, into, &old).await {
        // What was loaded is whole; whoever wants it can rename it.
        let told = match &error {
            DumpError::Closed { is_exchanged: true, .. } => format!("`{into}` is the new database"),
            DumpError::Closed { .. } => format!("the new database is `{new}`"),
            DumpError::Unclear { .. } => format!("the new database is `{into}` or `{new}`"),
            _ => format!("the new database is `{new}`; `{into}` is as it was"),
        };
        if matches!(error, DumpError::Closed { .. } | DumpError::Unclear { .. }) {
            // Also when somebody has interrupted us, which would be all that is told then.
            ctx.printer.warn(&error);
        }
        return Err(anyhow::Error::from(error).context(Complaint::failed(told)));
    }
    print(ctx, name, into, &loaded, began);
    if drop_old {
        loader.drop_database(&old).await?;
        ctx.printer.say(format_args!("the old database was dropped"));
    } else {
        ctx.printer.line(format_args!("the old database is `{old}` now"));
    }
    ctx.printer.json("replaced", json!({ "database": into, "old": (!drop_old).then_some(old) }));
    Ok(())
}

/// A name for another database beside one. The server cuts off what is too long, be it what tells the two apart.
fn beside(name: &str, word: &str, stamp: &str) -> String {
    let end = format!("_{word}_{stamp}");
    let short = name.floor_char_boundary(NAME_BYTES_MAX.saturating_sub(end.len()));
    format!("{}{end}", &name[..short])
}

fn print(ctx: &Context, name: &str, into: &str, loaded: &Loaded, began: Instant) {
    ctx.printer.line(format_args!(
        "{into}: {}, {}, {}, in {}; every row is there",
        text::count(loaded.tables, "table", "tables"),
        text::count(loaded.rows, "row", "rows"),
        text::bytes(loaded.bytes),
        text::duration(began.elapsed())
    ));
    for note in &loaded.notes {
        ctx.printer.say(format_args!("  {note}"));
    }
    let fields = json!({ "database": name, "into": into, "tables": loaded.tables, "rows": loaded.rows,
        "bytes": loaded.bytes, "notes": loaded.notes, "seconds": began.elapsed().as_secs_f64() });
    ctx.printer.json("loaded", fields);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_a_long_one_are_different_ones() {
        assert_eq!(beside("clinic", "old", "20261121t190722"), "clinic_old_20261121t190722");
        for long in ["x".repeat(NAME_BYTES_MAX), "\u{5e93}".repeat(NAME_BYTES_MAX / 3)] {
            let [new, old] = ["new", "old"].map(|word| beside(&long, word, "20261121t190722"));
            assert!(new.len() <= NAME_BYTES_MAX && new.ends_with("_new_20261121t190722"), "{new}");
            assert!(old != new && old != long, "{old}");
        }
    }
}
