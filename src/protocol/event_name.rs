//! The names of Discord's events.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::intents::Intents;

/// Generates the enum from one table: the variant, Discord's name, and the intents, any of which
/// enables the event.
macro_rules! event_names {
    ($($variant:ident $name:literal [$($intent:ident)*])*) => {
        /// The name of an event: one that Discord documents, or any other.
        ///
        /// It can be compared with a string: `dispatch.name() == "MESSAGE_CREATE"`. A `match` needs
        /// the variants:
        ///
        /// ```
        /// # use threadcord::{Dispatch, EventName};
        /// fn handle(dispatch: &Dispatch) {
        ///     match dispatch.name() {
        ///         EventName::MessageCreate => println!("a message"),
        ///         other => println!("{}", other.as_str()),
        ///     }
        /// }
        /// ```
        ///
        /// A documented name needs no allocation.
        ///
        /// Source: [Discord, Receive
        /// events](https://docs.discord.com/developers/events/gateway-events#receive-events).
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum EventName {
            $(#[doc = concat!("`", $name, "`")] $variant,)*
            /// A name that Discord did not document when this version was written. Use
            /// [`EventName::from`] to convert a string: it finds the documented names.
            Unknown(Box<str>),
        }

        /// The documented names, in ASCII order.
        const DOCUMENTED: &[(&str, EventName)] = &[$(($name, EventName::$variant)),*];

        impl EventName {
            /// The name as Discord writes it.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $name,)*
                    Self::Unknown(name) => name,
                }
            }

            /// The intents that enable this event: any one of them is enough. Empty if Discord
            /// sends the event without an intent.
            ///
            /// Source: [Discord, List of
            /// intents](https://docs.discord.com/developers/events/gateway#list-of-intents).
            pub fn intents(&self) -> Intents {
                match self {
                    $(Self::$variant => Intents::empty()$(.union(Intents::$intent))*,)*
                    Self::Unknown(_) => Intents::empty(),
                }
            }

            /// The index of a documented name, below 128.
            pub(crate) fn index(&self) -> Option<u8> {
                enum Index {
                    $($variant,)*
                }
                match self {
                    $(Self::$variant => Some(Index::$variant as u8),)*
                    Self::Unknown(_) => None,
                }
            }
        }
    };
}

