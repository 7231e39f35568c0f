//! Times a walk over the given path against a plain recursive `lstat` of everything in it, best of five each.
//!
//! `cargo run --release -p keepwell-source-files --example walk -- /usr`

use std::error::Error;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use backup_core::env::SystemClock;
use backup_core::source::{Found, Item, Piece, Source};
use keepwell_source_files::{FileOptions, FileSource};

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let path = PathBuf::from(std::env::args_os().nth(1).ok_or("usage: walk <absolute path>")?);
    let options = FileOptions { paths: vec![path.clone()], ..FileOptions::default() };
    let source = FileSource::new(&options, Arc::new(SystemClock))?;
    let (plain_entries, plain) = best(|| plain_walk(&path))?;
    let (entries, walked) = best(|| walk(&source, |_| {}))?;
    let mut items = Vec::new();
    walk(&source, |item| items.push(item))?;
    let (bytes, opened) = best(|| open_all(&source, &items))?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "plain lstat of {plain_entries} entries  {plain:?}")?;
    writeln!(out, "walk of {entries} items           {walked:?}")?;
    writeln!(out, "open and read them all, {bytes} bytes  {opened:?}")?;
    Ok(())
}

fn best<T>(mut run: impl FnMut() -> Result<T, Box<dyn Error>>) -> Result<(T, Duration), Box<dyn Error>> {
    let mut fastest = None;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let result = run()?;
        let took = start.elapsed();
        if fastest.as_ref().is_none_or(|(_, best)| took < *best) {
            fastest = Some((result, took));
        }
    }
    fastest.ok_or_else(|| "nothing ran".into())
}

fn plain_walk(path: &Path) -> Result<u64, Box<dyn Error>> {
    let mut count = 0;
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        count += 1;
        if entry.metadata()?.is_dir() {
            count += plain_walk(&entry.path())?;
        }
    }
    Ok(count)
}

fn walk(source: &FileSource, mut see: impl FnMut(Item)) -> Result<u64, Box<dyn Error>> {
    let mut count = 0;
    source.walk(&mut |found| {
        if let Found::Item(item) = found {
            count += 1;
            see(item);
        }
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

fn open_all(source: &FileSource, items: &[Item]) -> Result<u64, Box<dyn Error>> {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    for item in items {
        let content = source.open(item)?.and_then(|opened| opened.content);
        let Some(mut content) = content else { continue };
        loop {
            match content.read(&mut buffer)? {
                Piece::Data(count) => bytes += count as u64,
                Piece::Hole(_) => {}
                Piece::Kept(_) => unreachable!("a file keeps nothing"),
                Piece::End => break,
            }
        }
        content.changed_while_read()?;
    }
    Ok(bytes)
}
