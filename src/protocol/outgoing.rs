//! The commands that a shard sends once its session is live.

use std::collections::VecDeque;
use std::mem;
use std::time::{Duration, Instant};

use super::command::Command;
use super::member_windows::MemberWindows;
use super::send_budget::SendBudget;

/// The queue of commands, and the presence.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    /// The queued commands, oldest first, without presences.
    commands: VecDeque<Command>,
    /// The queued presence: only the latest one is queued.
    next_presence: Option<Command>,
    /// The presence that was set last, for the next IDENTIFY.
    last_presence: Option<Command>,
    members: MemberWindows,
}

impl Outgoing {
    /// Queues a command. A presence replaces the queued one.
    pub(crate) fn push(&mut self, command: Command) {
        if command.is_presence() {
            self.set_presence(Some(command));
        } else {
            self.commands.push_back(command);
        }
    }

    /// Queues this presence and uses it for the next IDENTIFY; `None` removes both.
    pub(crate) fn set_presence(&mut self, presence: Option<Command>) {
        self.next_presence.clone_from(&presence);
        self.last_presence = presence;
    }

    /// Queues a command again, before all others, because the connection ended before it was sent.
    pub(crate) fn put_back(&mut self, command: Command) {
        if command.is_presence() {
            // A newer one may be queued already.
            self.next_presence.get_or_insert(command);
        } else {
            self.members.forget(&command);
            self.commands.push_front(command);
        }
    }

    /// Drops a command that was not sent before the connection ended and is no longer needed. Its
    /// request does not count for Discord's limit.
    pub(crate) fn forget(&mut self, command: &Command) {
        self.members.forget(command);
    }

    /// Removes the queued request for members that has this nonce.
    pub(crate) fn cancel(&mut self, nonce: &str) {
        self.commands
            .retain(|command| command.nonce() != Some(nonce));
    }

    /// The presence for an IDENTIFY. It is removed from the queue, because the IDENTIFY sends it.
    pub(crate) fn identify_with(&mut self) -> Option<&Command> {
        self.next_presence = None;
        self.last_presence.as_ref()
    }

    /// Delays the next request for members of this guild, because Discord requires a pause.
    pub(crate) fn pause_members(&mut self, now: Instant, guild: u64, pause: Duration) {
        self.members.limit(now, guild, pause);
    }

    /// Takes the next command that may be sent, and counts it.
    ///
    /// `members_window` is the minimum time between two requests for all members of a guild.
    ///
    /// # Errors
    /// If no command may be sent now: the time when one may, or `None` if the queue is empty.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        budget: &mut SendBudget,
        members_window: Duration,
    ) -> Result<Command, Option<Instant>> {
        let presence = self.next_presence.as_ref();
        let presence_at = presence.map(|_| budget.command_at(now, true));
        if presence_at.is_some_and(|at| at <= now)
            && let Some(presence) = self.next_presence.take()
        {
            budget.record(now, true);
            return Ok(presence);
        }

        let budget_at = budget.command_at(now, false);
        if budget_at > now && !self.commands.is_empty() {
            return Err(Some(presence_at.map_or(budget_at, |at| at.min(budget_at))));
        }

        // A request for members that must wait does not delay other commands.
        let free_at = |command: &Command| budget_at.max(self.members.free_at(now, command));
        let is_free = |command: &Command| free_at(command) <= now;
        if let Some(at) = self.commands.iter().position(is_free)
            && let Some(command) = self.commands.remove(at)
        {
            budget.record(now, false);
            self.members.record(now, &command, members_window);
            return Ok(command);
        }
        Err(self.commands.iter().map(free_at).chain(presence_at).min())
    }

    /// The number of queued commands, without a presence.
    pub(crate) fn len(&self) -> usize {
        self.commands.len()
    }

    /// Whether a presence is queued.
    pub(crate) fn has_presence(&self) -> bool {
        self.next_presence.is_some()
    }

    /// Takes all queued commands, without a presence.
    pub(crate) fn take(&mut self) -> VecDeque<Command> {
        mem::take(&mut self.commands)
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;
    use crate::protocol::{MemberQuery, OnlineStatus, Presence};

    const WINDOW: Duration = Duration::from_secs(30);

    fn budget() -> SendBudget {
        SendBudget::new(Duration::from_secs(60), Duration::from_secs(20), WINDOW)
    }

    fn presence(status: OnlineStatus) -> Command {
        Command::presence(&Presence::new(status)).unwrap()
    }

    fn sounds(guild: u64) -> Command {
        Command::soundboard_sounds(&[guild]).unwrap()
    }

    fn all_members(guild: u64) -> Command {
        Command::request_members(guild, &MemberQuery::all(), None).unwrap()
    }

    #[test]
    fn the_latest_presence_goes_first_and_into_the_next_identify() {
        let (now, mut budget, mut outgoing) = (Instant::now(), budget(), Outgoing::default());
        let (old, new) = (presence(OnlineStatus::Idle), presence(OnlineStatus::Online));
        for command in [sounds(1), old.clone(), new.clone()] {
            outgoing.push(command);
        }
        assert_eq!(outgoing.poll(now, &mut budget, WINDOW), Ok(new.clone()));
        // The older one was not sent before a connection ended, while a newer one is queued.
        outgoing.push(new.clone());
        outgoing.put_back(old);
        assert_eq!(outgoing.identify_with(), Some(&new));
        assert!(!outgoing.has_presence(), "the IDENTIFY sends it");
        assert_eq!(outgoing.poll(now, &mut budget, WINDOW), Ok(sounds(1)));
        assert_eq!(outgoing.poll(now, &mut budget, WINDOW), Err(None));
    }

    #[test]
    fn a_request_for_members_that_must_wait_holds_up_nothing_else() {
        let (now, mut budget, mut outgoing) = (Instant::now(), budget(), Outgoing::default());
        for command in [all_members(1), all_members(1), sounds(1)] {
            outgoing.push(command);
        }
        let mut poll = |outgoing: &mut Outgoing| outgoing.poll(now, &mut budget, WINDOW);
        assert_eq!(poll(&mut outgoing), Ok(all_members(1)));
        assert_eq!(poll(&mut outgoing), Ok(sounds(1)));
        assert_eq!(poll(&mut outgoing), Err(Some(now + WINDOW)));
        // The first one was not sent after all.
        outgoing.put_back(all_members(1));
        assert_eq!(poll(&mut outgoing), Ok(all_members(1)));
        assert_eq!(outgoing.len(), 1);
    }
}
