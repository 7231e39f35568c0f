//! `keepwell snapshots --copy COPY`: one listing across stores.

use anyhow::Result;
use backup_core::{Holdings, Repository, holdings};
use keepwell_crypto::keyfile::KeyFile;
use serde_json::json;

use crate::config::CopyConfig;
use crate::context::Context;
use crate::copies;
use crate::exit::{Exit, one_line};
use crate::location::Location;
use crate::open::{self, Opened};
use crate::select::{self, Filter};
use crate::table::{Align, Table};
use crate::text;

/// A store that could be opened.
struct Store {
    name: String,
    opened: Opened,
}

/// Lists the snapshots of the repository and of its copies together, with the stores that hold each. A store that cannot be
/// listed is named; only where there is no other is that an error.
pub async fn run(ctx: &Context, filter: &Filter, copies: &[String]) -> Result<Exit> {
    let (stores, away) = open_all(ctx, copies).await?;
    let repositories: Vec<&Repository> = stores.iter().map(|store| &store.opened.repository).collect();
    let held = holdings(&repositories).await;
    let names: Vec<&str> = stores.iter().map(|store| store.name.as_str()).collect();
    snapshots(ctx, filter, &names, &held);
    let mut exit = Exit::Done;
    for (name, known) in names.iter().zip(held.stores) {
        match known {
            Ok(proved) => describe(ctx, name, proved),
            Err(error) => exit = worse(exit, unlisted(ctx, name, None, &error.into())),
        }
    }
    for (name, config, error) in &away {
        exit = worse(exit, unlisted(ctx, name, *config, error));
    }
    Ok(exit)
}

fn worse(one: Exit, other: Exit) -> Exit {
    if one == Exit::Done { other } else { one }
}

/// A store that could not be opened: its name, what the profile says of it, and why.
type Away<'c> = (String, Option<&'c CopyConfig>, anyhow::Error);

/// Opens the repository and the copies, each a place or the name of one of the profile; fails if none can be opened.
async fn open_all<'c>(ctx: &'c Context, copies: &[String]) -> Result<(Vec<Store>, Vec<Away<'c>>)> {
    let (mut stores, mut away) = (Vec::new(), Vec::new());
    let mut key = None;
    let here = async {
        let credential = open::credential(ctx).await?;
        key = Some(credential.key.clone());
        credential.open(ctx).await
    };
    let mut arrived = |name: &str, config, opened: Result<Opened>| match opened {
        Ok(opened) => {
            opened.progress.end();
            stores.push(Store { name: name.to_owned(), opened });
        }
        Err(error) => away.push((name.to_owned(), config, error)),
    };
    arrived("here", None, here.await);
    for name in copies {
        let config = ctx.profile.copies.iter().find(|copy| copy.name() == name);
        arrived(name, config, open_copy(ctx, name, config, key.as_ref()).await);
    }
    if stores.is_empty() {
        return Err(away.swap_remove(0).2);
    }
    Ok((stores, away))
}

async fn open_copy(
    ctx: &Context,
    name: &str,
    config: Option<&CopyConfig>,
    key: Option<&KeyFile>,
) -> Result<Opened> {
    let place = Location::parse(config.map_or(name, |config| &config.to))?;
    let key_file = config.and_then(|config| config.key_file.as_ref());
    match key {
        Some(key) => open::further(ctx, place, key, key_file).await,
        None => open::credential_at(ctx, place, key_file).await?.open(ctx).await,
    }
}

fn snapshots(ctx: &Context, filter: &Filter, names: &[&str], holdings: &Holdings) {
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("Time", Align::Left),
        ("Host", Align::Left),
        ("Dataset", Align::Left),
        ("Held by", Align::Left),
    ]);
    for held in holdings.snapshots.iter().filter(|h| filter.accepts(&h.snapshot)) {
        let holders: Vec<&str> =
            names.iter().zip(&held.by).filter(|(_, by)| **by).map(|(name, _)| *name).collect();
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
}

/// Says what this host remembers of having proved of a store.
fn describe(ctx: &Context, name: &str, proved: Option<i64>) {
    let since = proved.map_or_else(
        || "not all of it was read and proved by this host yet".to_owned(),
        |at| format!("all of it was read and proved by this host at {} or later", text::time(at)),
    );
    ctx.printer.line(format_args!("{name}: {since}"));
    let fields = json!({ "name": name, "proved_since": proved.map(text::rfc3339), "error": null });
    ctx.printer.json("store", fields);
}

/// Says that a store could not be listed; that a disk is not attached which need not be is no failure.
fn unlisted(ctx: &Context, name: &str, config: Option<&CopyConfig>, error: &anyhow::Error) -> Exit {
    let may_be_away = config.is_some_and(|config| config.when_attached) && copies::is_away(error);
    let why =
        if may_be_away { "not attached".to_owned() } else { format!("unreachable: {}", one_line(error)) };
    ctx.printer.line(format_args!("{name}: {why}"));
    ctx.printer.json("store", json!({ "name": name, "proved_since": null, "error": why }));
    if may_be_away { Exit::Done } else { Exit::Skipped }
}
