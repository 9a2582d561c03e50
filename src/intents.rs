//! The groups of events that a bot receives.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

bitflags::bitflags! {
    /// The groups of events that Discord sends to a bot. A bot requests them when it identifies.
    ///
    /// The default is all groups that need no approval. Those of [`Intents::PRIVILEGED`] must first
    /// be enabled in the developer portal; otherwise Discord closes the connection with 4014.
    ///
    /// Source: [Discord, Gateway
    /// intents](https://docs.discord.com/developers/events/gateway#gateway-intents).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Intents: u64 {
        /// Guilds, roles, channels, threads.
        const GUILDS = 1 << 0;
        /// Members joining, leaving, changing. Privileged.
        const GUILD_MEMBERS = 1 << 1;
        /// Bans and audit log entries.
        const GUILD_MODERATION = 1 << 2;
        /// Emojis, stickers, soundboard sounds.
        const GUILD_EXPRESSIONS = 1 << 3;
        /// Integrations.
        const GUILD_INTEGRATIONS = 1 << 4;
        /// Webhooks.
        const GUILD_WEBHOOKS = 1 << 5;
        /// Invites.
        const GUILD_INVITES = 1 << 6;
        /// Who is in which voice channel.
        const GUILD_VOICE_STATES = 1 << 7;
        /// Presences of members. Privileged.
        const GUILD_PRESENCES = 1 << 8;
        /// Messages in guilds.
        const GUILD_MESSAGES = 1 << 9;
        /// Reactions in guilds.
        const GUILD_MESSAGE_REACTIONS = 1 << 10;
        /// Typing in guilds.
        const GUILD_MESSAGE_TYPING = 1 << 11;
        /// Direct messages.
        const DIRECT_MESSAGES = 1 << 12;
        /// Reactions in direct messages.
        const DIRECT_MESSAGE_REACTIONS = 1 << 13;
        /// Typing in direct messages.
        const DIRECT_MESSAGE_TYPING = 1 << 14;
        /// The text of messages; without it `content` is mostly empty. Privileged.
        const MESSAGE_CONTENT = 1 << 15;
        /// Scheduled events of guilds.
        const GUILD_SCHEDULED_EVENTS = 1 << 16;
        /// Rules of the automatic moderation.
        const AUTO_MODERATION_CONFIGURATION = 1 << 20;
        /// Actions of the automatic moderation.
        const AUTO_MODERATION_EXECUTION = 1 << 21;
        /// Votes in polls of guilds.
        const GUILD_MESSAGE_POLLS = 1 << 24;
        /// Votes in polls of direct messages.
        const DIRECT_MESSAGE_POLLS = 1 << 25;
    }
}

impl Intents {
    /// The intents that must be enabled in the developer portal.
    pub const PRIVILEGED: Self = Self::GUILD_MEMBERS
        .union(Self::GUILD_PRESENCES)
        .union(Self::MESSAGE_CONTENT);

    /// Converts bits to intents, if Discord documents each bit.
    pub fn try_from_bits(bits: u64) -> Result<Self, UnknownIntents> {
        Self::from_bits(bits).ok_or(UnknownIntents(bits & !Self::all().bits()))
    }
}

#[cfg(feature = "model")]
impl From<twilight_model::gateway::Intents> for Intents {
    fn from(intents: twilight_model::gateway::Intents) -> Self {
        Self::from_bits_retain(intents.bits())
    }
}

#[cfg(feature = "model")]
impl From<Intents> for twilight_model::gateway::Intents {
    fn from(intents: Intents) -> Self {
        Self::from_bits_retain(intents.bits())
    }
}

/// Serialises as the number that Discord expects.
impl Serialize for Intents {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.bits().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Intents {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        u64::deserialize(deserializer).map(Self::from_bits_retain)
    }
}

impl Default for Intents {
    fn default() -> Self {
        Self::all().difference(Self::PRIVILEGED)
    }
}

/// Bits that are not those of an intent. Discord would close the connection with 4013.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown intent bits {0:#x}; allowed: those of `Intents::all()`")]
pub struct UnknownIntents(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_bits_are_named() {
        assert_eq!(Intents::try_from_bits(1 << 9), Ok(Intents::GUILD_MESSAGES));
        let error = Intents::try_from_bits(1 | 1 << 30).unwrap_err();
        assert!(error.to_string().contains("0x40000000"), "{error}");
    }

    #[test]
    fn the_default_needs_no_approval() {
        assert!(!Intents::default().intersects(Intents::PRIVILEGED));
        assert!(Intents::default().contains(Intents::GUILDS | Intents::DIRECT_MESSAGES));
    }
}