event_names! {
    ApplicationCommandPermissionsUpdate "APPLICATION_COMMAND_PERMISSIONS_UPDATE" []
    AutoModerationActionExecution "AUTO_MODERATION_ACTION_EXECUTION" [AUTO_MODERATION_EXECUTION]
    AutoModerationRuleCreate "AUTO_MODERATION_RULE_CREATE" [AUTO_MODERATION_CONFIGURATION]
    AutoModerationRuleDelete "AUTO_MODERATION_RULE_DELETE" [AUTO_MODERATION_CONFIGURATION]
    AutoModerationRuleUpdate "AUTO_MODERATION_RULE_UPDATE" [AUTO_MODERATION_CONFIGURATION]
    ChannelCreate "CHANNEL_CREATE" [GUILDS]
    ChannelDelete "CHANNEL_DELETE" [GUILDS]
    ChannelInfo "CHANNEL_INFO" []
    ChannelPinsUpdate "CHANNEL_PINS_UPDATE" [GUILDS DIRECT_MESSAGES]
    ChannelUpdate "CHANNEL_UPDATE" [GUILDS]
    EntitlementCreate "ENTITLEMENT_CREATE" []
    EntitlementDelete "ENTITLEMENT_DELETE" []
    EntitlementUpdate "ENTITLEMENT_UPDATE" []
    GuildAuditLogEntryCreate "GUILD_AUDIT_LOG_ENTRY_CREATE" [GUILD_MODERATION]
    GuildBanAdd "GUILD_BAN_ADD" [GUILD_MODERATION]
    GuildBanRemove "GUILD_BAN_REMOVE" [GUILD_MODERATION]
    GuildCreate "GUILD_CREATE" [GUILDS]
    GuildDelete "GUILD_DELETE" [GUILDS]
    GuildEmojisUpdate "GUILD_EMOJIS_UPDATE" [GUILD_EXPRESSIONS]
    GuildIntegrationsUpdate "GUILD_INTEGRATIONS_UPDATE" [GUILD_INTEGRATIONS]
    GuildMembersChunk "GUILD_MEMBERS_CHUNK" []
    GuildMemberAdd "GUILD_MEMBER_ADD" [GUILD_MEMBERS]
    GuildMemberRemove "GUILD_MEMBER_REMOVE" [GUILD_MEMBERS]
    GuildMemberUpdate "GUILD_MEMBER_UPDATE" [GUILD_MEMBERS]
    GuildRoleCreate "GUILD_ROLE_CREATE" [GUILDS]
    GuildRoleDelete "GUILD_ROLE_DELETE" [GUILDS]
    GuildRoleUpdate "GUILD_ROLE_UPDATE" [GUILDS]
    GuildScheduledEventCreate "GUILD_SCHEDULED_EVENT_CREATE" [GUILD_SCHEDULED_EVENTS]
    GuildScheduledEventDelete "GUILD_SCHEDULED_EVENT_DELETE" [GUILD_SCHEDULED_EVENTS]
    GuildScheduledEventUpdate "GUILD_SCHEDULED_EVENT_UPDATE" [GUILD_SCHEDULED_EVENTS]
    GuildScheduledEventUserAdd "GUILD_SCHEDULED_EVENT_USER_ADD" [GUILD_SCHEDULED_EVENTS]
    GuildScheduledEventUserRemove "GUILD_SCHEDULED_EVENT_USER_REMOVE" [GUILD_SCHEDULED_EVENTS]
    GuildSoundboardSoundsUpdate "GUILD_SOUNDBOARD_SOUNDS_UPDATE" [GUILD_EXPRESSIONS]
    GuildSoundboardSoundCreate "GUILD_SOUNDBOARD_SOUND_CREATE" [GUILD_EXPRESSIONS]
    GuildSoundboardSoundDelete "GUILD_SOUNDBOARD_SOUND_DELETE" [GUILD_EXPRESSIONS]
    GuildSoundboardSoundUpdate "GUILD_SOUNDBOARD_SOUND_UPDATE" [GUILD_EXPRESSIONS]
    GuildStickersUpdate "GUILD_STICKERS_UPDATE" [GUILD_EXPRESSIONS]
    GuildUpdate "GUILD_UPDATE" [GUILDS]
    IntegrationCreate "INTEGRATION_CREATE" [GUILD_INTEGRATIONS]
    IntegrationDelete "INTEGRATION_DELETE" [GUILD_INTEGRATIONS]
    IntegrationUpdate "INTEGRATION_UPDATE" [GUILD_INTEGRATIONS]
    InteractionCreate "INTERACTION_CREATE" []
    InviteCreate "INVITE_CREATE" [GUILD_INVITES]
    InviteDelete "INVITE_DELETE" [GUILD_INVITES]
    MessageCreate "MESSAGE_CREATE" [GUILD_MESSAGES DIRECT_MESSAGES]
    MessageDelete "MESSAGE_DELETE" [GUILD_MESSAGES DIRECT_MESSAGES]
    MessageDeleteBulk "MESSAGE_DELETE_BULK" [GUILD_MESSAGES]
    MessagePollVoteAdd "MESSAGE_POLL_VOTE_ADD" [GUILD_MESSAGE_POLLS DIRECT_MESSAGE_POLLS]
    MessagePollVoteRemove "MESSAGE_POLL_VOTE_REMOVE" [GUILD_MESSAGE_POLLS DIRECT_MESSAGE_POLLS]
    MessageReactionAdd "MESSAGE_REACTION_ADD" [GUILD_MESSAGE_REACTIONS DIRECT_MESSAGE_REACTIONS]
    MessageReactionRemove "MESSAGE_REACTION_REMOVE" [GUILD_MESSAGE_REACTIONS DIRECT_MESSAGE_REACTIONS]
    MessageReactionRemoveAll "MESSAGE_REACTION_REMOVE_ALL" [GUILD_MESSAGE_REACTIONS DIRECT_MESSAGE_REACTIONS]
    MessageReactionRemoveEmoji "MESSAGE_REACTION_REMOVE_EMOJI" [GUILD_MESSAGE_REACTIONS DIRECT_MESSAGE_REACTIONS]
    MessageUpdate "MESSAGE_UPDATE" [GUILD_MESSAGES DIRECT_MESSAGES]
    PresenceUpdate "PRESENCE_UPDATE" [GUILD_PRESENCES]
    RateLimited "RATE_LIMITED" []
    Ready "READY" []
    Resumed "RESUMED" []
    SoundboardSounds "SOUNDBOARD_SOUNDS" []
    StageInstanceCreate "STAGE_INSTANCE_CREATE" [GUILDS]
    StageInstanceDelete "STAGE_INSTANCE_DELETE" [GUILDS]
    StageInstanceUpdate "STAGE_INSTANCE_UPDATE" [GUILDS]
    SubscriptionCreate "SUBSCRIPTION_CREATE" []
    SubscriptionDelete "SUBSCRIPTION_DELETE" []
    SubscriptionUpdate "SUBSCRIPTION_UPDATE" []
    ThreadCreate "THREAD_CREATE" [GUILDS]
    ThreadDelete "THREAD_DELETE" [GUILDS]
    ThreadListSync "THREAD_LIST_SYNC" [GUILDS]
    ThreadMembersUpdate "THREAD_MEMBERS_UPDATE" [GUILDS GUILD_MEMBERS]
    ThreadMemberUpdate "THREAD_MEMBER_UPDATE" [GUILDS]
    ThreadUpdate "THREAD_UPDATE" [GUILDS]
    TypingStart "TYPING_START" [GUILD_MESSAGE_TYPING DIRECT_MESSAGE_TYPING]
    UserUpdate "USER_UPDATE" []
    VoiceChannelEffectSend "VOICE_CHANNEL_EFFECT_SEND" [GUILD_VOICE_STATES]
    VoiceChannelStartTimeUpdate "VOICE_CHANNEL_START_TIME_UPDATE" [GUILDS]
    VoiceChannelStatusUpdate "VOICE_CHANNEL_STATUS_UPDATE" [GUILDS]
    VoiceServerUpdate "VOICE_SERVER_UPDATE" []
    VoiceStateUpdate "VOICE_STATE_UPDATE" [GUILD_VOICE_STATES]
    WebhooksUpdate "WEBHOOKS_UPDATE" [GUILD_WEBHOOKS]
}

