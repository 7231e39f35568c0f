use std::collections::BTreeMap;
use std::fs;

use super::super::super::basis::{Basis, Origin};
use super::super::super::page::checksum;
use super::super::super::pagemap::PageMaps;
use super::*;

const SIZE: u64 = PAGE as u64;

/// A page of block `number` that bears a checksum, and was changed at `lsn`.
fn page(number: u32, fill: u8, lsn: u32) -> Vec<u8> {
    let mut page = [fill; PAGE];
    page[..4].copy_from_slice(&0u32.to_le_bytes());
    page[4..8].copy_from_slice(&lsn.to_le_bytes());
    let sum = checksum(&page, number).to_le_bytes();
    page[8..10].copy_from_slice(&sum);
    page.to_vec()
}

struct Place {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
}

impl Place {
    fn new(map: Option<PageMap>) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), shared: Arc::new(Shared::new(map)) }
    }

    fn reader(&self, content: &[u8], stretches: &[(u64, bool)], compare: bool) -> Reader {
        let path = self.dir.path().join("1");
        fs::write(&path, content).unwrap();
        let plan = Plan {
            key: key(),
            path: "base/5/1".to_owned(),
            relation: Some(Relation { tablespace: 0, database: 5, file: 1, segment: 0 }),
            judge: Some(Lsn::new(100)),
            stretches: stretches
                .iter()
                .map(|(pages, kept)| Stretch { end: pages * SIZE, kept: *kept })
                .collect(),
            compare,
        };
        Reader::new(Box::new(File::open(path).unwrap()), plan, &self.shared)
    }
}

fn key() -> MapKey {
    MapKey::from_components(["data", "base", "5", "1"]).unwrap()
}

/// Reads to the end: the fill of pages that came, `=` for those that are kept.
fn read(reader: &mut Reader, buffer: usize) -> String {
    let (mut buffer, mut text, mut bytes) = (vec![0; buffer], String::new(), Vec::new());
    loop {
        match reader.read(&mut buffer).unwrap() {
            Piece::Data(n) => {
                bytes.extend_from_slice(&buffer[..n]);
                let whole = bytes.len() / PAGE * PAGE;
                bytes
                    .drain(..whole)
                    .as_slice()
                    .chunks(PAGE)
                    .for_each(|page| text.push(char::from(page[5000])));
            }
            Piece::Kept(n) => text.extend(std::iter::repeat_n('=', (n / SIZE) as usize)),
            Piece::Hole(_) => text.push('?'),
            Piece::End => break,
        }
    }
    assert!(bytes.is_empty(), "a part of a page");
    text
}

fn pages(fills: &str) -> Vec<u8> {
    (0..).zip(fills.bytes()).flat_map(|(number, fill)| page(number, fill, 7)).collect()
}

#[test]
fn a_file_is_read_as_it_is_and_summed_up() {
    for buffer in [1000, PAGE, 1 << 20] {
        let place = Place::new(None);
        let content = pages("abcde");
        assert_eq!(read(&mut place.reader(&content, &[(5, false)], false), buffer), "abcde");
        place.shared.wait();
        let (files, bad) = place.shared.take();
        let crc = Some(crc_fast::crc32_iscsi(&content));
        assert_eq!(files, [Read { path: "base/5/1".to_owned(), size: 5 * SIZE, crc }]);
        assert_eq!(bad, []);
    }
}

#[test]
fn of_a_known_file_only_what_changed_is_read() {
    let place = Place::new(None);
    let stretches = [(2, true), (3, false), (40, true), (41, false)];
    let content = pages(&"x".repeat(41));
    assert_eq!(
        read(&mut place.reader(&content, &stretches, false), 1 << 20),
        format!("==x{}x", "=".repeat(37))
    );
    let (files, _) = place.shared.take();
    assert_eq!((files[0].size, files[0].crc), (41 * SIZE, None), "nobody knows the sum of all of it");
}

