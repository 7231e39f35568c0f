//! `wal gaps`.

use anyhow::Result;
use keepwell_source_postgres::archive::{GapKind, survey};
use keepwell_source_postgres::replication::SystemId;
use serde_json::json;

use crate::context::Context;
use crate::exit::{Complaint, Exit};
use crate::open;
use crate::text;

const EXAMPLES: &str = "\
Examples:
  keepwell wal gaps
  keepwell wal gaps --json";

/// List WAL that is missing from the archive; exit code 13 if there is any
///
/// Recovery cannot cross a gap: what lies behind it is reached from a base backup that was taken after it.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only this cluster, by its system identifier
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
}

/// Runs `wal gaps`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let systems = chosen(&opened.repository.wal_systems().await?, args.system)?;
    let mut any = false;
    for system in systems.iter().copied() {
        for gap in survey(&opened.repository.wal_reader(system.get())?).await?.gaps {
            any = true;
            let (kind, fact) = match gap.kind {
                GapKind::Missing => ("missing", "is missing"),
                GapKind::BeforeSwitch => {
                    ("before-switch", "is missing before the next timeline branches off")
                }
                GapKind::Conflict => ("conflict", "is archived with two different contents"),
            };
            let bytes = gap.to.get().saturating_sub(gap.from.get());
            ctx.printer.line(format_args!(
                "cluster {system}, timeline {}: {} to {} ({}) {fact}",
                gap.timeline,
                gap.from,
                gap.to,
                text::bytes(bytes)
            ));
            ctx.printer.json(
                "gap",
                json!({ "system": system.to_string(), "writer": gap.writer.to_string(), "kind": kind,
                    "timeline": gap.timeline.get(), "from": gap.from.to_string(), "to": gap.to.to_string() }),
            );
        }
    }
    match any {
        true => return Ok(Exit::Damage),
        false if systems.is_empty() => ctx.printer.say("No WAL is archived."),
        false => ctx.printer.say("There are no gaps."),
    }
    Ok(Exit::Done)
}

/// The cluster that is meant, or all. Where nothing is archived nothing is missing, but whoever names a cluster means one that
/// is.
fn chosen(archived: &[u64], given: Option<u64>) -> Result<Vec<SystemId>> {
    match given {
        None => Ok(archived.iter().copied().map(SystemId::new).collect()),
        Some(number) if archived.contains(&number) => Ok(vec![SystemId::new(number)]),
        Some(number) => Err(Complaint::failed(format!("nothing is archived of cluster {number}"))
            .hint("`keepwell wal status` shows of which clusters something is.")
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_of_which_nothing_is_archived_is_not_without_gaps() {
        assert_eq!(chosen(&[7, 8], None).unwrap(), [SystemId::new(7), SystemId::new(8)]);
        assert_eq!(chosen(&[7, 8], Some(8)).unwrap(), [SystemId::new(8)]);
        assert_eq!(chosen(&[], None).unwrap(), []);
        assert!(chosen(&[7], Some(8)).unwrap_err().to_string().contains("nothing is archived of cluster 8"));
    }
}
