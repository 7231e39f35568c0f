//! What the kernel knows: inode numbers and what they stand for.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use keepwell_catalog::MapKey;

use crate::shown::Shown;

/// The root of the file system.
pub(crate) const ROOT: u64 = 1;

/// A place in the file system.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// In the made-up top.
    Made(Vec<Vec<u8>>),
    /// In a snapshot.
    Inside(Arc<Shown>, MapKey),
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Made(one), Self::Made(other)) => one == other,
            (Self::Inside(one, key), Self::Inside(other, other_key)) => {
                one.snapshot.id == other.snapshot.id && key == other_key
            }
            _ => false,
        }
    }
}

impl Place {
    /// A number that is the same whenever it is asked for, and hardly ever that of another place.
    fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        match self {
            Self::Made(path) if path.is_empty() => return ROOT,
            Self::Made(path) => path.hash(&mut hasher),
            Self::Inside(shown, key) => (shown.snapshot.id.as_bytes(), key).hash(&mut hasher),
        }
        // Positive also for programs that take it for a signed number.
        (hasher.finish() >> 1).max(ROOT + 1)
    }

    /// The directory that it lies in; the root's is itself.
    pub fn parent(&self) -> Self {
        match self {
            Self::Made(path) => Self::Made(path[..path.len().saturating_sub(1)].to_vec()),
            Self::Inside(shown, key) => match key.parent() {
                Some(parent) => Self::Inside(Arc::clone(shown), parent),
                None => Self::Made(vec![b"by-id".to_vec()]),
            },
        }
    }
}

/// Something that the kernel knows.
#[derive(Debug)]
struct Node {
    place: Place,
    /// How often the kernel was told of it and has not forgotten that.
    lookups: u64,
    /// The directory and the name under which it last found it; `None` for a directory, which is never swept.
    found: Option<(u64, Vec<u8>)>,
}

/// The inodes that the kernel knows. It forgets them when it is short of memory itself, which may be much too late for us:
/// beyond a limit it is asked to forget the oldest.
#[derive(Debug)]
pub(crate) struct Nodes {
    table: Mutex<Table>,
    /// Says that there is something to sweep, or that it is over.
    sweep: Condvar,
    limit: usize,
}

#[derive(Debug, Default)]
struct Table {
    by_ino: HashMap<u64, Node>,
    /// Those that can be swept, oldest first; some may be forgotten already.
    order: VecDeque<u64>,
    is_over: bool,
}

impl Nodes {
    pub fn new(limit: usize) -> Self {
        Self { table: Mutex::default(), sweep: Condvar::new(), limit }
    }

    /// What an inode stands for.
    pub fn place(&self, ino: u64) -> Option<Place> {
        if ino == ROOT {
            return Some(Place::Made(Vec::new()));
        }
        self.lock().by_ino.get(&ino).map(|node| node.place.clone())
    }

    /// The inode number of a place that the kernel is not told of.
    pub fn number(&self, place: &Place) -> u64 {
        self.lock().number(place)
    }

    /// Notes that the kernel is told of a place; `found` as in [`Node`].
    pub fn tell(&self, place: Place, found: Option<(u64, Vec<u8>)>) -> u64 {
        let mut table = self.lock();
        let ino = table.number(&place);
        if ino == ROOT {
            return ROOT;
        }
        let can_be_swept = found.is_some();
        let is_new = !table.by_ino.contains_key(&ino);
        let node = table.by_ino.entry(ino).or_insert(Node { place, lookups: 0, found: None });
        node.lookups += 1;
        node.found = found;
        if is_new && can_be_swept {
            table.order.push_back(ino);
            if table.order.len() > self.limit {
                self.sweep.notify_one();
            }
        }
        ino
    }

    /// The kernel forgets that it was told so many times.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let mut table = self.lock();
        if let Some(node) = table.by_ino.get_mut(&ino) {
            node.lookups = node.lookups.saturating_sub(lookups);
            if node.lookups == 0 {
                table.by_ino.remove(&ino);
            }
        }
    }

    /// Ends the sweeping.
    pub fn end(&self) {
        self.lock().is_over = true;
        self.sweep.notify_all();
    }

    /// Waits until there are too many, and gives the oldest quarter; `None` when it is over. Those that stay in use come
    /// up again.
    pub fn next_to_sweep(&self) -> Option<Vec<(u64, Vec<u8>)>> {
        let mut table = self.lock();
        loop {
            if table.is_over {
                return None;
            }
            let Table { by_ino, order, .. } = &mut *table;
            if order.len() > self.limit {
                order.retain(|ino| by_ino.contains_key(ino));
            }
            if order.len() > self.limit {
                break;
            }
            table = self.sweep.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
        let count = self.limit.div_ceil(4);
        let oldest: Vec<u64> = table.order.drain(..count).collect();
        table.order.extend(&oldest);
        Some(oldest.iter().filter_map(|ino| table.by_ino.get(ino)?.found.clone()).collect())
    }

    /// How many inodes the kernel knows.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.lock().by_ino.len()
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn number(&self, place: &Place) -> u64 {
        let mut ino = place.number();
        while ino != ROOT && self.by_ino.get(&ino).is_some_and(|node| node.place != *place) {
            ino = if ino == u64::MAX >> 1 { ROOT + 1 } else { ino + 1 };
        }
        ino
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(name: &str) -> Place {
        Place::Made(vec![name.as_bytes().to_vec()])
    }

    #[test]
    fn what_is_forgotten_is_gone_and_has_the_same_number_again() {
        let nodes = Nodes::new(100);
        let ino = nodes.tell(made("a"), None);
        assert_eq!(nodes.tell(made("a"), None), ino);
        assert_ne!(nodes.tell(made("b"), None), ino);
        nodes.forget(ino, 1);
        assert_eq!(nodes.place(ino), Some(made("a")));
        nodes.forget(ino, 1);
        assert_eq!((nodes.place(ino), nodes.len()), (None, 1));
        assert_eq!(nodes.number(&made("a")), ino);
    }

    #[test]
    fn beyond_the_limit_the_oldest_files_are_swept() {
        let nodes = Nodes::new(8);
        for n in 0..9 {
            nodes.tell(made(&n.to_string()), Some((ROOT, n.to_string().into_bytes())));
        }
        nodes.tell(made("a directory"), None);
        let swept = nodes.next_to_sweep().unwrap();
        assert_eq!(swept, [(ROOT, b"0".to_vec()), (ROOT, b"1".to_vec())]);
        for (_, name) in swept {
            nodes.forget(nodes.number(&Place::Made(vec![name])), 1);
        }
        nodes.end();
        assert_eq!(nodes.next_to_sweep(), None);
    }
}
