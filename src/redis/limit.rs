//! The identify limit that processes on several machines share.

use std::time::Instant;

use super::document::Document;
use crate::error::StoreError;
use crate::limit::{
    AskLimits, IdentifyLimiter, LimitStatus, Limits, Now, Reservations, Rules, SharedLimit,
    Storage, Ticket, Wake, read_stored,
};
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// Discord's identify limit for all processes of a bot, in Redis;
/// [`Redis::identify_limit`](super::Redis::identify_limit) makes it.
///
/// A permit is valid for [`Timing::permit_validity`] (2 s). The window of its key is 500 ms longer
/// than Discord's (five times [`Timing::guard`]) and counts from the report of the IDENTIFY, or
/// from when the permit expired: a process that dies in between makes the next IDENTIFY of the key
/// late, never early. Within a process, shards are served in the order in which they asked.
///
/// How many IDENTIFYs are left is Discord's to say: every manager asks when it starts, and one of
/// the processes asks when a day is over, when Redis has lost what it held, and every 5 minutes or
/// 100 IDENTIFYs (10 if fewer than 200 are left). Until Discord has answered, no shard identifies.
/// Ten are never spent (a tenth, of less than 100 a day).
#[derive(Debug)]
pub struct RedisLimit(SharedLimit<LimitDocument>);

#[derive(Debug)]
struct LimitDocument {
    document: Document,
    rules: Rules,
}

impl RedisLimit {
    pub(super) fn new(document: Document, timing: &Timing) -> Self {
        let rules = Rules::strict(timing);
        Self(SharedLimit::new(LimitDocument { document, rules }))
    }

    /// Whether it can be read and written.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let storage = self.0.storage();
        storage.change(None, |now, reservations| {
            reservations.advance(now, storage.rules);
        })
    }
}

impl IdentifyLimiter for RedisLimit {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        self.0.request(shard, wake)
    }

    fn update(&self, limits: Limits, asked_at: Instant) {
        self.0.update(limits, asked_at);
    }

    fn ask_with(&self, ask: AskLimits) {
        self.0.ask_with(ask);
    }

    fn status(&self) -> Option<LimitStatus> {
        self.0.status()
    }
}

impl LimitDocument {
    fn parse(&self, text: &str, may_replace: bool) -> Result<Option<Reservations>, StoreError> {
        if text.is_empty() {
            return Ok(None);
        }
        let name = format_args!("the identify limit under {}", self.document);
        read_stored(text.as_bytes(), &name, may_replace)
    }
}

impl Storage for LimitDocument {
    fn rules(&self) -> Rules {
        self.rules
    }

    fn change<T>(
        &self,
        said: Option<Limits>,
        mut change: impl FnMut(&Now, &mut Reservations) -> T,
    ) -> Result<T, StoreError> {
        self.document.change(|now, text| {
            let read = self.parse(text, said.is_some())?;
            let mut reservations = read.unwrap_or_else(|| {
                let mut new = Reservations::new(now, said.unwrap_or_default());
                // It may have been lost, and others may have a permit.
                new.occupy(now, self.rules);
                new
            });
            let outcome = change(now, &mut reservations);
            Ok((serde_json::to_string(&reservations)?, outcome))
        })
    }

    fn read(&self) -> Result<Option<(Now, Reservations)>, StoreError> {
        let (now, text) = self.document.read()?;
        let read = self.parse(&text, false)?;
        Ok(read.map(|reservations| (now, reservations)))
    }
}
