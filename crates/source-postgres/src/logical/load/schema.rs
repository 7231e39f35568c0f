//! Definitions, by `pg_restore`.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};

use super::super::DumpError;
use super::super::programs::{Running, failure, lines};
use super::LoadOptions;
use crate::cluster::Extension;
use crate::options::ConnectOptions;

/// Newer programs set this whatever the server is.
const NEWER_SETTING: &str = "transaction_timeout";
const NEWER_SETTING_MAJOR: u32 = 17;
/// It is in the template that new databases are made from.
const OF_EVERY_DATABASE: &str = "plpgsql";

/// An archive of definitions in a file, which `pg_restore` needs to work in parallel. Removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    list: Option<PathBuf>,
}

/// What is left out of an archive.
#[derive(Debug, Default)]
pub(crate) struct Without {
    /// OIDs of foreign keys.
    pub foreign_keys: BTreeSet<u32>,
    pub large_objects: bool,
    pub tablespaces: bool,
}

fn create(path: &Path) -> Result<std::fs::File, DumpError> {
    let made = std::fs::File::options().write(true).create_new(true).mode(0o600).open(path);
    made.map_err(|source| failed(path, source))
}

fn failed(path: &Path, source: std::io::Error) -> DumpError {
    DumpError::Run { program: format!("write {}", path.display()), source }
}

impl Archive {
    /// Puts the bytes of an archive into a new file.
    pub fn new(directory: &Path, name: &str, bytes: &[u8]) -> Result<Self, DumpError> {
        let path = directory.join(name);
        let archive = Self { path, list: None };
        create(&archive.path)?.write_all(bytes).map_err(|source| failed(&archive.path, source))?;
        Ok(archive)
    }

    /// Its table of contents.
    fn contents(&self, options: &LoadOptions) -> Result<String, DumpError> {
        let mut command = options.command("pg_restore", None);
        command.arg("--list").arg(&self.path);
        Ok(String::from_utf8_lossy(&output(&mut command)?).into_owned())
    }

    /// Which of the extensions that its database had it does not make, nor has a new database.
    pub fn lacks<'e>(
        &self,
        extensions: &'e [Extension],
        options: &LoadOptions,
    ) -> Result<Vec<&'e str>, DumpError> {
        let names = extensions.iter().map(|extension| extension.name.as_str());
        let mut lacking: Vec<&str> = names.filter(|name| *name != OF_EVERY_DATABASE).collect();
        if !lacking.is_empty() {
            let list = self.contents(options)?;
            lacking.retain(|name| !makes_extension(&list, name));
        }
        Ok(lacking)
    }

    /// Leaves things out from now on.
    pub fn without(&mut self, without: &Without, options: &LoadOptions) -> Result<(), DumpError> {
        if without.foreign_keys.is_empty() && !without.large_objects {
            return Ok(());
        }
        let list = self.contents(options)?;
        let kept = kept(&list, without).map(|(line, _)| line).collect::<Vec<_>>().join("\n");
        let path = self.path.with_extension("list");
        create(&path)?.write_all(kept.as_bytes()).map_err(|source| failed(&path, source))?;
        self.list = Some(path);
        Ok(())
    }

    fn say(command: &mut Command, without: &Without, options: &LoadOptions) {
        options.say_owners(command);
        if without.tablespaces {
            command.arg("--no-tablespaces");
        }
    }

    fn arguments(&self, command: &mut Command, without: &Without, options: &LoadOptions) {
        Self::say(command, without, options);
        if let Some(list) = &self.list {
            command.arg("--use-list").arg(list);
        }
    }

    /// Makes what rows need in a database.
    pub fn load_before(
        &self,
        connect: &ConnectOptions,
        server_major: u32,
        without: &Without,
        options: &LoadOptions,
    ) -> Result<(), DumpError> {
        let mut command = options.command("pg_restore", Some(connect));
        command.arg("--section=pre-data");
        self.arguments(&mut command, without, options);
        run(command.arg(&self.path), None, options.programs.major(), server_major)
    }

    /// Makes what is built on rows: indexes first, in parallel, then the rest in its order.
    ///
    /// Indexes of partitions that are attached at the same time to one index may leave that invalid: neither sees the other.
    pub fn load_behind(
        &self,
        connect: &ConnectOptions,
        server_major: u32,
        without: &Without,
        options: &LoadOptions,
    ) -> Result<(), DumpError> {
        let list = self.contents(options)?;
        for (ending, parallel) in [("first", true), ("second", false)] {
            let fitting = kept(&list, without).filter(|(_, about)| is_index(about) == parallel);
            let chosen: Vec<&str> = fitting.map(|(line, _)| line).collect();
            let path = self.path.with_extension(ending);
            let written = create(&path)?.write_all(chosen.join("\n").as_bytes());
            written.map_err(|source| failed(&path, source))?;
            let mut command = options.command("pg_restore", Some(connect));
            command.arg("--section=post-data").arg("--use-list").arg(&path);
            if parallel {
                command.arg(format!("--jobs={}", options.jobs.max(1)));
            }
            Self::say(&mut command, without, options);
            let made = run(command.arg(&self.path), None, options.programs.major(), server_major);
            // What cannot be removed lies in a directory that goes as a whole.
            let _ = std::fs::remove_file(&path);
            made?;
        }
        Ok(())
    }

    /// Commands that make one section of it, as a script.
    pub fn script(
        &self,
        section: &str,
        without: &Without,
        options: &LoadOptions,
    ) -> Result<Vec<u8>, DumpError> {
        let mut command = options.command("pg_restore", None);
        command.arg(format!("--section={section}")).arg("--file=-");
        self.arguments(&mut command, without, options);
        output(command.arg(&self.path))
    }

    /// Commands that remove everything it would make, if it is there.
    ///
    /// Of the constraints only foreign keys, whose names are given; the others, and indexes, go with their tables, and
    /// those of partitions cannot go without.
    pub fn removal(
        &self,
        server_major: u32,
        foreign_keys: &BTreeSet<&str>,
        options: &LoadOptions,
    ) -> Result<String, DumpError> {
        let mut command = options.command("pg_restore", None);
        command.args(["--clean", "--if-exists", "--no-owner", "--file=-"]).arg(&self.path);
        let script = String::from_utf8_lossy(&output(&mut command)?).into_owned();
        Ok(removal(&script, server_major, foreign_keys))
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // What cannot be removed lies in a directory that goes as a whole.
        let _ = std::fs::remove_file(&self.path);
        if let Some(list) = &self.list {
            let _ = std::fs::remove_file(list);
        }
    }
}

