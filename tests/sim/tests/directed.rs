//! Directed worlds hold by themselves, and break with the fault for which each was written.

use std::process::{Command, Output};

fn live(fault: &str, planted: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_keepwell-sim"));
    command
        .args(["--directed", fault])
        .env_remove("KEEPWELL_PLANTED")
        .envs(planted.map(|on| ("KEEPWELL_PLANTED", on)));
    command.output().expect("the program starts")
}

#[test]
fn each_holds_and_breaks_with_its_fault() {
    for fault in keepwell_sim::DIRECTED {
        let whole = live(fault, None);
        let said = String::from_utf8_lossy(&whole.stdout).into_owned();
        assert!(whole.status.success(), "{said}{}", String::from_utf8_lossy(&whole.stderr));
        let broken = live(fault, Some(fault));
        let said = String::from_utf8_lossy(&broken.stdout).into_owned();
        assert_eq!(broken.status.code(), Some(1), "{fault} survives: {said}");
        // Not that the world was never lived through, but that something was lost or believed.
        assert!(!said.contains("it did not come to this") && !said.contains("never comes to pass"), "{said}");
    }
}
