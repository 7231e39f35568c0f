//! The head of an archive of `pg_dump` that somebody imports.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwell_source_postgres::logical::fuzz_archive_head(bytes));
