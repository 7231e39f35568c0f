//! `keepwell snapshots --copy PLACE`: one listing across stores.

use anyhow::Result;
use backup_core::{Holdings, Repository, holdings};
use serde_json::json;

use crate::context::Context;
use crate::exit::Exit;
use crate::open;
use crate::select::{self, Filter};
use crate::table::{Align, Table};
use crate::text;

/// Lists the snapshots of the repository and of its copies together, with the stores that hold each.
pub async fn run(ctx: &Context, filter: &Filter, places: &[String]) -> Result<Exit> {
    let credential = open::credential(ctx).await?;
    let key = credential.key.clone();
    let mut names = vec!["here".to_owned()];
    let mut stores = vec![credential.open(ctx).await?];
    for place in places {
        stores.push(open::copy(ctx, place, key.clone()).await?);
        names.push(place.clone());
    }
    let repositories: Vec<&Repository> = stores.iter().map(|s| &s.repository).collect();
    let held = holdings(&repositories).await;
    stores[0].progress.end();
    print(ctx, filter, &names, &held?);
    Ok(Exit::Done)
}

fn print(ctx: &Context, filter: &Filter, names: &[String], holdings: &Holdings) {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("Time", Align::Left),
        ("Host", Align::Left),
        ("Dataset", Align::Left),
        ("Held by", Align::Left),
    ]);
    for held in holdings.snapshots.iter().filter(|h| filter.accepts(&h.snapshot)) {
        let holders: Vec<&str> =
            names.iter().zip(&held.by).filter(|(_, by)| **by).map(|(n, _)| n.as_str()).collect();
        let (host, dataset) = match held.snapshot.manifest() {
            Ok(manifest) => (manifest.host.clone(), manifest.dataset.clone()),
            Err(_) => ("-".to_owned(), "-".to_owned()),
        };
        table.row(vec![
            held.snapshot.short(),
            text::time(select::taken(&held.snapshot)),
            host,
            dataset,
            holders.join(", "),
        ]);
        let id = held.snapshot.id.to_string();
        ctx.printer.json("held_snapshot", json!({ "id": id, "held_by": holders }));
    }
    table.print(&ctx.printer);
    for (name, proved) in names.iter().zip(&holdings.proved) {
        let since = proved.map_or_else(
            || "not all of it was read and proved by this host yet".to_owned(),
            |at| format!("all of it was read and proved at {} or later", text::time(at)),
        );
        ctx.printer.line(format_args!("{name}: {since}"));
        ctx.printer.json("store", json!({ "name": name, "proved_since": proved.map(text::rfc3339) }));
    }
}
