//! A simulated gateway to test bots on: Discord's rules, over real sockets, on this machine.
//!
//! ```
//! use std::time::Duration;
//! use threadcord::{Config, Intents, ShardManager, Timing, Token, sim};
//!
//! let gateway = sim::Gateway::builder().guilds(1).time_scale(0.01).start()?;
//! let config = Config::new(Token::new(gateway.token())?, Intents::default() | Intents::MESSAGE_CONTENT)
//!     .rest_url(gateway.rest_url())
//!     .timing(Timing::scaled(0.01));
//!
//! // The bot.
//! let manager = ShardManager::start(config)?;
//! let (handle, events) = (manager.handle().clone(), manager.events());
//! std::thread::spawn(move || {
//!     for event in events.filter(|event| event.name() == "MESSAGE_CREATE") {
//!         let Ok(message) = event.dispatch().unwrap().decode::<serde_json::Value>() else { continue };
//!         if message["content"] == "!ping" {
//!             let path = format!("/channels/{}/messages", message["channel_id"].as_str().unwrap());
//!             handle.rest().call("POST", &path, Some(&serde_json::json!({"content": "pong"}))).unwrap();
//!         }
//!     }
//! });
//!
//! // Its test.
//! let general = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
//! gateway.expect("the shard gets ready", Duration::from_secs(10), |seen| seen.live.len() == 1);
//! gateway.chat(general, "!ping")?;
//! gateway.expect("it answers", Duration::from_secs(10), |seen| seen.posts(general).any(|text| text == "pong"));
//! gateway.assert_lawful();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! One thread serves the gateway (`ws` or `wss`) and its HTTP interface on one port. What it does
//! is decided by a pure core that shares no code with the library it judges: who breaks one of
//! Discord's rules is answered as Discord answers, and the violation is recorded. Whatever can go
//! wrong with a connection is a [`Fault`], to be [injected](Gateway::inject) now, later, or by
//! chance. The program `gateway-sim` is the same for bots in any language.
//!
//! What it leaves out: voice, the encoding `etf`, and most of the HTTP interface.

mod builder;
mod certificate;
mod encoder;
mod fault;
mod observed;
mod payloads;
mod server;
mod traffic;
mod world;

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tungstenite::Message;

pub use self::builder::{Builder, Offer, StartError};
use self::certificate::Certificates;
pub use self::fault::{Answer, Fault, FaultError, RestFault, ResumeUrl, TlsFault, UpgradeFault};
pub use self::observed::{
    Action, Dispatched, EmitError, Observed, Record, Strike, Violation, digest,
};
pub use self::traffic::EVENT_NAMES;
pub(crate) use self::world::World;
#[cfg(test)]
pub(crate) use self::world::{Order, Reply, Request};
use crate::shard_id::ShardId;

/// A running gateway. Dropping it stops it.
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
    token: String,
    root_certificate: Option<String>,
    thread: Option<JoinHandle<()>>,
}

/// A year: what lies further off does not happen.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// What the gateway's thread and its owner share.
struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    waker: mio::Waker,
}

/// Whom a [`Fault`] strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The connections of a shard; for faults that wait, its next handshake, where its shard is
    /// known by then (IDENTIFY, RESUME, and what follows them) and else the next of anybody.
    Shard(ShardId),
    /// Every connection, those too that have not said which shard they are.
    All,
    /// One connection, by chance.
    Any,
}

impl From<ShardId> for Target {
    fn from(shard: ShardId) -> Self {
        Self::Shard(shard)
    }
}

impl Gateway {
    /// A gateway with one shard and no guilds, to begin with.
    pub fn builder() -> Builder {
        Builder::new()
    }

