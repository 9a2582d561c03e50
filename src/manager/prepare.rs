//! Turns a configuration into everything that a manager starts with.

use std::num::NonZeroU32;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::{count, start};
use crate::config::Config;
use crate::error::Error;
use crate::limit::{IdentifyLimiter, Limits};
use crate::protocol::Session;
use crate::rest::{GatewayBot, Rest};
use crate::shard::Addresses;
use crate::shard_id::ShardId;
use crate::store::Identified;
use crate::transport::WebSocketConnector;

/// The pause before the first retry of the query to Discord; it doubles each time.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Everything that was queried, checked and read before the first shard starts.
pub(super) struct Prepared {
    pub(super) config: Arc<Config>,
    pub(super) addresses: Addresses,
    pub(super) rest: Rest,
    pub(super) websockets: WebSocketConnector,
    pub(super) limiter: Arc<dyn IdentifyLimiter>,
    pub(super) max_concurrency: NonZeroU32,
    /// Sessions that the bot may start in a day, over all its shards.
    pub(super) session_starts: u32,
    pub(super) shards: Vec<ShardId>,
    pub(super) sessions: Vec<Session>,
    pub(super) identified: Vec<Identified>,
}

/// Queries Discord for what the configuration leaves open, and checks everything. It stops early
/// once the sending end of `cancelled` is dropped.
pub(super) fn prepare(config: Config, cancelled: &Receiver<()>) -> Result<Prepared, Error> {
    config.validate()?;
    let rest = config.rest()?;
    let websockets =
        WebSocketConnector::with_settings(config.root_certificates.as_deref(), rest.dialer())?;
    let is_plain = |url: &String| url.starts_with("ws:");
    let needs_tls = !config.gateway_url.as_ref().is_some_and(is_plain);
    let gateway = thread::scope(|scope| {
        // Reading the system's certificates takes as long as querying Discord, so both run at once.
        let reader = needs_tls.then(|| scope.spawn(|| websockets.read_certificates()));
        let gateway = ask_patiently(&config, &rest, cancelled);
        if let Some(reader) = reader {
            reader.join().unwrap_or_else(|panic| resume_unwind(panic))?;
        }
        gateway
    })?;
    with_gateway(config, rest, websockets, gateway.as_ref())
}

/// The part of [`prepare`] after the query to Discord.
pub(super) fn with_gateway(
    config: Config,
    rest: Rest,
    websockets: WebSocketConnector,
    gateway: Option<&GatewayBot>,
) -> Result<Prepared, Error> {
    let url = config.gateway_url.clone();
    let url = url.or_else(|| gateway.map(|gateway| gateway.url.clone()));
    let url = url.unwrap_or_default();
    config.validate_gateway(&url)?;
    let addresses = Addresses::new(&url, config.resume_hosts.clone(), config.allow_plaintext)?;

    let plan = count::rounded(&config.plan, gateway, || count::is_large(&rest));
    let saved = start::saved(&config)?;
    let recommended = gateway.map_or(0, |gateway| gateway.shards.get());
    let shards = start::shards(&config, &plan, recommended, &saved.sessions)?;
    let config = Arc::new(config);
    let configs: Vec<_> = shards
        .iter()
        .map(|shard| config.of_shard(*shard))
        .collect::<Result<_, _>>()?;

    let identified = saved.identified.clone();
    let sessions = start::matching(saved, &shards, &config)?;
    let resumes = |session: &&Session| {
        let config = config.of_shard(session.shard);
        config.is_ok_and(|config| session.fits(session.shard, config.intents))
    };
    let new_sessions = shards.len() - sessions.iter().filter(resumes).count();
    start::check_identifies(new_sessions, gateway, config.session_start_policy)?;
    start::warn_of_intents(&configs);
    start::warn_of_resources(shards.len());
    let limit = gateway.map(|gateway| &gateway.session_start_limit);
    let max_concurrency = limit.map_or(NonZeroU32::MIN, |limit| limit.max_concurrency);
    start::warn_of_others(&config, max_concurrency);
    Ok(Prepared {
        limiter: start::limiter(&config, gateway, &rest, &identified),
        session_starts: limit.map_or(Limits::default().total, |limit| limit.total),
        config,
        addresses,
        rest,
        websockets,
        max_concurrency,
        shards,
        sessions,
        identified,
    })
}

/// Queries Discord. While it cannot be reached, retries for up to [`Config::retry_start_for`].
fn ask_patiently(
    config: &Config,
    rest: &Rest,
    cancelled: &Receiver<()>,
) -> Result<Option<GatewayBot>, Error> {
    let deadline = Instant::now() + config.retry_start_for;
    let mut pause = PAUSE;
    loop {
        let error = match start::ask_discord(config, &config.plan, rest) {
            Err(error) if !error.is_fatal() && Instant::now() < deadline => error,
            answer => return answer,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let pause_now = pause.min(left);
        log::warn!(
            "failed to query Discord, retrying in {pause_now:?}: {}",
            error.report()
        );
        if cancelled.recv_timeout(pause_now) == Err(RecvTimeoutError::Disconnected) {
            return Err(Error::Closed);
        }
        pause = (pause * 2).min(MAX_PAUSE);
    }
}
