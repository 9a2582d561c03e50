//! The filter that selects which events a program receives.
#![deny(clippy::disallowed_methods)]

use crate::intents::Intents;
use crate::protocol::{EventName, UnknownEventName};

/// Lets some of Discord's events pass and drops the others, by name, before an event is made of
/// them.
///
/// A dropped event counts as handled and is never outstanding. The library itself sees every event
/// that it needs: `READY`, `RESUMED`, guilds that come and go, the answers to
/// [`Shard::request_members`](crate::Shard::request_members). What happens to a shard
/// ([`EventKind`](crate::EventKind)'s other variants) always passes. Leaving out an intent costs
/// even less: Discord does not send its events at all.
///
/// ```
/// # use threadcord::{EventFilter, EventName, Intents};
/// let filter = EventFilter::only(["MESSAGE_CREATE", "INTERACTION_CREATE"])?;
/// assert!(filter.passes(&EventName::MessageCreate) && !filter.passes(&EventName::TypingStart));
///
/// let filter = EventFilter::except([EventName::PresenceUpdate, EventName::TypingStart])?;
/// assert!(filter.passes(&EventName::MessageCreate));
///
/// let filter = EventFilter::of_intents(Intents::GUILD_MODERATION).with(["INTERACTION_CREATE"])?;
/// assert!(filter.passes(&EventName::GuildBanAdd) && filter.passes(&EventName::InteractionCreate));
/// # Ok::<(), threadcord::error::UnknownEventName>(())
/// ```
#[derive(Clone, Copy, Debug, Eq)]
pub struct EventFilter {
    /// A bit for each documented name.
    documented: u128,
    undocumented: bool,
    /// Those that were named, alone or by an intent.
    named: u128,
}

impl EventFilter {
    /// Everything passes.
    pub const ALL: Self = Self {
        documented: u128::MAX,
        undocumented: true,
        named: 0,
    };

    /// Nothing passes.
    pub const NONE: Self = Self {
        documented: 0,
        undocumented: false,
        named: 0,
    };

