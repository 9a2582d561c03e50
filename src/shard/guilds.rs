//! Which guilds a session has, and whether all that READY named have arrived.
#![deny(clippy::disallowed_methods)]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde::Deserialize;

/// The guilds of one session.
///
/// READY names them; each then arrives as a `GUILD_CREATE`, but for those that an outage makes
/// unavailable. Source: [Discord, Guild
/// Create](https://docs.discord.com/developers/events/gateway-events#guild-create).
#[derive(Debug)]
pub(crate) struct Guilds {
    timeout: Duration,
    /// `None` if READY was not seen: the session is that of an earlier process.
    known: Option<HashSet<u64>>,
    /// Those of READY that have not arrived.
    missing: HashSet<u64>,
    /// When the missing ones are given up; `None` once they are in, or given up.
    deadline: Option<Instant>,
}

/// All guilds of READY have arrived, or the rest was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AllIn {
    pub(crate) guilds: usize,
    pub(crate) missing: usize,
}

/// What READY says of guilds.
#[derive(Default, Deserialize)]
pub(crate) struct Ready {
    #[serde(default)]
    guilds: Vec<Guild>,
}

/// What `GUILD_DELETE` says of one.
#[derive(Deserialize)]
pub(crate) struct Guild {
    id: String,
    #[serde(default)]
    unavailable: bool,
}

impl Guilds {
    /// No session yet; a guild may take `timeout` after the one before it.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self {
            timeout,
            known: None,
            missing: HashSet::new(),
            deadline: None,
        }
    }

    /// How many there are, those included that are unavailable, if READY was seen.
    pub(crate) fn count(&self) -> Option<usize> {
        self.known.as_ref().map(HashSet::len)
    }

    /// A session starts. Without the intent for guilds none of them will `arrive`.
    pub(crate) fn ready(&mut self, now: Instant, ready: &Ready, arrive: bool) {
        let known: HashSet<u64> = ready
            .guilds
            .iter()
            .filter_map(|guild| guild.id.parse().ok())
            .collect();
        self.missing = if arrive {
            known.clone()
        } else {
            HashSet::new()
        };
        self.known = Some(known);
        self.deadline = Some(now + self.timeout);
    }

    /// The session goes on after a while in which nothing could arrive.
    pub(crate) fn resumed(&mut self, now: Instant) {
        if self.deadline.is_some() {
            self.deadline = Some(now + self.timeout);
        }
    }

    /// A `GUILD_CREATE` came. Returns whether it is the arrival of a guild that READY named.
    pub(crate) fn create(&mut self, now: Instant, id: Option<u64>) -> bool {
        let Some(id) = id else { return false };
        if let Some(known) = &mut self.known {
            known.insert(id);
        }
        let arrived = self.missing.remove(&id);
        if arrived && self.deadline.is_some() {
            self.deadline = Some(now + self.timeout);
        }
        arrived
    }

    /// A `GUILD_DELETE` came: the guild was left, or an outage makes it unavailable.
    pub(crate) fn delete(&mut self, guild: &Guild) {
        let (Ok(id), false) = (guild.id.parse(), guild.unavailable) else {
            return;
        };
        self.missing.remove(&id);
        if let Some(known) = &mut self.known {
            known.remove(&id);
        }
    }

    /// Says once for each session that all are in.
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

    /// When to ask again.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
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
        assert!(guilds.create(now, Some(1)));
        assert_eq!(guilds.poll(now), None);
        assert!(!guilds.create(now, Some(3)), "one that is joined");
        assert!(guilds.create(now, Some(2)));
        assert!(!guilds.create(now, Some(2)), "once");
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
        assert!(guilds.create(later, Some(2)));
        assert_eq!(
            guilds.poll(start + Duration::from_secs(20)),
            None,
            "15 s after the last one"
        );
        assert_eq!(
            guilds.poll(start + Duration::from_secs(25)),
            Some(AllIn {
                guilds: 2,
                missing: 1
            })
        );
        assert!(guilds.create(later, Some(1)), "late");
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
