//! What is archived of logs, as text.

use backup_core::{Error, Repository};

/// One line for each piece that is archived, sorted.
pub async fn pieces(repository: &Repository) -> Result<String, Error> {
    let mut lines = Vec::new();
    for system in repository.wal_systems().await? {
        let reader = repository.wal_reader(system)?;
        for writer in reader.writers().await? {
            for timeline in reader.timelines(writer).await? {
                for name in reader.pieces_from(writer, timeline, 0).await? {
                    let piece = reader.read(&name).await?;
                    lines.push(format!("{name} {}\n", blake3::hash(&piece.plaintext).to_hex()));
                }
            }
        }
    }
    lines.sort();
    Ok(lines.concat())
}
