//! What the lifecycle rules of a bucket do to a repository.

use std::fmt;

/// Storage classes of S3 services whose objects cannot be read before they are thawed.
pub(crate) const ARCHIVES: &[&str] =
    &["GLACIER", "DEEP_ARCHIVE", "ARCHIVE", "COLD_ARCHIVE", "DEEP_COLD_ARCHIVE"];

/// Whether objects of a storage class of S3 cannot be read before they are thawed.
pub fn is_archive_class(class: &str) -> bool {
    ARCHIVES.contains(&class)
}

/// Days that nobody should have less of to notice that something was deleted.
pub(crate) const NOTICE_DAYS: u32 = 14;

/// A rule by which a bucket deletes or moves objects by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifecycleRule {
    /// Its name, for people.
    pub id: String,
    /// Whether it is in force.
    pub enabled: bool,
    /// What the keys begin with that it is for; empty for all.
    pub prefix: String,
    /// It is only for objects with certain tags, which ours do not have.
    pub tagged: bool,
    /// When it deletes objects, or hides them behind a delete marker.
    pub expires: Option<When>,
    /// Where it moves objects.
    pub transitions: Vec<Transition>,
    /// After how many days it deletes versions that are not the newest.
    pub old_versions_expire_days: Option<u32>,
    /// After how many days it removes the parts of uploads that were never completed.
    pub abort_incomplete_days: Option<u32>,
}

impl LifecycleRule {
    /// Whether it moves objects of ours to a class from which they must be thawed.
    pub fn archives(&self) -> bool {
        self.enabled && !self.tagged && self.transitions.iter().any(|to| is_archive_class(&to.class))
    }
}

/// A move to another storage class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The class.
    pub class: String,
    /// Its objects cannot be read before they are thawed.
    pub archive: bool,
    /// When.
    pub when: When,
}

/// When a rule acts on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// So many days after it was stored.
    Days(u32),
    /// On a date, as the store writes it.
    Date(String),
}

impl fmt::Display for When {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Days(1) => formatter.write_str("a day after they were stored"),
            Self::Days(days) => write!(formatter, "{days} days after they were stored"),
            Self::Date(date) => write!(formatter, "on {date}"),
        }
    }
}

/// What a rule does to a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Danger {
    /// Backups are lost, or cannot be used: one sentence.
    Problem(String),
    /// To be known: one sentence.
    Note(String),
}

impl LifecycleRule {
    /// What the rule does to a repository whose keys begin with `prefix` (empty, or ending in `/`).
    pub fn dangers(&self, prefix: &str) -> Vec<Danger> {
        if !self.enabled || self.tagged || !self.touches(prefix) {
            return Vec::new();
        }
        let (mut dangers, name) = (Vec::new(), &self.id);
        if let Some(when) = &self.expires {
            dangers.push(Danger::Problem(format!(
                "The lifecycle rule `{name}` deletes objects of this repository {when}: backups will be lost. Remove it, \
                 or limit it to another prefix."
            )));
        }
        let packs_only = self.prefix.starts_with(&format!("{prefix}data/"));
        for Transition { class, archive, when } in &self.transitions {
            if !archive {
                dangers.push(Danger::Note(format!(
                    "The lifecycle rule `{name}` moves objects to {class} {when}; they can still be read at once."
                )));
            } else if packs_only {
                dangers.push(Danger::Note(format!(
                    "The lifecycle rule `{name}` moves data packs to {class} {when}: before a restore they must be \
                     thawed with `keepwell warm-up`."
                )));
            } else {
                dangers.push(Danger::Problem(format!(
                    "The lifecycle rule `{name}` moves more than data packs to {class} {when}: the repository then \
                     cannot be opened. Limit the rule to the prefix `{prefix}data/`."
                )));
            }
        }
        if let Some(days) = self.old_versions_expire_days.filter(|days| *days < NOTICE_DAYS) {
            dangers.push(Danger::Note(format!(
                "The lifecycle rule `{name}` removes old versions after {days} days: what an attacker or a mistake \
                 deletes can be brought back only until then. {NOTICE_DAYS} or more are advised."
            )));
        }
        dangers
    }

