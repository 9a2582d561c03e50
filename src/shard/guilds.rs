//! The guilds of a session, and whether all those that READY listed have arrived.
#![deny(clippy::disallowed_methods)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::event::Id;

/// The guilds of one session.
///
/// READY lists them. Each then arrives as a `GUILD_CREATE`, except those that an outage makes
/// unavailable. Source: [Discord, Guild
/// Create](https://docs.discord.com/developers/events/gateway-events#guild-create).
#[derive(Debug)]
pub(crate) struct Guilds {
    timeout: Duration,
    /// The ids of the guilds. `None` if READY was not received: the session is that of an earlier
    /// process.
    known: Option<HashSet<u64>>,
    /// The guilds of READY that have not arrived.
    missing: HashSet<u64>,
    /// When the missing guilds time out; `None` once all guilds have arrived or timed out.
    deadline: Option<Instant>,
}

/// Every guild of READY has arrived or timed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AllIn {
    /// The number of guilds, including the missing ones.
    pub(crate) guilds: usize,
    /// The number of guilds that timed out.
    pub(crate) missing: usize,
}

/// The part of READY about guilds.
#[derive(Default, Deserialize)]
pub(crate) struct Ready<'a> {
    /// Each entry is parsed separately, so that a malformed one does not affect the others.
    #[serde(borrow, default)]
    guilds: Vec<&'a RawValue>,
}

impl Ready<'_> {
    /// The ids of the guilds, and the number of entries that cannot be read.
    fn ids(&self) -> (HashSet<u64>, usize) {
        let read = |guild: &&RawValue| serde_json::from_str::<Guild>(guild.get()).ok();
        let guilds: Vec<Guild> = self.guilds.iter().filter_map(read).collect();
        let unread = self.guilds.len() - guilds.len();
        (guilds.into_iter().map(|guild| guild.id.0).collect(), unread)
    }
}

/// The part of `GUILD_CREATE` and `GUILD_DELETE` that identifies a guild.
#[derive(Deserialize)]
pub(crate) struct Guild {
    id: Id,
    #[serde(default, deserialize_with = "is_true")]
    unavailable: bool,
}

/// Only `true` counts as true; any other value is false, not an error.
fn is_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let value = <&RawValue>::deserialize(deserializer)?;
    Ok(value.get() == "true")
}

impl Guild {
    pub(crate) fn is_available(&self) -> bool {
        !self.unavailable
    }
}

