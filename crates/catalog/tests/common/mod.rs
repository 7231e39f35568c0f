//! Helpers shared by the tests of this crate.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use keepwell_catalog::{MapBuilder, MapError, MemoryNodes, NodeSink, NodeSource, Root};
use keepwell_crypto::{ChunkId, IdKey};

pub type Records = BTreeMap<Vec<u8>, Vec<u8>>;

pub fn id_key() -> IdKey {
    IdKey::from_bytes([7; 32])
}

pub fn builder() -> MapBuilder {
    MapBuilder::new(id_key().boundary())
}

pub fn nodes() -> MemoryNodes {
    MemoryNodes::new(id_key())
}

pub fn build(records: &Records, sink: &mut dyn NodeSink) -> Root {
    let mut builder = builder();
    for (key, value) in records {
        builder.push(key, value, sink).unwrap();
    }
    builder.finish(sink).unwrap()
}

/// `count` records that look like entries of a file system with a hundred files per directory.
pub fn file_like(count: u32) -> Records {
    (0..count)
        .map(|n| (format!("srv\0dir{:05}\0file{:02}\0", n / 100, n % 100).into_bytes(), vec![n as u8; 110]))
        .collect()
}

/// Counts the nodes that are fetched.
pub struct Counting<'n> {
    pub nodes: &'n MemoryNodes,
    fetched: AtomicUsize,
}

impl<'n> Counting<'n> {
    pub fn new(nodes: &'n MemoryNodes) -> Self {
        Self { nodes, fetched: AtomicUsize::new(0) }
    }

    /// Nodes fetched since the last call.
    pub fn take(&self) -> usize {
        self.fetched.swap(0, Ordering::Relaxed)
    }
}

impl NodeSource for Counting<'_> {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.nodes.node(id)
    }
}
