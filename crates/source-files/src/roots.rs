//! The given paths as a tree: which of them lie beneath others, and what leads to them.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use backup_core::source::SourceError;

/// Names of the nodes are path components; node 0 is `/`.
#[derive(Debug)]
pub(crate) struct Roots {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<Vec<u8>, NodeId>,
    given: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeId(usize);

impl Roots {
    /// The node of `/`.
    pub const TOP: NodeId = NodeId(0);

    pub fn new(paths: &[PathBuf]) -> Result<Self, SourceError> {
        let mut roots = Self { nodes: vec![Node::default()] };
        if paths.is_empty() {
            return Err(SourceError::Other("no path is given".to_owned()));
        }
        for path in paths {
            roots.add(path)?;
        }
        Ok(roots)
    }

    fn add(&mut self, path: &Path) -> Result<(), SourceError> {
        let refuse = |why: &str| Err(SourceError::Other(format!("`{}` {why}", path.display())));
        let bytes = path.as_os_str().as_bytes();
        if !path.is_absolute() {
            return refuse("is not an absolute path");
        }
        let mut at = Self::TOP;
        for name in bytes.split(|&byte| byte == b'/').filter(|name| !matches!(*name, b"" | b".")) {
            if name == b".." || name.contains(&0) {
                return refuse("has a component that is no plain name");
            }
            at = self.child_or_new(at, name);
        }
        self.nodes[at.0].given = true;
        Ok(())
    }

    fn child_or_new(&mut self, node: NodeId, name: &[u8]) -> NodeId {
        if let Some(child) = self.child(node, name) {
            return child;
        }
        let id = NodeId(self.nodes.len());
        self.nodes.push(Node::default());
        self.nodes[node.0].children.insert(name.to_vec(), id);
        id
    }

    pub fn child(&self, node: NodeId, name: &[u8]) -> Option<NodeId> {
        self.nodes[node.0].children.get(name).copied()
    }

    /// Names that must be visited in the directory of `node`, in byte order.
    pub fn names(&self, node: NodeId) -> impl Iterator<Item = &[u8]> {
        self.nodes[node.0].children.keys().map(Vec::as_slice)
    }

    /// Whether a given path lies beneath; a symlink here is followed.
    pub fn leads_on(&self, node: NodeId) -> bool {
        !self.nodes[node.0].children.is_empty()
    }

    pub fn is_given(&self, node: NodeId) -> bool {
        self.nodes[node.0].given
    }

    /// The deepest node on the way to `path` (names joined by `/`), and how many bytes of `path` it covers.
    pub fn deepest(&self, path: &[u8]) -> (NodeId, usize) {
        let (mut node, mut covered) = (Self::TOP, 0);
        let mut end = 0;
        for name in path.split(|&byte| byte == b'/') {
            end += name.len();
            let Some(child) = self.child(node, name) else { break };
            (node, covered) = (child, end);
            end += 1;
        }
        (node, covered)
    }

    /// The given paths in snapshot order: absolute, without a slash at the end.
    pub fn paths(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        let mut pending = vec![(Self::TOP, Vec::new())];
        while let Some((node, path)) = pending.pop() {
            if self.is_given(node) {
                found.push(if path.is_empty() { b"/".to_vec() } else { path.clone() });
            }
            for (name, &child) in self.nodes[node.0].children.iter().rev() {
                pending.push((child, [path.as_slice(), b"/", name].concat()));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roots(paths: &[&str]) -> Result<Roots, SourceError> {
        Roots::new(&paths.iter().map(PathBuf::from).collect::<Vec<_>>())
    }

    #[test]
    fn paths_are_normalized_merged_and_sorted_by_component() {
        for (given, expected) in [
            (&["/"][..], &["/"][..]),
            (&["/b", "/a/", "//a/./x"], &["/a", "/a/x", "/b"]),
            (&["/a-b", "/a/z", "/a"], &["/a", "/a/z", "/a-b"]),
        ] {
            let paths = roots(given).unwrap().paths();
            let shown: Vec<_> = paths.iter().map(|path| String::from_utf8_lossy(path).into_owned()).collect();
            assert_eq!(shown, expected, "{given:?}");
        }
    }

    #[test]
    fn what_is_no_absolute_plain_path_is_refused() {
        for (given, message) in [
            (&[][..], "no path is given"),
            (&["a"], "`a` is not an absolute path"),
            (&["/a/../b"], "`/a/../b` has a component that is no plain name"),
        ] {
            assert_eq!(roots(given).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn deepest_finds_the_last_known_directory_on_the_way() {
        let roots = roots(&["/srv/data", "/srv/data/deep/er"]).unwrap();
        for (path, covered, given) in [
            ("srv/data/x", 8, true),
            ("srv", 3, false),
            ("etc/srv", 0, false),
            ("srv/data/deep/er", 16, true),
        ] {
            let (node, bytes) = roots.deepest(path.as_bytes());
            assert_eq!((bytes, roots.is_given(node)), (covered, given), "{path}");
        }
    }
}