#[test]
fn a_file_that_is_cut_off_ends_there_on_a_page() {
    let place = Place::new(None);
    let mut content = pages("abc");
    content.truncate(2 * PAGE + 4096);
    assert_eq!(read(&mut place.reader(&content, &[(9, false)], false), 1 << 20), "ab");
    assert_eq!(read(&mut place.reader(&content, &[(1, true), (9, false)], false), 1 << 20), "=b");
    assert_eq!(read(&mut place.reader(&[], &[(9, false)], false), 1 << 20), "");
    let sizes: Vec<u64> = place.shared.take().0.iter().map(|file| file.size / SIZE).collect();
    assert_eq!(sizes, [2, 2, 0]);
}

#[test]
fn bad_pages_are_named_and_young_ones_are_recoverys() {
    let place = Place::new(None);
    let mut content = pages("abcd");
    content[PAGE + 6000] ^= 1;
    content[3 * PAGE + 6000] ^= 1;
    let young = 2 * PAGE;
    content[young..young + PAGE].copy_from_slice(&page(2, b'c', 100));
    content[young + 6000] ^= 1;
    assert_eq!(read(&mut place.reader(&content, &[(4, false)], false), 1 << 20), "abcd");
    let (_, bad) = place.shared.take();
    assert_eq!((bad.len(), bad[0].count, bad[0].blocks.clone()), (1, 2, vec![1, 3]));
}

#[test]
fn a_page_caught_half_written_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("1");
    let whole = page(0, b'n', 7);
    fs::write(&path, &whole).unwrap();
    let mut file = File::open(&path).unwrap();
    let mut torn: [u8; PAGE] = page(0, b'o', 7).try_into().unwrap();
    torn[4096..].copy_from_slice(&whole[4096..]);
    let sound = |page: &[u8; PAGE]| is_sound(page, 0, Lsn::new(100));
    assert!(!sound(&torn));
    assert!(mended(&mut file, &mut torn, 0, true, sound).unwrap());
    assert_eq!(torn.as_slice(), whole, "what is stored is the whole page");
    assert!(mended(&mut file, &mut torn, SIZE, true, |_| false).unwrap(), "it is gone");
    assert!(!mended(&mut file, &mut torn, 0, false, |_| false).unwrap());
}

#[test]
fn pages_are_compared_with_those_of_the_last_capture() {
    let dir = tempfile::tempdir().unwrap();
    let maps = PageMaps { path: dir.path().join("map"), key: [3; 32] };
    let origin = Origin { major: 15, time: 1, ..Origin::example() };
    let place = Place::new(Some(PageMap::open(&maps, None).unwrap()));
    let long: String = "ab".repeat(50);
    assert_eq!(read(&mut place.reader(&pages(&long), &[(100, false)], true), 1 << 20), long);
    place.shared.take_map().unwrap().unwrap().finish(&origin).unwrap();

    let basis = Arc::new(Basis { origin, files: BTreeMap::from([(key(), 100 * SIZE)]) });
    let place = Place::new(Some(PageMap::open(&maps, Some(&basis)).unwrap()));
    let mut changed = long.clone().into_bytes();
    (changed[1], changed[40], changed[41]) = (b'X', b'Y', b'Z');
    changed.push(b'e');
    let changed = String::from_utf8(changed).unwrap();
    let expected = format!("=X{}YZ{}e", "=".repeat(38), "=".repeat(58));
    for buffer in [1000, 1 << 20] {
        assert_eq!(read(&mut place.reader(&pages(&changed), &[(101, false)], true), buffer), expected);
    }
    let crc = Some(crc_fast::crc32_iscsi(&pages(&changed)));
    assert_eq!(place.shared.take().0[0].crc, crc, "all of it was read");
}

#[test]
fn a_content_that_is_given_up_is_over_too() {
    let place = Place::new(None);
    let reader = place.reader(&pages("a"), &[(1, false)], false);
    assert_eq!(lock(&place.shared.state).open, 1);
    drop(reader);
    place.shared.wait();
    assert_eq!(place.shared.take().0, []);
}
