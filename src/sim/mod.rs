//! A simulated gateway to test bots on: Discord's rules, over real sockets, on this machine.
//!
//! ```
//! use threadcord::{Config, Intents, ShardManager, Timing, Token, sim};
//!
//! let gateway = sim::Gateway::builder().shards(2).guilds(5).time_scale(0.01).start()?;
//! let config = Config::new(Token::new(gateway.token())?, Intents::default())
//!     .rest_url(gateway.rest_url())
//!     .timing(Timing::scaled(0.01));
//! let manager = ShardManager::start(config)?;
//! let events = manager.events();
//! let created = events.filter(|event| event.name() == "GUILD_CREATE").take(5).count();
//! assert_eq!(created, 5);
//! gateway.assert_lawful();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! One thread serves the gateway (`ws` or `wss`) and its HTTP interface on one port. What it does is decided by a pure
//! core that shares no code with the library it judges: who breaks one of Discord's rules is answered as Discord
//! answers, and the violation is recorded.

mod certificate;
mod encoder;
mod payloads;
mod server;
mod world;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tungstenite::Message;

use self::certificate::Certificates;
use self::world::World;
use crate::intents::Intents;
use crate::shard_id::ShardId;

/// A running gateway. Dropping it stops it.
pub struct Gateway {
    shared: Arc<Shared>,
    address: SocketAddr,
    token: String,
    root_certificate: Option<String>,
    thread: Option<JoinHandle<()>>,
}

/// What the gateway's thread and its owner share.
struct Shared {
    world: Mutex<World>,
    changed: Condvar,
    waker: mio::Waker,
}

/// The settings of a [`Gateway`].
#[derive(Clone, Debug)]
pub struct Builder {
    settings: Settings,
    guilds: u32,
    tls: bool,
}

/// The rules and limits of a world.
#[derive(Clone, Debug)]
struct Settings {
    token: String,
    shards: u32,
    max_concurrency: u32,
    session_starts: u32,
    session_starts_left: u32,
    reset_after: Duration,
    time_scale: f64,
    heartbeat_interval: Duration,
    ready_delay: Duration,
    allowed_intents: Intents,
    guilds_per_shard: usize,
    activity: f64,
    seed: u64,
}

/// What clients did, and which rules they broke.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Observed {
    /// What clients did, in order.
    pub records: Vec<Record>,
    /// The rules that clients broke, in order.
    pub violations: Vec<Violation>,
    /// Shards whose session is live: connected, and past READY or RESUMED.
    pub live: BTreeMap<ShardId, usize>,
    /// Sessions that Discord's rules ended while their client wanted to go on.
    pub sessions_lost: usize,
    /// The last sequence that each session was given.
    pub sequences: BTreeMap<String, u64>,
}

/// Something that a client did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// When.
    pub at: Instant,
    /// Which of the connections since the start.
    pub connection: usize,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// What.
    pub action: Action,
}

/// What a client can do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// It connected and was greeted.
    Connected,
    /// It identified.
    Identify,
    /// It resumed a session from a sequence.
    Resume {
        /// The session.
        session: String,
        /// The last sequence that it has seen.
        sequence: u64,
    },
    /// It sent a heartbeat with its last sequence.
    Heartbeat(Option<u64>),
    /// It sent something else.
    Command(Value),
    /// It closed the connection with a code, or it was cut.
    Closed(Option<u16>),
}

/// A rule that a client broke.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// When.
    pub at: Instant,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// Which rule, in words.
    pub rule: String,
}

/// Why an event cannot be emitted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// There is no such guild.
    #[error("there is no guild {0}: `guild_ids` lists them")]
    UnknownGuild(u64),
    /// There is no such channel.
    #[error("there is no channel {0}: `channel_of` tells a guild's")]
    UnknownChannel(u64),
    /// An event's data is an object.
    #[error("the data of {0} is not a JSON object")]
    NotAnObject(String),
}

impl Builder {
    /// How many shards `/gateway/bot` recommends. Default: 1.
    pub fn shards(mut self, shards: u32) -> Self {
        self.settings.shards = shards;
        self
    }

    /// How many shards may identify at once. Default: 1.
    pub fn max_concurrency(mut self, max_concurrency: u32) -> Self {
        self.settings.max_concurrency = max_concurrency;
        self
    }

    /// How many guilds the bot is in, spread over all shards. Default: 0.
    pub fn guilds(mut self, guilds: u32) -> Self {
        self.guilds = guilds;
        self
    }

