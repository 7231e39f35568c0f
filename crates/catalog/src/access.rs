//! What each role must be able to do with the objects of a repository, and nothing more: what access policies of stores
//! are made from.

use keepwell_crypto::MemberId;

/// Whom a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A backup host, or all of them: adds, and neither destroys nor reads content.
    ///
    /// Without a member the policy is for any writer, who then can take numbers that belong to another.
    Writer(Option<MemberId>),
    /// Restores and verifies.
    Reader,
    /// Forgets, prunes, and extends locks.
    Keeper,
}

/// Something that may be done to objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// Store an object under a name that is free.
    Create,
    /// Read an object, and its size.
    Read,
    /// Remove an object.
    Delete,
}

/// What a role may do to all objects whose key begins with a prefix. Everybody may list everything: names say little,
/// and commands go by them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Grant {
    /// What.
    pub action: Action,
    /// A directory with its `/`, a whole key, or nothing for all objects.
    pub prefix: String,
}

impl Grant {
    /// Whether the grant covers a key.
    pub fn covers(&self, action: Action, key: &str) -> bool {
        let inside = self.prefix.is_empty() || self.prefix.ends_with('/') && key.starts_with(&self.prefix);
        self.action == action && (inside || self.prefix == key)
    }
}

/// What only its owner creates, reads or continues: a writer's sessions, ends, lists and state, and the WAL that it archives.
const OWN: [&str; 5] = ["sessions/", "commits/", "lists/", "state/", "wal/"];
/// What any writer adds to.
const ADDED: [&str; 5] = ["data/", "meta/", "index/", "manifests/", "probe/"];
/// What a writer reads of others: where things are, what is doomed, who may write, how far others are.
const READ: [&str; 8] =
    ["keepwell.json", "trust/", "keys/", "index/", "commits/", "gc/", "retired/", "probe/"];

/// What a role needs, in order, nothing twice.
pub fn grants(role: Role) -> Vec<Grant> {
    let grant = |action, prefix: &str| Grant { action, prefix: prefix.to_owned() };
    let mut grants: Vec<Grant> = match role {
        Role::Writer(member) => {
            let own = |prefix: &&str| match member {
                Some(member) => format!("{prefix}{member}/"),
                None => (*prefix).to_owned(),
            };
            let own: Vec<String> = OWN.iter().map(own).collect();
            let creates = ADDED.iter().map(|prefix| grant(Action::Create, prefix));
            let creates = creates.chain(own.iter().map(|prefix| grant(Action::Create, prefix)));
            let reads = READ.iter().map(|prefix| grant(Action::Read, prefix));
            let reads = reads.chain(own.iter().map(|prefix| grant(Action::Read, prefix)));
            creates.chain(reads).collect()
        }
        Role::Reader => vec![grant(Action::Read, "")],
        Role::Keeper => vec![grant(Action::Create, ""), grant(Action::Read, ""), grant(Action::Delete, "")],
    };
    let whole: Vec<Grant> = grants.clone();
    grants.retain(|grant| {
        !whole.iter().any(|other| other != grant && other.covers(grant.action, &grant.prefix))
    });
    grants.sort();
    grants.dedup();
    grants
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(role: Role, action: Action, key: &str) -> bool {
        grants(role).iter().any(|grant| grant.covers(action, key))
    }

    fn writer() -> (Role, String) {
        let member = MemberId::from_bytes([7; 8]);
        (Role::Writer(Some(member)), member.to_string())
    }

    #[test]
    fn a_writer_destroys_nothing_and_reads_no_content() {
        let (role, _) = writer();
        assert!(grants(role).iter().all(|grant| grant.action != Action::Delete));
        for key in ["data/7b/x", "meta/7b/x", "manifests/x", "state/0000000000000000/x"] {
            assert!(!may(role, Action::Read, key), "{key}");
        }
    }

    #[test]
    fn a_writer_takes_no_number_of_another_and_signs_nothing_for_keepers() {
        let (role, own) = writer();
        for top in ["sessions", "commits", "lists", "state", "wal"] {
            assert!(may(role, Action::Create, &format!("{top}/{own}/0000000001")), "{top}");
            assert!(!may(role, Action::Create, &format!("{top}/0000000000000000/0000000001")), "{top}");
            assert!(
                may(Role::Writer(None), Action::Create, &format!("{top}/0000000000000000/0000000001")),
                "{top}"
            );
        }
        for key in
            ["keepwell.json", "trust/0000000009", "keys/x/0000000000", "gc/0000000001", "retired/0000000001"]
        {
            assert!(!may(role, Action::Create, key), "{key}");
        }
    }

    #[test]
    fn a_key_is_no_prefix() {
        let grant = Grant { action: Action::Read, prefix: "keepwell.json".into() };
        assert!(grant.covers(Action::Read, "keepwell.json") && !grant.covers(Action::Read, "keepwell.json2"));
        assert!(!grant.covers(Action::Create, "keepwell.json"));
    }

    #[test]
    fn grants_that_others_cover_are_left_out() {
        let (role, own) = writer();
        let reads: Vec<_> = grants(role).into_iter().filter(|grant| grant.action == Action::Read).collect();
        assert!(reads.iter().any(|grant| grant.prefix == "commits/"));
        assert!(!reads.iter().any(|grant| grant.prefix == format!("commits/{own}/")), "{reads:?}");
    }
}
