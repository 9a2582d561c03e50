//! How often members of a guild may be requested.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::command::{Command, MemberScope};

/// When the members of each guild may be requested again. It outlives connections, as Discord's own
/// count does.
///
/// Source: [Discord, Rate limit when requesting all guild
/// members](https://docs.discord.com/developers/change-log#introducing-rate-limit-when-requesting-all-guild-members).
#[derive(Debug, Default)]
pub(crate) struct MemberWindows {
    free_at: HashMap<MemberScope, Instant>,
}

impl MemberWindows {
    /// When this limit allows a command to be sent; `now` if it is allowed already.
    pub(crate) fn free_at(&self, now: Instant, command: &Command) -> Instant {
        let free_at = command.members().and_then(|scope| self.free_at.get(&scope));
        free_at.map_or(now, |free_at| now.max(*free_at))
    }

    /// Records a command that is being sent. If it requests all members of a guild, the next such
    /// request for that guild must wait for `window`.
    pub(crate) fn record(&mut self, now: Instant, command: &Command, window: Duration) {
        if let Some(scope) = command.members().filter(|scope| scope.all) {
            self.close(now, scope, window);
        }
    }

    /// Removes the wait that [`record`](Self::record) added for a command, because it was not sent
    /// after all.
    pub(crate) fn forget(&mut self, command: &Command) {
        if let Some(scope) = command.members().filter(|scope| scope.all) {
            self.free_at.remove(&scope);
        }
    }

    /// Applies a rate limit that Discord has sent: all requests for members of this guild must
    /// wait.
    pub(crate) fn limit(&mut self, now: Instant, guild: u64, retry_after: Duration) {
        for all in [true, false] {
            self.close(now, MemberScope { guild, all }, retry_after);
        }
    }

    fn close(&mut self, now: Instant, scope: MemberScope, window: Duration) {
        self.free_at.retain(|_, free_at| *free_at > now);
        let free_at = self.free_at.entry(scope).or_insert(now);
        *free_at = (*free_at).max(now + window);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;
    use crate::protocol::MemberQuery;

    const WINDOW: Duration = Duration::from_secs(30);

    fn ask(guild: u64, query: &MemberQuery) -> Command {
        Command::request_members(guild, query, None).unwrap()
    }

    #[test]
    fn all_members_of_a_guild_once_in_a_while() {
        let (now, mut windows) = (Instant::now(), MemberWindows::default());
        let (all, some) = (
            ask(1, &MemberQuery::all()),
            ask(1, &MemberQuery::prefix("x", 5)),
        );
        windows.record(now, &some, WINDOW);
        assert_eq!(windows.free_at(now, &all), now);
        windows.record(now, &all, WINDOW);
        assert_eq!(windows.free_at(now, &all), now + WINDOW);
        assert_eq!(
            windows.free_at(now, &some),
            now,
            "other requests are not limited"
        );
        assert_eq!(
            windows.free_at(now, &ask(2, &MemberQuery::all())),
            now,
            "nor are other guilds"
        );
        assert_eq!(windows.free_at(now + WINDOW, &all), now + WINDOW);
    }

    #[test]
    fn a_request_that_was_not_sent_does_not_count() {
        let (now, mut windows) = (Instant::now(), MemberWindows::default());
        let all = ask(1, &MemberQuery::all());
        windows.record(now, &all, WINDOW);
        windows.forget(&all);
        assert_eq!(windows.free_at(now, &all), now);
    }

    #[test]
    fn discords_word_counts_for_every_request() {
        let (now, mut windows) = (Instant::now(), MemberWindows::default());
        windows.limit(now, 1, WINDOW);
        windows.limit(now, 1, Duration::ZERO);
        assert_eq!(
            windows.free_at(now, &ask(1, &MemberQuery::ids([5]))),
            now + WINDOW,
            "the longer one"
        );
        windows.limit(now + WINDOW, 2, WINDOW);
        assert_eq!(windows.free_at.len(), 2, "an expired wait is removed");
    }
}
