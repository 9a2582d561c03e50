//! The steps that run before the first shard starts: queries, checks and warnings.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use super::hub::Hub;
use super::{Threads, session_writer, supervisor};
use crate::config::{Config, Plan, SessionStartPolicy, ShardConfig, is_foreign};
use crate::error::Error;
use crate::limit::{IdentifyLimiter, Limits, SessionLimit};
use crate::protocol::{Session, StopReason};
use crate::rest::{GatewayBot, Rest, SessionStartLimit};
use crate::shard::Context;
use crate::shard_id::ShardId;
use crate::store::{Identified, Saved};
use crate::transport::Connector;

/// Threads that a shard needs.
#[cfg(unix)]
const THREADS_PER_SHARD: u64 = 1;

/// Descriptors that a shard needs: its socket, its poll and its waker.
#[cfg(unix)]
const DESCRIPTORS_PER_SHARD: u64 = 3;

/// Queries `/gateway/bot`. `None` if the configuration already answers everything, as it can for a
/// gateway proxy.
pub(super) fn ask_discord(
    config: &Config,
    plan: &Plan,
    rest: &Rest,
) -> Result<Option<GatewayBot>, Error> {
    if config.gateway_url.is_some() && config.limiter.is_some() && !plan.asks_discord() {
        return Ok(None);
    }
    rest.gateway_bot().map(Some)
}

pub(super) fn limits(limit: &SessionStartLimit) -> Limits {
    Limits {
        total: limit.total,
        remaining: limit.remaining,
        reset_after: Duration::from_millis(limit.reset_after),
        max_concurrency: limit.max_concurrency,
    }
}

/// The user's limiter, or a new one that knows the IDENTIFYs of an earlier process.
pub(super) fn limiter(
    config: &Config,
    gateway: Option<&GatewayBot>,
    rest: &Rest,
    identified: &[Identified],
) -> Arc<dyn IdentifyLimiter> {
    if let Some(limiter) = &config.limiter {
        let rest = rest.clone();
        limiter.ask_with(Arc::new(move || {
            let gateway = rest.gateway_bot()?;
            Ok(self::limits(&gateway.session_start_limit))
        }));
    }

    let limits = gateway.map(|gateway| limits(&gateway.session_start_limit));
    match (&config.limiter, gateway) {
        (Some(limiter), Some(gateway)) => {
            limiter.update(limits.unwrap_or_default(), gateway.asked_at);
            Arc::clone(limiter)
        }
        // Discord was not queried: the limiter keeps the limits that it has.
        (Some(limiter), None) => Arc::clone(limiter),
        (None, _) => Arc::new(own_limit(config, limits.unwrap_or_default(), identified)),
    }
}

/// A limiter for this process only.
pub(super) fn own_limit(
    config: &Config,
    limits: Limits,
    identified: &[Identified],
) -> SessionLimit {
    let limit = SessionLimit::with_timing(limits, &config.timing, config.release_after);
    for last in identified {
        limit.note(last.key, last.keys, last.ago());
    }
    limit
}

/// Loads what an earlier process has stored. If a shard has several sessions, the first is used.
pub(super) fn saved(config: &Config) -> Result<Saved, Error> {
    let Some(store) = &config.session_store else {
        return Ok(Saved::default());
    };
    let mut saved = store.load().map_err(|source| Error::Store {
        what: "read",
        source,
    })?;

    let mut shards = HashSet::new();
    saved.sessions.retain(|session| {
        let shard = session.shard;
        let why = if is_foreign(session, config.token.user_id()) {
            "it belongs to another bot"
        } else if !shards.insert(shard) {
            "the store lists another session of the shard first"
        } else {
            return true;
        };
        log::warn!(shard:% = shard; "a stored session of shard {shard} is not used: {why}");
        false
    });
    Ok(saved)
}

/// The shards to run, where Discord recommends `recommended` shards. If other processes run the
/// rest of the bot's shards, all processes use the same total.
pub(super) fn shards(
    config: &Config,
    plan: &Plan,
    recommended: u32,
    sessions: &[Session],
) -> Result<Vec<ShardId>, Error> {
    let shards = plan.shards_with(recommended, sessions);
    let shards = match (shards, plan) {
        // The other processes may use more shards than Discord recommends.
        (
            Err(error),
            Plan::Bucket {
                of, total: None, ..
            },
        ) if config.session_store.is_some() => plan.shards(*of).map_err(|_| error)?,
        (shards, _) => shards?,
    };
    let Some(total) = agreed_total(config, &shards)? else {
        return plan.shards_with(recommended, sessions);
    };

    check_automatic(config, total)?;
    if shards.iter().all(|shard| shard.total() == total) {
        return Ok(shards);
    }
    if !plan.asks_discord() {
        return Err(disagreement(&shards, total));
    }
    log::info!("using {total} shards in total, as the other processes do");
    let shards = plan.shards(total)?;
    check_agreed(config, &shards)?;
    Ok(shards)
}

/// Checks that other processes have the same total.
pub(super) fn check_agreed(config: &Config, shards: &[ShardId]) -> Result<(), Error> {
    let total = agreed_total(config, shards)?;
    match total.filter(|total| shards.iter().any(|shard| shard.total() != *total)) {
        None => Ok(()),
        Some(total) => Err(disagreement(shards, total)),
    }
}

/// The total that all processes use, if other processes run the rest of the shards.
fn agreed_total(config: &Config, shards: &[ShardId]) -> Result<Option<u32>, Error> {
    let store = config.session_store.as_ref();
    store.map_or(Ok(None), |store| store.agree_on_shards(shards))
}

