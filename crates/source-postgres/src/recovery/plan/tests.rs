//! Which backup and which way through the timelines lead to a target, and which targets none leads to.

use bytes::Bytes;
use keepwell_catalog::wal::WalPlace;

use super::*;
use crate::archive::ArchiveError;
use crate::recovery::TargetTime;
use crate::testing::{Made, SYSTEM, World, content, put_by, put_committed, put_history, segment, size};

fn lsn(segment: u64, offset: u64) -> Lsn {
    size().start_of(segment).plus(offset)
}

fn at(seconds: i64) -> Target {
    Target::Time(TargetTime::new(seconds * 1_000_000_000).unwrap(), Bound::Inclusive)
}

const NINE: i64 = 1_795_248_000;
const HOUR: i64 = 3600;

#[tokio::test]
async fn a_time_at_which_the_cluster_lived_on_a_branch_that_was_left_is_refused() {
    let world = World::new().await;
    let by = &world.repository;
    let backup = Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE, "").back_up(&world, "db").await;
    // Timeline 2 branched off at ten and lived until twelve; then 3 branched off at half past nine.
    put_committed(by, 1, 3, &[NINE - 60, NINE + 60]).await;
    put_committed(by, 1, 4, &[NINE + HOUR / 2 - 60]).await;
    put_committed(by, 1, 5, &[NINE + HOUR - 60]).await;
    put_history(by, 2, &format!("1\t{}\tx\n", lsn(6, 0))).await;
    put_committed(by, 2, 6, &[NINE + 2 * HOUR, NINE + 3 * HOUR]).await;
    put_history(by, 3, &format!("1\t{}\tx\n", lsn(5, 0))).await;
    put_committed(by, 3, 5, &[NINE + 4 * HOUR, NINE + 5 * HOUR]).await;
    let planner = Planner::new(world.repository.clone(), vec![backup]).unwrap();
    let refused = planner.plan(&at(NINE + 2 * HOUR), None).await.unwrap_err();
    let left = |error: &PlanError| match error {
        PlanError::TwoPasts { left, .. } => left.get(),
        other => panic!("{other}"),
    };
    assert_eq!(left(&refused), 2);
    assert_eq!(left(&planner.plan(&at(NINE + HOUR - 60), None).await.unwrap_err()), 1);
    let two = Timeline::new(2);
    let plan = planner.plan(&at(NINE + 2 * HOUR), two).await.unwrap();
    assert_eq!(Some(plan.history.timeline()), two);
    assert_eq!(planner.plan(&at(NINE + 120), None).await.unwrap().history.timeline(), Timeline::FIRST);
    assert_eq!(planner.plan(&at(NINE + 4 * HOUR), None).await.unwrap().history.timeline().get(), 3);
}

#[tokio::test]
async fn looking_through_the_log_costs_a_listing_for_each_segment_however_many_members_there_are() {
    let mut world = World::new().await;
    let backup = Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE, "").back_up(&world, "db").await;
    for number in 3..40 {
        put_committed(&world.repository, 1, number, &[NINE + number as i64]).await;
    }
    let _second = world.second().await;
    let planner = Planner::new(world.repository.clone(), vec![backup]).unwrap();
    let lists = || world.store.lists.load(std::sync::atomic::Ordering::SeqCst);
    // Another name than any that was given: the whole log is read for it.
    let before = lists();
    planner.plan(&Target::Name("never".to_owned()), None).await.unwrap_err();
    assert!(lists() - before < 37 + 20, "{}", lists() - before);
}

#[tokio::test]
async fn a_base_backup_in_which_a_later_transaction_ended_is_too_new_whatever_its_host_says() {
    let world = World::new().await;
    let by = &world.repository;
    // The clock of the host that took the second one was an hour behind the server's.
    let backups = vec![
        Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE - 2 * HOUR, "").back_up(&world, "db").await,
        Made::new(SYSTEM, lsn(5, 40), lsn(5, 110), NINE - HOUR, "").back_up(&world, "db").await,
    ];
    put_committed(by, 1, 3, &[NINE - 2 * HOUR]).await;
    put_committed(by, 1, 4, &[NINE - 20]).await;
    put_committed(by, 1, 5, &[NINE - 10, NINE, NINE + 60]).await;
    let planner = Planner::new(world.repository.clone(), backups).unwrap();
    let begun = async |target| planner.plan(&target, None).await.unwrap().backup.cluster.start_lsn;
    assert_eq!(begun(at(NINE - 30)).await, lsn(3, 40));
    assert_eq!(begun(at(NINE + 30)).await, lsn(5, 40));
}

