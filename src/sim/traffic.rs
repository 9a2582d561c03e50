//! The events that guilds generate by themselves.

use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};

use super::payloads::{self, Guild};

/// The names of the events that guilds can generate, for [`Builder::mix`](super::Builder::mix).
pub const EVENT_NAMES: [&str; 25] = [
    "MESSAGE_CREATE",
    "MESSAGE_UPDATE",
    "MESSAGE_DELETE",
    "MESSAGE_REACTION_ADD",
    "MESSAGE_REACTION_REMOVE",
    "TYPING_START",
    "PRESENCE_UPDATE",
    "VOICE_STATE_UPDATE",
    "GUILD_MEMBER_ADD",
    "GUILD_MEMBER_UPDATE",
    "GUILD_MEMBER_REMOVE",
    "GUILD_UPDATE",
    "GUILD_CREATE",
    "GUILD_ROLE_UPDATE",
    "GUILD_EMOJIS_UPDATE",
    "GUILD_BAN_ADD",
    "GUILD_BAN_REMOVE",
    "GUILD_AUDIT_LOG_ENTRY_CREATE",
    "CHANNEL_UPDATE",
    "CHANNEL_PINS_UPDATE",
    "THREAD_CREATE",
    "THREAD_UPDATE",
    "INVITE_CREATE",
    "INVITE_DELETE",
    "WEBHOOKS_UPDATE",
];

/// The default weight of each event, in the order of [`EVENT_NAMES`].
const USUAL: [u32; EVENT_NAMES.len()] = [
    300, 40, 10, 80, 10, 200, 250, 30, 10, 20, 5, 2, 1, 2, 1, 1, 1, 5, 5, 2, 5, 5, 2, 1, 1,
];

const TEXTS: [&str; 5] = [
    "hello",
    "anyone here?",
    "🦀 is the best",
    "ok",
    "see you \"tomorrow\"\n…maybe",
];

/// Names of events with their weights.
#[derive(Clone, Debug)]
pub(super) struct Mix(Vec<(&'static str, u32)>);

impl Default for Mix {
    fn default() -> Self {
        Self(EVENT_NAMES.into_iter().zip(USUAL).collect())
    }
}

impl Mix {
    /// # Errors
    /// If a name is unknown or all weights are 0: the given value, and the allowed values.
    pub(super) fn new(weights: &[(String, u32)]) -> Result<Self, (String, String)> {
        let known = |(name, weight): &(String, u32)| {
            let known = EVENT_NAMES.into_iter().find(|known| known == name);
            known
                .map(|name| (name, *weight))
                .ok_or_else(|| (name.clone(), EVENT_NAMES.join(", ")))
        };
        let weights: Vec<_> = weights.iter().map(known).collect::<Result<_, _>>()?;
        if weights.iter().all(|(_, weight)| *weight == 0) {
            return Err((
                "only weights of 0".into(),
                "at least one weight above 0".into(),
            ));
        }
        Ok(Self(weights))
    }

    pub(super) fn choose(&self, rng: &mut Rng) -> &'static str {
        let sum = self
            .0
            .iter()
            .map(|(_, weight)| u64::from(*weight))
            .sum::<u64>();
        let mut at = rng.u64(..sum.max(1));
        for (name, weight) in &self.0 {
            match at.checked_sub(u64::from(*weight)) {
                Some(rest) => at = rest,
                None => return name,
            }
        }
        EVENT_NAMES[0]
    }
}

/// A random message text of a member.
pub(super) fn text(rng: &mut Rng) -> &'static str {
    TEXTS[rng.usize(..TEXTS.len())]
}

/// The emoji with which members react.
pub(super) const EMOJI: &str = "🎉";

