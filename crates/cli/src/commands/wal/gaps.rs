//! `wal gaps`.

use anyhow::Result;
use keepwell_source_postgres::archive::{GapKind, survey};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::text;

/// List WAL that is missing from the archive; exit code 13 if there is any
///
/// Recovery cannot cross a gap: what lies behind it is reached from a base backup that was taken after it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this cluster, by its system identifier
    #[arg(long, value_name = "NUMBER")]
    system: Option<u64>,
}

/// Runs `wal gaps`.
pub async fn run(ctx: &Context, args: Args) -> Result<Exit> {
    let opened = open::repository(ctx).await?;
    opened.progress.end();
    let mut any = false;
    for system in super::systems(&opened, args.system).await? {
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
    if !any {
        ctx.printer.say("There are no gaps.");
    }
    Ok(if any { Exit::Damage } else { Exit::Done })
}
