//! `cargo xtask TASK`: tasks of this workspace that need more than a command of cargo.

use std::path::Path;
use std::process::{Command, ExitCode};

const USAGE: &str = "\
cargo xtask sim [--seeds N] [--from S] [--jobs J] [--first]    many simulated worlds
cargo xtask sim --seed S [--trace]                             one of them, the same every time
cargo xtask sim --directed FAULT                               the world written by hand for a planted fault
cargo xtask planted [--seeds N] [--only FAULT]                 which planted faults the simulation finds";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let task = args.next();
    let rest: Vec<String> = args.collect();
    match task.as_deref() {
        Some("sim") => simulate(&rest),
        Some("planted") => simulate(&[vec!["--planted".to_owned()], rest].concat()),
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// Runs the simulation. It is a workspace of its own with settings of its own, which cargo finds by where it is started.
fn simulate(args: &[String]) -> ExitCode {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace");
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--locked", "--bin", "keepwell-sim", "--"]).args(args);
    match command.current_dir(root.join("tests/sim")).status() {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("start cargo: {error}");
            ExitCode::FAILURE
        }
    }
}
