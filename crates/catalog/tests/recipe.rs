//! Recipes, read in step with a walk.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::Read;

use crate::common;
use keepwell_catalog::{
    CatalogError, Entry, EntryKind, Extent, MapKey, RecipeReader, RecipeWriter, SubRecord, for_each_record,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;

type Recipe = BTreeMap<MapKey, ([u8; 16], Entry)>;

fn entry(mode: u32, extents: u64) -> Entry {
    let content: Vec<Extent> = (0..extents).map(|n| Extent::Hole { length: n + 1 }).collect();
    let size = content.iter().map(Extent::length).sum();
    Entry { mode, content, size, ..Entry::new(EntryKind::File) }
}

fn recipes() -> impl Strategy<Value = Recipe> {
    let key =
        vec(vec(1u8..5, 1..3), 1..4).prop_map(|components| MapKey::from_components(components).unwrap());
    let extents = prop_oneof![8 => 0u64..3, 1 => 30u64..3000];
    btree_map(
        key,
        (any::<[u8; 16]>(), (0..=0o7777u32, extents).prop_map(|(mode, extents)| entry(mode, extents))),
        0..40,
    )
}

fn write(recipe: &Recipe) -> Vec<u8> {
    let mut writer = RecipeWriter::new(Vec::new()).unwrap();
    for (key, (fingerprint, entry)) in recipe {
        for_each_record(key, entry, |raw, value| match raw == key.as_bytes() {
            true => writer.push(raw, fingerprint, value),
            false => writer.push_sub_record(raw, value),
        })
        .unwrap();
    }
    writer.finish().unwrap()
}

fn records_of(key: &MapKey, entry: &Entry) -> (Vec<u8>, Vec<SubRecord>) {
    let mut records = Vec::new();
    for_each_record(key, entry, |key, value| {
        records.push(SubRecord { key: key.to_vec(), value: value.to_vec() });
        Ok::<(), CatalogError>(())
    })
    .unwrap();
    (records.remove(0).value, records)
}

/// Gives a few bytes at a time, as a decrypting reader may.
struct Dribble<'b>(&'b [u8]);

impl Read for Dribble<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let length = buffer.len().min(7);
        self.0.read(&mut buffer[..length])
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_walk_finds_exactly_what_was_written(recipe in recipes(), others in recipes(), skip in vec(any::<Index>(), 0..5)) {
        let bytes = write(&recipe);
        let mut reader = RecipeReader::new(Dribble(&bytes)).unwrap();
        let mut asked: Vec<_> = recipe.keys().chain(others.keys()).collect();
        asked.sort();
        asked.dedup();
        let skip: Vec<_> = skip.iter().filter(|_| !asked.is_empty()).map(|at| at.index(asked.len())).collect();
        for (n, key) in asked.into_iter().enumerate().filter(|(n, _)| !skip.contains(n)) {
            let found = reader.advance_to(key.as_bytes()).unwrap();
            prop_assert_eq!(found.is_some(), recipe.contains_key(key), "{} {}", n, key);
            if let (Some(found), Some((fingerprint, entry))) = (found, recipe.get(key)) {
                let (value, extra) = records_of(key, entry);
                prop_assert_eq!(&found.fingerprint, fingerprint);
                prop_assert_eq!(found.value, &value[..]);
                prop_assert_eq!(found.extra, &extra[..]);
            }
        }
    }

    #[test]
    fn damage_is_an_error_or_a_shorter_recipe(recipe in recipes(), at: Index, flip in 1u8.., cut: bool) {
        let mut bytes = write(&recipe);
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] ^= flip }
        let Ok(mut reader) = RecipeReader::new(&bytes[..]) else { return Ok(()) };
        for (key, (fingerprint, entry)) in &recipe {
            match reader.advance_to(key.as_bytes()) {
                // The checksum of the frame comes after its records, so the flipped ones may be seen before it; but
                // then some later call must fail.
                Ok(Some(found)) if cut => {
                    prop_assert_eq!(&found.fingerprint, fingerprint);
                    prop_assert_eq!(found.value, &records_of(key, entry).0[..]);
                }
                Ok(_) => {}
                Err(_) => {
                    prop_assert!(reader.advance_to(key.as_bytes()).is_err(), "a broken recipe stays broken");
                    return Ok(());
                }
            }
        }
    }

    #[test]
    fn any_records_are_handled(plain in vec(any::<u8>(), 0..300)) {
        let plain = [b"KWRCPE\0\x01", &plain[..]].concat();
        let bytes = zstd::bulk::compress(&plain, 1).unwrap();
        let mut reader = RecipeReader::new(&bytes[..]).unwrap();
        let _ = reader.advance_to(b"a\0");
        let _ = reader.advance_to(&[0xff; 20]);
    }
}

#[test]
fn the_bytes_are_the_documented_ones() {
    let mut writer = RecipeWriter::new(Vec::new()).unwrap();
    writer.push(b"ab\0", &[1; 16], b"\xa1\0\x01").unwrap();
    writer.push(b"ac\0", &[2; 16], b"\xa1\0\x00").unwrap();
    let bytes = writer.finish().unwrap();
    let plain = zstd::stream::decode_all(&bytes[..]).unwrap();
    let expected =
        format!("4b57524350450001 0003616200{}03a10001 01026300{}03a10000", "01".repeat(16), "02".repeat(16));
    assert_eq!(hex::encode(plain), expected.replace(' ', ""));
}

#[test]
fn a_long_recipe_has_frames_of_their_size_and_streams() {
    let mut writer = RecipeWriter::new(Vec::new()).unwrap();
    let records = common::file_like(50_000);
    let value = entry(0o644, 2).encode().unwrap();
    for key in records.keys() {
        writer.push(key, &[3; 16], &value).unwrap();
    }
    let bytes = writer.finish().unwrap();
    let mut rest = &bytes[..];
    let mut frames = 0;
    while !rest.is_empty() {
        let length = zstd::zstd_safe::find_frame_compressed_size(rest).unwrap();
        let plain = zstd::zstd_safe::get_frame_content_size(&rest[..length]).unwrap().unwrap();
        assert!(plain <= 257 << 10);
        rest = &rest[length..];
        frames += 1;
    }
    assert!(frames > 5);
    let mut reader = RecipeReader::new(&bytes[..]).unwrap();
    for key in records.keys() {
        assert!(reader.advance_to(key).unwrap().is_some());
    }
}

#[test]
fn a_file_that_is_no_recipe_is_refused() {
    let other = zstd::bulk::compress(b"KWRCPE\0\x02 and more", 1).unwrap();
    let error = RecipeReader::new(&other[..]).err().unwrap();
    assert_eq!(error.to_string(), "recipe is damaged: it is no recipe of this version");
    for bytes in [&b""[..], b"KWRCPE\0\x01", b"anything at all"] {
        assert!(RecipeReader::new(bytes).is_err());
    }
}

#[test]
fn an_entry_without_its_sub_key_records_is_not_handed_out() {
    let key = MapKey::from_components(["a"]).unwrap();
    let (value, extra) = records_of(&key, &entry(0, 3000));
    for kept in [0, extra.len() - 1] {
        let mut writer = RecipeWriter::new(Vec::new()).unwrap();
        writer.push(key.as_bytes(), &[1; 16], &value).unwrap();
        for record in &extra[..kept] {
            writer.push_sub_record(&record.key, &record.value).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let error = RecipeReader::new(&bytes[..]).unwrap().advance_to(key.as_bytes()).unwrap_err();
        assert_eq!(error.to_string(), "recipe is damaged: an entry has lost sub-key records");
    }
}
