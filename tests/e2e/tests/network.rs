//! A network that fails at every request to a real S3 server, in every way; then everything that was committed restores,
//! nothing half-done shows, and the next run completes.
//!
//! Needs the server `moto` in `KEEPWELL_TEST_SERVERS`. By default each request is broken in one way, in turn;
//! `KEEPWELL_E2E_NETWORK=all` breaks each in every way.
#![allow(clippy::unwrap_used)]

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backup_core::{Cache, Error, Repository};
use keepwell_e2e::case::Case;
use keepwell_e2e::proxy::{Break, Plan, Proxy, When};
use keepwell_e2e::server::{Server, open};
use keepwell_e2e::{made, tree, within, world};
use keepwell_storage::{Key, Memory, ObjectStore, RetryPolicy, list_all};
use tokio::task::JoinSet;
use world::{World, back_up, restored, snapshot_of, thorough};

/// Pauses that do not make the test wait.
const POLICY: RetryPolicy =
    RetryPolicy { attempts: 4, first_delay: Duration::from_millis(1), max_delay: Duration::from_millis(5) };
/// Longest wait for an answer that never comes, in seconds. Those to the other requests of that run come sooner.
const IMPATIENT: u32 = 3;
/// The same where it comes, but the machine may be busy.
const PATIENT: u32 = 60;
/// Transfers at a time while a repository is laid out or fetched.
const TRANSFERS: usize = 8;

/// A server, the network to it, and repositories there.
struct Bench {
    server: Server,
    proxy: Proxy,
    places: AtomicU32,
    tally: RefCell<Tally>,
}

/// What was tried.
#[derive(Debug, Default)]
struct Tally {
    attempts: u32,
    unnoticed: u32,
    failed: u32,
}

impl Bench {
    async fn start() -> Option<Self> {
        let server = Server::start("moto")?;
        let proxy = Proxy::start(server.value("ENDPOINT"), 0, Duration::ZERO).await;
        Some(Self { server, proxy, places: AtomicU32::new(0), tally: RefCell::default() })
    }

    /// Opens a place through the network that fails, or past it.
    async fn store(&self, place: &str, through: bool, timeout: u32) -> Arc<dyn ObjectStore> {
        let endpoint = self.proxy.endpoint();
        let mut options = self.server.s3_options(through.then_some(endpoint.as_str()));
        options.settings.timeout_seconds = Some(timeout);
        open(place, &options, POLICY).await
    }

    /// Lays a repository out in a place of its own.
    async fn lay_out(&self, world: &World) -> String {
        let number = self.places.fetch_add(1, Ordering::Relaxed);
        let place = format!("s3://{}/{number}", self.server.value("BUCKET"));
        transfer(Arc::new(world.store.clone()), self.store(&place, false, PATIENT).await).await;
        place
    }

    /// What is there now.
    async fn fetch(&self, world: &World, place: &str) -> World {
        let store = Memory::new();
        transfer(self.store(place, false, PATIENT).await, Arc::new(store.clone())).await;
        World { store, key: world.key.clone() }
    }

    /// Breaks `attempt` at every request, and hands what is then in the store to `verify`, with whether it said that it
    /// succeeded; `again` is run through a network that is whole.
    async fn at_every_request(
        &self,
        world: &World,
        attempt: impl AsyncFn(&Repository) -> Result<(), Error>,
        again: impl AsyncFn(&Repository) -> Result<(), Error>,
        verify: impl AsyncFn(World, bool, String),
    ) {
        let place = self.lay_out(world).await;
        self.proxy.heal();
        self.run(world, &place, PATIENT, &attempt).await.unwrap();
        let requests = self.proxy.requests();
        println!("{requests} requests");
        for n in 1..=requests {
            for fault in faults(n) {
                let whens = if fault == Break::ResetBefore {
                    vec![When::At(n), When::From(n)]
                } else {
                    vec![When::At(n)]
                };
                for when in whens {
                    let place = self.lay_out(world).await;
                    self.proxy.set(Plan { fault, when });
                    let patience = if fault == Break::Silence { IMPATIENT } else { PATIENT };
                    let ended = self.run(world, &place, patience, &attempt).await;
                    let said = ended.as_ref().err().map_or("ok".to_owned(), ToString::to_string);
                    let what = format!("{fault:?} {when:?} of {requests}: {said}");
                    let must_pass = fault.passes() && when == When::At(n);
                    assert!(!must_pass || ended.is_ok(), "{what}");
                    self.count(ended.is_ok());
                    self.proxy.heal();
                    verify(self.fetch(world, &place).await, ended.is_ok(), what.clone()).await;
                    let then = self.run(world, &place, PATIENT, &again).await;
                    then.unwrap_or_else(|error| panic!("{what}: the next run: {error}"));
                }
            }
        }
        println!("{:?}", self.tally.borrow());
    }

    fn count(&self, succeeded: bool) {
        let mut tally = self.tally.borrow_mut();
        tally.attempts += 1;
        *(if succeeded { &mut tally.unnoticed } else { &mut tally.failed }) += 1;
    }

    async fn run(
        &self,
        world: &World,
        place: &str,
        timeout: u32,
        work: &impl AsyncFn(&Repository) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let repository = world.open_with(self.store(place, true, timeout).await, Cache::memory()).await?;
        work(&repository).await
    }
}

