//! How a world begins: a repository in two stores, and everybody's credentials.

use std::path::Path;
use std::sync::Arc;

use backup_core::{Cache, CreateOptions, Created, Error, Repository};
use keepwell_crypto::keyfile::KeyFile;
use keepwell_crypto::trust::Roles;
use keepwell_storage::{Memory, ObjectStore, list_all};

use crate::actor::{Actor, Role};
use crate::clock::HostClock;
use crate::dice::Dice;
use crate::log::Log;
use crate::oracle::Oracle;
use crate::vault::Vault;
use crate::weather::Weather;
use crate::work::open;

/// Ten years.
const DECADE_SECONDS: i64 = 315_576_000;

/// What a world starts with.
pub(crate) struct Genesis {
    pub vaults: Vec<Vault>,
    pub oracles: Vec<Oracle>,
    pub actors: Vec<Actor>,
    pub log: Log,
}

/// Makes the stores and whoever uses them.
pub(crate) fn create(dice: &mut Dice, weather: &Weather, disk: &Path) -> Result<Genesis, Error> {
    keepwell_sim_entropy::enter("genesis");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a plain runtime");
    runtime.block_on(async {
        let stores = [Memory::new(), Memory::new()];
        let options =
            CreateOptions { owner: "ann".into(), member: "ann".into(), store_hint: None, probe: None };
        let key = Created::generate(&options, 0)?.store(&stores[0]).await?;
        let clock = HostClock::default();
        let owner = open(Arc::new(stores[0].clone()), &key, Cache::memory(), clock).await?;
        let log = Log::default();
        let actors = enroll(&owner, &key, dice, weather, disk).await?;
        owner.create_copy(&stores[1]).await?;
        let member = key.member.as_ref().expect("the first key file is a member's too");
        let mut vaults = Vec::new();
        for store in &stores {
            let mut vault = Vault::new(weather);
            for info in list_all(store, "").await? {
                let body = store.get(&info.key).await?;
                vault.objects.insert(info.key, body);
            }
            vaults.push(vault);
        }
        let oracle = |vault| Oracle::new(vault, member.signing.member_id(), &member.identity, log.clone());
        let oracles = vaults.iter().map(oracle).collect();
        Ok(Genesis { vaults, oracles, actors, log })
    })
}

async fn enroll(
    owner: &Repository,
    key: &KeyFile,
    dice: &mut Dice,
    weather: &Weather,
    disk: &Path,
) -> Result<Vec<Actor>, Error> {
    let mut actors: Vec<Actor> = Vec::new();
    let mut add = |role: Role, key: KeyFile, shares_host_with: Option<usize>, jobs: u64, dice: &mut Dice| {
        let number = actors.len();
        let host = shares_host_with.map(|other| (actors[other].clock.clone(), actors[other].cache.clone()));
        let is_alone = host.is_none();
        let directory = disk.join(number.to_string());
        let (clock, cache) = host.unwrap_or_else(|| {
            let cache = if weather.disk_caches { Cache::directory(&directory) } else { Cache::memory() };
            (HostClock::default(), cache)
        });
        if is_alone && weather.jump > 0 {
            clock.set_wrong(dice.roll(2 * DECADE_SECONDS as u64) as i64 - DECADE_SECONDS);
        }
        if let Some(other) = shares_host_with {
            actors[other].own_directory = None;
        }
        let mut actor = Actor::new(number, role, key, clock, cache, jobs as u32);
        actor.own_directory = (is_alone && weather.disk_caches).then_some(directory);
        actors.push(actor);
    };
    let mut first = None;
    let writers = 2 + dice.roll(4);
    for number in 0..writers {
        let roles = if dice.chance(5000) { Roles::WRITER } else { Roles::WRITER | Roles::READER };
        let key = enrolled(owner, &format!("writer {number}"), roles).await?;
        first.get_or_insert_with(|| key.clone());
        let jobs = 2 + dice.roll(4);
        add(Role::Writer { dataset: "main" }, key.clone(), None, jobs, dice);
        if number == 0 && dice.chance(5000) {
            // A second process of the same host with the same credential.
            let dataset = *dice.pick(&["main", "other"]);
            add(Role::Writer { dataset }, key, Some(0), jobs, dice);
        }
    }
    for number in 0..2 {
        let key = enrolled(owner, &format!("keeper {number}"), Roles::KEEPER).await?;
        let host = (number == 0 && dice.chance(5000)).then_some(0);
        add(Role::Keeper, key, host, 5 + dice.roll(6), dice);
    }
    let reader = enrolled(owner, "reader", Roles::READER).await?;
    add(Role::Reader, reader, None, 3 + dice.roll(4), dice);
    let copier = enrolled(owner, "copier", Roles::WRITER | Roles::READER).await?;
    add(Role::Copier, copier, None, 1 + dice.roll(4), dice);
    // Who archives the log may be a process of the first writer.
    let (key_of_log, host) = match dice.chance(5000) {
        true => (first.ok_or_else(|| Error::Invalid("there are writers".to_owned()))?, Some(0)),
        false => (enrolled(owner, "archiver", Roles::WRITER).await?, None),
    };
    add(Role::Archiver, key_of_log, host, 4 + dice.roll(8), dice);
    add(Role::Owner, key.clone(), None, 0, dice);
    Ok(actors)
}

/// A new member's credential, which counts.
async fn enrolled(owner: &Repository, name: &str, roles: Roles) -> Result<KeyFile, Error> {
    let key = owner.new_member(name, roles, None)?;
    owner.enroll(&key).await?;
    Ok(key)
}
