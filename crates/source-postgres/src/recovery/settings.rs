//! What a recovering server is told.

use super::target::{Bound, Target};
use crate::archive::Asker;
use crate::lsn::Timeline;

/// Settings that belong to one recovery: none of an earlier one may be left.
const OF_RECOVERY: [&str; 13] = [
    "archive_cleanup_command",
    "promote_trigger_file",
    "recovery_end_command",
    DELAY,
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// What `postgresql.conf` may have of another recovery, or for standbys, is set to nothing: commands that are to tidy up or
/// announce somebody else, and targets, of which there must be one at most.
const SET_TO_NOTHING: [&str; 7] = [
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// How long a server waits with each transaction, also in a recovery that ends.
const DELAY: &str = "recovery_min_apply_delay";

/// Whether the restored cluster does elsewhere what the original did: archives its own WAL, and follows its subscriptions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Archiving {
    /// It does not: a copy must never archive into the archive of the original, nor take from publishers what that is to get.
    #[default]
    Off,
    /// It does: it takes the place of the original.
    AsBackedUp,
}

/// What the server does with the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// Recovers to a target along a timeline, and then opens on a timeline of its own, waits or ends.
    Recover {
        /// Up to where.
        target: Target,
        /// The timeline that it follows.
        timeline: Timeline,
        /// PostgreSQL's word: `promote`, `pause`, `shutdown`.
        action: String,
    },
    /// Follows the log for ever.
    Standby,
}

/// The settings of a recovery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoverySettings {
    /// What the server does.
    pub mode: Mode,
    /// How it gets the files of the log.
    pub restore_command: String,
    /// Whether it archives afterwards, and follows subscriptions.
    pub archiving: Archiving,
    /// Further settings, by name: another port, say.
    pub more: Vec<(String, String)>,
}

impl RecoverySettings {
    /// Names and values, in the order in which they are written. Further settings take the place of ours.
    pub fn list(&self) -> Vec<(String, String)> {
        let mut list = vec![("restore_command", self.restore_command.clone())];
        match &self.mode {
            Mode::Standby => list.push(("recovery_target_timeline", "latest".to_owned())),
            Mode::Recover { target, timeline, action } => {
                list.push(("recovery_target_timeline", timeline.to_string()));
                if let Some(setting) = target.setting() {
                    list.push(setting);
                    list.push(("recovery_target_action", action.clone()));
                }
                if let Some(bound) = target.bound() {
                    let inclusive = if bound == Bound::Inclusive { "on" } else { "off" };
                    list.push(("recovery_target_inclusive", inclusive.to_owned()));
                }
            }
        }
        if self.archiving == Archiving::Off {
            list.push(("archive_mode", "off".to_owned()));
            // No standby follows any, and one that is promoted takes the place of the original.
            if self.mode != Mode::Standby {
                list.push(("max_logical_replication_workers", "0".to_owned()));
            }
        }
        let is_given = |name: &str| self.more.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
        let own = list.into_iter().filter(|(name, _)| !is_given(name));
        let own = own.map(|(name, value)| (name.to_owned(), value));
        own.chain(self.more.iter().cloned()).collect()
    }

    /// The `postgresql.auto.conf` with these settings and without those of an earlier recovery.
    pub fn apply(&self, before: &str) -> String {
        let list = self.list();
        let is_own = |name: &str| list.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
        let mut text = forget(before, |name| OF_RECOVERY.contains(&name) || is_own(name));
        // First: what is set to nothing takes away the target that was set before it.
        for name in SET_TO_NOTHING.into_iter().filter(|name| !is_own(name)) {
            text.push_str(&format!("{name} = ''\n"));
        }
        // A standby may be meant to lag behind. Another recovery would wait for no reason.
        if self.mode != Mode::Standby && !is_own(DELAY) {
            text.push_str(&format!("{DELAY} = '0'\n"));
        }
        for (name, value) in &list {
            text.push_str(&format!("{name} = '{}'\n", value.replace('\\', "\\\\").replace('\'', "''")));
        }
        text
    }