/// Refuses settings that change the total automatically if other processes share that total.
fn check_automatic(config: &Config, total: u32) -> Result<(), Error> {
    let (setting, given) = match (config.auto_split, config.auto_reshard) {
        (Some(count), _) => ("auto_split", count.to_string()),
        (None, Some(auto)) => ("auto_reshard", format!("every {:?}", auto.check_every)),
        (None, None) => return Ok(()),
    };
    let allowed = format!("none, since the store has one total for all processes: {total} shards");
    Err(Error::setting(setting, given, allowed))
}

fn disagreement(shards: &[ShardId], total: u32) -> Error {
    let own = shards.iter().map(|shard| shard.total());
    let own = own.filter(|own| *own != total).max().unwrap_or_default();
    let allowed = format!(
        "the total that the other processes have: {total} (`Redis::set_total` changes it once all \
         have stopped)"
    );
    Error::setting("plan", format!("a total of {own} shards"), allowed)
}

/// The stored sessions of shards of the plan. Also writes the store, to check that it is writable.
pub(super) fn matching(
    saved: Saved,
    shards: &[ShardId],
    config: &Config,
) -> Result<Vec<Session>, Error> {
    let shards: HashSet<&ShardId> = shards.iter().collect();
    let (matching, others): (Vec<_>, Vec<_>) = saved
        .sessions
        .into_iter()
        .partition(|session| shards.contains(&session.shard));

    for session in others {
        let shard = session.shard;
        log::warn!(
            shard:% = shard;
            "a stored session of shard {shard} is not used: the shard is not in the plan"
        );
    }

    let saved = Saved {
        sessions: matching,
        identified: saved.identified,
    };
    if let Some(store) = &config.session_store {
        store.save(&saved).map_err(|source| Error::Store {
            what: "written",
            source,
        })?;
    }
    Ok(saved.sessions)
}

/// Checks that enough IDENTIFYs are left; otherwise fails or logs a warning, as the policy says.
pub(super) fn check_identifies(
    needed: usize,
    gateway: Option<&GatewayBot>,
    session_start_policy: SessionStartPolicy,
) -> Result<(), Error> {
    let Some(limit) = gateway.map(|gateway| &gateway.session_start_limit) else {
        return Ok(());
    };
    if needed <= limit.remaining as usize {
        return Ok(());
    }

    let SessionStartLimit {
        remaining, total, ..
    } = *limit;
    let reset_after = Duration::from_millis(limit.reset_after);
    if session_start_policy == SessionStartPolicy::Refuse {
        return Err(Error::SessionStartLimit {
            needed,
            remaining,
            total,
            reset_after,
        });
    }

    log::warn!(
        "{needed} shards must identify, but only {remaining} of {total} IDENTIFYs are left; \
         the rest wait {} s for the reset",
        reset_after.as_secs(),
    );
    Ok(())
}

/// Warns if this process and others together could exceed the identify limit.
pub(super) fn warn_of_others(config: &Config, max_concurrency: NonZeroU32) {
    if config.limiter.is_none() && config.plan.shares_keys(max_concurrency) {
        log::warn!(
            "this process runs a part of the shards with its own identify limiter: if several \
             processes start at the same time, they exceed the limit together; share a limiter \
             (`Config::limiter`: a `limit::FileLimit` on one machine, `redis::Redis` on several), \
             or use `Plan::Bucket` with a number of processes that divides max_concurrency \
             ({max_concurrency})"
        );
    }
}

/// Warns if an event filter names events that Discord will not send because an intent is missing.
pub(super) fn warn_of_intents(configs: &[ShardConfig]) {
    let missed: BTreeMap<_, _> = configs
        .iter()
        .flat_map(|config| config.events.missed(config.intents))
        .map(|name| (name.to_string(), name.intents()))
        .collect();
    for (name, intents) in missed {
        let intents: Vec<_> = intents.iter_names().map(|(intent, _)| intent).collect();
        let intents = intents.join(" or ");
        log::warn!(
            "the event filter names {name}, which needs the intent {intents}: \
             Discord will not send it"
        );
    }
}

/// Warns if the limits on threads or descriptors are too low for this number of shards.
#[cfg(unix)]
pub(super) fn warn_of_resources(shards: usize) {
    for (resource, what, each) in [
        (
            rlimit::Resource::NOFILE,
            "file descriptors",
            DESCRIPTORS_PER_SHARD,
        ),
        (rlimit::Resource::NPROC, "threads", THREADS_PER_SHARD),
    ] {
        let needed = shards as u64 * each;
        if let Ok((allowed, _)) = resource.get()
            && needed > allowed
        {
            log::warn!(
                "{shards} shards need {needed} {what}, but the limit of this process is {allowed} \
                 (see `ulimit`)"
            );
        }
    }
}

/// Other systems have no such limits.
#[cfg(not(unix))]
pub(super) fn warn_of_resources(_: usize) {}

/// Starts the manager's own threads.
pub(super) fn threads<C: Connector + 'static>(
    hub: &Arc<Hub>,
    context: Arc<Context<C>>,
) -> Result<Threads, Error> {
    let store = hub.config.session_store.clone();
    let writer = store.map(|store| session_writer::start(hub, store));
    let session_writer = writer.transpose()?;
    let supervisor = match supervisor::start(hub, context) {
        Ok(supervisor) => supervisor,
        Err(error) => {
            // Suspended, so that the stored sessions are kept.
            hub.stop(StopReason::Suspended);
            hub.end_stream();
            hub.set_stopped();
            hub.wait_end();
            if let Some(writer) = session_writer {
                let _ = writer.join();
            }
            return Err(error);
        }
    };

    Ok(Threads {
        supervisor,
        session_writer,
    })
}
