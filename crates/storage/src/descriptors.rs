//! How many files a process may have open.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Lets this process have as many files open at once as the system allows it; the usual limit, 1024, is that of programs
/// which wait by `select`. For programs, at their start: the local cache of a repository keeps one open for each larger part
/// of its index, and a repository that nobody has pruned for long has thousands.
///
/// Where the system refuses, the limit stays as it was.
pub fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Refused where the maximum is no number that the system takes; then there are fewer.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_as_the_system_allows() {
        raise_file_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
