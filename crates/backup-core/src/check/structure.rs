//! The structure: every node readable, every chunk in a pack that exists with the right size.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{
    ContentName, Entry, IndexSet, Location, MapKey, MapReader, PackClass, PackRef, Root, names,
};
use keepwell_crypto::ChunkId;

use super::CheckReport;
use super::history::History;
use crate::Error;
use crate::error::shown;
use crate::mark::{Marks, Visitor, visit};
use crate::read::Nodes;
use crate::repository::{Repository, Snapshot};

const PATHS_MAX: usize = 1000;

/// Packs that the index lists and that exist.
pub(super) type Packs = BTreeMap<ContentName, (PackClass, PackRef)>;

pub(super) async fn check(
    repository: &Repository,
    history: &History,
    report: &mut CheckReport,
) -> Result<Packs, Error> {
    repository.reload_index(&mut |name, reason| report.found(name, reason)).await?;
    let stored = stored_packs(repository).await?;
    let index = repository.index();
    let dead = history.plans.doomed_packs();
    let mut packs = Packs::new();
    for (_, segment) in index.segments() {
        for pack in segment.packs() {
            let key = names::pack_key(segment.class(), &pack.name);
            match stored.get(&pack.name) {
                Some(size) if *size == pack.size => {
                    if packs.insert(pack.name, (segment.class(), *pack)).is_none() {
                        report.packs += 1;
                        report.pack_bytes += pack.size;
                    }
                }
                Some(size) => {
                    report.found(key, format_args!("it has {size} bytes, the index says {}", pack.size))
                }
                None if dead.contains(&pack.name) => {}
                None => report.found(key, "it is missing"),
            }
        }
    }
    let unlisted = stored.keys().filter(|name| !packs.contains_key(name) && !dead.contains(name)).count();
    report.orphans = unlisted as u64;
    check_trees(repository, &index, history, &packs, report).await?;
    Ok(packs)
}

async fn stored_packs(repository: &Repository) -> Result<HashMap<ContentName, u64>, Error> {
    let mut stored = HashMap::new();
    for prefix in ["data/", "meta/"] {
        for info in repository.list(prefix).await? {
            if let Ok(ObjectName::Pack(_, name)) = info.key.as_str().parse() {
                stored.insert(name, info.size);
            }
        }
    }
    Ok(stored)
}

/// Walks the trees once, counting and noting what is lost.
struct Walk<'w> {
    seen: Marks,
    packs: &'w Packs,
    nodes: u64,
    chunks: u64,
    /// What the current tree lacks.
    broken: Vec<(String, String)>,
    /// Ids that are nowhere: to be named again for every snapshot that needs them.
    lost: std::collections::HashSet<ChunkId>,
}

impl Visitor for Walk<'_> {
    fn reached(&mut self, id: &ChunkId, locations: &[Location]) -> bool {
        let Some(first) = locations.first() else {
            self.lost.insert(*id);
            self.broken.push((format!("chunk {id}"), "no index segment lists it".into()));
            return false;
        };
        let fresh = self.seen.set(first);
        if !locations.iter().any(|l| self.packs.contains_key(&l.pack.name)) {
            self.lost.insert(*id);
            self.broken.push((format!("chunk {id}"), "every pack that held it is missing".into()));
            return false;
        }
        if fresh {
            match first.class {
                PackClass::Meta => self.nodes += 1,
                PackClass::Data => self.chunks += 1,
            }
        }
        fresh
    }

    fn broken(&mut self, error: Error) -> Result<(), Error> {
        match error {
            Error::Storage(e) if !e.is_not_found() => Err(Error::Storage(e)),
            error => {
                self.broken.push(("tree".to_owned(), crate::error::one_line(&error)));
                Ok(())
            }
        }
    }
}

