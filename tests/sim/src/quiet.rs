//! When a process has come to rest: every thread of it sleeps, and only the simulation can wake one.
//!
//! The engine computes on threads of several kinds: its runtime's, blocking ones, scoped ones. Rather than have them
//! counted by the engine, we ask the kernel. A thread that sleeps in `/proc` was not woken yet; and as long as its count
//! of switches stands still, it has not run. If all threads of a process sleep in two rounds of looking, and none has
//! run in between, then from the end of the first round on nobody was left to wake anybody: the process is at rest.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// Looks at the threads of this operating system process.
#[derive(Debug, Default)]
pub(crate) struct Quiet {
    threads: BTreeMap<u32, Thread>,
    /// Threads that sleep for good.
    asleep: Vec<u32>,
}

#[derive(Debug)]
struct Thread {
    name: String,
    stat: File,
    switches: File,
}

/// The number of the calling thread.
pub(crate) fn this_thread() -> u32 {
    let link = fs::read_link("/proc/thread-self").expect("Linux says which thread this is");
    let number = link.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    number.expect("the last component is the thread's number")
}

impl Quiet {
    /// This thread sleeps until its process ends, and is not waited for.
    pub fn ignore(&mut self, thread: u32) {
        self.asleep.push(thread);
    }

    /// Returns when the threads of a process, told by the beginning of their names, are at rest.
    pub fn settle(&mut self, process: &str) {
        let mut rounds = 0u32;
        loop {
            if let Some(first) = self.look(process)
                && self.look(process).is_some_and(|second| first == second)
            {
                return;
            }
            rounds += 1;
            match rounds {
                ..4 => std::thread::yield_now(),
                4..64 => std::thread::sleep(Duration::from_micros(20)),
                _ => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }

    /// The threads of the process with their counts of switches; `None` if one is awake, or came or went just now.
    fn look(&mut self, process: &str) -> Option<Vec<(u32, u64)>> {
        self.refresh()?;
        let mut found = Vec::new();
        for (number, thread) in &self.threads {
            if thread.name.strip_prefix(process).is_some_and(|rest| matches!(rest, "" | "+")) {
                found.push((*number, thread.at_rest()?));
            }
        }
        Some(found)
    }

    fn refresh(&mut self) -> Option<()> {
        let mut current = Vec::with_capacity(self.threads.len() + 1);
        for entry in fs::read_dir("/proc/self/task").ok()? {
            current.push(entry.ok()?.file_name().to_str()?.parse::<u32>().ok()?);
        }
        self.asleep.retain(|number| current.contains(number)); // numbers of the dead are given out again
        current.retain(|number| !self.asleep.contains(number));
        self.threads.retain(|number, _| current.contains(number));
        for number in current {
            if let std::collections::btree_map::Entry::Vacant(slot) = self.threads.entry(number) {
                slot.insert(Thread::open(number)?);
            }
        }
        Some(())
    }
}

impl Thread {
    fn open(number: u32) -> Option<Self> {
        let file = |name: &str| File::open(format!("/proc/self/task/{number}/{name}")).ok();
        let name = fs::read_to_string(format!("/proc/self/task/{number}/comm")).ok()?;
        Some(Self { name: name.trim_end().to_owned(), stat: file("stat")?, switches: file("schedstat")? })
    }

    /// How often it has been given a processor, if it sleeps.
    fn at_rest(&self) -> Option<u64> {
        let mut buffer = [0; 512];
        let text = read(&self.stat, &mut buffer)?;
        let state = text.rsplit_once(") ")?.1.chars().next()?;
        if state != 'S' {
            return None;
        }
        read(&self.switches, &mut buffer)?.split_ascii_whitespace().nth(2)?.parse().ok()
    }
}

fn read<'b>(file: &File, buffer: &'b mut [u8]) -> Option<&'b str> {
    let n = file.read_at(buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..n]).ok()
}
