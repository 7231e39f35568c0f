//! Archived WAL at copies.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;

use backup_core::BackupOptions;
use backup_core::source::{Content, Found, Item, Opened as Contents, Piece, Preflight, Source, SourceError};
use keepwell_catalog::wal::WalPlace;
use keepwell_catalog::{Entry, EntryKind, MapKey};
use keepwell_storage::{Memory, list_all};

use super::*;
use crate::location::Location;
use crate::progress::Progress;
use crate::testing;

/// A base backup of cluster 7 that begins in this segment, with nothing but its description.
struct BaseBackup(u64);

impl BaseBackup {
    fn description(&self) -> Vec<u8> {
        let segment = self.0;
        format!(
            r#"{{ "format": 1, "system_identifier": "7", "server_version_num": 150018, "timeline": 1,
            "start_lsn": "0/{segment:X}000028", "stop_lsn": "0/{segment:X}000100",
            "start_time": "2026-11-21T12:00:00Z", "stop_time": "2026-11-21T12:00:01Z", "from_standby": false,
            "wal_segment_size": 16777216, "block_size": 8192, "data_checksums": true,
            "data_directory": "/srv/data", "tablespaces": [], "databases": [], "settings": {{}} }}"#
        )
        .into_bytes()
    }
}

impl Source for BaseBackup {
    fn kind(&self) -> &str {
        "postgres"
    }

    fn paths(&self) -> Vec<Vec<u8>> {
        vec![b"/".to_vec()]
    }

    fn preflight(&self) -> Result<Preflight, SourceError> {
        Ok(Preflight::default())
    }

    fn walk(&self, visit: &mut dyn FnMut(Found) -> ControlFlow<()>) -> Result<(), SourceError> {
        let _ = visit(Found::Item(Item {
            key: MapKey::from_components(["cluster.json"]).unwrap(),
            kind: EntryKind::File,
            size: self.description().len() as u64,
            fingerprint: [0; 16],
            hard_link: None,
        }));
        Ok(())
    }

    fn open(&self, _: &Item) -> Result<Option<Contents>, SourceError> {
        let entry = Entry { mode: 0o600, ..Entry::new(EntryKind::File) };
        Ok(Some(Contents { entry, content: Some(Box::new(Text(self.description()))) }))
    }
}

struct Text(Vec<u8>);

impl Content for Text {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<Piece> {
        let length = buf.len().min(self.0.len());
        buf[..length].copy_from_slice(&self.0[..length]);
        self.0.drain(..length);
        Ok(if length == 0 { Piece::End } else { Piece::Data(length) })
    }

    fn changed_while_read(&mut self) -> io::Result<bool> {
        Ok(false)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_pruned_loses_the_wal_that_its_base_backups_do_not_need() {
    let ctx = Context::of_profiles("");
    let store = Memory::new();
    let repository = testing::repository(&store).await;
    let log = repository.wal_writer("db", 7, 16 << 20, false).await.unwrap();
    for (file, from, to) in [(2, 0, 4), (3, 0, 2), (3, 0, 4), (4, 0, 4)] {
        let content = vec![1_u8; (to - from) as usize];
        log.put(1, WalPlace::Bytes { file, from, to }, content.into(), None).await.unwrap();
    }
    for segment in [3, 4] {
        let options = BackupOptions { dataset: "db".into(), host: "h".into(), ..BackupOptions::default() };
        repository.backup(Arc::new(BaseBackup(segment)), options).await.unwrap();
    }
    let (progress, location) = (Progress::start(&ctx), Location::parse("/nowhere").unwrap());
    let target = Opened { repository, progress, location };
    let stored = async || list_all(&store, "wal/").await.unwrap().len();
    let all = stored().await;

    let copy =
        |prune: bool| -> CopyConfig { toml::from_str(&format!("to = \"x\"\nprune = {prune}")).unwrap() };
    assert!(trim(&ctx, &copy(false), &target).await.unwrap().is_idle());
    assert_eq!(stored().await, all);
    let done = trim(&ctx, &copy(true), &target).await.unwrap();
    assert_eq!((done.outdated, done.superseded, stored().await), (1, 0, all - 1));
    assert!(trim(&ctx, &copy(true), &target).await.unwrap().is_idle(), "the rest is needed");
}