    /// The file whose existence makes the server recover.
    pub fn signal_file(&self) -> &'static str {
        match self.mode {
            Mode::Standby => "standby.signal",
            Mode::Recover { .. } => "recovery.signal",
        }
    }
}

/// The `postgresql.auto.conf` of a cluster whose recovery is over.
pub(super) fn forget_recovery(before: &str) -> String {
    forget(before, |name| OF_RECOVERY.contains(&name))
}

/// What holds of what was known of a server when it was told to recover, now that its `postgresql.auto.conf` is this: somebody
/// may have taken the target away, to go on from there, or given it another timeline.
pub fn still_known(asker: Asker, settings: &str) -> Asker {
    let mut targets = SET_TO_NOTHING.into_iter().filter(|name| name.starts_with("recovery_target"));
    let has_target = targets.any(|name| value(settings, name).is_some_and(|value| !value.is_empty()));
    let timeline = value(settings, "recovery_target_timeline");
    let is_followed = |number: &Timeline| timeline == Some(number.to_string().as_str());
    Asker { to_gap: asker.to_gap && has_target, follows: asker.follows.filter(is_followed) }
}

/// The value of a setting, by the last line that gives one.
fn value<'s>(settings: &'s str, name: &str) -> Option<&'s str> {
    let line = settings.lines().rev().find(|line| name_in(line).eq_ignore_ascii_case(name))?;
    let value = line.trim_start().get(name.len()..)?;
    Some(value.trim_matches([' ', '\t', '=']).trim_matches('\''))
}

fn name_in(line: &str) -> &str {
    line.trim_start().split([' ', '\t', '=']).next().unwrap_or_default()
}