    /// These pass, and no others.
    ///
    /// # Errors
    /// If Discord documents no event of one of these names.
    pub fn only(
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, UnknownEventName> {
        Self::NONE.with(names)
    }

    /// All events except these pass.
    ///
    /// # Errors
    /// As [`only`](Self::only).
    pub fn except(
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, UnknownEventName> {
        Self::ALL.without(names)
    }

    /// Events that one of these intents enables pass. Events that need no intent do not, such as
    /// `READY`, `INTERACTION_CREATE` or `ENTITLEMENT_CREATE`.
    pub fn of_intents(intents: Intents) -> Self {
        let brought = EventName::documented().filter(|name| name.intents().intersects(intents));
        let documented = brought.fold(0, |bits, name| bits | bit(&name));
        Self {
            documented,
            undocumented: false,
            named: documented,
        }
    }

    /// These pass too.
    ///
    /// # Errors
    /// As [`only`](Self::only).
    pub fn with(
        self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, UnknownEventName> {
        let bits = bits(names)?;
        Ok(Self {
            documented: self.documented | bits,
            named: self.named | bits,
            ..self
        })
    }

    /// These do not pass.
    ///
    /// # Errors
    /// As [`only`](Self::only).
    pub fn without(
        self,
        names: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Self, UnknownEventName> {
        let bits = bits(names)?;
        Ok(Self {
            documented: self.documented & !bits,
            named: self.named & !bits,
            ..self
        })
    }

    /// Sets whether events that Discord does not document pass. By default they pass with
    /// [`ALL`](Self::ALL) and [`except`](Self::except) only.
    pub fn undocumented(self, pass: bool) -> Self {
        Self {
            undocumented: pass,
            ..self
        }
    }

    /// The events that the filter names but that Discord does not send with these intents.
    pub(crate) fn missed(self, intents: Intents) -> impl Iterator<Item = EventName> {
        EventName::documented().filter(move |name| {
            let needed = name.intents();
            // Discord sends those about the bot itself without an intent.
            let is_own_too = *name == EventName::GuildMemberUpdate;
            !is_own_too
                && self.named & bit(name) != 0
                && !needed.is_empty()
                && !needed.intersects(intents)
        })
    }

    /// Whether events of this name pass.
    pub fn passes(&self, name: &EventName) -> bool {
        match name {
            EventName::Unknown(_) => self.undocumented,
            name => self.documented & bit(name) != 0,
        }
    }
}

/// Two filters are equal if they let the same events pass.
impl PartialEq for EventFilter {
    fn eq(&self, other: &Self) -> bool {
        (self.documented, self.undocumented) == (other.documented, other.undocumented)
    }
}

impl Default for EventFilter {
    fn default() -> Self {
        Self::ALL
    }
}

fn bits(names: impl IntoIterator<Item = impl AsRef<str>>) -> Result<u128, UnknownEventName> {
    names.into_iter().try_fold(0, |bits, name| {
        Ok(bits | bit(&EventName::parse(name.as_ref())?))
    })
}

fn bit(name: &EventName) -> u128 {
    name.index().map_or(0, |index| 1 << index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(filter: EventFilter) -> Vec<String> {
        EventName::documented()
            .filter(|name| filter.passes(name))
            .map(|name| name.to_string())
            .collect()
    }

    #[test]
    fn by_names() {
        let only = EventFilter::only(["TYPING_START", "MESSAGE_CREATE"]).unwrap();
        assert_eq!(passing(only), ["MESSAGE_CREATE", "TYPING_START"]);
        let except = EventFilter::except([EventName::TypingStart]).unwrap();
        assert_eq!(passing(except).len(), EventName::documented().count() - 1);
        assert_eq!(passing(EventFilter::NONE), [""; 0]);
        assert_eq!(
            passing(EventFilter::default()).len(),
            EventName::documented().count()
        );
        assert_eq!(
            passing(only.without(["TYPING_START"]).unwrap()),
            ["MESSAGE_CREATE"]
        );
    }

    #[test]
    fn by_intents() {
        let filter = EventFilter::of_intents(Intents::GUILD_WEBHOOKS | Intents::GUILD_MODERATION);
        let names = [
            "GUILD_AUDIT_LOG_ENTRY_CREATE",
            "GUILD_BAN_ADD",
            "GUILD_BAN_REMOVE",
            "WEBHOOKS_UPDATE",
        ];
        assert_eq!(passing(filter), names);
    }

    #[test]
    fn what_was_named_needs_one_of_its_intents() {
        let missed = |filter: EventFilter, intents| -> Vec<_> {
            let missed = filter.missed(intents);
            missed.map(|name| name.to_string()).collect()
        };

        let names = ["READY", "MESSAGE_CREATE", "GUILD_BAN_ADD"];
        let only = EventFilter::only(names).unwrap();
        assert_eq!(missed(only, Intents::DIRECT_MESSAGES), ["GUILD_BAN_ADD"]);
        assert_eq!(missed(only, Intents::all()), [""; 0]);
        let without = only.without(["GUILD_BAN_ADD"]).unwrap();
        assert_eq!(missed(without, Intents::DIRECT_MESSAGES), [""; 0]);
        assert_eq!(missed(EventFilter::ALL, Intents::empty()), [""; 0]);
        let own = EventFilter::only(["GUILD_MEMBER_UPDATE"]).unwrap();
        assert_eq!(missed(own, Intents::GUILDS), [""; 0]);
        let all = EventFilter::ALL.with(["TYPING_START"]).unwrap();
        assert_eq!(all, EventFilter::ALL);
        assert_eq!(missed(all, Intents::GUILDS), ["TYPING_START"]);
        let of_intents = EventFilter::of_intents(Intents::GUILD_WEBHOOKS);
        assert_eq!(missed(of_intents, Intents::GUILDS), ["WEBHOOKS_UPDATE"]);
    }

    #[test]
    fn undocumented_names_pass_all_or_none() {
        let unknown = EventName::from("GUILD_JOIN_REQUEST_CREATE");
        assert!(
            EventFilter::ALL.passes(&unknown)
                && EventFilter::except(["READY"]).unwrap().passes(&unknown)
        );
        let only = EventFilter::only(["READY"]).unwrap();
        assert!(!only.passes(&unknown) && only.undocumented(true).passes(&unknown));
    }

    #[test]
    fn a_name_that_is_none_is_an_error() {
        let error = EventFilter::only(["MESSAGE_CREATED"]).unwrap_err();
        assert_eq!(error.given, "MESSAGE_CREATED");
        assert!(EventFilter::except(["typing_start"]).is_err());
    }
}
