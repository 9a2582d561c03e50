//! A running gateway, and what its owner does with it.

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

/// A running gateway. Dropping it stops it.
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
    token: String,
    root_certificate: Option<String>,
    thread: Option<JoinHandle<()>>,
}

impl Gateway {
    /// Serves a world, which the settings' builder makes for the url of the gateway.
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
        // A clock before 1970 is a clock that is not set.
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

    /// The url of the gateway, as `/gateway/bot` gives it.
    pub fn url(&self) -> String {
        self.shared.world.lock().url().to_owned()
    }

    /// The base of the HTTP interface.
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

    /// The certificate to trust, as PEM, if it serves TLS.
    pub fn root_certificate(&self) -> Option<&str> {
        self.root_certificate.as_deref()
    }

    /// The guilds that the bot is in.
    pub fn guild_ids(&self) -> Vec<u64> {
        self.shared.world.lock().guild_ids()
    }

    /// The text channel of a guild.
    pub fn channel_of(&self, guild_id: u64) -> Option<u64> {
        self.shared
            .world
            .lock()
            .guild(guild_id)
            .map(payloads::Guild::channel)
    }

    /// The channel in which a user writes to the bot directly.
    pub fn direct_channel(&self) -> u64 {
        payloads::DIRECT_CHANNEL
    }

    /// Puts the bot into more guilds.
    pub fn add_guilds(&self, count: u32) {
        self.change(|world, _| world.add_guilds(count));
    }

    /// From now on `/gateway/bot` recommends this many shards, at least 1.
    pub fn set_shards(&self, shards: u32) {
        self.change(|world, _| world.set_shards(shards));
    }

    /// Sends an event to the sessions of the shard of a guild, or without one of shard 0, whose
    /// intents want it. Returns how many sessions that were: 0 as long as none has started, and
    /// then no session receives it.
    pub fn emit(
        &self,
        guild_id: Option<u64>,
        name: &str,
        data: &Value,
    ) -> Result<usize, EmitError> {
        self.change(|world, _| world.emit(guild_id, name, data))
    }

    /// From now on the guilds cause this many events a second; see
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

    /// A user writes a message in a channel. Returns its id.
    pub fn chat(&self, channel_id: u64, text: &str) -> Result<u64, EmitError> {
        self.change(|world, now| world.chat(now, channel_id, text))
    }

    /// A user does something with the bot: uses a command, presses a button, submits a modal.
    /// Returns the interaction's id. The bot has 3 s to answer it, which are not scaled.
    ///
    /// # Errors
    /// If there is no such channel, user, message, component or option.
    pub fn interact(&self, interaction: &Interaction) -> Result<u64, EmitError> {
        self.change(|world, now| world.interact(now, interaction))
    }

    /// A user reacts to a message; the emoji is a character, or `name:id` of one of a guild.
    ///
    /// # Errors
    /// If there is no such channel, message or emoji.
    pub fn react(&self, channel_id: u64, message_id: u64, emoji: &str) -> Result<(), EmitError> {
        self.change(|world, _| world.member_reacts(channel_id, message_id, emoji))
    }

    /// From now on the bot lacks these [`permissions`](super::permissions) in a guild, and no
    /// others: requests that need one are answered with 403 and the code 50013.
    pub fn deny(&self, guild_id: u64, permissions: u64) {
        self.change(|world, _| world.deny(guild_id, permissions));
    }

    /// From now on `handler` answers the requests of a route, in place of the simulator if that
    /// knows it too. `{}` in the path is any one segment, and becomes one of
    /// [`Request::parameters`]. Authorization and rate limits are checked before.
    ///
    /// The handler runs on the gateway's thread, where it must not wait for anything that the
    /// gateway does. If it panics, the request is answered with 500.
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
        // The old one is dropped here, past the world's lock.
        drop(self.change(|world, _| world.on(method, path, handler)));
    }

    /// The methods and paths that the simulator answers by itself.
    pub fn routes() -> impl Iterator<Item = (&'static str, &'static str)> {
        names()
    }

    /// Lets a fault happen: now to connections, or at the next handshake if it is one that waits.
    pub fn inject(&self, target: impl Into<Target>, fault: Fault) {
        self.change(|world, now| world.inject(now, target.into(), fault));
    }

    /// Lets a fault happen after a delay, which is not scaled, of at most a year.
    pub fn inject_after(&self, delay: Duration, target: impl Into<Target>, fault: Fault) {
        self.change(|world, now| world.inject_after(now, delay, target.into(), fault));
    }

    /// From now on these faults happen by chance, at this rate per second on average, each to a
    /// connection by chance. A rate of 0 ends it, and forgets all that still wait for a handshake.
    /// [`Fault::all`] has one of each kind.
    ///
    /// Of the kinds that wait for a handshake, one of each may wait at a time.
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

    /// Sends a shard any payload, whatever it is, in its compression.
    pub fn send_raw(&self, shard: ShardId, text: &str) {
        self.change(|world, _| world.send_raw(shard, text));
    }

    /// Sends a shard any text as a text message, past its compression.
    pub fn send_text(&self, shard: ShardId, text: &str) {
        self.change(|world, _| world.send_message(shard, &Message::text(text)));
    }

    /// Sends a shard any bytes as a binary message, past its compression.
    pub fn send_bytes(&self, shard: ShardId, bytes: &[u8]) {
        self.change(|world, _| world.send_message(shard, &Message::binary(bytes.to_vec())));
    }

    /// What clients did so far, and which rules they broke.
    pub fn observed(&self) -> Observed {
        self.shared.world.lock().observed.clone()
    }

    /// As [`observed`](Self::observed), since this was last called. It forgets records, violations,
    /// faults and lost sessions, and the sequences of sessions that are over. For programs that run
    /// long.
    pub fn drain(&self) -> Observed {
        self.shared.world.lock().drain()
    }

    /// Every event that sessions were given, in order, if
    /// [`Builder::keep_dispatches`](super::Builder::keep_dispatches) says so;
    /// RESUMED is not among them.
    pub fn dispatches(&self) -> Vec<Dispatched> {
        self.shared.world.lock().dispatches.clone()
    }

    /// Waits until something has been observed. Returns whether it was, in time.
    ///
    /// The world stands still while `condition` looks at it: calling the gateway from there is a
    /// deadlock.
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

    /// As [`wait_for`](Self::wait_for), for tests.
    ///
    /// # Panics
    /// If it is not, in time; with what was expected and what was last seen instead.
    pub fn expect(&self, what: &str, timeout: Duration, condition: impl FnMut(&Observed) -> bool) {
        if !self.wait_for(timeout, condition) {
            let seen = self.observed();
            let last = &seen.records[seen.records.len().saturating_sub(20)..];
            panic!(
                "not in {timeout:?}: {what}\nlive: {:?}\nlast seen: {last:#?}",
                seen.live
            );
        }
    }

    /// Waits for the first request of a route that no call of this has given yet. `{}` in the
    /// path is any one segment.
    ///
    /// # Panics
    /// If there is none, in time; with the requests that came instead.
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
        panic!("no {method} {path} in {timeout:?}; what came: {came:#?}");
    }

    /// Panics if a client broke a rule, by which Discord would have refused something.
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
        // Without its thread nothing is served any more, and nobody has to be woken.
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
        // A handler that holds the last reference is dropped on the gateway's own thread.
        let is_other =
            |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        if let Some(thread) = thread.filter(is_other) {
            let _ = thread.join();
        }
    }
}