async fn check_trees(
    repository: &Repository,
    index: &Arc<IndexSet>,
    history: &History,
    packs: &Packs,
    report: &mut CheckReport,
) -> Result<(), Error> {
    let nodes = Nodes::new(repository);
    let (index, packs) = (Arc::clone(index), packs.clone());
    let snapshots = history.snapshots.clone();
    let mut into = std::mem::take(report);
    let task = tokio::task::spawn_blocking(move || {
        let mut walk = Walk {
            seen: Marks::new(&index),
            packs: &packs,
            nodes: 0,
            chunks: 0,
            broken: Vec::new(),
            lost: std::collections::HashSet::new(),
        };
        let mut any = false;
        for snapshot in &snapshots {
            visit(&nodes, &index, &snapshot.manifest()?.root, &mut walk)?;
            any |= !walk.broken.is_empty();
            for (object, what) in std::mem::take(&mut walk.broken) {
                into.found(object, what);
            }
        }
        (into.nodes, into.chunks) = (walk.nodes, walk.chunks);
        if any {
            for snapshot in &snapshots {
                name_affected(&nodes, snapshot, &walk, &mut into)?;
            }
        }
        Ok::<_, Error>(into)
    });
    *report = task.await.map_err(|e| Error::Task(e.to_string()))??;
    Ok(())
}

/// Says which snapshots and paths are affected; only done when there is damage, for it reads every tree again.
fn name_affected(
    nodes: &Nodes,
    snapshot: &Snapshot,
    walk: &Walk<'_>,
    report: &mut CheckReport,
) -> Result<(), Error> {
    let reader = MapReader::new(nodes, snapshot.manifest()?.root);
    let mut affected = |path: String| {
        report.damaged_snapshots.insert(snapshot.id.to_string());
        if report.damaged_paths.len() < PATHS_MAX {
            report.damaged_paths.push(format!("{}:{path}", snapshot.short()));
        }
    };
    let Ok(mut entries) = reader.heads_below(&MapKey::root()) else {
        affected("/".into());
        return Ok(());
    };
    while let Some(item) = entries.next() {
        match item {
            Ok((key, entry)) if lacks(&reader, &key, &entry, walk) => affected(shown(&key)),
            Ok(_) => {}
            Err(error) => match entries.pass() {
                Ok(Some(gap)) => affected(format!("{} ({gap}: {error})", shown(&gap.from))),
                _ => {
                    affected(format!("? ({error})"));
                    break;
                }
            },
        }
    }
    Ok(())
}

/// Whether something of a file's content is lost, or where it lies.
fn lacks(reader: &MapReader<'_>, key: &MapKey, entry: &Entry, walk: &Walk<'_>) -> bool {
    let Ok(mut extents) = reader.extents(key, entry) else { return true };
    extents.any(|extent| match extent {
        Ok(extent) => extent.chunk().is_some_and(|id| walk.lost.contains(id)),
        Err(_) => true,
    })
}

/// Proves that everything below a root that is not yet committed can be read and is stored.
pub(super) async fn prove_root(
    repository: &Repository,
    root: &Root,
    report: &mut CheckReport,
) -> Result<(), Error> {
    let nodes = Nodes::new(repository);
    let index = repository.index();
    let root = root.id;
    let task = tokio::task::spawn_blocking(move || {
        let packs: Packs = index
            .segments()
            .iter()
            .flat_map(|(_, s)| s.packs().iter().map(|p| (p.name, (s.class(), *p))).collect::<Vec<_>>())
            .collect();
        let mut walk = Walk {
            seen: Marks::new(&index),
            packs: &packs,
            nodes: 0,
            chunks: 0,
            broken: Vec::new(),
            lost: std::collections::HashSet::new(),
        };
        visit(&nodes, &index, &root, &mut walk)?;
        Ok::<_, Error>(walk.broken)
    });
    for (object, what) in task.await.map_err(|e| Error::Task(e.to_string()))?? {
        report.found(object, what);
    }
    Ok(())
}
