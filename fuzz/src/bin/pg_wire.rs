//! Messages of a PostgreSQL server, as an attacker would send them.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    keepwell_source_postgres::wire::fuzz_frames(bytes);
    keepwell_source_postgres::replication::fuzz_stream(bytes);
});
