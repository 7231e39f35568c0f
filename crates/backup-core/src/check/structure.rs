//! The structure: every node readable, every chunk in a pack that exists with the right size.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use keepwell_catalog::names::ObjectName;
use keepwell_catalog::{ContentName, IndexSet, Location, PackClass, PackRef, Root, names};
use keepwell_crypto::ChunkId;
use keepwell_storage::StorageErrorKind;

use super::CheckReport;
use super::history::History;
use crate::Error;
use crate::mark::{Marks, Visitor, visit};
use crate::read::{Nodes, fetch_pack};
use crate::repository::{Repository, Snapshot};
use crate::transfer::is_of;

/// Packs that the index lists and that exist.
pub(super) type Packs = BTreeMap<ContentName, (PackClass, PackRef)>;

/// What the structure came to.
pub(super) struct Structure {
    pub packs: Packs,
    /// Chunks that a snapshot needs and that are nowhere.
    pub lost: HashSet<ChunkId>,
    /// Something that a snapshot needs is lost or cannot be read.
    pub is_broken: bool,
}

pub(super) async fn check(
    repository: &Repository,
    history: &History,
    report: &mut CheckReport,
) -> Result<Structure, Error> {
    repository.reload_index(&mut |name, reason| report.found(name, reason)).await?;
    let stored = stored_packs(repository).await?;
    let index = repository.index();
    let dead = history.plans.doomed_packs();
    let mut packs = Packs::new();
    for (name, said) in said_of_packs(&index) {
        let (class, pack) = what_is_so(repository, &said, report).await?;
        let key = names::pack_key(class, &name);
        match stored.get(&(class, name)) {
            Some(size) if *size == pack.size => {
                packs.insert(name, (class, pack));
                report.packs += 1;
                report.pack_bytes += pack.size;
            }
            Some(size) => {
                report.found(key, format_args!("it has {size} bytes, the index says {}", pack.size))
            }
            None if dead.contains(class, &name) => {}
            None => report.found(key, "it is missing"),
        }
    }
    let is_listed =
        |class: PackClass, name: &ContentName| packs.get(name).is_some_and(|(listed, _)| *listed == class);
    let unlisted = stored.keys().filter(|(c, name)| !is_listed(*c, name) && !dead.contains(*c, name)).count();
    report.orphans = unlisted as u64;
    check_trees(repository, &index, history, packs, report).await
}

/// What each segment, by its name, says of a pack.
type Said = Vec<(PackClass, PackRef, Arc<str>)>;

fn said_of_packs(index: &IndexSet) -> BTreeMap<ContentName, Said> {
    let mut said: BTreeMap<ContentName, Said> = BTreeMap::new();
    for (name, segment) in index.segments() {
        for pack in segment.packs() {
            said.entry(pack.name).or_default().push((segment.class(), *pack, Arc::clone(&name)));
        }
    }
    said
}

/// Where segments say different things of a pack, which none but a false one does, the pack itself tells which is so; the
/// others are reported. If it bears out none of them, the last counts.
async fn what_is_so(
    repository: &Repository,
    said: &Said,
    report: &mut CheckReport,
) -> Result<(PackClass, PackRef), Error> {
    let distinct: BTreeSet<(PackClass, PackRef)> =
        said.iter().map(|(class, pack, _)| (*class, *pack)).collect();
    let last = said.last().map(|(class, pack, _)| (*class, *pack));
    let last = last.ok_or_else(|| Error::Invalid("nothing is said of a pack".into()))?;
    if distinct.len() == 1 {
        return Ok(last);
    }
    for (class, pack) in distinct {
        if !is_so(repository, class, &pack).await? {
            continue;
        }
        for (_, other, segment) in said.iter().filter(|(c, p, _)| (*c, *p) != (class, pack)) {
            let what = format!("what it says of pack {} is not so", other.name);
            report.found(format_args!("index/{}/{segment}", repository.group()), what);
        }
        return Ok((class, pack));
    }
    Ok(last)
}

async fn is_so(repository: &Repository, class: PackClass, pack: &PackRef) -> Result<bool, Error> {
    match fetch_pack(repository, class, pack).await {
        Ok(fetched) => Ok(is_of(pack, &fetched.stored)),
        Err(Error::Storage(error)) if !error.is_not_found() && error.kind != StorageErrorKind::Archived => {
            Err(Error::Storage(error))
        }
        Err(_) => Ok(false),
    }
}

async fn stored_packs(repository: &Repository) -> Result<HashMap<(PackClass, ContentName), u64>, Error> {
    let mut stored = HashMap::new();
    for prefix in ["data/", "meta/"] {
        for info in repository.list(prefix).await? {
            if let Ok(ObjectName::Pack(class, name)) = info.key.as_str().parse() {
                stored.insert((class, name), info.size);
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
    lost: HashSet<ChunkId>,
}

impl<'w> Walk<'w> {
    fn new(index: &IndexSet, packs: &'w Packs) -> Self {
        Self { seen: Marks::new(index), packs, nodes: 0, chunks: 0, broken: Vec::new(), lost: HashSet::new() }
    }
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
    packs: Packs,
    report: &mut CheckReport,
) -> Result<Structure, Error> {
    let nodes = Nodes::new(repository);
    let index = Arc::clone(index);
    let root = |snapshot: &Snapshot| snapshot.manifest().map(|manifest| manifest.root);
    let roots = history.snapshots.iter().map(root).collect::<Result<Vec<ChunkId>, Error>>()?;
    let mut into = std::mem::take(report);
    let task = tokio::task::spawn_blocking(move || {
        let mut walk = Walk::new(&index, &packs);
        let mut is_broken = false;
        for root in &roots {
            visit(&nodes, &index, root, &mut walk)?;
            is_broken |= !walk.broken.is_empty();
            for (object, what) in std::mem::take(&mut walk.broken) {
                into.found(object, what);
            }
        }
        (into.nodes, into.chunks) = (walk.nodes, walk.chunks);
        let lost = walk.lost;
        Ok::<_, Error>((into, Structure { packs, lost, is_broken }))
    });
    let structure;
    (*report, structure) = task.await.map_err(|e| Error::Task(e.to_string()))??;
    Ok(structure)
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
        let mut walk = Walk::new(&index, &packs);
        visit(&nodes, &index, &root, &mut walk)?;
        Ok::<_, Error>(walk.broken)
    });
    for (object, what) in task.await.map_err(|e| Error::Task(e.to_string()))?? {
        report.found(object, what);
    }
    Ok(())
}
