//! `keepwell pg export`.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result};
use backup_core::Snapshot;
use flate2::Compression;
use flate2::write::GzEncoder;
use keepwell_source_postgres::logical::{
    DUMP_KIND, Destination, DumpSnapshot, Format, LoadOptions, Loaded, Loader, Owners, Privileges, Programs,
    Proof, Roles, ScratchPlace, ScratchServer, write_sql,
};
use keepwell_source_postgres::recovery::Binaries;
use serde_json::json;

use super::discard::Discarded;
use super::dump::SelectArgs;
use super::load::find_dump;
use super::places;
use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open::{self, Opened};
use crate::select::Filter;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell pg export --database clinic -o clinic.sql.gz
  keepwell pg export --database clinic --format custom -o clinic.dump     for pg_restore
  keepwell pg export --globals -o roles.sql

A script is written straight from the repository; load it with
`psql -v ON_ERROR_STOP=1 -d DATABASE -f FILE`. The other formats are written by
`pg_dump`, out of a scratch server of our own, which needs room for the database.";

/// Write a logical backup as a file that PostgreSQL's own programs read
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The logical backup
    #[arg(default_value = "latest")]
    snapshot: String,
    /// The database
    #[arg(long, value_name = "NAME", required_unless_present = "globals")]
    database: Option<String>,
    /// Roles and tablespaces instead of a database
    #[arg(long, conflicts_with = "database")]
    globals: bool,
    /// What to write: a script (compressed if the name ends with .gz), or an archive as `pg_dump -Fc` or `-Fd` makes it
    #[arg(long, value_enum, default_value_t)]
    format: FormatArg,
    /// Where to; it must not exist
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    select: SelectArgs,
    /// Say nothing about owners
    #[arg(long)]
    no_owner: bool,
    /// Say nothing about privileges
    #[arg(long)]
    no_privileges: bool,
    /// Connections at once, for `--format directory`
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Where the programs of PostgreSQL are
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// A directory to make the scratch server in; what is made there is removed again
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    scratch: PathBuf,
    #[command(flatten)]
    filter: Filter,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    /// SQL for psql
    #[default]
    Plain,
    /// One file for pg_restore
    Custom,
    /// A directory for pg_restore
    Directory,
}

/// Runs `pg export`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    if args.output.exists() {
        return Err(Complaint::failed(format!("`{}` exists", args.output.display())).into());
    }
    let selection = args.select.selection()?;
    let opened = open::for_reading(ctx).await?;
    let snapshot = find_dump(&opened, &args.snapshot, &args.filter, DUMP_KIND).await?;
    let from = DumpSnapshot::open(&opened.repository, &snapshot).await?;
    let began = Instant::now();
    let Some(database) = args.database.clone() else {
        let sql = from.globals().await?;
        let (output, mut file) = Output::file(&args.output)?;
        file.write_all(sql.as_bytes()).and_then(|()| file.sync_all()).with_context(|| wrote(&args.output))?;
        output.keep();
        opened.progress.end();
        let (shown, took) = (args.output.display(), began.elapsed());
        ctx.printer.line(format_args!("{shown}: roles and tablespaces, in {}", text::duration(took)));
        ctx.printer.json("exported", fields(&args, &Loaded::default(), began));
        return Ok(Exit::Done);
    };
    let private = Discarded::for_socket(ctx, None)?;
    let options = LoadOptions {
        programs: Programs::find(from.dump().program_major, args.bin_dir.as_deref(), &ctx.environment.path)?,
        jobs: usize::from(args.jobs),
        selection,
        owners: if args.no_owner { Owners::Ours } else { Owners::AsDumped },
        privileges: if args.no_privileges { Privileges::None } else { Privileges::AsDumped },
        roles: Roles::MakeMissing,
        proof: Proof::Counts,
        directory: private.path().to_path_buf(),
        cancel: ctx.interrupt.cancel(),
    };
    ctx.interrupt.ends_by_itself();
    let (output, loaded) = match args.format {
        FormatArg::Plain => {
            let (output, file) = Output::file(&args.output)?;
            let path = args.output.clone();
            let written =
                tokio::task::spawn_blocking(move || script(&from, &database, &options, file, &path));
            (output, written.await??)
        }
        FormatArg::Custom => {
            let (output, _) = Output::file(&args.output)?;
            (output, archive(ctx, &opened, &snapshot, &from, options, Format::Custom, &args).await?)
        }
        FormatArg::Directory => {
            let output = Output::directory(&args.output)?;
            (output, archive(ctx, &opened, &snapshot, &from, options, Format::Directory, &args).await?)
        }
    };
    output.keep();
    opened.progress.end();
    print(ctx, &args, &loaded, began);
    Ok(Exit::Done)
}

fn print(ctx: &Context, args: &Args, loaded: &Loaded, began: Instant) {
    ctx.printer.line(format_args!(
        "{}: {}, {}, in {}",
        args.output.display(),
        text::count(loaded.tables, "table", "tables"),
        text::count(loaded.rows, "row", "rows"),
        text::duration(began.elapsed())
    ));
    for note in &loaded.notes {
        ctx.printer.say(format_args!("  {note}"));
    }
    ctx.printer.json("exported", fields(args, loaded, began));
}

fn fields(args: &Args, loaded: &Loaded, began: Instant) -> serde_json::Value {
    json!({ "output": args.output, "tables": loaded.tables, "rows": loaded.rows,
        "notes": loaded.notes, "seconds": began.elapsed().as_secs_f64() })
}

fn wrote(path: &Path) -> String {
    format!("write `{}`", path.display())
}