/// The lines of a table of contents that are not left out, each with the one that it is about: for a comment that is the one
/// before it. `pg_restore` takes a comment for a part of the section that its list is in there, so the two must stay together.
fn kept<'l>(list: &'l str, without: &Without) -> impl Iterator<Item = (&'l str, &'l str)> {
    let lines = list.lines().filter(|line| !line.starts_with(';'));
    let with_subjects = lines.scan("", |subject, line| {
        if !is_comment(line) {
            *subject = line;
        }
        Some((line, *subject))
    });
    with_subjects.filter(move |(line, subject)| !is_without(line, without) && !is_without(subject, without))
}

/// Whether a table of contents has an extension: `2; 3079 16384 EXTENSION - citext `.
fn makes_extension(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let mut words = line.split_whitespace().skip(3);
        words.next() == Some("EXTENSION") && words.nth(1) == Some(name)
    })
}

fn is_comment(line: &str) -> bool {
    line.split_whitespace().nth(3) == Some("COMMENT")
}

/// Whether a line of a table of contents is of an index, or of a constraint that is one.
fn is_index(line: &str) -> bool {
    let mut words = line.split_whitespace().skip(3);
    match (words.next(), words.next()) {
        (Some("INDEX"), next) => next != Some("ATTACH"),
        (Some("CONSTRAINT"), _) => true,
        _ => false,
    }
}

/// Whether a line of a table of contents is of something that is left out:
/// `3350; 2606 16390 FK CONSTRAINT app orders orders_fkey owner`.
fn is_without(line: &str, without: &Without) -> bool {
    let mut words = line.split_whitespace().skip(1);
    let (catalog, oid) = (words.next(), words.next().and_then(|oid| oid.parse::<u32>().ok()));
    let rest = words.collect::<Vec<_>>().join(" ");
    let foreign_key = rest.starts_with("FK CONSTRAINT ");
    if foreign_key && oid.is_some_and(|oid| without.foreign_keys.contains(&oid)) {
        return true;
    }
    let about_large_objects = catalog == Some("2613")
        || ["ACL", "COMMENT", "SECURITY LABEL"]
            .iter()
            .any(|kind| rest.strip_prefix(kind).is_some_and(|rest| rest.starts_with(" - LARGE OBJECT")));
    without.large_objects && about_large_objects
}