    /// Whether to serve `wss` and `https` with a certificate of [`Gateway::root_certificate`]. Default: no.
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// What Discord's durations are multiplied by: at 0.01 a window of 5 s has 50 ms. The client needs the same scale
    /// (`Timing::scaled`), or it identifies too early. Default: 1.
    pub fn time_scale(mut self, factor: f64) -> Self {
        self.settings.time_scale = factor;
        self
    }

    /// The heartbeat interval before scaling. Default: 41.25 s.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.settings.heartbeat_interval = interval;
        self
    }

    /// How long READY takes, not scaled. Default: at once.
    pub fn ready_delay(mut self, delay: Duration) -> Self {
        self.settings.ready_delay = delay;
        self
    }

    /// IDENTIFYs a day, how many of them are left, and when there are more, not scaled. Default: 1000, 1000, 24 h.
    pub fn session_starts(mut self, total: u32, left: u32, reset_after: Duration) -> Self {
        self.settings.session_starts = total;
        self.settings.session_starts_left = left;
        self.settings.reset_after = reset_after;
        self
    }

    /// The intents that the bot may use; others are answered with 4014. Default: all.
    pub fn allowed_intents(mut self, intents: Intents) -> Self {
        self.settings.allowed_intents = intents;
        self
    }

    /// How many guilds a shard may hold before 4011. Default: 2500.
    pub fn guilds_per_shard(mut self, guilds: usize) -> Self {
        self.settings.guilds_per_shard = guilds;
        self
    }

    /// Events a second that the guilds bring forth by themselves, in all. Default: 0.
    pub fn activity(mut self, events_per_second: f64) -> Self {
        self.settings.activity = events_per_second;
        self
    }

    /// What chance starts from. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Starts it on a free port of the loopback interface.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if there are no shards, `max_concurrency` is 0, or the time scale or the activity is
    /// no positive number.
    pub fn start(self) -> io::Result<Gateway> {
        let Settings { shards, max_concurrency, time_scale, activity, .. } = self.settings;
        let wrong = match () {
            () if shards == 0 => "`shards` is 0; allowed: at least 1".into(),
            () if max_concurrency == 0 => "`max_concurrency` is 0; allowed: at least 1".into(),
            () if !(time_scale.is_finite() && time_scale > 0.0) => {
                format!("`time_scale` is {time_scale}; allowed: above 0")
            }
            () if !(activity.is_finite() && activity >= 0.0) => format!("`activity` is {activity}; allowed: 0 or more"),
            () => String::new(),
        };
        if !wrong.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
        }
        Gateway::start(self)
    }
}

impl Gateway {
    /// A gateway with one shard and no guilds, to begin with.
    pub fn builder() -> Builder {
        let settings = Settings {
            token: "MTAwMDAwMDAwMDAwMDAwMDAw.c2lt.c2ltdWxhdGVkLXRva2VuLW9mLW5vLXZhbHVl".into(),
            shards: 1,
            max_concurrency: 1,
            session_starts: 1000,
            session_starts_left: 1000,
            reset_after: Duration::from_secs(24 * 60 * 60),
            time_scale: 1.0,
            heartbeat_interval: Duration::from_millis(41_250),
            ready_delay: Duration::ZERO,
            allowed_intents: Intents::all(),
            guilds_per_shard: 2500,
            activity: 0.0,
            seed: 0,
        };
        Builder { settings, guilds: 0, tls: false }
    }