/// What this run makes, for us alone: it holds what the database holds. Half of it must not be taken for the whole, and is
/// removed when this is dropped, unless it is kept.
#[derive(Debug)]
struct Output {
    path: PathBuf,
    is_whole: bool,
}

impl Output {
    /// A new file.
    fn file(path: &Path) -> Result<(Self, File)> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| wrote(path))?;
        Ok((Self { path: path.to_path_buf(), is_whole: false }, file))
    }

    /// A new directory.
    fn directory(path: &Path) -> Result<Self> {
        fs::DirBuilder::new().mode(0o700).create(path).with_context(|| wrote(path))?;
        Ok(Self { path: path.to_path_buf(), is_whole: false })
    }

    fn keep(mut self) {
        self.is_whole = true;
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.is_whole {
            return;
        }
        // What cannot be removed is left in plain sight, beside the error that is reported.
        let _ = match fs::symlink_metadata(&self.path) {
            Ok(found) if found.is_dir() => fs::remove_dir_all(&self.path),
            _ => fs::remove_file(&self.path),
        };
    }
}

fn script(
    from: &DumpSnapshot,
    database: &str,
    options: &LoadOptions,
    file: File,
    output: &Path,
) -> Result<Loaded> {
    let compress = output.extension().is_some_and(|extension| extension == "gz");
    let finish =
        |done: io::Result<File>| done.and_then(|file| file.sync_all()).with_context(|| wrote(output));
    if compress {
        let mut out = GzEncoder::new(BufWriter::with_capacity(1 << 20, file), Compression::new(6));
        let loaded = write_sql(from, database, options, &mut out)?;
        finish(out.finish().and_then(|out| out.into_inner().map_err(io::IntoInnerError::into_error)))?;
        return Ok(loaded);
    }
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let loaded = write_sql(from, database, options, &mut out)?;
    finish(out.into_inner().map_err(io::IntoInnerError::into_error))?;
    Ok(loaded)
}

/// Directories of a scratch server; removed when this is dropped.
struct Place {
    place: ScratchPlace,
    _directories: [Discarded; 2],
}

impl Place {
    fn make(ctx: &Context, scratch: &Path) -> Result<Self> {
        let owner = places::server_owner()?;
        let directory = Discarded::make(ctx, scratch, owner)?;
        let socket = Discarded::for_socket(ctx, owner)?;
        let [path, socket_path] = [&directory, &socket].map(|made| made.path().to_path_buf());
        let place = ScratchPlace { directory: path, socket: socket_path, owner };
        Ok(Self { place, _directories: [directory, socket] })
    }
}

/// Programs of a server that can hold the database, and whose dump our `pg_dump` makes.
fn server(ctx: &Context, from: &DumpSnapshot, options: &LoadOptions, args: &Args) -> Result<Binaries> {
    let places: Vec<PathBuf> = match &args.bin_dir {
        Some(directory) => vec![directory.clone()],
        None => ctx.environment.path.clone(),
    };
    let majors = from.dump().major()..=options.programs.major();
    let mut found = majors.map(|major| Binaries::find(major, &places));
    let first = found.next().unwrap_or_else(|| Binaries::find(from.dump().major(), &places));
    Ok(first.or_else(|error| found.find_map(Result::ok).ok_or(error))?)
}

async fn archive(
    ctx: &Context,
    opened: &Opened,
    snapshot: &Snapshot,
    from: &DumpSnapshot,
    options: LoadOptions,
    format: Format,
    args: &Args,
) -> Result<Loaded> {
    let binaries = server(ctx, from, &options, args)?;
    let database = args.database.clone().unwrap_or_default();
    let place = Place::make(ctx, &args.scratch)?;
    let stopped = || anyhow::Error::from(Complaint::failed("stopped"));
    let server = tokio::select! {
        server = ScratchServer::start(&binaries, &place.place) => server?,
        () = ctx.interrupt.requested() => return Err(stopped()),
    };
    let work = async {
        let mut loader = Loader::new(&opened.repository, snapshot, server.connect(), options.clone()).await?;
        loader.make_roles().await?;
        // `postgres` is there already, and templates are.
        let name = "keepwell_export";
        let loaded = loader.load(&database, name, Destination::New).await?;
        server.archive(name, format, &options, &args.output).await?;
        Ok::<_, anyhow::Error>(loaded)
    };
    let written = tokio::select! {
        written = work => written,
        // What runs is ended, and what was made is removed.
        () = ctx.interrupt.requested() => Err(stopped()),
    };
    let ended = server.stop().await;
    let loaded = written?;
    ended?;
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_what_this_run_made_is_removed_and_only_if_it_is_not_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("theirs"), "theirs").unwrap();
        fs::create_dir(path("their-directory")).unwrap();
        assert!(Output::file(&path("theirs")).is_err() && Output::directory(&path("theirs")).is_err());
        assert!(Output::directory(&path("their-directory")).is_err());
        assert_eq!(fs::read_to_string(path("theirs")).unwrap(), "theirs");
        assert!(path("their-directory").exists());
        drop(Output::file(&path("half")).unwrap());
        let half = Output::directory(&path("half-directory")).unwrap();
        fs::write(path("half-directory/toc.dat"), "half").unwrap();
        drop(half);
        assert!(!path("half").exists() && !path("half-directory").exists());
        Output::file(&path("whole")).unwrap().0.keep();
        Output::directory(&path("whole-directory")).unwrap().keep();
        let mode = |name: &str| fs::metadata(path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("whole"), mode("whole-directory")), (0o600, 0o700));
    }
}
