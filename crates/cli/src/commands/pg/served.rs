//! Waiting for a server that recovers, also one that has its log from this process.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use keepwell_source_postgres::recovery::{RunningServer, Said, ServerError, StopSignal, Until};

use crate::exit::Complaint;

/// Waits until a server has come so far, or somebody interrupts that.
///
/// A server that has its log from this process could not go on without it: it is stopped in order when it is waited for no
/// longer. Another one goes on.
pub async fn wait(
    mut server: RunningServer,
    directory: &Path,
    until: Until,
    at_most: Duration,
    is_served: bool,
    interrupted: impl Future<Output = ()>,
) -> Result<(RunningServer, Said)> {
    let waited = tokio::select! {
        said = server.wait(until, at_most) => Some(said),
        () = interrupted => None,
    };
    let why = match waited {
        Some(Ok(said)) => return Ok((server, said)),
        Some(Err(ServerError::TooSlow { seconds })) if is_served => {
            format!("the server did not get there within {seconds} s")
        }
        Some(Err(error)) => return Err(error.into()),
        None => "stopped".to_owned(),
    };
    if !is_served {
        return Err(Complaint::failed(format!("{why}; the server still runs")).into());
    }
    server.stop(StopSignal::Fast).await?;
    Err(Complaint::failed(format!("{why}, and was stopped in order; nothing is lost"))
        .hint(format!(
            "It goes on where it was by the restore_command that was written: `pg_ctl start -D {}`.",
            directory.display()
        ))
        .into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use keepwell_source_postgres::recovery::{Binaries, Start};

    use super::*;
    use crate::exit::hints_of;

    /// A server that recovers for ever.
    fn server(directory: &Path) -> RunningServer {
        let program = "#!/bin/sh\ncase $1 in --version) echo 'postgres (PostgreSQL) 15.1'; exit;; esac\nexec sleep 600\n";
        fs::write(directory.join("postgres"), program).unwrap();
        fs::set_permissions(directory.join("postgres"), fs::Permissions::from_mode(0o755)).unwrap();
        let start = Start {
            binaries: Binaries::find(15, &[directory.to_owned()]).unwrap(),
            directory: directory.to_owned(),
            owner: None,
            options: Vec::new(),
            log: directory.join("log"),
        };
        start.run().unwrap()
    }

    #[tokio::test]
    async fn a_server_that_would_lose_its_log_with_us_is_stopped_and_another_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let never = std::future::pending::<()>;
        let wait = |at_most, is_served| {
            let server = server(dir.path());
            let process = PathBuf::from(format!("/proc/{}", server.pid()));
            (process, wait(server, dir.path(), Until::Open, at_most, is_served, never()))
        };
        let (process, waited) = wait(Duration::ZERO, true);
        let error = waited.await.unwrap_err();
        assert!(!process.exists(), "{error}");
        assert!(hints_of(&error)[0].contains("pg_ctl start -D"), "{error}");
        let (process, waited) = wait(Duration::ZERO, false);
        let error = waited.await.unwrap_err();
        assert!(process.exists() && error.to_string().ends_with("it still runs"), "{error}");
        let pid = process.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        // Interrupted.
        let server = server(dir.path());
        let process = PathBuf::from(format!("/proc/{}", server.pid()));
        let a_day = Duration::from_secs(86_400);
        let stopped = super::wait(server, dir.path(), Until::Open, a_day, true, async {}).await;
        assert!(stopped.unwrap_err().to_string().starts_with("stopped") && !process.exists());
    }
}