/// The lines that set something else; names are given in lower case.
fn forget(before: &str, goes: impl Fn(&str) -> bool) -> String {
    let mut text = String::new();
    for line in before.lines() {
        if !goes(&name_in(line).to_ascii_lowercase()) {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// The `tablespace_map` of a cluster whose tablespaces lie there.
pub(super) fn tablespace_map<'p>(places: impl IntoIterator<Item = (u32, &'p str)>) -> String {
    let mut text = String::new();
    for (oid, place) in places {
        text.push_str(&format!("{oid} "));
        for c in place.chars() {
            if matches!(c, '\n' | '\r' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::target::TargetTime;
    use super::*;

    fn recover(target: Target) -> RecoverySettings {
        let mode =
            Mode::Recover { target, timeline: Timeline::new(3).unwrap(), action: "promote".to_owned() };
        RecoverySettings {
            mode,
            restore_command: "get '%f' %p".to_owned(),
            archiving: Archiving::Off,
            more: Vec::new(),
        }
    }

    #[test]
    fn settings_of_an_earlier_recovery_go_and_all_others_stay() {
        let before = "# no edits\nshared_buffers = '1GB'\nrecovery_target_name='old'\n  Restore_Command = 'x'\n\
                      archive_mode = on\nprimary_conninfo = 'host=a'\n";
        let time = TargetTime::new(1_795_262_401_500_000_000).unwrap();
        assert_eq!(
            recover(Target::Time(time, Bound::Exclusive)).apply(before),
            "# no edits\nshared_buffers = '1GB'\nprimary_conninfo = 'host=a'\n\
             archive_cleanup_command = ''\nrecovery_end_command = ''\n\
             recovery_target = ''\nrecovery_target_lsn = ''\nrecovery_target_name = ''\nrecovery_target_xid = ''\n\
             recovery_min_apply_delay = '0'\nrestore_command = 'get ''%f'' %p'\nrecovery_target_timeline = '3'\n\
             recovery_target_time = '2026-11-21 12:00:01.500000+00'\n\
             recovery_target_action = 'promote'\nrecovery_target_inclusive = 'off'\narchive_mode = 'off'\n\
             max_logical_replication_workers = '0'\n"
        );
    }

    #[test]
    fn a_recovery_that_is_over_leaves_no_settings_behind() {
        let after = recover(Target::Immediate).apply("shared_buffers = '1GB'\n");
        assert_eq!(
            forget_recovery(&after),
            "shared_buffers = '1GB'\narchive_mode = 'off'\nmax_logical_replication_workers = '0'\n"
        );
    }

    #[test]
    fn a_copy_takes_nothing_from_publishers_unless_it_is_told_to_and_a_standby_keeps_what_it_has() {
        let given = |settings: &RecoverySettings| -> Vec<String> {
            let list = settings.list().into_iter();
            list.filter(|(name, _)| name.eq_ignore_ascii_case("max_logical_replication_workers"))
                .map(|(_, value)| value)
                .collect()
        };
        let copy = recover(Target::Latest);
        assert_eq!(given(&copy), ["0"]);
        let own = ("Max_Logical_Replication_Workers".to_owned(), "4".to_owned());
        assert_eq!(given(&RecoverySettings { more: vec![own], ..copy.clone() }), ["4"]);
        let original = RecoverySettings { archiving: Archiving::AsBackedUp, ..copy.clone() };
        assert!(given(&original).is_empty());
        let standby = RecoverySettings { mode: Mode::Standby, ..copy };
        assert!(given(&standby).is_empty() && standby.apply("").ends_with("archive_mode = 'off'\n"));
    }

    #[test]
    fn the_end_of_the_log_is_no_target_and_a_standby_follows_every_timeline() {
        // Whatever stands in `postgresql.conf` from before, it does not count.
        let none = "archive_cleanup_command = ''\nrecovery_end_command = ''\n\
                    recovery_target = ''\nrecovery_target_lsn = ''\nrecovery_target_name = ''\n\
                    recovery_target_time = ''\nrecovery_target_xid = ''\n";
        let latest = recover(Target::Latest);
        assert!(latest.apply("").starts_with(&format!("{none}recovery_min_apply_delay = '0'\n")));
        assert!(!latest.apply("").contains("recovery_target_action"));
        let slow = ("recovery_min_apply_delay".to_owned(), "1h".to_owned());
        let slow = RecoverySettings { more: vec![slow], ..latest.clone() };
        assert_eq!(slow.apply("").matches("recovery_min_apply_delay").count(), 1);
        let standby = RecoverySettings { mode: Mode::Standby, archiving: Archiving::AsBackedUp, ..latest };
        assert_eq!(
            standby.apply("archive_mode = on\n"),
            format!(
                "archive_mode = on\n{none}restore_command = 'get ''%f'' %p'\nrecovery_target_timeline = 'latest'\n"
            )
        );
        assert_eq!(standby.signal_file(), "standby.signal");
    }

    #[test]
    fn a_server_that_lost_its_target_or_follows_another_timeline_is_not_the_one_that_was_planned_for() {
        let told = Asker { to_gap: true, follows: Timeline::new(3) };
        let written = recover(Target::Xid(7, Bound::Inclusive)).apply("");
        assert_eq!(still_known(told, &written), told);
        assert_eq!(still_known(Asker::default(), &written), Asker::default());
        assert_eq!(still_known(told, ""), Asker::default());
        let (end, elsewhere) = (Asker { to_gap: false, ..told }, Asker { follows: None, ..told });
        assert_eq!(still_known(told, &recover(Target::Latest).apply("")), end);
        // As `ALTER SYSTEM RESET`, or `SET` to nothing or to another timeline, leaves it.
        assert_eq!(still_known(told, &written.replace("recovery_target_xid = '7'\n", "")), end);
        assert_eq!(still_known(told, &format!("{written}recovery_target_xid = ''\n")), end);
        assert_eq!(still_known(told, &format!("{written}recovery_target_timeline='latest'\n")), elsewhere);
    }

    #[test]
    fn places_of_tablespaces_are_written_as_the_server_reads_them() {
        assert_eq!(tablespace_map([(1, "/a b"), (2, "/c\nd\\")]), "1 /a b\n2 /c\\\nd\\\\\n");
    }
}
