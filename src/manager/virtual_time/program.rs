//! The program: it takes events, handles them, and starts the next process when one has ended.

use std::collections::BTreeMap;
use std::mem;
use std::num::NonZeroUsize;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Play;
use super::process::Process;
use crate::clock;
use crate::delivery::Lanes;
use crate::error::{Error, StoreError};
use crate::event::{Event, EventKind};
use crate::manager::Operation;
use crate::protocol::Session;
use crate::rest::GatewayBot;
use crate::shard::Shard;
use crate::shard_id::ShardId;
use crate::sim::{self, Reply};
use crate::store::{Saved, SessionStore};

/// A store in memory, and when it was written.
#[derive(Clone, Default)]
pub(super) struct Store(Arc<Mutex<(Saved, Option<Instant>)>>);

impl SessionStore for Store {
    fn load(&self) -> Result<Saved, StoreError> {
        Ok(self.0.lock().0.clone())
    }

    fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        *self.0.lock() = (saved.clone(), Some(clock::now()));
        Ok(())
    }
}

/// An event that the program is handling.
pub(super) struct Held {
    pub(super) until: Instant,
    event: Event,
    /// The lane that it came from, if a handler has it.
    lane: Option<usize>,
}

/// Something that the user has requested.
pub(super) enum Requested {
    Anything(Operation),
    /// The shard is opened again once it has closed.
    Reopen(Operation, ShardId),
    /// The shard is resumed from its session once it has stopped, and its handlers are done or too
    /// slow.
    Suspend(Operation, Shard, Instant),
    /// The shard opens, from this session if there is one.
    Open(ShardId, Option<Session>),
}

