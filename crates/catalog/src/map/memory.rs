//! Nodes kept in memory.

use std::collections::HashMap;

use bytes::Bytes;
use keepwell_crypto::{ChunkId, ChunkKind, IdKey};

use super::{NodeSink, NodeSource};
use crate::error::MapError;

/// A sink and source of nodes in memory, for examples, tests and maps that are small and short-lived.
#[derive(Debug)]
pub struct MemoryNodes {
    id_key: IdKey,
    nodes: HashMap<ChunkId, Bytes>,
}

impl MemoryNodes {
    /// An empty one that computes ids with `id_key`.
    pub fn new(id_key: IdKey) -> Self {
        Self { id_key, nodes: HashMap::new() }
    }

    /// Number of different nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node was put.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}

impl NodeSink for MemoryNodes {
    fn put_node(&mut self, bytes: Vec<u8>) -> Result<ChunkId, MapError> {
        let id = self.id_key.chunk_id(ChunkKind::Node, &bytes);
        self.nodes.insert(id, bytes.into());
        Ok(id)
    }
}

impl NodeSource for MemoryNodes {
    fn node(&self, id: &ChunkId) -> Result<Bytes, MapError> {
        let found = self.nodes.get(id).cloned();
        found.ok_or_else(|| MapError::Read { node: *id, source: "it is not in memory".into() })
    }
}
