//! Timeline history files: which timeline branched off which, and where.

use crate::lsn::{Lsn, Timeline};

/// A cluster would have to be promoted ten thousand times to have a longer one.
pub const HISTORY_BYTES_MAX: usize = 1 << 20;

/// The history of one timeline: the ones it descends from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: Timeline,
    /// Ancestors, oldest first, each with the position at which its successor branched off.
    ancestors: Vec<(Timeline, Lsn)>,
}

/// Why a text is no history file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the history of timeline {timeline} cannot be read: {reason}")]
pub struct HistoryError {
    /// Whose history it was to be.
    pub timeline: Timeline,
    /// What is wrong with it.
    pub reason: String,
}

impl History {
    /// The history of a timeline without ancestors.
    pub fn root(timeline: Timeline) -> Self {
        Self { timeline, ancestors: Vec::new() }
    }

    /// Reads the content of a `.history` file.
    ///
    /// Ancestors must ascend. A server that recovers along a timeline to a place before that one began writes a history in
    /// which the positions go back: the later line counts, since nothing behind it is in the past of the timeline.
    pub fn parse(timeline: Timeline, content: &[u8]) -> Result<Self, HistoryError> {
        let fail = |reason: String| HistoryError { timeline, reason };
        if content.len() > HISTORY_BYTES_MAX {
            return Err(fail("it is longer than 1 MiB".to_owned()));
        }
        let text = String::from_utf8_lossy(content);
        let mut ancestors: Vec<(Timeline, Lsn)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |reason: &str| fail(format!("line {} {reason}", number + 1));
            let mut words = line.split_whitespace();
            let parent =
                words.next().and_then(|word| word.parse().ok()).ok_or_else(|| wrong("names no timeline"))?;
            let at: Lsn =
                words.next().and_then(|word| word.parse().ok()).ok_or_else(|| wrong("names no position"))?;
            if ancestors.last().is_some_and(|(last, _)| *last >= parent) {
                return Err(wrong("goes backwards"));
            }
            ancestors.iter_mut().for_each(|(_, end)| *end = at.min(*end));
            ancestors.push((parent, at));
        }
        if ancestors.last().is_some_and(|(last, _)| *last >= timeline) {
            return Err(fail("its last ancestor is not older than itself".to_owned()));
        }
        Ok(Self { timeline, ancestors })
    }

    /// Whose history it is.
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// Ancestors, oldest first, each with the position at which its successor branched off.
    pub fn ancestors(&self) -> &[(Timeline, Lsn)] {
        &self.ancestors
    }

    /// Where a timeline of this history began; `None` for one that is not in it.
    pub fn begin_of(&self, timeline: Timeline) -> Option<Lsn> {
        let is_known =
            timeline == self.timeline || self.ancestors.iter().any(|(ancestor, _)| *ancestor == timeline);
        let before = self.ancestors.iter().rfind(|(ancestor, _)| *ancestor < timeline);
        is_known.then(|| before.map_or(Lsn::default(), |(_, at)| *at))
    }

    /// Where the timeline itself began: the start of the WAL when it has no ancestors.
    pub fn begin(&self) -> Lsn {
        self.ancestors.last().map_or(Lsn::default(), |(_, at)| *at)
    }

    /// Where `timeline` ends in this history; `None` for the history's own timeline, which goes on, and for one that
    /// is no ancestor.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        self.ancestors.iter().find(|(ancestor, _)| *ancestor == timeline).map(|(_, at)| *at)
    }

    /// Which timeline the byte at `at` belongs to when recovery follows this history.
    pub fn timeline_at(&self, at: Lsn) -> Timeline {
        self.ancestors.iter().find(|(_, end)| at < *end).map_or(self.timeline, |(timeline, _)| *timeline)
    }

    /// Where this history and another one part: both go the same way up to there. `None` for two that are the same.
    pub fn parting(&self, other: &Self) -> Option<Lsn> {
        let line = |history: &Self| -> Vec<(Timeline, Lsn)> {
            let own = (history.timeline, Lsn::new(u64::MAX));
            history.ancestors.iter().copied().chain([own]).collect()
        };
        let mut at = Lsn::default();
        for ((own, end), (theirs, their_end)) in line(self).into_iter().zip(line(other)) {
            if own != theirs {
                return Some(at);
            }
            if end != their_end {
                return Some(end.min(their_end));
            }
            at = end;
        }
        None
    }

    /// Whether a cluster that stands at `at` on `timeline` can go on along this history.
    pub fn contains(&self, timeline: Timeline, at: Lsn) -> bool {
        timeline == self.timeline && at >= self.begin() || self.end_of(timeline).is_some_and(|end| at <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn t(number: u32) -> Timeline {
        Timeline::new(number).unwrap()
    }

    fn at(text: &str) -> Lsn {
        text.parse().unwrap()
    }

    #[test]
    fn a_history_tells_where_each_timeline_ends() {
        let text = "1\t0/FDA7900\tno recovery target specified\n\n# a comment\n2\t0/1A000000\tbefore 2026-03-02 09:00:00+00\n";
        let history = History::parse(t(4), text.as_bytes()).unwrap();
        assert_eq!(history.ancestors(), [(t(1), at("0/FDA7900")), (t(2), at("0/1A000000"))]);
        assert_eq!(history.begin(), at("0/1A000000"));
        assert_eq!(history.end_of(t(3)), None);
        let places = [
            ("0/0", 1),
            ("0/FDA78FF", 1),
            ("0/FDA7900", 2),
            ("0/19FFFFFF", 2),
            ("0/1A000000", 4),
            ("F/0", 4),
        ];
        for (position, timeline) in places {
            assert_eq!(history.timeline_at(at(position)), t(timeline), "{position}");
        }
        assert!(history.contains(t(1), at("0/FDA7900")) && !history.contains(t(1), at("0/FDA7901")));
        assert!(history.contains(t(4), at("0/1A000000")) && !history.contains(t(4), at("0/1")));
        assert!(!history.contains(t(3), at("0/1")), "a sibling");
    }

    #[test]
    fn two_histories_go_together_up_to_where_they_part() {
        let history = |number, text: &str| History::parse(t(number), text.as_bytes()).unwrap();
        let first = History::root(t(1));
        let (second, third) = (history(2, "1\t0/1000\tx\n"), history(3, "1\t0/930\tx\n"));
        let fourth = history(4, "1\t0/1000\tx\n2\t0/1200\tx\n");
        for (one, other, place) in [
            (&first, &third, "0/930"),
            (&second, &third, "0/930"),
            (&first, &second, "0/1000"),
            (&second, &fourth, "0/1200"),
            (&third, &fourth, "0/930"),
        ] {
            assert_eq!(one.parting(other), Some(at(place)));
            assert_eq!(other.parting(one), Some(at(place)));
        }
        assert_eq!(fourth.parting(&fourth), None);
        assert_eq!(History::root(t(9)).parting(&first), Some(Lsn::default()), "nothing is known of its past");
    }

    #[test]
    fn a_timeline_that_began_before_its_parent_goes_on_where_it_began() {
        let history = History::parse(t(3), b"1\t0/500\tx\n2\t0/300\tx\n").unwrap();
        assert_eq!(history.ancestors(), [(t(1), at("0/300")), (t(2), at("0/300"))]);
        assert_eq!((history.timeline_at(at("0/2FF")), history.timeline_at(at("0/300"))), (t(1), t(3)));
    }

    #[test]
    fn what_cannot_be_a_history_is_refused() {
        for text in ["x\t0/1", "1", "1\t0", "2\t0/1\n1\t0/2", "1\t0/1\n1\t0/2", "3\t0/1", "0\t0/1", "4\t0/1"]
        {
            assert!(History::parse(t(3), text.as_bytes()).is_err(), "{text:?}");
        }
        assert_eq!(History::parse(t(1), b"").unwrap(), History::root(t(1)));
    }
}
