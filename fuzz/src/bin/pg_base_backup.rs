//! Archives of a base backup, and incremental files in them, as an attacker would send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| keepwell_source_postgres::capture::fuzz_base_backup(bytes));