#[tokio::test]
async fn two_histories_of_a_timeline_are_in_the_way_of_nobody_who_does_not_go_there() {
    let mut world = World::new().await;
    let second = world.second().await;
    let backup = Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE, "").back_up(&world, "db").await;
    put_committed(&world.repository, 1, 3, &[NINE, NINE + 60, NINE + 120]).await;
    put_history(&world.repository, 2, &format!("1\t{}\tx\n", lsn(5, 0))).await;
    put_history(&second, 2, &format!("1\t{}\tx\n", lsn(6, 0))).await;
    let planner = Planner::new(world.repository.clone(), vec![backup]).unwrap();
    for target in [at(NINE + 90), Target::Latest] {
        let refused = planner.plan(&target, None).await.unwrap_err();
        assert!(matches!(refused, PlanError::Archive(ArchiveError::Conflict { .. })), "{refused}");
        assert!(refused.hint().unwrap().contains("--timeline"), "{:?}", refused.hint());
        let plan = planner.plan(&target, Some(Timeline::FIRST)).await.unwrap();
        // The server asks which timelines are taken when it begins its own.
        assert_eq!(plan.asker().follows, Some(Timeline::FIRST));
        assert_eq!(plan.asker().to_gap, target != Target::Latest);
    }
}

#[tokio::test]
async fn a_conflict_at_the_end_of_the_log_is_in_the_way_of_the_end_alone() {
    let mut world = World::new().await;
    let second = world.second().await;
    let backup = Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE, "").back_up(&world, "db").await;
    put_committed(&world.repository, 1, 3, &[NINE, NINE + 60, NINE + 120]).await;
    put_committed(&world.repository, 1, 4, &[NINE + 180]).await;
    // Names do not show it: it is another stretch.
    put_by(&second, 1, 4, 2, 4000).await;
    let planner = Planner::new(world.repository.clone(), vec![backup]).unwrap();
    let plan = planner.plan(&at(NINE + 90), None).await.unwrap();
    assert!(plan.asker().to_gap && plan.last_end == Some((NINE + 120) * 1_000_000_000));
    planner.plan(&Target::Xid(701, Bound::Inclusive), None).await.unwrap();
    let refused = planner.plan(&Target::Latest, None).await.unwrap_err();
    assert!(matches!(refused, PlanError::Archive(ArchiveError::Conflict { .. })), "{refused}");
}

#[tokio::test]
async fn the_end_of_the_log_is_where_a_timeline_was_left_and_not_behind_it() {
    // Segment 4 of the first timeline has records at 40 and 80.
    for (switch, left_at) in [(lsn(4, 80), Some(lsn(4, 80))), (lsn(4, 120), None)] {
        let world = World::new().await;
        let by = &world.repository;
        let backup = Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE, "").back_up(&world, "db").await;
        put_committed(by, 1, 3, &[NINE, NINE + 60]).await;
        put_committed(by, 1, 4, &[NINE + 120, NINE + 180]).await;
        put_history(by, 2, &format!("1\t{switch}\tx\n")).await;
        let planner = Planner::new(world.repository.clone(), vec![backup]).unwrap();
        let plan = planner.plan(&Target::Latest, None).await.unwrap();
        assert_eq!((plan.history.timeline().get(), plan.to, plan.left_at), (2, switch, left_at));
        // Where the last record begins that is in the past of the second timeline.
        let last = left_at.map_or(lsn(4, 80), |_| lsn(4, 40));
        assert_eq!(plan.last_record, Some(last));
        let ended = |redone| plan.check_end(&Said { redone, ..Said::default() });
        assert!(ended(Some(last)).is_ok() && ended(Some(lsn(9, 0))).is_ok() && ended(None).is_ok());
        let short = ended(Some(lsn(3, 80))).unwrap_err();
        assert_eq!(
            short.to_string(),
            format!("recovery ended at {}, and the archived log goes on to {last}", lsn(3, 80))
        );
        let ended_at = lsn(3, 80);
        assert!(short.hint().unwrap().contains(&format!("`--to-lsn {ended_at}`")));
        // Which is reached, whatever lies behind.
        planner.plan(&Target::Lsn(ended_at, Bound::Inclusive), None).await.unwrap();
        let stop = left_at.map_or(Target::Latest, |at| Target::Lsn(at, Bound::Exclusive));
        assert_eq!((plan.asker().to_gap, plan.stop()), (left_at.is_some(), stop));
        let first = planner.plan(&Target::Latest, Some(Timeline::FIRST)).await.unwrap();
        assert_eq!((first.left_at, first.to), (None, lsn(5, 0)), "the branch itself");
        put_committed(by, 2, 4, &[NINE + 120, NINE + 240]).await;
        let plan = planner.plan(&Target::Latest, None).await.unwrap();
        assert_eq!((plan.left_at, plan.to), (None, lsn(5, 0)), "the next timeline has its own");
    }
}

