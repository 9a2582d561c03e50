//! User requests to a running manager, and the lookups that they need.

use std::sync::Arc;
use std::time::Duration;

use super::hub::Hub;
use super::operation::Operation;
use super::reconciler::Request;
use super::{count, start};
use crate::config::{Plan, is_foreign};
use crate::error::Error;
use crate::protocol::{Command, Session};
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// A suspended shard's session and unsent commands, from
/// [`ShardManager::suspend_shard`](crate::ShardManager::suspend_shard).
#[derive(Debug)]
#[non_exhaustive]
pub struct SuspendedShard {
    /// Its session, at the sequence up to which all events are handled; `None` if it had no
    /// session.
    pub session: Option<Session>,
    /// Its unsent commands, in order.
    pub unsent: Vec<Command>,
}

impl Hub {
    pub(super) fn open(
        self: &Arc<Self>,
        shard: ShardId,
        session: Option<Session>,
    ) -> Result<Operation, Error> {
        let bot = self.config.token.user_id();
        let foreign = session.as_ref();
        if let Some(foreign) = foreign.filter(|session| is_foreign(session, bot)) {
            return Err(Error::ForeignSession {
                shard,
                bot_user_id: foreign.bot_user_id,
            });
        }
        self.config.of_shard(shard)?;
        start::check_agreed(&self.config, &[shard])?;
        self.ask(Request::Open(shard, session))
    }

    pub(super) fn restart(self: &Arc<Self>, shard: ShardId) -> Result<Operation, Error> {
        self.config.of_shard(shard)?;
        self.ask(Request::Restart(shard))
    }

    pub(super) fn restart_all(
        self: &Arc<Self>,
        max_unavailable: usize,
    ) -> Result<Operation, Error> {
        if max_unavailable == 0 {
            return Err(Error::setting(
                "max_unavailable",
                max_unavailable,
                "at least 1",
            ));
        }
        for shard in self.wanted() {
            self.config.of_shard(shard)?;
        }
        self.ask(Request::RestartAll { max_unavailable })
    }

    pub(super) fn reshard(self: &Arc<Self>, plan: &Plan) -> Result<Operation, Error> {
        plan.validate()?;
        self.check_idle()?;
        let gateway = start::ask_discord(&self.config, plan, &self.rest)?;
        let gateway = gateway.as_ref();
        let plan = count::rounded(plan, gateway, || count::is_large(&self.rest));
        let to = plan.shards(gateway.map_or(0, |gateway| gateway.shards.get()))?;
        start::check_agreed(&self.config, &to)?;
        if let Some(gateway) = gateway {
            let limits = start::limits(&gateway.session_start_limit);
            self.limiter.update(limits, gateway.asked_at);
        }
        start::check_identifies(to.len(), gateway, self.config.session_start_policy)?;
        to.iter()
            .try_for_each(|shard| self.config.of_shard(*shard).map(drop))?;

        let max_concurrency = gateway.map(|gateway| gateway.session_start_limit.max_concurrency);
        self.ask(Request::Reshard {
            to,
            max_concurrency,
        })
    }

    /// Stops a shard, waits for it and its handlers, and takes its session and unsent commands.
    pub(super) fn suspend_shard(self: &Arc<Self>, id: ShardId) -> Result<SuspendedShard, Error> {
        let waiting = self.unopened_session(id);
        self.ask(Request::Suspend(id))?.wait(Duration::MAX)?;
        let Some(shard) = self.shard(id) else {
            // It had not been opened.
            return Ok(SuspendedShard {
                session: waiting,
                unsent: Vec::new(),
            });
        };
        self.wait_for_handlers(&shard);
        Ok(self.take_suspended(&shard))
    }

    /// Takes the session and the unsent commands of a stopped shard.
    pub(super) fn take_suspended(&self, shard: &Shard) -> SuspendedShard {
        SuspendedShard {
            session: self.take_session(shard.run()),
            unsent: shard.take_unsent(),
        }
    }
}
