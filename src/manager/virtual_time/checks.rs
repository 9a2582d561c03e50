//! The checks after each step, and at the end.

use std::time::Duration;

use super::process::{Actor, Process};
use super::{OVERLAP, Play};
use crate::manager::reconciler::Role;
use crate::protocol::ShardState;
use crate::shard::{Run, Shard, ShardStatus};
use crate::shard_id::ShardId;

impl Play {
    /// What is still unfinished.
    pub(super) fn unfinished(&mut self) -> Vec<String> {
        let Some(process) = &self.process else {
            return vec!["no process is running".to_owned()];
        };
        let status = process.hub.status();
        let is_ready = |shard: &ShardStatus| shard.state == ShardState::Ready;
        if !status.unopened.is_empty() || !status.shards.iter().all(is_ready) {
            return vec![format!("not all shards are ready: {status}")];
        }
        if !self.requests.is_empty() {
            return vec![format!("{} requests are pending", self.requests.len())];
        }
        let sessions = process.hub.shards();
        let sessions = sessions.iter().filter_map(Shard::session);
        let live = sessions.map(|session| session.id).collect();
        self.accounts.missing(&self.world, &live)
    }

    /// Checks that the library breaks no rule of Discord.
    pub(super) fn check_rules(&mut self) -> Result<(), String> {
        let Some(violation) = self.world.observed.violations.get(self.violations) else {
            return Ok(());
        };
        self.violations += 1;
        let rule = &violation.rule;

        // No heartbeat arrives from a process that is frozen, or over a dead connection.
        let is_silent = rule.starts_with("4009");
        // A process may be killed before it has stored that it has identified.
        let was_killed = self.now < self.killed_at + Duration::from_secs(10);
        let is_unstored = was_killed && rule.starts_with("one IDENTIFY per key");

        // With this close code Discord reports to a shard that it has too many guilds.
        let is_crowded = rule.starts_with("4011");
        if is_silent || is_unstored || is_crowded {
            return Ok(());
        }
        Err(format!("the library broke a rule: {violation:?}"))
    }

    /// Lets one of the process's threads continue.
    pub(super) fn run_thread(&mut self, actor: Actor) -> Result<(), String> {
        let Some(mut process) = self.process.take() else {
            return Ok(());
        };
        process.step(actor, || self.gateway());
        self.note_sessions(&process, actor);

        if let Some(to) = process.committed.take() {
            self.check_commit(&process, &to)?;
            self.hand_over();
        }

        if process.has_overtaken && self.lanes.is_some() {
            self.accounts.note_overtaking();
        }

        if self.is_resharding() {
            let (shards, _) = process.hub.look(|slot, shard| {
                let delivers = matches!(slot.role, Role::Active | Role::Outgoing);
                (delivers && shard.session().is_none()).then(|| shard.id())
            });
            for shard in shards {
                self.accounts.note_gap(shard);
            }
        }

        self.process = Some(process);
        Ok(())
    }

    /// Records the new sessions of shards, and which shards deliver events to the program.
    fn note_sessions(&mut self, process: &Process, actor: Actor) {
        let shards = match actor {
            Actor::Shard(run) => process.hub.shard_of(run).into_iter().collect(),
            Actor::Supervisor => process.hub.shards(),
            _ => return,
        };
        for shard in shards {
            let active = process.hub.shard(shard.id());
            let is_active = active.is_some_and(|active| active.run() == shard.run());
            let session = shard.session();
            self.accounts
                .note_session(shard.id(), session.as_ref(), is_active);
        }
    }

    /// Checks that the shards of a set are ready when it is about to take over from another.
    fn check_commit(&mut self, process: &Process, to: &[Run]) -> Result<(), String> {
        for run in to {
            let status = process.hub.shard_of(*run).map(|shard| shard.status());
            // A resuming shard may be unable to continue until the old set has closed.
            let is_ready = status.is_some_and(|status| match status.state {
                ShardState::Ready => true,
                ShardState::Resuming => status.stalled_for.is_some(),
                _ => false,
            });
            if !is_ready {
                return Err(format!("the old set closes while a new one is {status:?}"));
            }
        }

        let to: Vec<ShardId> = to.iter().map(|run| run.shard).collect();
        let since = self.accounts.all_known(&to, self.reshard_began);
        let waited = since.map_or(Duration::ZERO, |since| self.now - since);
        // It waits once until the old shards have caught up, and once for new ones that lag.
        self.accounts.has_given_up = waited + Duration::from_secs(1) >= OVERLAP * 2;
        Ok(())
    }
}
