//! The records of a fleet: what the gateway sent to each session, and what the program received.

use std::collections::{BTreeMap, HashMap};

use threadcord::{Event, EventKind, ShardId, sim};

/// One event: its sequence, its name, and a digest of its data.
pub type Entry = (u64, String, u64);

/// What the program received.
#[derive(Default)]
pub struct Book {
    /// The events of each session, in the order of their arrival.
    pub sessions: BTreeMap<String, Vec<Entry>>,
    /// The session of each shard.
    current: HashMap<ShardId, String>,
    /// The sessions that were reported as lost, and their last sequences.
    pub lost: BTreeMap<String, u64>,
    pub closed: Vec<(ShardId, threadcord::StopReason)>,
}

impl Book {
    pub fn note(&mut self, event: &Event) {
        match event.kind() {
            EventKind::SessionLost { session, .. } => {
                self.lost.insert(session.id.clone(), session.sequence);
            }
            EventKind::Stopped(reason) => self.closed.push((event.shard(), *reason)),
            _ => {}
        }

        let Some(dispatch) = event.dispatch() else {
            return;
        };
        if dispatch.name() == "READY" {
            let ready: serde_json::Value = dispatch.decode().expect("READY decodes");
            let session = ready["session_id"]
                .as_str()
                .expect("READY has a session")
                .to_owned();
            self.current.insert(event.shard(), session);
        }

        if dispatch.name() != "RESUMED" {
            let session = self.current.get(&event.shard()).expect("READY comes first");
            let entry = (
                dispatch.sequence(),
                dispatch.name().to_string(),
                sim::digest(dispatch.data()),
            );
            self.sessions
                .entry(session.clone())
                .or_default()
                .push(entry);
        }
    }

    /// How many events the sessions that are live at the gateway still wait for, and how many
    /// sessions it has ended whose loss is not reported yet. On a slow connection the end, and what
    /// was sent before it, may arrive much later.
    pub fn outstanding(&self, gateway: &sim::Gateway) -> u64 {
        let seen = gateway.observed();
        let outstanding_of = |(session, last): (&String, &u64)| {
            let got = self.sessions.get(session).map_or(0, Vec::len) as u64;
            if seen.lost.contains(session) {
                u64::from(got > 0 && !self.lost.contains_key(session))
            } else {
                last.saturating_sub(got)
            }
        };
        seen.sequences.iter().map(outstanding_of).sum()
    }

    /// Checks that every session received each event of the gateway once and in order: all of them,
    /// or those up to a reported loss that Discord's rules allow. Returns the number of events.
    pub fn check(&self, gateway: &sim::Gateway) -> usize {
        let seen = gateway.observed();
        let mut given: BTreeMap<String, Vec<Entry>> = BTreeMap::new();
        for event in gateway.dispatches() {
            given.entry(event.session).or_default().push((
                event.sequence,
                event.name,
                event.digest,
            ));
        }

        let mut count = 0;
        for (session, given) in &given {
            let got = self.sessions.get(session).map_or(&[][..], Vec::as_slice);
            let same = given
                .iter()
                .zip(got)
                .take_while(|(given, got)| given == got)
                .count();
            assert_eq!(
                same,
                got.len(),
                "session {session}: got {:?}, given {:?}",
                got.get(same),
                given.get(same)
            );
            count += got.len();
            if let Some(last) = self.lost.get(session) {
                assert!(
                    seen.lost.contains(session),
                    "session {session} was ended without a reason"
                );
                assert_eq!(
                    *last,
                    got.len() as u64,
                    "session {session}: the loss tells where"
                );
            } else if !got.is_empty() {
                assert_eq!(
                    got.len(),
                    given.len(),
                    "session {session}: the rest is missing, and no loss was told"
                );
            }
        }

        for session in self.sessions.keys() {
            assert!(given.contains_key(session), "unknown session {session}");
        }
        count
    }
}
