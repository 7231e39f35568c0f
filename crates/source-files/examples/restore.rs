//! Times two threads restoring many small files, 100 to a directory, into a new directory.
//!
//! `cargo run --release -p keepwell-source-files --example restore -- /mnt/empty 112000`

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use backup_core::target::{RestoreTarget, TargetError};
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_source_files::{FileTarget, TargetOptions};

const THREADS: u32 = 2;
const FILES_PER_DIRECTORY: u32 = 100;
const CONTENT: &[u8] = &[7; 4096];

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(arguments.next().ok_or("usage: restore <directory> <files>")?);
    let files: u32 =
        arguments.next().and_then(|count| count.to_str()?.parse().ok()).ok_or("how many files?")?;
    let target = FileTarget::create(&path.join("restored"), &TargetOptions::default())?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let target = &target;
                scope.spawn(move || restore(target, thread, files))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| "a thread panicked")?.map_err(Box::<dyn Error>::from)
        })
    })?;
    let took = start.elapsed();
    writeln!(std::io::stdout(), "{files} files of {} bytes: {took:?}", CONTENT.len())?;
    Ok(())
}

/// Restores the share of one thread: whole directories, as packs hold them.
fn restore(target: &FileTarget, thread: u32, files: u32) -> Result<(), TargetError> {
    let mut file = Entry::new(EntryKind::File);
    (file.mode, file.size, file.mtime) = (0o644, CONTENT.len() as u64, (1_700_000_000, 5));
    let mut directory = Entry::new(EntryKind::Directory);
    (directory.mode, directory.mtime) = (0o755, (1_700_000_000, 5));
    for number in (0..files / FILES_PER_DIRECTORY).filter(|number| number % THREADS == thread) {
        let name = format!("directory {number}");
        target.make_dir(&key(&[&name]), &directory)?;
        for number in 0..FILES_PER_DIRECTORY {
            let key = key(&[&name, &format!("file {number}")]);
            if target.existing(&key)?.is_none() {
                target.write_file(&key, &file, CONTENT)?;
            }
        }
        target.apply_metadata(&key(&[&name]), &directory)?;
    }
    Ok(())
}

fn key(names: &[&str]) -> MapKey {
    MapKey::from_components(names).unwrap_or_default()
}
