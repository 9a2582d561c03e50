//! What is asked, checked and prepared before anything starts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use native_tls::{Certificate, TlsConnector};

use crate::config::{Config, Plan, Shortage, is_foreign};
use crate::error::Error;
use crate::limit::{IdentifyLimiter, Limits, SessionLimit};
use crate::protocol::Session;
use crate::rest::{GatewayBot, Rest, SessionStartLimit};
use crate::shard_id::ShardId;

/// Threads that a shard costs.
const THREADS_PER_SHARD: u64 = 1;

/// Descriptors that a shard costs: its socket, its poll and its waker.
const DESCRIPTORS_PER_SHARD: u64 = 3;

/// What `/gateway/bot` says; `None` if the configuration says it all, as for a gateway proxy.
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

pub(super) fn tls_connector(root_certificates: Option<&str>) -> Result<TlsConnector, Error> {
    let mut builder = TlsConnector::builder();
    if let Some(pem) = root_certificates {
        builder.disable_built_in_roots(true);
        for certificate in Certificate::stack_from_pem(pem.as_bytes())? {
            builder.add_root_certificate(certificate);
        }
    }
    Ok(builder.build()?)
}

pub(super) fn limits(limit: &SessionStartLimit) -> Limits {
    Limits {
        total: limit.total,
        remaining: limit.remaining,
        reset_after: Duration::from_millis(limit.reset_after),
        max_concurrency: limit.max_concurrency,
    }
}

pub(super) fn limiter(config: &Config, limits: Option<Limits>) -> Arc<dyn IdentifyLimiter> {
    match (&config.limiter, limits) {
        (Some(limiter), Some(limits)) => {
            limiter.update(limits);
            Arc::clone(limiter)
        }
        // Discord was not asked: the limiter knows better.
        (Some(limiter), None) => Arc::clone(limiter),
        (None, limits) => Arc::new(SessionLimit::with_timing(
            limits.unwrap_or_default(),
            &config.timing,
            config.release_after,
        )),
    }
}

/// The sessions at hand: those that the user gave, and for other shards those of the store.
pub(super) fn sessions(config: &Config) -> Result<Vec<Session>, Error> {
    let mut sessions = config.sessions.clone();
    let Some(store) = &config.session_store else {
        return Ok(sessions);
    };
    let stored = store.load().map_err(|source| Error::Store {
        what: "read",
        source,
    })?;
    for session in stored {
        if is_foreign(&session, config.token.user_id()) {
            log::warn!(
                "a stored session of shard {} is not used: it is another bot's",
                session.shard
            );
        } else if sessions.iter().all(|other| other.shard != session.shard) {
            sessions.push(session);
        }
    }
    Ok(sessions)
}

/// Those that belong to shards of the plan. The store is written, to see whether it can be.
pub(super) fn matching(
    sessions: Vec<Session>,
    shards: &[ShardId],
    config: &Config,
) -> Result<Vec<Session>, Error> {
    let shards: HashSet<&ShardId> = shards.iter().collect();
    let (matching, others): (Vec<_>, Vec<_>) = sessions
        .into_iter()
        .partition(|session| shards.contains(&session.shard));
    for session in others {
        log::warn!(
            "a stored session of shard {} is not used: that shard is not in the plan",
            session.shard
        );
    }
    if let Some(store) = &config.session_store {
        store.save(&matching).map_err(|source| Error::Store {
            what: "written",
            source,
        })?;
    }
    Ok(matching)
}

/// Holds the IDENTIFYs that are left against those that are needed.
pub(super) fn check_identifies(
    needed: usize,
    gateway: Option<&GatewayBot>,
    shortage: Shortage,
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
    if shortage == Shortage::Refuse {
        return Err(Error::TooFewIdentifies {
            needed,
            remaining,
            total,
            reset_after,
        });
    }
    log::warn!(
        "{needed} shards are to identify, and {remaining} of {total} IDENTIFYs are left; the others wait {} s for the reset",
        reset_after.as_secs(),
    );
    Ok(())
}

/// Says up front whether threads or descriptors will run short.
pub(super) fn warn_of_resources(shards: usize) {
    #[cfg(unix)]
    for (resource, what, each) in [
        (
            rlimit::Resource::NOFILE,
            "descriptors",
            DESCRIPTORS_PER_SHARD,
        ),
        (rlimit::Resource::NPROC, "threads", THREADS_PER_SHARD),
    ] {
        let needed = shards as u64 * each;
        if let Ok((allowed, _)) = resource.get()
            && needed > allowed
        {
            log::warn!(
                "{shards} shards need {needed} {what}; this process may have {allowed} (see `ulimit`)"
            );
        }
    }
}
