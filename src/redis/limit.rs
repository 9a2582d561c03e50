//! An identify limit that processes on several machines share.

use std::time::Instant;

use super::document::Document;
use crate::error::StoreError;
use crate::limit::{
    AskLimits, IdentifyLimiter, LimitStatus, Limits, Now, Reservations, Rules, SharedLimit,
    Storage, Ticket, Wake, read_stored,
};
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// Discord's identify limit for all processes of a bot, kept in Redis. Get it from
/// [`Redis::identify_limit`](super::Redis::identify_limit).
///
/// A permit is valid for [`Timing::permit_validity`] (2 s). The window of its key is 500 ms longer
/// than Discord's (five times [`Timing::guard`]). It starts at the report of the IDENTIFY, or when
/// the permit expires. So a process that dies in between makes the next IDENTIFY of the key late,
/// never early. Within a process, the shards of a key are served in the order of their requests.
///
/// Discord decides how many IDENTIFYs are left. Every manager requests the limits when it starts.
/// After that, one of the processes requests them when a day is over, when Redis has restarted or
/// lost its data, and every 5 minutes or 100 IDENTIFYs (10 if fewer than 200 are left). No shard
/// identifies before Discord's first answer, or between the end of a day, a restart or a loss of
/// data and the next answer.
///
/// Ten IDENTIFYs of a day are never spent (a tenth if Discord allows fewer than 100 a day).
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

    /// Checks that the limit can be read and written.
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
                // The data may have been lost, and other processes may have a permit.
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
