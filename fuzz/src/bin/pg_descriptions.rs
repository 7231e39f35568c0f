//! What snapshots say about themselves: `cluster.json`, `dump.json`, `database.json`.
#![no_main]
use keepwell_source_postgres::cluster::Cluster;
use keepwell_source_postgres::logical::{DatabaseDump, Dump};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(cluster) = Cluster::parse(bytes) {
        assert!(cluster.start_lsn <= cluster.stop_lsn);
        let _ = (cluster.major(), cluster.start_segment());
        let again = serde_json::to_vec(&cluster).expect("it can be written");
        assert_eq!(Cluster::parse(&again).ok(), Some(cluster));
    }
    if let Ok(dump) = Dump::parse(bytes) {
        let again = serde_json::to_vec(&dump).expect("it can be written");
        assert_eq!(Dump::parse(&again).ok(), Some(dump));
    }
    if let Ok(database) = DatabaseDump::parse(bytes) {
        let again = serde_json::to_vec(&database).expect("it can be written");
        assert_eq!(DatabaseDump::parse(&again).ok(), Some(database));
    }
});
