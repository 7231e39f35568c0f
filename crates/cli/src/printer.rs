//! Output: data to stdout, talk to stderr, `--json` lines instead of both.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;
use serde_json::Value;

use crate::args::{Color, GlobalArgs};
use crate::environment::Environment;

/// How much is said beside the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Volume {
    /// Errors and warnings only.
    Quiet,
    /// What a person wants to know.
    Normal,
    /// Also what was done item by item.
    Verbose,
}

/// Where everything that the command says goes.
#[derive(Debug)]
pub struct Printer {
    json: bool,
    volume: Volume,
    out_color: bool,
    err_color: bool,
    draws: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Printer {
    /// Looks at the options, the environment and the terminal.
    pub fn new(global: &GlobalArgs, environment: &Environment) -> Self {
        let colors = |terminal: bool| match global.color {
            Color::Always => true,
            Color::Never => false,
            Color::Auto => terminal && !environment.no_color && !environment.dumb_terminal,
        };
        let err_terminal = io::stderr().is_terminal();
        let volume = match (global.quiet, global.verbose) {
            (true, _) => Volume::Quiet,
            (false, 0) => Volume::Normal,
            (false, _) => Volume::Verbose,
        };
        Self {
            json: global.json,
            volume,
            out_color: colors(io::stdout().is_terminal()),
            err_color: colors(err_terminal),
            draws: err_terminal
                && !environment.dumb_terminal
                && !global.json
                && !global.no_progress
                && volume > Volume::Quiet,
            bar: Mutex::new(None),
        }
    }

    /// Whether the output is lines of JSON.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// How much is said.
    pub fn volume(&self) -> Volume {
        self.volume
    }

    /// Whether a progress bar may be drawn.
    pub fn draws(&self) -> bool {
        self.draws
    }

    /// A line of data, for people; nothing under `--json`.
    pub fn line(&self, text: impl Display) {
        if !self.json {
            self.write_out(format_args!("{text}\n"));
        }
    }

    /// An object on a line of its own, `"type"` first; nothing without `--json`.
    pub fn json(&self, kind: &str, fields: Value) {
        if self.json {
            self.write_out(format_args!("{}\n", json_line(kind, &fields)));
        }
    }

    /// Bytes of data as they are, all of them written.
    pub fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        Output.write_all(bytes)?;
        Output.flush()
    }

    /// A line of talk.
    pub fn say(&self, text: impl Display) {
        if self.volume > Volume::Quiet {
            self.write_err(format_args!("{text}\n"));
        }
    }

    /// A line that only `--verbose` shows.
    pub fn verbose(&self, text: impl Display) {
        if self.volume > Volume::Normal {
            self.write_err(format_args!("{text}\n"));
        }
    }

    /// Something odd; the work goes on.
    pub fn warn(&self, text: impl Display) {
        self.write_err(format_args!("{} {text}\n", self.paint_err("33;1", "warning:")));
    }

    /// The end of the command, with what may help.
    pub fn error(&self, text: &str, hints: &[String], code: u8) {
        self.write_err(format_args!("{} {text}\n", self.paint_err("31;1", "error:")));
        for hint in hints {
            self.write_err(format_args!("{} {hint}\n", self.paint_err("36;1", "hint:")));
        }
        self.json("error", serde_json::json!({ "code": code, "message": text, "hints": hints }));
    }

    /// Bold on stdout, if stdout has colors.
    pub fn strong(&self, text: &str) -> String {
        paint(self.out_color, "1", text)
    }

    /// In a color (an SGR code) on stdout, if stdout has colors.
    pub fn colored(&self, sgr: &str, text: &str) -> String {
        paint(self.out_color, sgr, text)
    }

    fn paint_err(&self, sgr: &str, text: &str) -> String {
        paint(self.err_color, sgr, text)
    }

