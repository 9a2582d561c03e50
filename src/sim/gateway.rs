//! A running gateway and its methods.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tungstenite::Message;

use super::certificate::Certificates;
use super::fault::{Fault, Target};
use super::interaction::Interaction;
use super::observed::{Dispatched, EmitError, Observed};
use super::request::{Request, Response};
use super::settings::{MAX_ACTIVE, StartError};
use super::shared::Shared;
use super::time::after;
use super::world::{World, is_pattern, names};
use super::{payloads, server};
use crate::shard_id::ShardId;

/// A running simulated gateway. Dropping it stops it.
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
    token: String,
    root_certificate: Option<String>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Binds the port, builds the world for the gateway's URL with `world`, and serves it.
    pub(super) fn serve(
        port: u16,
        is_tls: bool,
        token: String,
        world: impl FnOnce(Instant, Duration, String) -> World,
    ) -> Result<Self, StartError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let listener =
            mio::net::TcpListener::bind(address).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => StartError::PortInUse(port),
                _ => error.into(),
            })?;
        let address = listener.local_addr()?;
        let certificates = is_tls.then(Certificates::new).transpose()?;
        let certificate = certificates.as_ref();
        let root_certificate = certificate.map(|certificates| certificates.root.clone());
        let scheme = if is_tls { "wss" } else { "ws" };
        // A time before 1970 means that the clock is not set.
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let world = world(Instant::now(), unix, format!("{scheme}://{address}"));

        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), server::WAKE)?;
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            changed: Condvar::new(),
            waker,
        });
        let server = server::Server::new(poll, listener, certificates, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new()
            .name("sim-gateway".into())
            .spawn(move || server.run())?;
        Ok(Self {
            shared,
            address,
            token,
            root_certificate,
            thread: Some(thread),
        })
    }

    /// The URL of the gateway, as `/gateway/bot` returns it.
    pub fn url(&self) -> String {
        self.shared.world.lock().url().to_owned()
    }

    /// The base URL of the HTTP API.
    pub fn rest_url(&self) -> String {
        let scheme = if self.root_certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}/api/v10", self.address)
    }

    /// The bot's token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The root certificate that clients must trust, as PEM; `None` without TLS.
    pub fn root_certificate(&self) -> Option<&str> {
        self.root_certificate.as_deref()
    }

    /// The guilds that the bot is in.
    pub fn guild_ids(&self) -> Vec<u64> {
        self.shared.world.lock().guild_ids()
    }

    /// The text channel of a guild; `None` if the guild does not exist.
    pub fn channel_of(&self, guild_id: u64) -> Option<u64> {
        self.shared
            .world
            .lock()
            .guild(guild_id)
            .map(payloads::Guild::channel)
    }

    /// The channel for direct messages between a user and the bot.
    pub fn direct_channel(&self) -> u64 {
        payloads::DIRECT_CHANNEL
    }

    /// Adds the bot to `count` more guilds.
    pub fn add_guilds(&self, count: u32) {
        self.change(|world, _| world.add_guilds(count));
    }

    /// Changes how many shards `/gateway/bot` recommends, at least 1.
    pub fn set_shards(&self, shards: u32) {
        self.change(|world, _| world.set_shards(shards));
    }

    /// Sends an event to the sessions of a guild's shard, or of shard 0 without a guild. Only
    /// sessions whose intents include the event receive it.
    ///
    /// Returns the number of those sessions. It is 0 before the first session has started; the
    /// event is then not sent later either.
    pub fn emit(
        &self,
        guild_id: Option<u64>,
        name: &str,
        data: &Value,
    ) -> Result<usize, EmitError> {
        self.change(|world, _| world.emit(guild_id, name, data))
    }

    /// Changes how many events a second the guilds generate; see
    /// [`Builder::activity`](super::Builder::activity).
    ///
    /// # Panics
    /// If the rate is not from 0 to 1,000,000.
    pub fn set_activity(&self, events_per_second: f64) {
        let allowed = 0.0..=MAX_ACTIVE;
        assert!(
            allowed.contains(&events_per_second),
            "`events_per_second` is {events_per_second}; allowed: {allowed:?}"
        );
        self.change(|world, now| world.set_activity(now, events_per_second));
    }

    /// Lets a user write a message in a channel. Returns the id of the message.
    pub fn chat(&self, channel_id: u64, text: &str) -> Result<u64, EmitError> {
        self.change(|world, now| world.chat(now, channel_id, text))
    }

    /// Lets a user interact with the bot: use a command, press a button or submit a modal. Returns
    /// the id of the interaction. The bot has 3 s, not scaled, to answer it.
    ///
    /// # Errors
    /// If there is no such channel, user, message, component or option.
    pub fn interact(&self, interaction: &Interaction) -> Result<u64, EmitError> {
        self.change(|world, now| world.interact(now, interaction))
    }

    /// Lets a user react to a message. `emoji` is a character, or `name:id` for a guild's emoji.
    ///
    /// # Errors
    /// If there is no such channel, message or emoji.
    pub fn react(&self, channel_id: u64, message_id: u64, emoji: &str) -> Result<(), EmitError> {
        self.change(|world, _| world.member_reacts(channel_id, message_id, emoji))
    }

    /// Denies the bot these [`permissions`](super::permissions) in a guild. Requests that need one
    /// of them are answered with 403 and the code 50013. Each call replaces the previous set.
    pub fn deny(&self, guild_id: u64, permissions: u64) {
        self.change(|world, _| world.deny(guild_id, permissions));
    }

    /// Answers the requests of a route with `handler`, also if the simulator has that route built
    /// in. `{}` in the path matches any one segment, which becomes one of
    /// [`Request::parameters`]. Authorization and rate limits are checked first.
    ///
    /// The handler runs on the gateway's thread, so it must not wait for the gateway to do
    /// anything. If it panics, the request is answered with 500.
    ///
    /// ```
    /// # use serde_json::json;
    /// # use threadcord::sim::{Gateway, Response};
    /// let gateway = Gateway::builder().start()?;
    /// gateway.on("PATCH", "/guilds/{}/roles/{}", |request| {
    ///     Response::json(200, json!({"id": request.parameters[1], "name": request.json["name"]}))
    /// });
    /// # Ok::<(), threadcord::sim::StartError>(())
    /// ```
    ///
    /// # Panics
    /// If the path does not begin with `/`, or has a query.
    pub fn on(
        &self,
        method: &str,
        path: &str,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) {
        assert!(
            is_pattern(path),
            "`path` is {path:?}; allowed: a path below `/api/v10`, for example `/guilds/{{}}/roles`"
        );
        let handler = Arc::new(handler);
        // The old handler is dropped here, after the world's lock is released: its `Drop` may call
        // the gateway.
        drop(self.change(|world, _| world.on(method, path, handler)));
    }

    /// The methods and paths of the built-in routes.
    pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
        names()
    }

    /// Injects a fault: into open connections at once, or at the next handshake if the fault waits
    /// for one (see [`Fault`]).
    pub fn inject(&self, target: impl Into<Target>, fault: Fault) {
        self.change(|world, now| world.inject(now, target.into(), fault));
    }

    /// Injects a fault after a delay of at most a year, not scaled.
    pub fn inject_after(&self, delay: Duration, target: impl Into<Target>, fault: Fault) {
        self.change(|world, now| world.inject_after(now, delay, target.into(), fault));
    }

    /// Injects these faults at random, `per_second` on average, each into a random connection. A
    /// rate of 0 stops this and discards the faults that still wait for a handshake.
    /// [`Fault::all`] returns faults of every kind.
    ///
    /// While a fault waits for a handshake, an equal one is not added.
    ///
    /// # Panics
    /// If the rate is not from 0 to 1,000,000.
    pub fn random_faults(&self, per_second: f64, faults: impl IntoIterator<Item = Fault>) {
        let allowed = 0.0..=MAX_ACTIVE;
        assert!(
            allowed.contains(&per_second),
            "`per_second` is {per_second}; allowed: {allowed:?}"
        );
        let faults = faults.into_iter().collect();
        self.change(|world, now| world.set_random_faults(now, per_second, faults));
    }

    /// Sends a shard any text as a payload, compressed as its connection requires.
    pub fn send_raw(&self, shard: ShardId, text: &str) {
        self.change(|world, _| world.send_raw(shard, text));
    }

    /// Sends a shard any text as a text message, without its compression.
    pub fn send_text(&self, shard: ShardId, text: &str) {
        self.change(|world, _| world.send_message(shard, &Message::text(text)));
    }

    /// Sends a shard any bytes as a binary message, without its compression.
    pub fn send_bytes(&self, shard: ShardId, bytes: &[u8]) {
        self.change(|world, _| world.send_message(shard, &Message::binary(bytes.to_vec())));
    }

    /// Returns what clients have done so far, and which rules they broke.
    pub fn observed(&self) -> Observed {
        self.shared.world.lock().observed.clone()
    }

    /// Like [`observed`](Self::observed), and frees memory, for programs that run for a long time.
    ///
    /// Each call returns the records, violations, warnings, faults and lost sessions since the last
    /// call, and discards them. It also discards the sequences of sessions that have ended. The
    /// counts of events and of started sessions continue.
    pub fn drain(&self) -> Observed {
        self.shared.world.lock().drain()
    }

    /// Every event that was sent to a session, in order, without RESUMED. Empty unless
    /// [`Builder::keep_dispatches`](super::Builder::keep_dispatches) is set.
    pub fn dispatches(&self) -> Vec<Dispatched> {
        self.shared.world.lock().dispatches.clone()
    }

    /// Waits until `condition` is true. Returns `false` if it is still false after `timeout`.
    ///
    /// The gateway is locked while `condition` runs: calling the gateway from it is a deadlock.
    pub fn wait_for(
        &self,
        timeout: Duration,
        mut condition: impl FnMut(&Observed) -> bool,
    ) -> bool {
        let deadline = after(Instant::now(), timeout);
        let mut world = self.shared.world.lock();
        while !condition(&world.observed) {
            if self
                .shared
                .changed
                .wait_until(&mut world, deadline)
                .timed_out()
            {
                return condition(&world.observed);
            }
        }
        true
    }

    /// Like [`wait_for`](Self::wait_for), but panics after the timeout. For tests.
    ///
    /// # Panics
    /// If `condition` is still false after `timeout`. The panic message contains `what`, the live
    /// shards and the last 20 records.
    pub fn expect(&self, what: &str, timeout: Duration, condition: impl FnMut(&Observed) -> bool) {
        if !self.wait_for(timeout, condition) {
            let seen = self.observed();
            let last = &seen.records[seen.records.len().saturating_sub(20)..];
            panic!(
                "not within {timeout:?}: {what}\nlive shards: {:?}\nlast records: {last:#?}",
                seen.live
            );
        }
    }

    /// Waits for the next request of a route and returns it; each request is returned once. `{}` in
    /// the path matches any one segment.
    ///
    /// # Panics
    /// If there is none after `timeout`. The message lists the requests that came instead.
    pub fn expect_request(&self, method: &str, path: &str, timeout: Duration) -> Request {
        let deadline = after(Instant::now(), timeout);
        let mut world = self.shared.world.lock();
        loop {
            if let Some(request) = world.take_request(method, path) {
                return request;
            }
            let wait = self.shared.changed.wait_until(&mut world, deadline);
            if wait.timed_out() {
                break;
            }
        }

        if let Some(request) = world.take_request(method, path) {
            return request;
        }

        let came: Vec<String> = world.untaken().map(ToString::to_string).collect();
        drop(world);
        panic!("no {method} {path} within {timeout:?}; received instead: {came:#?}");
    }

    /// Panics if a client broke a rule: it sent something that Discord would have refused.
    ///
    /// # Panics
    /// With the list of violations.
    pub fn assert_lawful(&self) {
        let violations = self.observed().violations;
        let list: Vec<String> = violations.iter().map(ToString::to_string).collect();
        assert!(list.is_empty(), "clients broke rules: {list:#?}");
    }

    fn change<R>(&self, change: impl FnOnce(&mut World, Instant) -> R) -> R {
        let result = change(&mut self.shared.world.lock(), Instant::now());
        self.shared.changed.notify_all();
        // An error is harmless: if the server's thread has ended, there is no thread to wake.
        let _ = self.shared.waker.wake();
        result
    }
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.change(|world, _| world.stopped = true);
        let thread = self.thread.take();
        // If a handler held the last reference, this runs on the gateway's own thread, which cannot
        // join itself.
        let is_other =
            |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        if let Some(thread) = thread.filter(is_other) {
            let _ = thread.join();
        }
    }
}