    /// Whether the rule removes what unfinished uploads to the repository leave behind.
    pub fn cleans_uploads(&self, prefix: &str) -> bool {
        self.enabled
            && !self.tagged
            && self.abort_incomplete_days.is_some()
            && prefix.starts_with(&self.prefix)
    }

    /// Whether the rule removes old versions of what the repository deleted.
    pub fn cleans_versions(&self, prefix: &str) -> bool {
        self.enabled
            && !self.tagged
            && self.old_versions_expire_days.is_some()
            && prefix.starts_with(&self.prefix)
    }

    fn touches(&self, prefix: &str) -> bool {
        prefix.starts_with(&self.prefix) || self.prefix.starts_with(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(prefix: &str) -> LifecycleRule {
        LifecycleRule { id: "r".into(), enabled: true, prefix: prefix.into(), ..LifecycleRule::default() }
    }

    fn expiring(prefix: &str) -> LifecycleRule {
        LifecycleRule { expires: Some(When::Days(30)), ..rule(prefix) }
    }

    fn moving(prefix: &str, class: &str) -> LifecycleRule {
        let archive = class.starts_with("GLACIER") || class.ends_with("ARCHIVE");
        let transition = Transition { class: class.into(), archive, when: When::Days(1) };
        LifecycleRule { transitions: vec![transition], ..rule(prefix) }
    }

    fn is_problem(dangers: &[Danger]) -> bool {
        dangers.iter().any(|danger| matches!(danger, Danger::Problem(_)))
    }

    #[test]
    fn only_rules_in_force_that_lead_into_an_archive_archive() {
        assert!(moving("", "DEEP_ARCHIVE").archives());
        assert!(!moving("", "STANDARD_IA").archives() && !moving("", "GLACIER_IR").archives());
        assert!(!LifecycleRule { enabled: false, ..moving("", "GLACIER") }.archives());
        assert!(!LifecycleRule { tagged: true, ..moving("", "GLACIER") }.archives());
    }

    #[test]
    fn a_rule_that_expires_objects_of_ours_is_a_problem_wherever_it_begins() {
        let cases = [
            ("", "", true),
            ("", "host/", true),
            ("host/", "host/", true),
            ("host/data/", "host/", true),
            ("ho", "host/", true),
            ("logs/", "", true), // nothing of ours begins so today, and nobody promises it for tomorrow
            ("logs/", "host/", false),
            ("host2/", "host/", false),
        ];
        for (rule_prefix, ours, expected) in cases {
            let dangers = expiring(rule_prefix).dangers(ours);
            assert_eq!(is_problem(&dangers), expected, "{rule_prefix:?} over {ours:?}: {dangers:?}");
        }
    }

    #[test]
    fn rules_that_are_off_or_for_tagged_objects_do_not_count() {
        assert_eq!(LifecycleRule { enabled: false, ..expiring("") }.dangers(""), []);
        assert_eq!(LifecycleRule { tagged: true, ..expiring("") }.dangers(""), []);
    }

    #[test]
    fn only_data_packs_may_be_archived() {
        assert!(is_problem(&moving("", "GLACIER").dangers("")));
        assert!(is_problem(&moving("host/", "DEEP_ARCHIVE").dangers("host/")));
        assert!(is_problem(&moving("host/meta/", "GLACIER").dangers("host/")));
        for dangers in
            [moving("host/data/", "GLACIER").dangers("host/"), moving("", "STANDARD_IA").dangers("host/")]
        {
            assert!(!is_problem(&dangers) && dangers.len() == 1, "{dangers:?}");
        }
    }

    #[test]
    fn the_rule_is_named() {
        let rule = LifecycleRule { id: "clean up".into(), ..expiring("") };
        let [Danger::Problem(text)] = &rule.dangers("")[..] else { panic!("one problem") };
        assert!(text.contains("`clean up`") && text.contains("30 days"), "{text}");
    }

    #[test]
    fn a_rule_for_uploads_must_cover_all_of_the_repository() {
        let rule = |prefix| LifecycleRule { abort_incomplete_days: Some(7), ..rule(prefix) };
        assert!(rule("").cleans_uploads("host/"));
        assert!(rule("host/").cleans_uploads("host/"));
        assert!(!rule("host/data/").cleans_uploads("host/"));
    }
}
