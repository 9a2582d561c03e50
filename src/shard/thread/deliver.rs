//! What the shard receives: events, and the guilds and members among them.

use super::Thread;
use crate::clock;
use crate::event::{Dispatch, Event, EventKind, Lease};
use crate::intents::Intents;
use crate::log_shard::log_shard;
use crate::protocol::{ChunkOf, EventName, Payload, ShardState};
use crate::shard::guilds::{self, AllIn, Guild};
use crate::transport::Connector;

impl<C: Connector> Thread<C> {
    pub(super) fn deliver(&mut self, payload: Payload) {
        // The machine passes only events here.
        let Some(dispatch) = Dispatch::new(payload) else {
            return;
        };

        let is_arrival = self.note_guild(&dispatch);
        if !self.config.events.passes(dispatch.name()) {
            return self.skip(dispatch.sequence());
        }

        let lease = self.lease(&dispatch);
        let event = Event::dispatch_of(self.shard(), dispatch, lease);
        if is_arrival {
            self.feed.put_arrival(self.now, event);
        } else {
            self.feed.put(self.now, event);
        }
        self.pace.has_delivered();
    }

    /// Delivers a chunk of members to the request that it answers.
    pub(super) fn deliver_members(&mut self, chunk: ChunkOf, payload: Payload) {
        let Some(dispatch) = Dispatch::new(payload) else {
            return;
        };

        let lease = self.lease(&dispatch);
        self.members.answer(chunk, dispatch, lease);
    }

    /// Counts an event that is not delivered as handled.
    pub(super) fn skip(&mut self, sequence: u64) {
        self.pace.has_received();
        self.shared.counters.count_filtered();
        self.shared.ledger.skip(sequence);
    }

    /// Counts an event, and reserves its share of the outstanding limit.
    fn lease(&mut self, dispatch: &Dispatch) -> Lease {
        self.pace.has_received();
        let size = dispatch.size();
        self.shared.counters.count_event(dispatch.name(), size);

        let batch = self.pace.begins_batch().then_some(self.now);
        let (lease, has_room) = self.shared.ledger.lease(dispatch.sequence(), size, batch);
        if !has_room {
            self.pace.tick();
        }
        lease
    }

    /// Wakes the threads that wait for events, if there are new events.
    pub(super) fn notify_of_events(&mut self) {
        if self.pace.take_unannounced() {
            self.feed.announce(self.shard());
        }
    }

    /// Keeps track of the session's guilds. Returns whether this event is the arrival of a guild
    /// that READY listed.
    fn note_guild(&mut self, dispatch: &Dispatch) -> bool {
        let is_arrival = match dispatch.name() {
            EventName::Ready => {
                let arrive = self.machine.intents().contains(Intents::GUILDS);
                let ready: Option<guilds::Ready<'_>> = dispatch.parse();
                let is_readable = ready.is_some();
                let ready = ready.unwrap_or_default();
                let unread = self.guilds.ready(self.now, &ready, arrive);
                if unread > 0 || !is_readable {
                    let shard = self.shard();
                    log_shard!(warn, shard, "READY lists guilds that cannot be parsed");
                }
                false
            }
            EventName::GuildCreate => {
                let is_available = || {
                    dispatch
                        .parse()
                        .is_none_or(|guild: Guild| guild.is_available())
                };
                self.guilds
                    .create(self.now, dispatch.guild_id(), is_available)
            }
            EventName::GuildDelete => {
                if let Some(guild) = dispatch.parse() {
                    self.guilds.delete(&guild);
                }
                false
            }
            _ => return false,
        };

        self.shared.report.lock().guilds = self.guilds.count();
        is_arrival
    }

    /// Reports once all guilds have arrived or timed out.
    pub(super) fn poll_guilds(&mut self) {
        if self.guilds.deadline().is_none() || self.machine.stage() != ShardState::Ready {
            return;
        }
        if let Some(AllIn { guilds, missing }) = self.guilds.poll(clock::now()) {
            log_shard!(
                info,
                self.shard(),
                "{} of {guilds} guilds are available",
                guilds - missing
            );
            self.emit(EventKind::GuildsReady { guilds, missing });
            self.notify_guilds_ready();
        }
    }
}