/// Archives a segment whose first record gives this name to its place.
async fn put_named(by: &Repository, number: u64, name: &str) {
    let mut content = content(SYSTEM, number, 0);
    let record = &mut content[40..138];
    (record[0], record[16]) = (98, 0x70);
    record[24..26].copy_from_slice(&[255, 72]);
    record[34..34 + name.len()].copy_from_slice(name.as_bytes());
    let log = by.wal_writer("db", SYSTEM, size().get(), false).await.unwrap();
    let place = WalPlace::Bytes { file: segment(number).file_number(size()), from: 0, to: size().get() };
    log.put(1, place, Bytes::from(content), None).await.unwrap();
}

#[tokio::test]
async fn of_a_name_that_was_given_twice_the_last_is_where_the_server_stops() {
    let world = World::new().await;
    let backup = Made::new(SYSTEM, lsn(3, 40), lsn(3, 80), NINE, "").back_up(&world, "db").await;
    put_committed(&world.repository, 1, 3, &[NINE, NINE + 1]).await;
    for number in [4, 5] {
        put_named(&world.repository, number, "release").await;
    }
    let planner = Planner::new(world.repository.clone(), vec![backup]).unwrap();
    let plan = planner.plan(&Target::Name("release".to_owned()), None).await.unwrap();
    assert_eq!(plan.position, Some(lsn(5, 40)));
    // Told the name, PostgreSQL would stop in segment 4.
    assert_eq!(plan.stop(), Target::Lsn(lsn(5, 40), Bound::Inclusive));
    let time = at(NINE);
    assert_eq!(planner.plan(&time, None).await.unwrap().stop(), time);
}

#[tokio::test]
async fn a_base_backup_that_is_not_whole_is_the_last_resort() {
    let world = World::new().await;
    put_committed(&world.repository, 1, 3, &[NINE, NINE + 1]).await;
    put_committed(&world.repository, 1, 4, &[NINE + 2, NINE + 3]).await;
    let made = |number| Made::new(SYSTEM, lsn(number, 40), lsn(number, 80), NINE, "");
    let whole = made(3).back_up(&world, "db").await;
    let torn = made(4).incomplete().back_up(&world, "db").await;
    assert!(!torn.snapshot.commit.complete);
    for (backups, expected) in [(vec![whole.clone(), torn.clone()], &whole), (vec![torn.clone()], &torn)] {
        let planner = Planner::new(world.repository.clone(), backups).unwrap();
        let plan = planner.plan(&Target::Latest, None).await.unwrap();
        assert_eq!(plan.backup.snapshot.id, expected.snapshot.id);
    }
}

#[tokio::test]
async fn of_several_clusters_none_is_taken_by_chance() {
    let world = World::new().await;
    let made = |system| Made::new(system, lsn(3, 40), lsn(3, 80), NINE, "");
    let orders = made(1).back_up(&world, "orders").await;
    let old = made(2).back_up(&world, "clinic").await;
    let clinic = made(3).back_up(&world, "clinic").await;
    let planner = |backups| Planner::new(world.repository.clone(), backups);
    let refused = planner(vec![orders, clinic.clone()]).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "there are base backups of 2 clusters here: 3 (`host/clinic`), 1 (`host/orders`)"
    );
    let upgraded = planner(vec![old, clinic]).unwrap();
    assert_eq!(upgraded.newest().cluster.system_identifier.get(), 3, "the new one took the old one's place");
}

#[test]
fn each_timeline_contributes_its_stretch() {
    let t = |n| Timeline::new(n).unwrap();
    let history = History::parse(t(3), b"1\t0/500\tx\n2\t0/900\tx\n").unwrap();
    let of = |from, to| stretches(&history, Lsn::new(from), Lsn::new(to));
    let at = Lsn::new;
    assert_eq!(
        of(0x100, 0x1000),
        [(t(1), at(0x100), at(0x500)), (t(2), at(0x500), at(0x900)), (t(3), at(0x900), at(0x1000))]
    );
    assert_eq!(of(0x600, 0x700), [(t(2), at(0x600), at(0x700))]);
    assert_eq!(of(0x900, 0x901), [(t(3), at(0x900), at(0x901))]);
}
