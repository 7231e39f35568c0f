//! Keys of the map: one tuple has one encoding, and byte order is tuple order.
#![no_main]
use keepwell_catalog::MapKey;

fn decode(bytes: &[u8]) -> Option<(MapKey, Vec<Vec<u8>>)> {
    let key = MapKey::from_bytes(bytes).ok()?;
    let components: Vec<Vec<u8>> = key.components().map(|component| component.into_owned()).collect();
    let again = MapKey::from_components(&components).expect("components of a key make a key");
    assert_eq!(again.as_bytes(), bytes);
    let climbed = std::iter::successors(key.parent(), MapKey::parent).count();
    assert_eq!(climbed, components.len());
    key.display_path();
    if let Ok(path) = key.to_os_path_bytes() {
        assert!(!path.starts_with(b"/") && !path.contains(&0));
        assert!(
            path.is_empty()
                || path.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
        );
    }
    Some((key, components))
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    decode(data);
    let (left, right) = data.split_at(data.len() / 2);
    if let (Some((a, a_parts)), Some((b, b_parts))) = (decode(left), decode(right)) {
        assert_eq!(a.cmp(&b), a_parts.cmp(&b_parts));
        assert_eq!(b.starts_with(&a), b_parts.starts_with(&a_parts));
    }
    // Any components make a key that gives them back.
    let parts: Vec<&[u8]> = data.split(|byte| *byte == b'/').collect();
    if let Ok(key) = MapKey::from_components(&parts) {
        assert_eq!(
            decode(key.as_bytes()).map(|(_, found)| found),
            Some(parts.iter().map(|p| p.to_vec()).collect())
        );
    }
});
