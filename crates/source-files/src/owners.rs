//! Names of users and groups, from `/etc/passwd` and `/etc/group`.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

/// Files larger than this are not the user database of a machine.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Both tables, read once. A number without a name there has none; other name services are not asked.
#[derive(Debug, Default)]
pub(crate) struct Owners {
    users: HashMap<u32, Arc<str>>,
    groups: HashMap<u32, Arc<str>>,
}

impl Owners {
    pub fn of_this_machine() -> Self {
        Self { users: table(Path::new("/etc/passwd")), groups: table(Path::new("/etc/group")) }
    }

    pub fn user(&self, uid: u32) -> Option<Arc<str>> {
        self.users.get(&uid).cloned()
    }

    pub fn group(&self, gid: u32) -> Option<Arc<str>> {
        self.groups.get(&gid).cloned()
    }
}

fn table(path: &Path) -> HashMap<u32, Arc<str>> {
    let sane = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= FILE_BYTES_MAX);
    let bytes = if sane { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
    parse(&String::from_utf8_lossy(&bytes))
}

/// Lines of `name:password:number:…`; the first name of a number counts.
fn parse(text: &str) -> HashMap<u32, Arc<str>> {
    let mut names = HashMap::new();
    for line in text.lines() {
        let mut fields = line.split(':');
        if let (Some(name), Some(_), Some(Ok(number))) =
            (fields.next(), fields.next(), fields.next().map(str::parse))
            && !name.is_empty()
        {
            names.entry(number).or_insert_with(|| Arc::from(name));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_of_a_number_counts_and_odd_lines_are_skipped() {
        let names = parse("root:x:0:0::/:/bin/sh\n# note\ntoor:x:0:0\n+@nis\n:x:5\nweb:x:33:\nbad:x:-1:\n");
        let mut found: Vec<_> = names.iter().map(|(number, name)| (*number, name.as_ref())).collect();
        found.sort_unstable();
        assert_eq!(found, [(0, "root"), (33, "web")]);
    }
}
