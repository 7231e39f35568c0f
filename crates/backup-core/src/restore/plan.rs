//! What a restore would do, before it does anything.

use keepwell_catalog::MapReader;

use super::RestoreOptions;
use super::tree::Visit;
use crate::Error;
use crate::read::Nodes;
use crate::repository::{Repository, Snapshot};
use crate::target::RestoreTarget;

/// Sizes of a restore, found by reading the tree. Nothing is changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RestorePlan {
    /// Everything that will be restored.
    pub entries: u64,
    /// Files among them.
    pub files: u64,
    /// Their content in bytes; what stands in the target already is not subtracted.
    pub bytes: u64,
    /// Bytes of content that must be written at most: holes take no room, existing files are counted as their size less.
    pub needed: u64,
    /// Bytes free in the target, if that is known.
    pub free: Option<u64>,
}

impl RestorePlan {
    /// Fails when the target clearly has too little room.
    pub fn check_space(&self) -> Result<(), Error> {
        match self.free {
            Some(free) if free < self.needed => {
                Err(Error::NoSpace { needed: self.needed, free, place: "the target".to_owned() })
            }
            _ => Ok(()),
        }
    }
}

impl Repository {
    /// Says what a restore would do and whether there is room for it.
    pub async fn plan_restore(
        &self,
        snapshot: &Snapshot,
        target: &dyn RestoreTarget,
        options: RestoreOptions,
    ) -> Result<RestorePlan, Error> {
        self.refresh_index().await?;
        self.note_dead_packs().await;
        let root = snapshot.manifest()?.root;
        let free = target.free_bytes()?;
        let fresh = target.list_dir(None)?.is_empty();
        let nodes = Nodes::new(self);
        let name = snapshot.short();
        let measure = move || {
            let reader = MapReader::new(&nodes, root);
            let mut plan = RestorePlan::default();
            let mut sizes = Vec::new();
            super::tree::visit(&reader, &options, &name, &mut |step| {
                if let Visit::Entry { target, entry, .. } = step {
                    plan.entries += 1;
                    if entry.kind.has_content() {
                        plan.files += 1;
                        plan.bytes += entry.size;
                        let holes: u64 =
                            entry.content.iter().filter(|e| e.chunk().is_none()).map(|e| e.length()).sum();
                        plan.needed += entry.size - holes.min(entry.size);
                        if !fresh {
                            sizes.push(target.clone());
                        }
                    }
                }
                Ok(())
            })?;
            Ok::<_, Error>((plan, sizes))
        };
        let task = tokio::task::spawn_blocking(measure);
        let (mut plan, existing) = task.await.map_err(|e| Error::Task(e.to_string()))??;
        for key in existing {
            let size = target.existing(&key)?.map_or(0, |e| e.size);
            plan.needed = plan.needed.saturating_sub(size);
        }
        plan.free = free;
        Ok(plan)
    }
}