    fn start(builder: Builder) -> io::Result<Self> {
        let listener = mio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        let address = listener.local_addr()?;
        let certificates = builder.tls.then(Certificates::new).transpose()?;
        let scheme = if builder.tls { "wss" } else { "ws" };
        let token = builder.settings.token.clone();
        let mut world = World::new(Instant::now(), builder.settings, format!("{scheme}://{address}"));
        world.add_guilds(builder.guilds);

        let poll = mio::Poll::new()?;
        let waker = mio::Waker::new(poll.registry(), server::WAKE)?;
        let shared = Arc::new(Shared { world: Mutex::new(world), changed: Condvar::new(), waker });
        let (acceptor, root_certificate) =
            certificates.map(|certificates| (certificates.acceptor, certificates.root)).unzip();
        let server = server::Server::new(poll, listener, acceptor, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new().name("sim-gateway".into()).spawn(move || server.run())?;
        Ok(Self { shared, address, token, root_certificate, thread: Some(thread) })
    }

    /// The url of the gateway, as `/gateway/bot` gives it.
    pub fn url(&self) -> String {
        self.shared.world.lock().url().to_owned()
    }

    /// The base of the HTTP interface.
    pub fn rest_url(&self) -> String {
        let scheme = if self.root_certificate.is_some() { "https" } else { "http" };
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
        self.shared.world.lock().channel_of(guild_id)
    }

    /// Sends an event to the sessions of the shard of a guild, or without one of shard 0, whose intents want it. Before a
    /// shard has a session nobody hears of it: wait for [`Observed::live`] first.
    pub fn emit(&self, guild_id: Option<u64>, name: &str, data: &Value) -> Result<(), EmitError> {
        self.change(|world, _| world.emit(guild_id, name, data))
    }

    /// Somebody writes a message in a channel. Returns its id.
    pub fn chat(&self, channel_id: u64, text: &str) -> Result<u64, EmitError> {
        self.change(|world, _| world.chat(channel_id, text))
    }

    /// Asks a shard to reconnect (op 7).
    pub fn reconnect(&self, shard: ShardId) {
        self.change(|world, _| world.reconnect(shard));
    }

    /// Declares a shard's session invalid (op 9), resumable or not.
    pub fn invalidate(&self, shard: ShardId, resumable: bool) {
        self.change(|world, _| world.invalidate(shard, resumable));
    }

    /// Cuts a shard's connection without a close frame.
    pub fn cut(&self, shard: ShardId) {
        self.change(|world, _| world.cut(shard));
    }

    /// Cuts every connection, those too that have not said which shard they are.
    pub fn cut_all(&self) {
        self.change(|world, _| world.cut_all());
    }

    /// Closes a shard's connection with a code.
    pub fn close(&self, shard: ShardId, code: u16) {
        self.change(|world, now| world.close(now, shard, code));
    }

    /// Asks a shard for a heartbeat (op 1).
    pub fn request_heartbeat(&self, shard: ShardId) {
        self.change(|world, _| world.send_raw(shard, r#"{"op":1,"d":null}"#));
    }

    /// Sends a shard any text as a text message, past its compression.
    pub fn send_text(&self, shard: ShardId, text: &str) {
        self.change(|world, _| world.send_message(shard, &Message::text(text)));
    }

    /// Sends a shard any payload, whatever it is, in its compression.
    pub fn send_raw(&self, shard: ShardId, text: &str) {
        self.change(|world, _| world.send_raw(shard, text));
    }

    /// Sends a shard any bytes as a binary message, past its compression.
    pub fn send_bytes(&self, shard: ShardId, bytes: &[u8]) {
        self.change(|world, _| world.send_message(shard, &Message::binary(bytes.to_vec())));
    }

    /// Whether heartbeats of all shards are answered. They are, to begin with.
    pub fn acknowledge(&self, acknowledge: bool) {
        self.change(|world, _| world.acknowledge = acknowledge);
    }

    /// What the gateway says to the next connections in place of HELLO: nothing, or any text; the usual again after
    /// `None`.
    pub fn greet_with(&self, greeting: Option<&str>) {
        self.change(|world, _| world.greeting = greeting.map(str::to_owned));
    }

    /// What the next `count` IDENTIFYs or RESUMEs are answered with, in place of what they should be.
    pub fn answer_with(&self, count: usize, answer: &str) {
        self.change(|world, _| world.answers.extend(std::iter::repeat_n(answer.to_owned(), count)));
    }

    /// The `resume_gateway_url` of the sessions that start from now on. Default: [`url`](Self::url).
    pub fn resume_url(&self, url: &str) {
        self.change(|world, _| url.clone_into(&mut world.resume_url));
    }

    /// What clients did so far, and which rules they broke.
    pub fn observed(&self) -> Observed {
        self.shared.world.lock().observed.clone()
    }

    /// Waits until something has been observed. Returns whether it was, in time.
    pub fn wait_for(&self, timeout: Duration, mut condition: impl FnMut(&Observed) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut world = self.shared.world.lock();
        while !condition(&world.observed) {
            if self.shared.changed.wait_until(&mut world, deadline).timed_out() {
                return condition(&world.observed);
            }
        }
        true
    }

    /// Panics if a client broke a rule.
    ///
    /// # Panics
    /// With the list of violations.
    pub fn assert_lawful(&self) {
        let violations = self.observed().violations;
        assert!(violations.is_empty(), "clients broke rules: {violations:#?}");
    }

    fn change<R>(&self, change: impl FnOnce(&mut World, Instant) -> R) -> R {
        let result = change(&mut self.shared.world.lock(), Instant::now());
        self.shared.changed.notify_all();
        // Without its thread nothing is served any more, and nobody has to be woken.
        let _ = self.shared.waker.wake();
        result
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
