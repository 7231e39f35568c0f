//! Starting the server of a restored cluster.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use keepwell_source_postgres::recovery::{Binaries, Layout, LocalServer, RecoveryPlan, Start, Target, Until};
use serde_json::json;

use super::super::helper::Helper;
use super::super::pace::Pace;
use super::super::served;
use super::Args;
use crate::context::Context;
use crate::exit::Complaint;
use crate::open::Opened;
use crate::text;

/// Starts it, and waits until it is where it is to be.
pub(super) async fn start(
    ctx: &Context,
    opened: &Opened,
    plan: &RecoveryPlan,
    layout: &Layout,
    binaries: Binaries,
    args: &Args,
) -> Result<()> {
    let system = plan.backup.cluster.system_identifier.get();
    let mut options = Vec::new();
    // A standby needs its WAL for longer than we are here, and so does a server that waits at the target.
    let until = until(args.standby, &args.action, &plan.target);
    let helper = match until {
        Until::Open => Some(Helper::start(ctx, opened.repository.wal_reader(system)?, plan, layout.owner)?),
        Until::Readable | Until::ShutDown => None,
    };
    if let Some(helper) = &helper {
        options.push(("restore_command".to_owned(), helper.restore_command(plan)?));
    }
    options.extend(configuration(plan, layout)?);
    let log = layout.directory.with_file_name(format!(
        "{}.log",
        layout.directory.file_name().unwrap_or_default().to_string_lossy()
    ));
    let began = Instant::now();
    let start = Start {
        binaries: binaries.clone(),
        directory: layout.directory.clone(),
        owner: layout.owner,
        options,
        log: log.clone(),
    };
    let server = start.run()?;
    ctx.printer.say(format_args!("the server recovers; it says in {} what it does", log.display()));
    let at_most = Duration::from_secs(args.start_timeout);
    let interrupted = ctx.interrupt.requested();
    let waited = served::wait(server, &layout.directory, until, at_most, helper.is_some(), interrupted);
    let (server, said) = waited.await?;
    let took = began.elapsed();
    if until == Until::Open && plan.target == Target::Latest {
        Pace::note_log(&opened.repository, plan.log_bytes(), took);
    }
    let state = match until {
        Until::Open => "open",
        Until::Readable => "open for reading",
        Until::ShutDown => "at the target, and shut down,",
    };
    ctx.printer.line(format_args!("the server is {state} after {}", text::duration(took)));
    if let Some(stopped) = &said.stopped {
        ctx.printer.say(format_args!("  {stopped}"));
    }
    if let Some(last) = &said.last_transaction {
        ctx.printer.say(format_args!("  the last transaction ended at {last}"));
    }
    let collations = match until {
        Until::Open | Until::Readable => other_collations(ctx, plan, layout, &binaries).await,
        Until::ShutDown => None,
    };
    ctx.printer.json(
        "pg_started",
        json!({ "seconds": took.as_secs_f64(), "pid": server.pid(), "stopped": said.stopped,
            "last_transaction": said.last_transaction, "timeline": said.timeline, "log": log,
            "other_collations": collations }),
    );
    // It is open, and has less than there is.
    Ok(plan.check_end(&said)?)
}

/// Warns of collations that sort otherwise on this host, and gives them as text; `None` if the server could not be asked.
async fn other_collations(
    ctx: &Context,
    plan: &RecoveryPlan,
    layout: &Layout,
    binaries: &Binaries,
) -> Option<Vec<String>> {
    let not_asked = |why: &str| {
        ctx.printer.say(format_args!("  whether it sorts as where it was made is not known: {why}"));
    };
    let Some(server) = LocalServer::find(binaries, &layout.directory, layout.owner) else {
        not_asked("`psql` of its major, or its socket, is not here");
        return None;
    };
    match server.other_collations(plan.backup.cluster.major()).await {
        Ok(others) => {
            let others: Vec<String> = others.iter().map(ToString::to_string).collect();
            for other in &others {
                ctx.printer.warn(format_args!(
                    "the collation of {other}: REINDEX what is ordered by it, then ALTER … REFRESH COLLATION VERSION"
                ));
            }
            Some(others)
        }
        Err(error) => {
            not_asked(&crate::exit::one_line(&error.into()));
            None
        }
    }
}

/// What a server that was started does first.
pub(super) fn until(standby: bool, action: &str, target: &Target) -> Until {
    match action {
        _ if standby => Until::Readable,
        // The end of the log is no target, and nothing is done there but to open.
        _ if *target == Target::Latest => Until::Open,
        "pause" => Until::Readable,
        "shutdown" => Until::ShutDown,
        _ => Until::Open,
    }
}

/// Where the server finds its configuration, if that is not in the data directory.
fn configuration(plan: &RecoveryPlan, layout: &Layout) -> Result<Vec<(String, String)>> {
    if layout.directory.join("postgresql.conf").exists() {
        return Ok(Vec::new());
    }
    let outside = plan.backup.cluster.configuration.iter().map(|file| PathBuf::from(&file.path));
    let found = outside.filter(|path| path.file_name().is_some_and(|name| name == "postgresql.conf"));
    let found = found.into_iter().find(|path| fs::metadata(path).is_ok()).ok_or_else(|| {
        Complaint::failed(
            "the cluster's postgresql.conf lies outside the data directory, and is not on this host",
        )
        .hint("The snapshot has it below `config/`: `keepwell restore SNAPSHOT:/config --target DIR`.")
    })?;
    let directory = layout.directory.to_str().context("the data directory has a strange name")?;
    Ok(vec![
        ("config_file".to_owned(), found.display().to_string()),
        ("data_directory".to_owned(), directory.to_owned()),
        ("external_pid_file".to_owned(), String::new()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_server_that_opens_gets_its_log_from_us() {
        let to = Target::Immediate;
        assert_eq!(until(false, "promote", &to), Until::Open);
        assert_eq!(until(false, "pause", &to), Until::Readable);
        assert_eq!(until(false, "shutdown", &to), Until::ShutDown);
        assert_eq!(until(false, "shutdown", &Target::Latest), Until::Open);
        assert_eq!(until(true, "promote", &to), Until::Readable);
    }
}
