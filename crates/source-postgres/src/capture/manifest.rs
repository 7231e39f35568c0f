//! Backup manifests: the one that tells a server what we have, the one of a result that was put together, and the one of
//! files that we read ourselves.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::basis::{Basis, Origin, origin_of};

/// What the server shall leave out as far as it did not change.
pub(super) fn of_basis(basis: &Basis) -> Vec<u8> {
    let path = |key| {
        let (space, path) = origin_of(key)?;
        let path = path.join("/");
        Some(space.map_or_else(|| path.clone(), |oid| format!("pg_tblspc/{oid}/{path}")))
    };
    let file = |(key, size)| Some(json!({ "Path": path(key)?, "Size": size }));
    let files: Vec<Value> = basis.files.iter().filter_map(file).collect();
    let origin = &basis.origin;
    write(Some(&origin.system), &files, &ranges(origin))
}

/// A file that we read, by its path below the data directory. Of one of which only changes were read nobody knows a checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    pub path: String,
    pub size: u64,
    pub crc: Option<u32>,
}

/// What the server would have sent after these files.
pub(super) fn of_files(files: &mut [Read], origin: &Origin) -> Vec<u8> {
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let file = |file: &Read| match file.crc {
        None => json!({ "Path": file.path, "Size": file.size }),
        Some(crc) => json!({
            "Path": file.path,
            "Size": file.size,
            "Checksum-Algorithm": "CRC32C",
            // As the server has the number in memory.
            "Checksum": hex::encode(crc.to_le_bytes()),
        }),
    };
    let files: Vec<Value> = files.iter().map(file).collect();
    // Older programs know no other version than the first, which does not name the cluster.
    let system = (origin.major >= super::SUMMARIES_MAJOR).then_some(origin.system.as_str());
    write(system, &files, &ranges(origin))
}

fn ranges(origin: &Origin) -> Value {
    json!([{ "Timeline": origin.timeline, "Start-LSN": origin.start, "End-LSN": origin.stop }])
}

/// The server's manifest with whole files in place of incremental ones. `sizes` has those that we put together, by their
/// path below the data directory; they have no checksum here, since nobody has read them as a whole.
pub(super) fn of_result(sent: &[u8], sizes: &BTreeMap<String, u64>) -> Option<Vec<u8>> {
    let sent: Value = serde_json::from_slice(sent).ok()?;
    let file = |file: &Value| {
        let mut file: Map<String, Value> = file.as_object()?.clone();
        let path = file.get("Path").and_then(Value::as_str).map(whole_path);
        if let Some((path, size)) = path.and_then(|path| sizes.get(&path).map(|size| (path, *size))) {
            file.retain(|name, _| !name.starts_with("Checksum"));
            file.insert("Path".to_owned(), path.into());
            file.insert("Size".to_owned(), size.into());
        }
        Some(Value::Object(file))
    };
    let files: Option<Vec<Value>> = sent.get("Files")?.as_array()?.iter().map(file).collect();
    let system = sent.get("System-Identifier")?.as_u64()?;
    Some(write(Some(&system.to_string()), &files?, sent.get("WAL-Ranges")?))
}

/// A path without the mark of an incremental file.
fn whole_path(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((above, name)) => format!("{above}/{}", name.strip_prefix(MARK).unwrap_or(name)),
        None => path.to_owned(),
    }
}

/// What the names of incremental files begin with.
pub(super) const MARK: &str = "INCREMENTAL.";

/// In version 2 if it names the cluster, otherwise in version 1.
fn write(system: Option<&str>, files: &[Value], ranges: &Value) -> Vec<u8> {
    let lines: Vec<String> = files.iter().map(Value::to_string).collect();
    let (version, system) = match system {
        Some(system) => (2, format!("\"System-Identifier\": {system},\n")),
        None => (1, String::new()),
    };
    let mut text = format!(
        "{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n{system}\"Files\": [\n{}],\n\"WAL-Ranges\": {ranges},\n",
        lines.join(",\n")
    );
    // The sum is over all lines before its own.
    let sum = hex::encode(Sha256::digest(text.as_bytes()));
    // Writing to a text does not fail.
    let _ = writeln!(text, "\"Manifest-Checksum\": \"{sum}\"}}");
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_files_take_the_place_of_incremental_ones() {
        let sent = r#"{ "PostgreSQL-Backup-Manifest-Version": 2, "System-Identifier": 7710603854990343878,
            "Files": [ { "Path": "backup_label", "Size": 9, "Checksum-Algorithm": "CRC32C", "Checksum": "00" },
            { "Path": "base/5/INCREMENTAL.1", "Size": 12, "Last-Modified": "x", "Checksum-Algorithm": "CRC32C", "Checksum": "ff" },
            { "Path": "PG_VERSION", "Size": 3, "Checksum-Algorithm": "CRC32C", "Checksum": "aa" } ],
            "WAL-Ranges": [ { "Timeline": 1, "Start-LSN": "0/28", "End-LSN": "0/99" } ], "Manifest-Checksum": "x"}"#;
        let sizes = BTreeMap::from([("base/5/1".to_owned(), 8192), ("backup_label".to_owned(), 5)]);
        let result = String::from_utf8(of_result(sent.as_bytes(), &sizes).unwrap()).unwrap();
        let value: Value = serde_json::from_str(&result).unwrap();
        let files = value["Files"].as_array().unwrap();
        assert_eq!(files[0], json!({ "Path": "backup_label", "Size": 5 }));
        assert_eq!(files[1], json!({ "Path": "base/5/1", "Size": 8192, "Last-Modified": "x" }));
        assert_eq!(files[2]["Checksum"], "aa");
        assert_eq!(value["System-Identifier"], 7_710_603_854_990_343_878_u64);
        let (before, last) = result.trim_end().rsplit_once('\n').unwrap();
        let sum = hex::encode(Sha256::digest(format!("{before}\n")));
        assert_eq!(last, format!("\"Manifest-Checksum\": \"{sum}\"}}"));
        assert_eq!(of_result(b"{}", &sizes), None);
    }

    #[test]
    fn files_that_were_read_are_listed_in_the_version_that_the_major_knows() {
        let read = |path: &str, crc| Read { path: path.to_owned(), size: 9, crc };
        let mut files = vec![read("b", Some(0xe306_9283)), read("a", None)];
        let mut origin = Origin { major: 15, timeline: 2, ..Origin::example() };
        let first: Value = serde_json::from_slice(&of_files(&mut files, &origin)).unwrap();
        assert_eq!(first["PostgreSQL-Backup-Manifest-Version"], 1);
        assert_eq!(first.get("System-Identifier"), None);
        assert_eq!(first["Files"][0], json!({ "Path": "a", "Size": 9 }));
        assert_eq!(first["Files"][1]["Checksum"], "839206e3");
        assert_eq!(first["WAL-Ranges"][0], json!({ "Timeline": 2, "Start-LSN": "0/28", "End-LSN": "0/99" }));
        origin.major = 17;
        let second: Value = serde_json::from_slice(&of_files(&mut files, &origin)).unwrap();
        assert_eq!(second["PostgreSQL-Backup-Manifest-Version"], 2);
        assert_eq!(second["System-Identifier"], 7);
    }
}