/// The data of a guild event that changes no state of the world. `id` is a new id; `member` is the
/// acting member.
pub(super) fn data(
    name: &str,
    guild: Guild,
    (member, object): (u64, Value),
    id: u64,
    unix: Duration,
    rng: &mut Rng,
) -> Value {
    let (guild_id, channel_id) = (guild.id.to_string(), guild.channel().to_string());
    let user_id = member.to_string();
    match name {
        "TYPING_START" => json!({
            "channel_id": channel_id,
            "guild_id": guild_id,
            "user_id": user_id,
            "timestamp": unix.as_secs(),
            "member": object,
        }),
        "PRESENCE_UPDATE" => payloads::presence(
            guild,
            member,
            ["online", "idle", "dnd", "offline"][rng.usize(..4)],
        ),
        "VOICE_STATE_UPDATE" => {
            let channel = rng.bool().then(|| guild.voice_channel());
            payloads::voice_state(guild, channel, member, &format!("{member:032x}"))
        }
        "GUILD_UPDATE" => payloads::guild_object(guild),
        "GUILD_ROLE_UPDATE" => json!({"guild_id": guild_id, "role": payloads::role(guild)}),
        "GUILD_EMOJIS_UPDATE" => json!({"guild_id": guild_id, "emojis": [payloads::emoji(guild)]}),
        "GUILD_AUDIT_LOG_ENTRY_CREATE" => json!({
            "guild_id": guild_id,
            "id": id.to_string(),
            "user_id": user_id,
            "target_id": guild.role().to_string(),
            "action_type": 31,
            "changes": [{"key": "name", "old_value": "before", "new_value": "after"}],
        }),
        "CHANNEL_UPDATE" => payloads::text_channel(guild),
        "CHANNEL_PINS_UPDATE" => {
            json!({"guild_id": guild_id, "channel_id": channel_id, "last_pin_timestamp": payloads::timestamp(unix)})
        }
        "THREAD_CREATE" | "THREAD_UPDATE" => thread(guild, member, id, unix),
        "INVITE_CREATE" => invite(guild, member, id, unix),
        "INVITE_DELETE" => {
            json!({"guild_id": guild_id, "channel_id": channel_id, "code": format!("sim{}", id % 10_000)})
        }
        // WEBHOOKS_UPDATE
        _ => json!({"guild_id": guild_id, "channel_id": channel_id}),
    }
}

/// A thread in a guild's text channel.
fn thread(guild: Guild, owner: u64, id: u64, unix: Duration) -> Value {
    json!({
        "id": id.to_string(),
        "type": 11,
        "guild_id": guild.id.to_string(),
        "parent_id": guild.channel().to_string(),
        "owner_id": owner.to_string(),
        "name": "a thread",
        "last_message_id": null,
        "message_count": 0,
        "member_count": 1,
        "total_message_sent": 0,
        "rate_limit_per_user": 0,
        "flags": 0,
        "thread_metadata": {
            "archived": false,
            "auto_archive_duration": 1440,
            "archive_timestamp": payloads::timestamp(unix),
            "create_timestamp": payloads::timestamp(unix),
            "locked": false,
        },
    })
}

/// An invitation to a guild's text channel.
fn invite(guild: Guild, inviter: u64, id: u64, unix: Duration) -> Value {
    json!({
        "guild_id": guild.id.to_string(),
        "channel_id": guild.channel().to_string(),
        "code": format!("sim{}", id % 10_000),
        "created_at": payloads::timestamp(unix),
        "expires_at": null,
        "inviter": payloads::user(inviter, false),
        "max_age": 86_400,
        "max_uses": 0,
        "temporary": false,
        "type": 0,
        "uses": 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_keeps_to_its_weights() {
        let mix = Mix::new(&[
            ("TYPING_START".into(), 3),
            ("INVITE_CREATE".into(), 0),
            ("CHANNEL_UPDATE".into(), 1),
        ]);
        let (mix, mut rng) = (mix.unwrap(), Rng::with_seed(1));
        let chosen: Vec<_> = (0..4000).map(|_| mix.choose(&mut rng)).collect();
        let typing = chosen
            .iter()
            .filter(|name| **name == "TYPING_START")
            .count();
        assert!((2800..3200).contains(&typing), "{typing}");
        assert!(!chosen.contains(&"INVITE_CREATE"));
        assert!(
            Mix::new(&[("TYPING".into(), 1)]).is_err()
                && Mix::new(&[("TYPING_START".into(), 0)]).is_err()
        );
    }
}