impl Guilds {
    /// Creates the state without a session. Each guild of READY must arrive within `timeout` of the
    /// one before it.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            known: None,
            missing: HashSet::new(),
            deadline: None,
        }
    }

    /// The number of guilds, including unavailable ones; `None` if READY was not received.
    pub(crate) fn count(&self) -> Option<usize> {
        self.known.as_ref().map(HashSet::len)
    }

    /// Records that a session starts. `arrive` says whether its guilds will arrive: without the
    /// intent for guilds they do not. Returns how many entries of the list could not be read.
    pub(crate) fn ready(&mut self, now: Instant, ready: &Ready<'_>, arrive: bool) -> usize {
        let (known, unread) = ready.ids();
        self.missing = if arrive {
            known.clone()
        } else {
            HashSet::new()
        };
        self.known = Some(known);
        self.deadline = Some(now + self.timeout);
        unread
    }

    /// Records that the session was resumed. While it was disconnected nothing could arrive, so the
    /// timeout starts again.
    pub(crate) fn resumed(&mut self, now: Instant) {
        if self.deadline.is_some() {
            self.deadline = Some(now + self.timeout);
        }
    }

    /// Records a `GUILD_CREATE`; `is_available` checks whether the guild is available. Returns
    /// whether this is the arrival of a guild that READY listed. Once [`poll`](Self::poll) has
    /// reported, no event is an arrival any more: a late guild is reported to the user like one
    /// that the bot joins.
    pub(crate) fn create(
        &mut self,
        now: Instant,
        id: Option<u64>,
        is_available: impl FnOnce() -> bool,
    ) -> bool {
        let Some(id) = id else { return false };
        if let Some(known) = &mut self.known {
            known.insert(id);
        }
        if !self.missing.contains(&id) || !is_available() {
            return false;
        }

        self.missing.remove(&id);
        if self.deadline.is_none() {
            return false;
        }
        self.deadline = Some(now + self.timeout);
        true
    }

    /// Records a `GUILD_DELETE`: the bot left the guild, or an outage makes it unavailable.
    pub(crate) fn delete(&mut self, guild: &Guild) {
        let (id, false) = (guild.id.0, guild.unavailable) else {
            return;
        };
        self.missing.remove(&id);
        if let Some(known) = &mut self.known {
            known.remove(&id);
        }
    }

    /// Reports, once for each session, that every guild has arrived or timed out.
    pub(crate) fn poll(&mut self, now: Instant) -> Option<AllIn> {
        let deadline = self.deadline?;
        if !self.missing.is_empty() && now < deadline {
            return None;
        }
        self.deadline = None;
        Some(AllIn {
            guilds: self.count().unwrap_or_default(),
            missing: self.missing.len(),
        })
    }

    /// When to [poll](Self::poll) next at the latest; `None` if there is nothing to wait for.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "the test's instants are offsets from a real one"
    )]

    use super::*;

    const READY: &str =
        r#"{"guilds":[{"id":"1","unavailable":true},{"id":"2","unavailable":true}]}"#;

    fn read<'a, T: Deserialize<'a>>(json: &'a str) -> T {
        serde_json::from_str(json).unwrap()
    }

    fn guilds(now: Instant) -> Guilds {
        let mut guilds = Guilds::new(Duration::from_secs(15));
        assert_eq!(
            (guilds.poll(now), guilds.deadline()),
            (None, None),
            "no session, nothing to wait for"
        );
        guilds.ready(now, &read(READY), true);
        guilds
    }

    #[test]
    fn they_arrive_and_that_is_said_once() {
        let now = Instant::now();
        let mut guilds = guilds(now);
        assert!(guilds.create(now, Some(1), || true));
        assert_eq!(guilds.poll(now), None);
        assert!(!guilds.create(now, Some(3), || true), "a joined guild");
        assert!(guilds.create(now, Some(2), || true));
        assert!(!guilds.create(now, Some(2), || true), "arrives only once");
        assert_eq!(
            guilds.poll(now),
            Some(AllIn {
                guilds: 3,
                missing: 0
            })
        );
        assert_eq!(guilds.poll(now), None);
    }

    #[test]
    fn what_does_not_arrive_is_given_up() {
        let start = Instant::now();
        let mut guilds = guilds(start);
        let later = start + Duration::from_secs(10);
        assert!(guilds.create(later, Some(2), || true));
        assert_eq!(
            guilds.poll(start + Duration::from_secs(20)),
            None,
            "15 s after the last guild"
        );
        assert_eq!(
            guilds.poll(start + Duration::from_secs(25)),
            Some(AllIn {
                guilds: 2,
                missing: 1
            })
        );
        assert!(
            !guilds.create(later, Some(1), || true),
            "after the timeout it is an event like any other"
        );
    }

    #[test]
    fn guilds_that_are_left_are_not_waited_for_and_outages_are() {
        let now = Instant::now();
        let mut guilds = guilds(now);
        guilds.delete(&read(r#"{"id":"1"}"#));
        guilds.delete(&read(r#"{"id":"2","unavailable":true}"#));
        assert_eq!((guilds.poll(now), guilds.count()), (None, Some(1)));
    }

    #[test]
    fn a_guild_that_is_unavailable_has_not_arrived() {
        let now = Instant::now();
        let mut guilds = guilds(now);
        let unavailable: Guild = read(r#"{"id":"1","unavailable":true}"#);
        assert!(!guilds.create(now, Some(1), || unavailable.is_available()));
        assert!(guilds.create(now, Some(2), || true));
        assert_eq!(guilds.poll(now), None, "the first is missing");
        assert!(guilds.create(now, Some(1), || true));
    }

    #[test]
    fn an_entry_that_is_no_guild_costs_itself_alone() {
        let now = Instant::now();
        let mut guilds = Guilds::new(Duration::from_secs(15));
        let ready = r#"{"guilds":[{"id":"1"},{"id":{}},7,null,{"id":2,"unavailable":0},{}]}"#;
        assert_eq!(guilds.ready(now, &read(ready), true), 4);
        assert_eq!(guilds.count(), Some(2));
        assert!(guilds.create(now, Some(1), || true) && guilds.create(now, Some(2), || true));
    }

    #[test]
    fn without_the_intent_none_is_waited_for() {
        let now = Instant::now();
        let mut guilds = Guilds::new(Duration::from_secs(15));
        guilds.ready(now, &read(READY), false);
        assert_eq!(
            guilds.poll(now),
            Some(AllIn {
                guilds: 2,
                missing: 0
            })
        );
        guilds.ready(now, &Ready::default(), true);
        assert_eq!(
            guilds.poll(now),
            Some(AllIn {
                guilds: 0,
                missing: 0
            })
        );
    }
}
