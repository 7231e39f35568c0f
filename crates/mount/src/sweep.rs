//! Asks the kernel to forget files that it knows and nobody uses, so that their table stays small.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, Notifier};

use crate::nodes::Nodes;

/// While all of the oldest are in use, there is no hurry to ask again.
const PAUSE: Duration = Duration::from_millis(20);

/// On a thread of its own: the kernel holds a directory while it waits for our answer about it, and asking it to forget
/// something there would wait for that.
pub(crate) fn start(nodes: Arc<Nodes>, notifier: Notifier) -> std::io::Result<()> {
    let sweep = move || {
        while let Some(oldest) = nodes.next_to_sweep() {
            for (parent, name) in oldest {
                // It may have forgotten that by itself.
                let _ = notifier.inval_entry(INodeNo(parent), OsStr::from_bytes(&name));
            }
            std::thread::sleep(PAUSE);
        }
    };
    std::thread::Builder::new().name("mount-sweep".to_owned()).spawn(sweep).map(drop)
}