    fn start(builder: Builder) -> Result<Self, StartError> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, builder.port));
        let listener =
            mio::net::TcpListener::bind(address).map_err(|error| match error.kind() {
                io::ErrorKind::AddrInUse => StartError::PortInUse(builder.port),
                _ => error.into(),
            })?;
        let address = listener.local_addr()?;
        let certificates = builder.tls.then(Certificates::new).transpose()?;
        let root_certificate = certificates
            .as_ref()
            .map(|certificates| certificates.root.clone());
        let scheme = if builder.tls { "wss" } else { "ws" };
        let token = builder.token().to_owned();
        // A clock before 1970 is a clock that is not set.
        let unix = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let url = format!("{scheme}://{address}");
        let world = builder.world(Instant::now(), unix, url);

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

    /// The channel in which somebody writes to the bot directly.
    pub fn direct_channel(&self) -> u64 {
        payloads::DIRECT_CHANNEL
    }

    /// Puts the bot into more guilds.
    pub fn add_guilds(&self, count: u32) {
        self.change(|world, _| world.add_guilds(count));
    }

    /// From now on `/gateway/bot` recommends so many shards, at least 1.
    pub fn set_shards(&self, shards: u32) {
        self.change(|world, _| world.set_shards(shards));
    }

    /// Sends an event to the sessions of the shard of a guild, or without one of shard 0, whose
    /// intents want it. Returns how many sessions that were: 0 as long as none has started, and
    /// then nobody hears of it.
    pub fn emit(
        &self,
        guild_id: Option<u64>,
        name: &str,
        data: &Value,
    ) -> Result<usize, EmitError> {
        self.change(|world, _| world.emit(guild_id, name, data))
    }

    /// From now on the guilds bring forth so many events a second; see [`Builder::activity`].
    ///
    /// # Panics
    /// If the rate is not from 0 to 1,000,000.
    pub fn set_activity(&self, events_per_second: f64) {
        let allowed = 0.0..=builder::MOST_ACTIVE;
        assert!(
            allowed.contains(&events_per_second),
            "`events_per_second` is {events_per_second}; allowed: {allowed:?}"
        );
        self.change(|world, now| world.set_activity(now, events_per_second));
    }

    /// Somebody writes a message in a channel. Returns its id.
    pub fn chat(&self, channel_id: u64, text: &str) -> Result<u64, EmitError> {
        self.change(|world, now| world.chat(now, channel_id, text))
    }

    /// Somebody uses a command of the bot's in a channel of a guild; `options` is an array of the
    /// command's options, or null. Returns the interaction's id. The bot has 3 s to answer it.
    pub fn interact(
        &self,
        channel_id: u64,
        command: &str,
        options: &Value,
    ) -> Result<u64, EmitError> {
        self.change(|world, now| world.interact(now, channel_id, command, options))
    }

    /// Lets a fault happen: now to connections, or at the next handshake if it is one that waits.
    pub fn inject(&self, target: impl Into<Target>, fault: Fault) {
        self.change(|world, now| world.inject(now, target.into(), fault));
    }

    /// Lets a fault happen after a delay, which is not scaled, of at most a year.
    pub fn inject_after(&self, delay: Duration, target: impl Into<Target>, fault: Fault) {
        self.change(|world, now| world.inject_after(now, delay, target.into(), fault));
    }

    /// From now on faults of these happen by chance, so many a second on average, each to a
    /// connection by chance. A rate of 0 ends it, and forgets all that still wait for a handshake.
    /// [`Fault::all`] has one of each kind.
    ///
    /// Of the kinds that wait for a handshake, one of each may wait at a time.
    ///
    /// # Panics
    /// If the rate is not from 0 to 1,000,000.
    pub fn random_faults(&self, per_second: f64, faults: impl IntoIterator<Item = Fault>) {
        let allowed = 0.0..=builder::MOST_ACTIVE;
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

    /// Every event that sessions were given, in order, if [`Builder::keep_dispatches`] says so;
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

    /// Panics if a client broke a rule.
    ///
    /// # Panics
    /// With the list of violations.
    pub fn assert_lawful(&self) {
        let violations = self.observed().violations;
        assert!(
            violations.is_empty(),
            "clients broke rules: {violations:#?}"
        );
    }

    fn change<R>(&self, change: impl FnOnce(&mut World, Instant) -> R) -> R {
        let result = change(&mut self.shared.world.lock(), Instant::now());
        self.shared.changed.notify_all();
        // Without its thread nothing is served any more, and nobody has to be woken.
        let _ = self.shared.waker.wake();
        result
    }
}

/// The instant after a delay. Delays that nobody lives to see are cut down, for instants end
/// somewhere.
fn after(now: Instant, delay: Duration) -> Instant {
    now + delay.min(LONGEST)
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
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
