//! Somebody who ends a server when this process dies before it has done so.

use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Stdio};

use super::server::command;

/// Waits for a line or for the end of its input, which only our death brings. Of a number that passed to another process
/// meanwhile the directory is another one.
const SCRIPT: &str = r#"read -r _ && exit; [ "$(readlink "/proc/$1/cwd")" = "$2" ] && kill -QUIT "$1""#;

/// A process of its own that watches over a server. Dropping it calls it off.
#[derive(Debug)]
pub(crate) struct Watch(Child);

impl Watch {
    /// Begins. `directory` is the data directory of the server, in which it runs.
    pub fn over(pid: u32, directory: &Path, owner: Option<(u32, u32)>) -> io::Result<Self> {
        let mut command = command(Path::new("/bin/sh"), owner, Path::new("/"));
        command.args(["-c", SCRIPT, "sh", &pid.to_string()]).arg(directory);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().map(Self)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(mut input) = self.0.stdin.take() {
            // If it is gone already, nobody needs to be told.
            let _ = input.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn sleeper(directory: &Path) -> Child {
        Command::new("sleep").arg("600").current_dir(directory).spawn().unwrap()
    }

    #[test]
    fn a_server_is_ended_when_nobody_calls_the_watch_off_and_only_that_server() {
        let (own, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (own, other) = (own.path().canonicalize().unwrap(), other.path().canonicalize().unwrap());
        let mut server = sleeper(&own);
        drop(Watch::over(server.id(), &own, None).unwrap());
        assert!(server.try_wait().unwrap().is_none(), "it was called off");
        let mut watch = Watch::over(server.id(), &other, None).unwrap();
        drop(watch.0.stdin.take());
        watch.0.wait().unwrap();
        assert!(server.try_wait().unwrap().is_none(), "it is the server of another directory");
        let mut watch = Watch::over(server.id(), &own, None).unwrap();
        // As when this process dies.
        drop(watch.0.stdin.take());
        watch.0.wait().unwrap();
        assert!(!server.wait().unwrap().success());
    }
}
