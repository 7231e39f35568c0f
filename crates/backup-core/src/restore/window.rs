//! What is delivered together: as much as a few megabytes hold.

use keepwell_catalog::{Entry, Extent, MapKey};

use super::job::Job;
use super::packs::Need;

/// A window is full when what it holds takes this much memory: about 20,000 small files. A frame is decoded in each window
/// that needs something of it, and small contents that many files share lie where the first of these was stored, so with
/// half of it a restore of small files took a quarter more of the processor …
const BYTES_MAX: usize = 16 << 20;
/// … or when it has so many files of more than one chunk, which keep a descriptor open each.
const LARGE_MAX: usize = 256;
/// So many extents are delivered at once of a file that has more.
pub(super) const EXTENTS_MAX: usize = BYTES_MAX / 512;
/// What an extent costs: itself, and what is needed of a pack for it, in a list that grows by doubling.
const EXTENT_BYTES: usize = size_of::<Extent>() + 2 * size_of::<Need>();

/// A further name of a file, and the name under which that is restored.
pub(super) struct Link {
    pub key: MapKey,
    pub first: MapKey,
}

/// Files and links in tree order. Each has a number, from 0 on.
#[derive(Default)]
pub(super) struct Window {
    jobs: Vec<Job>,
    links: Vec<Link>,
    bytes: usize,
    large: usize,
    next: u64,
    delivered: u64,
}

impl Window {
    /// Adds a file.
    pub fn push(&mut self, job: Job) {
        self.bytes += size_of::<Job>() + heap_bytes(&job.key, &job.entry);
        self.large += usize::from(job.entry.content.len() > 1);
        self.next += 1;
        self.jobs.push(job);
    }

    /// Adds a link, which is made after the files.
    pub fn push_link(&mut self, link: Link) {
        self.bytes += size_of::<Link>() + link.key.as_bytes().len() + link.first.as_bytes().len();
        self.next += 1;
        self.links.push(link);
    }

    /// Something else is kept until this is delivered.
    pub fn keeps(&mut self, key: &MapKey, entry: &Entry) {
        self.bytes += size_of::<(MapKey, Entry)>() + heap_bytes(key, entry);
    }

    /// Whether it is to be delivered before anything else comes.
    pub fn is_full(&self) -> bool {
        self.bytes >= BYTES_MAX || self.large >= LARGE_MAX
    }

    /// The number of what comes next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// All with lower numbers were taken.
    pub fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Takes everything.
    pub fn take(&mut self) -> (Vec<Job>, Vec<Link>) {
        (self.bytes, self.large, self.delivered) = (0, 0, self.next);
        (std::mem::take(&mut self.jobs), std::mem::take(&mut self.links))
    }
}

/// What a key and an entry hold beside themselves, about.
fn heap_bytes(key: &MapKey, entry: &Entry) -> usize {
    let pairs = |sum: usize, (name, value): (usize, usize)| sum + 64 + name + value;
    let xattrs = entry.xattrs.iter().map(|(name, value)| (name.len(), value.len())).fold(0, pairs);
    let attributes = entry.attributes.iter().map(|(name, value)| (name.len(), value.len())).fold(0, pairs);
    key.as_bytes().len() + entry.content.len() * EXTENT_BYTES + xattrs + attributes
}

#[cfg(test)]
mod tests {
    use keepwell_catalog::EntryKind;
    use keepwell_crypto::ChunkId;

    use super::*;
    use crate::testing::key;

    fn job(name: &str, extents: usize) -> Job {
        let id = ChunkId::from_bytes([1; 32]);
        let content = vec![Extent::Chunk { id, offset: 0, length: 1 }; extents];
        Job::new(key(name), Entry { content, ..Entry::new(EntryKind::File) })
    }

    #[test]
    fn a_window_holds_so_many_bytes_however_they_come() {
        for (extents, values, files) in
            [(1, 0, 12_000..40_000), (1, 4096, 2000..4000), (0, 0, 20_000..60_000)]
        {
            let mut window = Window::default();
            let mut count = 0;
            while !window.is_full() {
                let mut job = job(&format!("directory/{count:07}"), extents);
                job.entry.xattrs.extend((values > 0).then(|| (b"user.x".to_vec(), vec![0; values])));
                window.push(job);
                count += 1;
            }
            assert!(files.contains(&count), "{count} files of {extents} extents and {values} bytes");
            assert_eq!((window.next(), window.delivered()), (count, 0));
            assert_eq!(window.take().0.len() as u64, count);
            assert_eq!((window.next(), window.delivered(), window.is_full()), (count, count, false));
        }
    }

    #[test]
    fn links_directories_and_large_files_count_too() {
        let (mut links, mut directories, mut large) = (Window::default(), Window::default(), 0);
        while !links.is_full() {
            links.push_link(Link { key: key("a/link"), first: key("a/first") });
        }
        assert!((100_000..400_000).contains(&links.take().1.len()));
        let entry = Entry::new(EntryKind::Directory);
        (0..100_000).for_each(|_| directories.keeps(&key("a/b/c"), &entry));
        assert!(directories.is_full());
        let mut window = Window::default();
        while !window.is_full() {
            window.push(job("large", 2));
            large += 1;
        }
        assert_eq!(large, LARGE_MAX);
        let mut window = Window::default();
        window.push(job("a part", EXTENTS_MAX - 1));
        assert!(!window.is_full(), "what is not delivered in parts fits");
    }
}