/// The begin of a script up to where the first thing is made: settings, and what removes things. All commands of it are
/// on lines of their own.
fn removal(script: &str, server_major: u32, foreign_keys: &BTreeSet<&str>) -> String {
    let upto = script.find("\n-- Name: ").unwrap_or(script.len());
    let fits = |line: &&str| {
        let newer = server_major < NEWER_SETTING_MAJOR && line.contains(NEWER_SETTING);
        let goes_with_its_table = line.starts_with("DROP INDEX ")
            || line.rsplit_once(" DROP CONSTRAINT IF EXISTS ").is_some_and(|(_, name)| {
                let name = name.trim_end_matches(';');
                let bare = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
                let bare = bare.map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\""));
                !foreign_keys.contains(bare.as_str())
            });
        !line.starts_with('\\') && !line.starts_with("--") && !newer && !goes_with_its_table
    };
    script[..upto].lines().filter(fits).collect::<Vec<_>>().join("\n")
}

/// A script of `pg_restore` as a server of this major takes it: without the setting that older servers do not know, which
/// newer programs write among the first lines.
pub(crate) fn for_server(script: &[u8], server_major: u32) -> Vec<u8> {
    let line = format!("\nSET {NEWER_SETTING} = 0;\n");
    let find =
        |part: &[u8], what: &str| part.windows(what.len()).position(|window| window == what.as_bytes());
    let upto = find(script, "\n-- Name: ").unwrap_or(script.len());
    match find(&script[..upto], &line) {
        Some(at) if server_major < NEWER_SETTING_MAJOR => {
            [&script[..at], &script[at + line.len() - 1..]].concat()
        }
        _ => script.to_vec(),
    }
}

/// Runs a program and gives what it writes, which is definitions and so not much.
fn output(command: &mut Command) -> Result<Vec<u8>, DumpError> {
    let mut running = Running::start(command.stdout(Stdio::piped()))?;
    let mut bytes = Vec::new();
    if let Some(mut output) = running.output() {
        let read = std::io::Read::read_to_end(&mut output, &mut bytes);
        read.map_err(|source| DumpError::Run { program: "pg_restore".to_owned(), source })?;
    }
    running.finish()?;
    Ok(bytes)
}

/// Fills the input of a program.
pub(super) type Feed<'f> = dyn FnMut(&mut ChildStdin) -> Result<(), DumpError> + 'f;

/// Runs `pg_restore` into a database. `feed` fills its input, if it reads from there.
pub(super) fn run(
    command: &mut Command,
    feed: Option<&mut Feed<'_>>,
    program_major: u32,
    server_major: u32,
) -> Result<(), DumpError> {
    let mixed = program_major >= NEWER_SETTING_MAJOR && server_major < NEWER_SETTING_MAJOR;
    if !mixed {
        command.arg("--exit-on-error");
    }
    if feed.is_some() {
        command.stdin(Stdio::piped());
    }
    let mut running = Running::start(command)?;
    let fed = match (feed, running.input()) {
        (Some(feed), Some(mut input)) => feed(&mut input),
        _ => Ok(()),
    };
    match running.wait()? {
        (true, _) => fed,
        (false, said) if mixed && is_only_the_setting(&said) => fed,
        (false, said) => Err(failure("pg_restore".to_owned(), &said)),
    }
}

