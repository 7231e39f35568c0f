//! A store that lets a role do what its policy says, and nothing else.

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use keepwell_catalog::access::{Action, Grant, Role, grants};
use keepwell_storage::{
    Capabilities, Key, Memory, ObjectInfo, ObjectStore, Page, StorageError, StorageErrorKind,
};

/// Enforces the grants of a role.
pub struct Guarded {
    inner: Memory,
    grants: Vec<Grant>,
    used: Mutex<Vec<bool>>,
    refused: Mutex<Vec<String>>,
}

impl Guarded {
    /// Wraps a store.
    pub fn new(inner: Memory, role: Role) -> Self {
        let grants = grants(role);
        let used = Mutex::new(vec![false; grants.len()]);
        Self { inner, grants, used, refused: Mutex::default() }
    }

    /// What was refused.
    pub fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap().clone()
    }

    /// Grants that nothing needed.
    pub fn unused(&self) -> Vec<&Grant> {
        let used = self.used.lock().unwrap();
        self.grants.iter().zip(&*used).filter_map(|(grant, used)| (!used).then_some(grant)).collect()
    }

    fn check(&self, action: Action, operation: &'static str, key: &Key) -> Result<(), StorageError> {
        let mut allowed = false;
        for (grant, used) in self.grants.iter().zip(&mut *self.used.lock().unwrap()) {
            let covers = grant.covers(action, key.as_str());
            allowed |= covers;
            *used |= covers;
        }
        if allowed {
            return Ok(());
        }
        self.refused.lock().unwrap().push(format!("{operation} {key}"));
        Err(StorageError::new(StorageErrorKind::PermissionDenied, operation, key, "access denied"))
    }
}

#[async_trait]
impl ObjectStore for Guarded {
    async fn put_new(&self, key: &Key, body: Bytes) -> Result<(), StorageError> {
        self.check(Action::Create, "put", key)?;
        self.inner.put_new(key, body).await
    }

    async fn get(&self, key: &Key) -> Result<Bytes, StorageError> {
        self.check(Action::Read, "get", key)?;
        self.inner.get(key).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.check(Action::Read, "get range", key)?;
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo, StorageError> {
        self.check(Action::Read, "head", key)?;
        self.inner.head(key).await
    }

    async fn list_page(&self, prefix: &str, after: Option<&Key>) -> Result<Page, StorageError> {
        self.inner.list_page(prefix, after).await
    }

    async fn delete(&self, key: &Key) -> Result<(), StorageError> {
        self.check(Action::Delete, "delete", key)?;
        self.inner.delete(key).await
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn describe(&self) -> String {
        self.inner.describe()
    }
}

impl fmt::Debug for Guarded {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Guarded")
    }
}
