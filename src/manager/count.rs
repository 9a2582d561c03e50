//! Whether the number of shards is right, which Discord knows.

use std::sync::{Arc, Weak};
use std::thread;

use super::fleet::{Fleet, INVALID_SHARD, Part, State, list};
use super::operation::Failure;
use crate::config::Plan;
use crate::error::Error;
use crate::rest::{GatewayBot, Rest};
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// Bots with more guilds are large: their shard count must be a multiple of what `/gateway/bot`
/// gives.
///
/// Source: [Discord, Sharding for very large
/// bots](https://docs.discord.com/developers/events/gateway#sharding-for-very-large-bots).
const LARGE_BOT: u64 = 150_000;

/// Most guilds of a shard.
///
/// Source: [Discord, Sharding](https://docs.discord.com/developers/events/gateway#sharding).
const GUILDS_PER_SHARD: f64 = 2500.0;

/// How many guilds there are for each shard that Discord recommends.
const GUILDS_PER_RECOMMENDED_SHARD: f64 = 1000.0;

/// The plan, with its explicit total rounded up where the bot is large.
pub(super) fn rounded(
    plan: &Plan,
    gateway: Option<&GatewayBot>,
    is_large: impl FnOnce() -> bool,
) -> Plan {
    let (Some(total), Some(gateway)) = (plan.explicit_total(), gateway) else {
        return plan.clone();
    };
    match total.checked_next_multiple_of(gateway.shards.get()) {
        Some(multiple) if multiple != total && is_large() => {
            log::warn!(
                "a large bot's shard count is a multiple of {}: {multiple} in place of {total}",
                gateway.shards
            );
            plan.with_total(multiple)
        }
        _ => plan.clone(),
    }
}

/// Whether the bot is in more guilds than one of ordinary size. If Discord does not say so, close
/// code 4010 will.
pub(super) fn is_large(rest: &Rest) -> bool {
    match rest.current_application() {
        Ok(application) => application["approximate_guild_count"]
            .as_u64()
            .is_some_and(|guilds| guilds > LARGE_BOT),
        Err(error) => {
            log::warn!("the number of guilds is not known: {}", error.report());
            false
        }
    }
}

impl Fleet {
    /// After close code 4010: whether Discord is asked which shard counts it takes, so that there
    /// is hope.
    pub(super) fn ask_for_multiple(self: &Arc<Self>, state: &mut State, shard: ShardId) -> bool {
        let is_explicit =
            self.config.plan.explicit_total() == Some(shard.total()) && state.reshard.is_none();
        if !is_explicit || state.is_asking {
            return is_explicit;
        }
        state.transition.clear();
        let failure = Failure::Stopped {
            shard,
            reason: INVALID_SHARD,
        };
        state.tell_operations(|operation| operation.finish(Err(failure)));
        let asked = self.in_background(
            |state| &mut state.is_asking,
            move |fleet, answer| fleet.take_multiple(shard, answer),
        );
        state.is_asking = asked;
        asked
    }

    /// Starts anew with a total that Discord takes, if there is one.
    fn take_multiple(
        self: &Arc<Self>,
        shard: ShardId,
        answer: Result<GatewayBot, Error>,
    ) -> Result<(), Error> {
        let gateway = answer?;
        // Discord has refused the total, so the bot is large, whatever its guild count says.
        let plan = rounded(&self.config.plan, Some(&gateway), || true);
        let to = plan.shards(gateway.shards.get())?;
        let closing: Vec<Shard> = {
            let mut state = self.state.lock();
            if state.stopping.is_some() || plan == self.config.plan {
                return Err(Error::Stopped {
                    shard,
                    reason: INVALID_SHARD,
                });
            }
            log::warn!(
                "Discord does not take {} shards; {} are opened in their place",
                shard.total(),
                list(&to)
            );
            state.transition.clear();
            let old: Vec<ShardId> = state.shards.keys().copied().collect();
            let mut closing = Vec::new();
            for id in old {
                match state.shards.get_mut(&id) {
                    Some(slot) if slot.runs() => {
                        slot.part = Part::Dismissed;
                        closing.push(slot.shard.clone());
                    }
                    _ => state.retire(id),
                }
            }
            state.wanted = to.iter().copied().collect();
            state.transition.open(to);
            closing
        };
        closing.iter().for_each(Shard::close);
        Ok(())
    }