fn is_only_the_setting(said: &str) -> bool {
    let lines = lines(said);
    let mut errors = lines.iter().filter(|line| line.starts_with("error:")).peekable();
    errors.peek().is_some() && errors.all(|line| line.contains(NEWER_SETTING))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_found_by_its_number_and_not_by_its_name() {
        let without =
            Without { foreign_keys: BTreeSet::from([16390]), large_objects: true, tablespaces: false };
        for (line, expected) in [
            ("3350; 2606 16390 FK CONSTRAINT app orders orders_fkey ann", true),
            ("3350; 2606 16391 FK CONSTRAINT app orders orders_fkey ann", false),
            ("3351; 1259 16390 TABLE app orders ann", false),
            ("3415; 2613 16492 BLOB - 16492 ann", true),
            ("3488; 2613 16496 BLOB METADATA - 16496..16497 ann", true),
            ("3489; 0 0 ACL - LARGE OBJECT 16492 ann", true),
            ("3489; 0 0 ACL app TABLE x ann", false),
            (";     dbname: clinic", false),
        ] {
            assert_eq!(is_without(line, &without), expected, "{line}");
        }
        assert!(!is_without("3415; 2613 16492 BLOB - 16492 ann", &Without::default()));
    }

    #[test]
    fn extensions_are_found_in_a_table_of_contents() {
        let list = ";\n; Selected TOC Entries:\n;\n2; 3079 16384 EXTENSION - citext \n\
            3420; 0 0 COMMENT - EXTENSION hstore \n214; 1259 16489 TABLE app EXTENSION ann\n";
        assert!(makes_extension(list, "citext"));
        assert!(!makes_extension(list, "hstore") && !makes_extension(list, "ann"));
    }

    #[test]
    fn a_comment_goes_with_what_it_is_about() {
        let list = ";\n; Selected TOC Entries:\n;\n\
            214; 1259 16384 TABLE app a ann\n3361; 0 0 COMMENT app TABLE a ann\n\
            3203; 2606 16388 CONSTRAINT app a a_pkey ann\n3363; 0 0 COMMENT app CONSTRAINT a_pkey ON a ann\n\
            3204; 1259 16391 INDEX app i ann\n3365; 0 0 COMMENT app INDEX i ann\n\
            3350; 2618 16402 RULE app a r ann\n3366; 0 0 COMMENT app RULE r ON a ann\n\
            3207; 2606 16397 FK CONSTRAINT app d key ann\n3367; 0 0 COMMENT app CONSTRAINT key ON d ann\n";
        let numbers = |without: &Without, parallel: bool| -> Vec<String> {
            let fits = kept(list, without).filter(|(_, subject)| is_index(subject) == parallel);
            fits.map(|(line, _)| line.split(';').next().unwrap().to_owned()).collect()
        };
        let all = Without::default();
        assert_eq!(numbers(&all, true), ["3203", "3363", "3204", "3365"]);
        assert_eq!(numbers(&all, false), ["214", "3361", "3350", "3366", "3207", "3367"]);
        let without = Without { foreign_keys: BTreeSet::from([16397]), ..Without::default() };
        assert_eq!(numbers(&without, false), ["214", "3361", "3350", "3366"], "nobody has the foreign key");
    }

    #[test]
    fn removal_ends_where_things_are_made() {
        let keys = BTreeSet::from(["to b"]);
        let script = "--\n-- PostgreSQL database dump\n--\n\n\\restrict x\n\nSET lock_timeout = 0;\n\
                      ALTER TABLE IF EXISTS ONLY a.t DROP CONSTRAINT IF EXISTS \"to b\";\n\
                      ALTER TABLE IF EXISTS ONLY a.t DROP CONSTRAINT IF EXISTS t_pkey;\nDROP INDEX IF EXISTS a.i;\n\
                      SET transaction_timeout = 0;\nDROP TABLE IF EXISTS a.t;\n--\n-- Name: a; Type: SCHEMA\n--\nCREATE";
        let key = "ALTER TABLE IF EXISTS ONLY a.t DROP CONSTRAINT IF EXISTS \"to b\";";
        let expected = format!("\n\nSET lock_timeout = 0;\n{key}\nDROP TABLE IF EXISTS a.t;");
        assert_eq!(removal(script, 15, &keys), expected);
        assert!(removal(script, 17, &keys).contains("transaction_timeout"));
        assert!(is_index("1; 1259 5 INDEX app i ann") && is_index("1; 2606 5 CONSTRAINT app t k ann"));
        assert!(
            !is_index("1; 0 0 INDEX ATTACH app i ann") && !is_index("1; 2606 5 FK CONSTRAINT app t k ann")
        );
    }

    #[test]
    fn a_script_for_an_older_server_has_no_setting_that_it_does_not_know() {
        let script = "--\n\nSET lock_timeout = 0;\nSET transaction_timeout = 0;\nSET x = on;\n\n--\n-- Name: f; Type: FUNCTION\n\
                      --\nCREATE FUNCTION f() AS $$\nSET transaction_timeout = 0;\n$$;";
        let older = String::from_utf8(for_server(script.as_bytes(), 16)).unwrap();
        assert_eq!(older, script.replacen("SET transaction_timeout = 0;\n", "", 1));
        assert_eq!(for_server(script.as_bytes(), 17), script.as_bytes());
        let without = older.as_bytes();
        assert_eq!(for_server(without, 16), without, "what a function does is left alone");
    }

    #[test]
    fn errors_about_a_setting_that_older_servers_lack_are_no_failure() {
        let setting = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \
                       \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\n";
        assert!(is_only_the_setting(setting));
        let other = "pg_restore: error: could not execute query: ERROR:  relation \"x\" does not exist\n";
        assert!(!is_only_the_setting(&format!("{setting}{other}")) && !is_only_the_setting("killed"));
    }
}
