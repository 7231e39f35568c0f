//! Merging plans: many that are decided and done become one, so that what everybody has to read stays few.

use std::collections::BTreeSet;

use keepwell_catalog::names::{self, PlanName};

use super::locks::Young;
use super::verdict::delete_all;
use crate::Error;
use crate::planted::planted;
use crate::repository::{Plans, Repository, read_plans};

/// Decided plans are merged when there are more than this many.
const PLANS_MAX: usize = 8;
/// The names in a merged plan take at most so many bytes: with all else, less than a plan may have (format §1).
const NAMES_BYTES_MAX: usize = 240 << 20;

/// Replaces decided plans by one under a higher number that condemns all that they doom; their verdicts stay. Gives how
/// many went. A crash in between leaves plans that say the same twice, and the next merge takes them in.
/// Those that the bucket keeps for a time stay as they are.
pub(super) async fn merge_plans(repository: &Repository, young: Young) -> Result<u64, Error> {
    let plans = read_plans(repository).await?;
    let mut inputs = mergeable(&plans);
    if inputs.len() > PLANS_MAX && !young.is_none() {
        let listed = repository.list("gc/").await?;
        let may_go = listed.into_iter().filter(|info| !young.keeps(info.modified));
        let may_go: BTreeSet<String> = may_go.map(|info| info.key.to_string()).collect();
        inputs.retain(|name| may_go.contains(names::plan_key(*name).as_str()));
    }
    let inputs = fitting(&plans, inputs, NAMES_BYTES_MAX);
    if inputs.len() <= PLANS_MAX {
        return Ok(0);
    }
    let condemned: BTreeSet<&str> = inputs.iter().flat_map(|name| plans.left_of(name)).collect();
    let condemned = condemned.into_iter().map(str::to_owned).collect();
    if !planted("merged-plan-never") {
        repository.write_plan(condemned, inputs.clone()).await?;
    }
    let keys: Vec<String> = inputs.iter().map(|name| names::plan_key(*name).to_string()).collect();
    delete_all(repository, &keys).await
}

/// Decided plans, but for those of the first version: without a suffix their names could be given a second time.
fn mergeable(plans: &Plans) -> Vec<PlanName> {
    plans.verdicts.keys().copied().filter(|name| name.suffix().is_some()).collect()
}

/// The smallest of these plans, as many as one plan has room for; larger ones stay as they are.
fn fitting(plans: &Plans, mut inputs: Vec<PlanName>, most: usize) -> Vec<PlanName> {
    // Three bytes say how long a name is.
    let bytes_of = |name: &PlanName| plans.left_of(name).map(|left| left.len() + 3).sum::<usize>();
    inputs.sort_by_cached_key(bytes_of);
    let mut bytes = 0;
    inputs.retain(|name| {
        bytes += bytes_of(name);
        bytes <= most
    });
    inputs.sort_unstable();
    inputs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;

    fn pack(n: u8) -> String {
        let name = keepwell_catalog::ContentName::new(&keepwell_crypto::Digest::from_bytes([n; 32]), [0; 4]);
        names::pack_key(keepwell_catalog::PackClass::Data, &name).to_string()
    }

    #[tokio::test]
    async fn many_plans_become_one_that_dooms_the_same() {
        let world = World::new().await;
        let repository = &world.repository;
        for n in 0..20u8 {
            super::super::merge::delete_segments(repository, &[pack(n)]).await.unwrap();
        }
        let before: BTreeSet<String> =
            read_plans(repository).await.unwrap().doomed().map(str::to_owned).collect();
        assert_eq!(before.len(), 20);
        assert_eq!(merge_plans(repository, Young::default()).await.unwrap(), 20);
        let after = read_plans(repository).await.unwrap();
        assert_eq!(after.plans.len(), 1);
        assert_eq!(after.doomed().collect::<BTreeSet<_>>(), before.iter().map(String::as_str).collect());
        assert_eq!(after.dead().count(), 20, "a merged plan is decided");
        assert!(after.next > 20, "numbers rise on");
        assert_eq!(world.names("gc/").await.len(), 21, "verdicts stay");
        assert_eq!(merge_plans(repository, Young::default()).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn what_would_be_too_large_for_one_plan_is_not_merged() {
        let world = World::new().await;
        let repository = &world.repository;
        for n in 0..20u8 {
            let packs: Vec<String> = (0..=n).map(pack).collect();
            super::super::merge::delete_segments(repository, &packs).await.unwrap();
        }
        let plans = read_plans(repository).await.unwrap();
        let room_for = |packs: usize| packs * (pack(0).len() + 3);
        assert_eq!(fitting(&plans, mergeable(&plans), room_for(1 + 2 + 3 + 3)).len(), 3);
        assert_eq!(fitting(&plans, mergeable(&plans), NAMES_BYTES_MAX), mergeable(&plans));
    }

    #[tokio::test]
    async fn plans_without_a_verdict_stay() {
        let world = World::new().await;
        let undecided = world.repository.write_plan(vec![pack(0)], Vec::new()).await.unwrap();
        for _ in 0..20 {
            super::super::merge::delete_segments(&world.repository, &[]).await.unwrap();
        }
        merge_plans(&world.repository, Young::default()).await.unwrap();
        let plans = read_plans(&world.repository).await.unwrap();
        assert_eq!(plans.plans.len(), 2);
        assert!(!plans.verdicts.contains_key(&undecided));
    }

    #[tokio::test]
    async fn a_merge_leaves_what_the_verdicts_released() {
        let world = World::new().await;
        let repository = &world.repository;
        let condemned: Vec<String> = vec![pack(1), pack(2)];
        for _ in 0..9 {
            let name = repository.write_plan(condemned.clone(), Vec::new()).await.unwrap();
            let kept = keepwell_catalog::Kept { store: repository.store_id(), name, released: vec![pack(2)] };
            let signed = repository.sign(keepwell_catalog::Kept::KIND, kept.encode()).unwrap();
            repository.put_own(&names::kept_key(name), signed).await.unwrap();
        }
        assert_eq!(merge_plans(repository, Young::default()).await.unwrap(), 9);
        let plans = read_plans(repository).await.unwrap();
        assert_eq!(plans.doomed().collect::<Vec<_>>(), [pack(1)]);
    }
}