    /// Asks Discord how many shards it recommends, and reshards if those that run are too full.
    pub(super) fn check_fullness(self: &Arc<Self>, threshold: f64) {
        let mut state = self.state.lock();
        if state.is_asking
            || state.is_checking
            || state.stopping.is_some()
            || state.outlet.is_none()
        {
            return;
        }
        let check = move |fleet: &Arc<Self>, answer: Result<GatewayBot, Error>| {
            fleet.reshard_if_full(threshold, &answer?)
        };
        state.is_checking = self.in_background(|state| &mut state.is_checking, check);
    }

    fn reshard_if_full(
        self: &Arc<Self>,
        threshold: f64,
        gateway: &GatewayBot,
    ) -> Result<(), Error> {
        let (total, fullest) = {
            let state = self.state.lock();
            let fullest = state
                .running()
                .filter_map(|(_, slot)| slot.shard.status().guilds)
                .max();
            (
                state
                    .wanted
                    .iter()
                    .map(|shard| shard.total())
                    .min()
                    .unwrap_or(1),
                fullest.unwrap_or(0),
            )
        };
        let fullness = fullness(gateway.shards.get(), total, fullest);
        let needed = gateway.shards.get();
        log::debug!(
            "the shards are {:.0} % full; Discord recommends {needed}",
            fullness * 100.0
        );
        if fullness <= threshold || needed <= total {
            return Ok(());
        }
        let limit = &gateway.session_start_limit;
        // Enough for the new shards, and for all of them once more if this process should end.
        if limit.remaining < needed.saturating_mul(2) {
            log::warn!(
                "the shards are {:.0} % full, but of {} IDENTIFYs {} are left, too few for {needed} shards and their restart",
                fullness * 100.0,
                limit.total,
                limit.remaining
            );
            return Ok(());
        }
        log::info!(
            "the shards are {:.0} % full: {needed} replace them",
            fullness * 100.0
        );
        self.reshard(&Plan::Total(needed)).map(drop)
    }

    /// Asks `/gateway/bot` on a thread of its own, which nobody waits for: a request can take long.
    /// `flag` is unset at the end.
    fn in_background(
        self: &Arc<Self>,
        flag: fn(&mut State) -> &mut bool,
        then: impl FnOnce(&Arc<Self>, Result<GatewayBot, Error>) -> Result<(), Error> + Send + 'static,
    ) -> bool {
        let (fleet, rest) = (Arc::downgrade(self), self.rest.clone());
        let asks = move || {
            let answer = rest.gateway_bot();
            let Some(fleet) = Weak::upgrade(&fleet) else {
                return;
            };
            if let Err(error) = then(&fleet, answer) {
                log::error!("the number of shards stays as it is: {}", error.report());
            }
            {
                let mut state = fleet.state.lock();
                *flag(&mut state) = false;
                state.end_if_over();
            }
            fleet.changed.notify_all();
        };
        let thread = thread::Builder::new()
            .name("shard-count".into())
            .spawn(asks);
        if let Err(error) = &thread {
            log::error!("Discord cannot be asked for the number of shards: {error}");
        }
        thread.is_ok()
    }
}

/// How full the fullest shard is: from 0 to 1, and above.
fn fullness(recommended: u32, total: u32, fullest: usize) -> f64 {
    let by_recommendation = f64::from(recommended) / f64::from(total)
        * (GUILDS_PER_RECOMMENDED_SHARD / GUILDS_PER_SHARD);
    let by_guilds = f64::from(u32::try_from(fullest).unwrap_or(u32::MAX)) / GUILDS_PER_SHARD;
    by_recommendation.max(by_guilds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fullness_is_that_of_the_fullest() {
        let percent =
            |recommended, total, fullest| (fullness(recommended, total, fullest) * 100.0).round();
        assert_eq!(percent(4, 4, 0).to_string(), "40");
        assert_eq!(percent(8, 4, 1000).to_string(), "80");
        assert_eq!(percent(4, 4, 2500).to_string(), "100");
    }
}