impl EventName {
    /// Iterates over all names that Discord documents.
    pub fn documented() -> impl Iterator<Item = Self> {
        DOCUMENTED.iter().map(|(_, name)| name.clone())
    }

    /// The number of documented names.
    pub(crate) const COUNT: usize = DOCUMENTED.len();

    /// The documented names as Discord writes them, in the order of [`index`](Self::index).
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        DOCUMENTED.iter().map(|(name, _)| *name)
    }

    /// Parses a documented name.
    ///
    /// # Errors
    /// If Discord does not document the name.
    pub fn parse(name: &str) -> Result<Self, UnknownEventName> {
        Some(Self::from(name))
            .filter(Self::is_documented)
            .ok_or_else(|| UnknownEventName {
                given: name.to_owned(),
            })
    }

    /// Looks up a documented name.
    pub(super) fn find(name: &[u8]) -> Option<Self> {
        let mut slot = hash(name);
        while let Some((known, event)) = DOCUMENTED.get(usize::from(TABLE[slot])) {
            if known.as_bytes() == name {
                return Some(event.clone());
            }
            slot = (slot + 1) % SLOTS;
        }
        None
    }

    /// Whether Discord documents the name.
    pub fn is_documented(&self) -> bool {
        !matches!(self, Self::Unknown(_))
    }
}

/// The number of slots in the hash table of names. The name of every event is looked up, so the
/// table is built at compile time: it is four times as fast as a search.
const SLOTS: usize = 512;

/// An empty slot.
const EMPTY: u8 = u8::MAX;

/// The index of the name in each slot. A name whose slot is taken is in the next free slot.
static TABLE: [u8; SLOTS] = {
    let (mut table, mut at) = ([EMPTY; SLOTS], 0);
    while at < DOCUMENTED.len() {
        let mut slot = hash(DOCUMENTED[at].0.as_bytes());
        while table[slot] != EMPTY {
            slot = (slot + 1) % SLOTS;
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "there are fewer than 128, which a test checks"
        )]
        let name = at as u8;
        table[slot] = name;
        at += 1;
    }
    table
};

/// The first slot to try for a name. Names with the same beginning differ in length, in the middle,
/// or at the end, so the hash uses those.
const fn hash(name: &[u8]) -> usize {
    let length = name.len();
    if length == 0 {
        return 0;
    }
    let (third, middle, last) = (
        name[length / 3] as usize,
        name[length / 2] as usize,
        name[length - 1] as usize,
    );
    (length * 67 + third * 13 + middle * 31 + last * 7) % SLOTS
}

impl From<&str> for EventName {
    fn from(name: &str) -> Self {
        Self::find(name.as_bytes()).unwrap_or_else(|| Self::Unknown(name.into()))
    }
}

/// A name that Discord does not document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown event name {given:?}: `EventName` lists the known ones, such as MESSAGE_CREATE")]
pub struct UnknownEventName {
    /// The given name.
    pub given: String,
}

impl<'de> Deserialize<'de> for EventName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = EventName;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an event name")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<EventName, E> {
                Ok(name.into())
            }
        }
        deserializer.deserialize_str(Visitor)
    }
}

impl Serialize for EventName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl AsRef<str> for EventName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for EventName {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for EventName {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_name_is_found_and_numbered() {
        for (at, (text, name)) in DOCUMENTED.iter().enumerate() {
            assert_eq!(
                (EventName::from(*text), name.as_str()),
                (name.clone(), *text)
            );
            assert_eq!(name.index().map(usize::from), Some(at));
        }
        assert!(DOCUMENTED.len() <= 128, "a filter has a bit for each");
        assert!(
            DOCUMENTED.is_sorted_by_key(|(name, _)| *name),
            "keeps the list readable"
        );
    }

    #[test]
    fn other_names_are_kept() {
        for text in ["", "GUILD_JOIN_REQUEST_CREATE", "message_create", "ZZZ"] {
            let name = EventName::from(text);
            assert_eq!(
                (name.as_str(), name.index(), name.is_documented()),
                (text, None, false)
            );
            assert!(
                EventName::parse(text)
                    .unwrap_err()
                    .to_string()
                    .contains(text)
            );
        }
    }

    #[test]
    fn intents_bring_events() {
        assert_eq!(
            EventName::MessageCreate.intents(),
            Intents::GUILD_MESSAGES | Intents::DIRECT_MESSAGES
        );
        assert_eq!(EventName::Ready.intents(), Intents::empty());
        let brought =
            EventName::documented().fold(Intents::empty(), |all, name| all | name.intents());
        assert_eq!(
            brought,
            Intents::all() - Intents::MESSAGE_CONTENT,
            "it changes the content of messages, not which events arrive"
        );
    }
}