impl Play {
    /// The response of `/gateway/bot`.
    pub(super) fn gateway(&mut self) -> GatewayBot {
        let token = format!("Bot {}", self.config.token.expose());
        let headers = [
            ("authorization", token.as_str()),
            ("user-agent", "DiscordBot (virtual, 1)"),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let request = sim::Incoming {
            method: "GET",
            path: "/api/v10/gateway/bot",
            query: BTreeMap::new(),
            headers: headers.into(),
            body: b"",
        };

        let Reply::Answer(answered, _) = self.world.rest(self.now, 0, &request) else {
            panic!("the simulator always answers `/gateway/bot`")
        };
        let gateway = serde_json::from_str(&answered.body);
        let mut gateway: GatewayBot = gateway.expect("the answer is valid JSON");
        gateway.asked_at = self.now;
        gateway
    }

    /// The program takes the next event.
    pub(super) fn take(&mut self) -> Result<(), String> {
        let Some(process) = &self.process else {
            return Ok(());
        };
        let lane = match &self.lanes {
            None => None,
            Some(lanes) => {
                let free = self.free_lanes(lanes);
                Some(free[self.rng.usize(..free.len())])
            }
        };
        let event = match (&self.lanes, lane) {
            (Some(lanes), Some(lane)) => lanes.try_recv(lane),
            _ => process.events.try_recv().ok(),
        };
        let Some(event) = event else {
            return Ok(());
        };

        match event.kind() {
            EventKind::SessionLost { .. } => self.done.sessions_lost += 1,
            EventKind::Resharded { .. } => self.done.taken_over += 1,
            EventKind::Split { .. } => self.done.splits += 1,
            _ => {}
        }
        if event.dispatch().is_none() {
            log::info!("{} {:?}", event.shard(), event.kind());
        }
        self.accounts.take(&event)?;
        let until = self.now + self.up_to(Duration::from_secs(2));
        self.held.push(Held { until, event, lane });
        Ok(())
    }

    /// Whether the program can take an event.
    pub(super) fn has_more(&self, process: &Process) -> bool {
        match &self.lanes {
            None => process.events.len() > 0,
            Some(lanes) => !self.free_lanes(lanes).is_empty(),
        }
    }

    /// The lanes with events whose workers are free.
    fn free_lanes(&self, lanes: &Lanes) -> Vec<usize> {
        if lanes.is_stopped() {
            return Vec::new();
        }
        let is_held = |lane| self.held.iter().any(|held| held.lane == Some(lane));
        let lengths = lanes.lengths().into_iter().enumerate();
        let free = lengths.filter(|(lane, length)| *length > 0 && !is_held(*lane));
        free.map(|(lane, _)| lane).collect()
    }

    /// The program starts a handler, or stops the one that runs.
    pub(super) fn start_or_stop_handler(&mut self, process: &Process) {
        if self.lanes.is_some() {
            return self.stop_handler(process);
        }
        self.done.handlers += 1;
        let count = NonZeroUsize::MIN.saturating_add(self.rng.usize(..4));
        let lanes = Arc::new(Lanes::new(count, Arc::default()));
        process.events.divert(&lanes, count.get());
        self.lanes = Some(lanes);
    }

    /// The handler begins no other event; what it has not begun is put back once it has returned.
    pub(super) fn stop_handler(&mut self, process: &Process) {
        let Some(lanes) = &self.lanes else { return };
        lanes.stop();
        if self.held.iter().all(|held| held.lane.is_none()) {
            process.events.divert_back(Vec::new());
            self.lanes = None;
        }
    }

    /// The program has handled an event.
    pub(super) fn finish_handling(&mut self) {
        let done = self.held.iter().position(|held| held.until <= self.now);
        if let Some(done) = done {
            let held = self.held.swap_remove(done);
            self.accounts.handle(&held.event);
        }
        if self.lanes.as_ref().is_some_and(|lanes| lanes.is_stopped())
            && let Some(process) = self.process.take()
        {
            self.stop_handler(&process);
            self.process = Some(process);
        }
    }

    /// Starts a process from what the last one has stored.
    pub(super) fn start_process(&mut self) {
        let config = self.config.clone().session_store(self.store.clone());
        let gateway = self.gateway();
        let process = Process::start(config, &gateway, &self.network);
        self.process = Some(process.expect("a process with this configuration starts"));
        log::info!("a process starts");
    }

    /// Handles the regular end of a process.
    pub(super) fn end_process(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        // What `suspend` returns, or what the session writer has stored.
        if self.rng.bool() {
            *self.store.0.lock() = (process.hub.saved(), Some(self.now));
        }
        let (saved, stored_at) = self.store.0.lock().clone();
        log::info!("the process has ended: {:?}", saved.sessions);
        self.leave(&process, &saved, stored_at);
    }

    /// Kills the process.
    pub(super) fn kill(&mut self) {
        self.done.kills += 1;
        self.killed_at = self.now;
        let Some(process) = self.process.take() else {
            return;
        };
        let (saved, stored_at) = self.store.0.lock().clone();
        log::info!("the process is killed: {:?}", saved.sessions);
        self.leave(&process, &saved, stored_at);
    }

    /// The process is gone, and the next one will start from what is saved.
    fn leave(&mut self, process: &Process, saved: &Saved, stored_at: Option<Instant>) {
        self.held.clear();
        self.stop_handler(process);
        // Lost sessions that were reported, but not taken.
        while let Ok(event) = process.events.try_recv() {
            if let EventKind::SessionLost { session, .. } = event.kind() {
                self.accounts.end(session.id.clone());
            }
        }

        for request in mem::take(&mut self.requests) {
            let session = match request {
                Requested::Suspend(_, shard, _) => shard.session(),
                Requested::Open(_, session) => session,
                Requested::Anything(_) | Requested::Reopen(..) => None,
            };
            // Only the program had this session, and it is lost with the process.
            let is_saved = |id: &String| saved.sessions.iter().any(|session| session.id == *id);
            if let Some(session) = session.filter(|session| !is_saved(&session.id)) {
                self.accounts.end(session.id);
            }
        }

        self.reshard = None;
        self.accounts.restart(&self.world, saved, stored_at);
        let longest = [5, 5, 5, 60, 250][self.rng.usize(..5)];
        self.starts_at = self.now + self.up_to(Duration::from_secs(longest));
        self.frozen_until = self.now;
    }

    /// The user checks its requests, and continues those that are done.
    pub(super) fn follow_up(&mut self) {
        self.next_look = self.now + Duration::from_millis(300);
        let Some(process) = self.process.take() else {
            return;
        };

        for request in mem::take(&mut self.requests) {
            match request {
                Requested::Anything(operation) if operation.is_over() => {}
                Requested::Reopen(operation, shard) if operation.is_over() => {
                    self.requests.push(Requested::Open(shard, None));
                }
                Requested::Suspend(operation, shard, deadline) if operation.is_over() => {
                    let is_handling = process.hub.is_handling(slice::from_ref(&shard));
                    if is_handling && self.now < deadline {
                        self.requests
                            .push(Requested::Suspend(operation, shard, deadline));
                        continue;
                    }
                    let session = process.hub.take_suspended(&shard).session;
                    self.accounts.resume(&self.world, session.as_slice());
                    self.requests.push(Requested::Open(shard.id(), session));
                }
                Requested::Open(shard, session) => match process.hub.open(shard, session.clone()) {
                    Ok(open) => {
                        self.requests.push(Requested::Anything(open));
                        if let Some(session) = session {
                            self.accounts.take_back(session.id);
                        }
                    }
                    Err(Error::Busy { .. }) => self.requests.push(Requested::Open(shard, session)),
                    Err(_) => drop(session.map(|session| self.accounts.end(session.id))),
                },
                request => self.requests.push(request),
            }
        }
        self.process = Some(process);
    }
}
