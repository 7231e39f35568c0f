//! Memory for segments, used again and again.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// As many buffers as there are threads to work on what is in them, each as large as the largest file that was read into
/// it. Fresh memory for every segment costs a fifth of the work: the kernel hands it out page by page, and takes it back.
#[derive(Debug, Clone)]
pub(super) struct Buffers {
    rooms: Arc<Semaphore>,
    free: Arc<Mutex<Vec<Vec<u8>>>>,
}

/// The right to fill a buffer.
pub(super) struct Room {
    buffers: Buffers,
    _permit: OwnedSemaphorePermit,
}

/// A buffer that goes back when nobody reads it any more.
struct Lent {
    bytes: Vec<u8>,
    room: Room,
}

impl Buffers {
    pub(super) fn new(count: usize) -> Self {
        Self { rooms: Arc::new(Semaphore::new(count.max(1))), free: Arc::default() }
    }

    /// Waits until one is free.
    pub(super) async fn room(&self) -> Room {
        let permit = Arc::clone(&self.rooms).acquire_owned().await;
        Room { buffers: self.clone(), _permit: permit.expect("nobody closes it") }
    }
}

impl Room {
    /// All of a file. It is free again when the last reference to it is gone.
    pub(super) fn read(self, path: &Path) -> io::Result<Bytes> {
        let mut file = File::open(path)?;
        let free = self.buffers.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut lent = Lent { bytes: free.unwrap_or_default(), room: self };
        file.read_to_end(&mut lent.bytes)?;
        Ok(Bytes::from_owner(lent))
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        // Before the permit, which whoever needs it waits for.
        self.room.buffers.free.lock().unwrap_or_else(PoisonError::into_inner).push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_buffer_is_used_again_and_only_when_nobody_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let [large, small] = ["large", "small"].map(|name| dir.path().join(name));
        std::fs::write(&large, vec![1; 300_000]).unwrap();
        std::fs::write(&small, b"small").unwrap();
        let buffers = Buffers::new(2);
        let first = buffers.room().await.read(&large).unwrap();
        let memory = first.as_ptr();
        let second = buffers.room().await.read(&small).unwrap();
        assert_eq!(buffers.rooms.available_permits(), 0);
        let part = first.slice(5..6);
        drop(first);
        assert_eq!(buffers.rooms.available_permits(), 0, "a part is still read");
        drop(part);
        let third = buffers.room().await.read(&small).unwrap();
        assert_eq!((third.as_ptr(), &third[..]), (memory, &b"small"[..]));
        assert_eq!(&second[..], b"small");
        drop((second, third));
        assert!(buffers.room().await.read(&dir.path().join("nowhere")).is_err());
        assert_eq!(buffers.rooms.available_permits(), 2);
        assert_eq!(buffers.free.lock().unwrap().len(), 2);
    }
}
