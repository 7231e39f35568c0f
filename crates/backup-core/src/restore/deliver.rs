//! Delivering the content of one window of files.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use keepwell_catalog::PackRef;

use super::Work;
use super::job::Job;
use super::packs::{self, Ahead, Need, Packs};
use super::prepare::{self, Stretch};
use crate::Error;

/// Restores the content of these files, with as many threads as the limits allow, and memory for packs.
pub(super) fn deliver(work: &Work, jobs: &[Job]) -> Result<(), Error> {
    if jobs.is_empty() {
        return Ok(());
    }
    let (mut needs, packs) = prepared(work, jobs)?;
    needs.sort_unstable_by_key(|n| (n.pack, n.frame_offset, n.offset, n.job, n.at));
    let groups: Vec<&[Need]> = needs.chunk_by(|a, b| a.pack == b.pack).collect();
    let next = AtomicUsize::new(0);
    let at_once = work.repository.packs_at_once(packs.iter().map(|pack| pack.size).max().unwrap_or(0));
    let threads = threads(work).min(at_once);
    let ahead = if at_once / threads >= 2 { Ahead::OnePack } else { Ahead::Nothing };
    on_threads(threads, || {
        let claim = || groups.get(next.fetch_add(1, Ordering::Relaxed)).copied();
        let done = packs::deliver_each(work, &packs, claim, ahead, jobs);
        if done.is_err() {
            next.store(groups.len(), Ordering::Relaxed);
        }
        done
    })
}

/// What is needed of packs for these files. Those that need nothing are finished.
fn prepared(work: &Work, jobs: &[Job]) -> Result<(Vec<Need>, Vec<PackRef>), Error> {
    let mut stretches = prepare::stretches(jobs);
    if work.fresh {
        // Elsewhere files are read and compared, and these lie in the order of the tree.
        prepare::by_first_chunk(&mut stretches, jobs);
    }
    let shares: Vec<&[Stretch]> = prepare::shares(&stretches).collect();
    let (packs, needs) = (Mutex::new(Packs::default()), Mutex::new(Vec::new()));
    let next = AtomicUsize::new(0);
    on_threads(threads(work), || {
        let (mut local, mut buffer) = (Vec::new(), Vec::new());
        while let Some(share) = shares.get(next.fetch_add(1, Ordering::Relaxed)) {
            for stretch in *share {
                let done = prepare::prepare(work, jobs, stretch, &packs, &mut local, &mut buffer);
                if done.is_err() {
                    next.store(shares.len(), Ordering::Relaxed);
                    return done;
                }
            }
        }
        needs.lock().unwrap_or_else(PoisonError::into_inner).append(&mut local);
        Ok(())
    })?;
    let mut needs = needs.into_inner().unwrap_or_else(PoisonError::into_inner);
    needs.retain(|need| !jobs[need.job as usize].has_failed());
    Ok((needs, packs.into_inner().unwrap_or_else(PoisonError::into_inner).list))
}

/// As many as the limits allow, each with a frame or a stretch of a file in memory.
fn threads(work: &Work) -> usize {
    work.repository.limits().threads.clamp(1, work.repository.frames_at_once())
}

/// Runs the same on so many threads, and gives the first error.
fn on_threads(count: usize, run: impl Fn() -> Result<(), Error> + Sync) -> Result<(), Error> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(&run)).collect();
        let mut ended = Ok(());
        for thread in threads {
            let result = thread.join().unwrap_or_else(|_| Err(Error::Task("it panicked".to_owned())));
            ended = ended.and(result);
        }
        ended
    })
}