    /// Puts a progress bar below everything that is printed from now on, or takes it away.
    pub fn attach(&self, bar: Option<ProgressBar>) {
        *self.bar.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    /// Runs something that uses the terminal, with the progress bar out of the way.
    pub fn suspend<T>(&self, run: impl FnOnce() -> T) -> T {
        // Not under the lock: while one thread waits for an answer, another must be able to say why it ends.
        let bar = self.bar.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match bar {
            Some(bar) => bar.suspend(run),
            None => run(),
        }
    }

    fn write_out(&self, text: std::fmt::Arguments<'_>) {
        let written = self.suspend(|| io::stdout().lock().write_fmt(text));
        if let Err(error) = written {
            broken_stdout(&error);
        }
    }

    fn write_err(&self, text: std::fmt::Arguments<'_>) {
        // There is nobody left to tell if this fails.
        let _ = self.suspend(|| io::stderr().lock().write_fmt(text));
    }
}

/// Standard output for bytes as they are, as for a dumped file. Where nobody reads on, the command ends.
#[derive(Debug)]
pub struct Output;

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().lock().write(bytes).inspect_err(end_if_nobody_reads)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush().inspect_err(end_if_nobody_reads)
    }
}

fn end_if_nobody_reads(error: &io::Error) {
    if error.kind() == io::ErrorKind::BrokenPipe {
        broken_stdout(error);
    }
}

/// Nobody reads on: the shell's way to end is that of SIGPIPE. Any other failure is one of the command.
fn broken_stdout(error: &io::Error) -> ! {
    if error.kind() == io::ErrorKind::BrokenPipe {
        std::process::exit(141);
    }
    let _ = writeln!(io::stderr(), "error: write to standard output: {error}");
    std::process::exit(1);
}

/// The line of JSON for a failure that came before anything could be set up.
pub fn error_line(text: &str, hints: &[&str], code: u8) {
    let fields = serde_json::json!({ "code": code, "message": text, "hints": hints });
    // Nothing can be done if printing fails.
    let _ = writeln!(io::stdout(), "{}", json_line("error", &fields));
}

/// The fields of two objects as one.
pub fn joined(mut fields: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut fields, more) {
        fields.extend(more);
    }
    fields
}

fn json_line(kind: &str, fields: &Value) -> String {
    let fields = fields.to_string();
    match fields.strip_prefix('{') {
        Some("}") | None => format!("{{\"type\":\"{kind}\"}}"),
        Some(rest) => format!("{{\"type\":\"{kind}\",{rest}"),
    }
}

fn paint(colors: bool, sgr: &str, text: &str) -> String {
    if colors { format!("\x1b[{sgr}m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// The kinds of lines that the sources below a directory print.
    fn kinds(directory: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                kinds(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let calls = text.split(concat!(".js", "on(")).skip(1);
                let names = calls.filter_map(|call| call.trim_start().strip_prefix('"')?.split('"').next());
                found.extend(names.map(str::to_owned));
            }
        }
    }

    #[test]
    fn every_kind_of_line_is_documented() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut found = BTreeSet::new();
        kinds(&root.join("src"), &mut found);
        assert!(found.len() > 60, "only {} were found: {found:?}", found.len());
        let page = fs::read_to_string(root.join("../../docs/scripting.md")).unwrap();
        // Tables of types and fields, and of commands, types and fields.
        let types: Vec<&str> = page
            .lines()
            .filter_map(|line| {
                let cells: Vec<&str> = line.strip_prefix('|')?.split('|').collect();
                Some(if cells.len() > 3 { cells[1] } else { cells[0] })
            })
            .collect();
        let missing: Vec<&String> = found
            .iter()
            .filter(|kind| !types.iter().any(|cell| cell.contains(&format!("`{kind}`"))))
            .collect();
        assert!(missing.is_empty(), "docs/scripting.md has no row for {missing:?}");
    }

    #[test]
    fn the_type_stands_first() {
        assert_eq!(json_line("x", &serde_json::json!({ "a": 1 })), r#"{"type":"x","a":1}"#);
        assert_eq!(json_line("x", &serde_json::json!({})), r#"{"type":"x"}"#);
    }
}
