//! A database out of a snapshot as what others read: a script for `psql`.

use std::io::{self, Read, Write};
use std::process::Stdio;

use tokio::runtime::Handle;

use super::DumpError;
use super::describe::{DatabaseDump, LARGE_OBJECTS_FILE, SCHEMA_FILE, Table};
use super::load::schema::{Archive, for_server};
use super::load::{LoadOptions, Loaded, chosen, sequence_commands, without_of};
use super::names::{literal, qualified};
use super::programs::Running;
use super::snapshot::DumpSnapshot;
use super::tables::columns;

/// The settings of a script of `pg_restore` are shorter.
const SETTINGS_BYTES: u64 = 4096;

/// Writes a script that makes a database: definitions, rows, large objects, sequences, and what is built on the rows. `psql`
/// runs it in an empty database; nothing is kept on the way but definitions.
///
/// To be called on a thread that may block, within a runtime of several threads.
pub fn write_sql(
    from: &DumpSnapshot,
    database: &str,
    options: &LoadOptions,
    out: &mut (dyn Write + Send),
) -> Result<Loaded, DumpError> {
    let handle = Handle::current();
    let dumped = handle.block_on(from.database(database))?;
    let tables = chosen(&dumped, &options.selection)?;
    let mut notes = Vec::new();
    let without = without_of(&dumped, &tables, &options.selection, &mut notes);
    let mut bytes = Vec::new();
    handle.block_on(from.write(database, SCHEMA_FILE, &mut bytes))?;
    let mut archive = Archive::new(&options.directory, "schema.dump", &bytes)?;
    archive.without(&without, options)?;
    let put = |out: &mut (dyn Write + Send), text: &[u8]| out.write_all(text).map_err(output);
    let major = from.dump().major();
    put(out, &for_server(&archive.script("pre-data", &without, options)?, major))?;
    // What a script of `pg_restore` sets holds for the session, and so for everything between.
    let encoding = literal(&dumped.properties.encoding);
    put(out, format!("\nSET client_encoding = {encoding};\nSET lc_monetary = 'C';\n").as_bytes())?;
    for table in &tables {
        rows(&handle, from, &dumped, table, out)?;
    }
    if !without.large_objects && dumped.large_objects.unwrap_or_default() > 0 {
        large_objects(&handle, from, database, options, out)?;
    }
    for command in sequence_commands(&dumped, &tables, &options.selection) {
        put(out, format!("{command};\n").as_bytes())?;
    }
    // Definitions are written under the settings of the database.
    put(out, b"RESET lc_monetary;\n")?;
    put(out, &for_server(&archive.script("post-data", &without, options)?, major))?;
    out.flush().map_err(output)?;
    Ok(Loaded {
        tables: tables.len() as u64,
        rows: tables.iter().filter_map(|table| table.rows).sum(),
        bytes: tables.iter().map(|table| table.bytes).sum(),
        notes,
    })
}

fn output(error: io::Error) -> DumpError {
    backup_core::Error::Output(error.into()).into()
}

fn rows(
    handle: &Handle,
    from: &DumpSnapshot,
    dumped: &DatabaseDump,
    table: &Table,
    out: &mut (dyn Write + Send),
) -> Result<(), DumpError> {
    let target = match &table.root {
        Some((schema, name)) => qualified(schema, name),
        None => qualified(&table.schema, &table.name),
    };
    let listed = if table.columns.is_empty() { String::new() } else { format!(" ({})", columns(table)) };
    write!(out, "\nCOPY {target}{listed} FROM stdin;\n").map_err(output)?;
    let mut lines = Lines { out: &mut *out, place: Place::Begin, is_refused: false };
    for key in from.parts(&dumped.name, table)? {
        let written = handle.block_on(from.tree().dump_file(&key, &mut lines));
        if lines.is_refused {
            let reason = "a line of it would end the rows, which no row does".to_owned();
            return Err(DumpError::Description { name: key.display_path(), reason });
        }
        written?;
    }
    out.write_all(b"\\.\n\n").map_err(output)
}

/// Rows on their way into a script, of which none begins with `\.`: there `psql` would take what follows for commands, also
/// for such as run on its own host. A server writes every backslash of a value twice; one that does not is out to harm us.
struct Lines<'o> {
    out: &'o mut (dyn Write + Send),
    place: Place,
    is_refused: bool,
}

/// Where in a line we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Begin,
    BehindBackslash,
    Within,
}

impl Lines<'_> {
    /// Whether all of it is rows.
    fn follow(&mut self, mut data: &[u8]) -> bool {
        while let Some((first, rest)) = data.split_first() {
            match (self.place, *first) {
                (Place::Begin, b'\\') => (self.place, data) = (Place::BehindBackslash, rest),
                (Place::BehindBackslash, b'.') => return false,
                _ => match data.iter().position(|byte| *byte == b'\n') {
                    Some(end) => (self.place, data) = (Place::Begin, &data[end + 1..]),
                    None => {
                        self.place = Place::Within;
                        return true;
                    }
                },
            }
        }
        true
    }
}

impl Write for Lines<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if !self.follow(buf) {
            self.is_refused = true;
            return Err(io::Error::other("this is no row"));
        }
        self.out.write_all(buf)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// As the script that `pg_restore` makes of them.
fn large_objects(
    handle: &Handle,
    from: &DumpSnapshot,
    database: &str,
    options: &LoadOptions,
    out: &mut (dyn Write + Send),
) -> Result<(), DumpError> {
    let mut command = options.command("pg_restore", None);
    command.arg("--file=-").stdin(Stdio::piped()).stdout(Stdio::piped());
    options.say_owners(&mut command);
    let mut running = Running::start(&mut command)?;
    let (Some(mut input), Some(mut script)) = (running.input(), running.output()) else {
        return Err(DumpError::Odd("a program has no pipes".to_owned()));
    };
    std::thread::scope(|scope| {
        let feed = scope.spawn(move || handle.block_on(from.write(database, LARGE_OBJECTS_FILE, &mut input)));
        let mut copied = || {
            // What such a script sets stands within the first kilobyte.
            let mut head = Vec::new();
            (&mut script).take(SETTINGS_BYTES).read_to_end(&mut head)?;
            out.write_all(&for_server(&head, from.dump().major()))?;
            io::copy(&mut script, out)
        };
        let copied = copied().map_err(output);
        let fed = feed.join().unwrap_or_else(|_| Err(DumpError::Odd("a thread broke".to_owned())));
        let finished = running.finish();
        copied?;
        finished?;
        fed
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_among_the_rows_ends_them() {
        let written = |pieces: &[&str]| {
            let mut out = Vec::new();
            let mut lines = Lines { out: &mut out, place: Place::Begin, is_refused: false };
            let all = pieces.iter().try_for_each(|piece| lines.write_all(piece.as_bytes()));
            assert_eq!(lines.is_refused, all.is_err());
            all.map(|()| String::from_utf8(out).unwrap()).ok()
        };
        let whole = "1\t\\.\n\\\\.\n\\N\n\n.\n";
        assert_eq!(written(&[whole]).as_deref(), Some(whole));
        let each: Vec<String> = whole.chars().map(String::from).collect();
        let each: Vec<&str> = each.iter().map(String::as_str).collect();
        assert_eq!(written(&each).as_deref(), Some(whole));
        for pieces in [&["\\.\n\\! id\n"][..], &["1\n\\", ".\n"], &["1", "\n", "\\", ".\r\n"]] {
            assert_eq!(written(pieces), None, "{pieces:?}");
        }
    }
}