/// The ways to break a request: one of them, in turn, or all.
fn faults(n: u64) -> Vec<Break> {
    #[expect(clippy::disallowed_methods, reason = "how many is for whoever runs the test to say")]
    let all = std::env::var("KEEPWELL_E2E_NETWORK").is_ok_and(|value| value == "all");
    let one = Break::ALL[n as usize % Break::ALL.len()];
    if all { Break::ALL.to_vec() } else { vec![one] }
}

async fn transfer(from: Arc<dyn ObjectStore>, to: Arc<dyn ObjectStore>) {
    let mut tasks = JoinSet::new();
    for info in list_all(&from, "").await.unwrap() {
        if tasks.len() >= TRANSFERS {
            tasks.join_next().await.unwrap().unwrap();
        }
        let (from, to, key): (_, _, Key) = (Arc::clone(&from), Arc::clone(&to), info.key);
        tasks.spawn(async move { to.put_new(&key, from.get(&key).await.unwrap()).await.unwrap() });
    }
    tasks.join_all().await;
}

#[test]
fn an_unchanged_backup_costs_ten_requests_at_most() {
    within(Duration::from_secs(600), async {
        let Some(bench) = Bench::start().await else { return };
        let world = World::new().await;
        let (place, directory) = (bench.lay_out(&world).await, tempfile::tempdir().unwrap());
        let cache = Cache::directory(directory.path());
        let back_up = async || {
            let repository =
                world.open_with(bench.store(&place, true, PATIENT).await, cache.clone()).await.unwrap();
            let report = repository.backup(Arc::new(made::many(20)), world::options()).await.unwrap();
            report.statistics.new_files
        };
        assert!(back_up().await > 0);
        bench.proxy.heal();
        assert_eq!(back_up().await, 0);
        let requests = bench.proxy.requests();
        assert!(requests <= 10, "{requests}");
    });
}

#[test]
fn a_backup_over_a_network_that_fails() {
    within(Duration::from_secs(3600), async {
        let Some(bench) = Bench::start().await else { return };
        let case = Case::new().await;
        let attempt = async |repository: &Repository| back_up(repository, case.dir()).await.map(|_| ());
        let verify = async |world: World, succeeded: bool, what: String| {
            let repository = world.open().await;
            let listed = case.all_restore(&repository, &what).await;
            assert!(listed == 2 || (listed == 1 && !succeeded), "{what}: {listed} snapshots");
            let report =
                back_up(&repository, case.dir()).await.unwrap_or_else(|e| panic!("{what}: then {e}"));
            let snapshot = snapshot_of(&repository, &report).await;
            tree::assert_same(&case.now, &restored(&repository, &snapshot, case.dir()).await, &what);
            world::prune_to_the_end(&repository, &what).await;
        };
        bench.at_every_request(&case.world, &attempt, &attempt, verify).await;
    });
}

#[test]
fn a_prune_over_a_network_that_fails() {
    within(Duration::from_secs(3600), async {
        let Some(bench) = Bench::start().await else { return };
        let (case, _) = Case::new().await.with_second().await;
        let repository = case.world.open().await;
        world::forget(&repository, std::slice::from_ref(&case.first.0)).await.unwrap();
        let attempt = async |repository: &Repository| repository.prune(thorough()).await.map(|_| ());
        let verify = async |world: World, _: bool, what: String| {
            let repository = world.open().await;
            assert_eq!(case.all_restore(&repository, &what).await, 1, "{what}");
            world::prune_to_the_end(&repository, &what).await;
            assert_eq!(case.all_restore(&repository, &what).await, 1, "{what}");
        };
        bench.at_every_request(&case.world, &attempt, &attempt, verify).await;
    });
}

#[test]
fn a_restore_over_a_network_that_fails() {
    within(Duration::from_secs(3600), async {
        let Some(bench) = Bench::start().await else { return };
        let case = Case::new().await;
        let to = RefCell::new(tempfile::tempdir().unwrap());
        let attempt = async |repository: &Repository, fresh: bool| {
            if fresh {
                *to.borrow_mut() = tempfile::tempdir().unwrap();
            }
            let path = to.borrow().path().to_path_buf();
            let snapshots = repository.snapshots().await?;
            let snapshot = snapshots.first().ok_or_else(|| Error::Invalid("no snapshot".into()))?;
            let report = world::restore(repository, snapshot, case.dir(), &path).await?;
            match report.problems.first() {
                None => Ok(()),
                Some((path, message)) => Err(Error::Invalid(format!("{path}: {message}"))),
            }
        };
        let verify = async |_: World, succeeded: bool, what: String| {
            let found = tree::read(to.borrow().path());
            if succeeded {
                tree::assert_same(&case.first.1, &found, &what);
            }
            tree::assert_part_of(&case.first.1, &found, &what);
        };
        let again = async |repository: &Repository| {
            attempt(repository, false).await?;
            tree::assert_same(&case.first.1, &tree::read(to.borrow().path()), "the next run");
            Ok(())
        };
        let first = async |repository: &Repository| attempt(repository, true).await;
        bench.at_every_request(&case.world, first, again, verify).await;
    });
}
