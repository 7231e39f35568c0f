//! The tests of the whole engine, in one program: `--test engine faults::` runs those of one file.

mod access;
mod bombs;
mod damage;
mod faults;
mod faults_keys;
mod faults_repair;
mod fixtures;
mod full;
mod happy;
mod hostile;
mod keeper;
mod kill;
mod overtaken;
mod races;
mod stateful;
mod stress;
mod tls;
mod vault;
