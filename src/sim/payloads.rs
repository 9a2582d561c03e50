//! Discord's objects as JSON.

use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::permissions::ALL;
use crate::intents::Intents;
use crate::shard_id::ShardId;

/// Discord's epoch, in milliseconds since Unix's.
pub(super) const EPOCH: u64 = 1_420_070_400_000;

/// The bot's own user and application.
pub(super) const BOT: u64 = 100_000_000_000_000_000;

/// The user who writes direct messages to the bot, and their channel.
pub(super) const FRIEND: u64 = 100_000_000_000_000_101;
pub(super) const DIRECT_CHANNEL: u64 = 100_000_000_000_000_201;

const JOINED: &str = "2024-05-01T12:00:00.000000+00:00";

/// A guild that the bot is in. Its other ids follow from its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Guild {
    pub(super) id: u64,
    pub(super) members: u32,
}

impl Guild {
    /// The n-th guild. Consecutive guilds belong to consecutive shards.
    pub(super) fn new(n: u32, members: u32) -> Self {
        Self {
            id: ((1_600_000_000_000 - EPOCH + u64::from(n)) << 22) | 1,
            members,
        }
    }

    pub(super) fn channel(self) -> u64 {
        self.id + 1
    }

    pub(super) fn voice_channel(self) -> u64 {
        self.id + 2
    }

    pub(super) fn role(self) -> u64 {
        self.id + 3
    }

    pub(super) fn member(self, n: u32) -> u64 {
        self.id + 1000 + u64::from(n)
    }
}

/// A time since the Unix epoch as Discord writes it.
pub(super) fn timestamp(unix: Duration) -> String {
    humantime::format_rfc3339_micros(SystemTime::UNIX_EPOCH + unix)
        .to_string()
        .replace('Z', "+00:00")
}

pub(super) fn user(id: u64, bot: bool) -> Value {
    json!({
        "id": id.to_string(),
        "username": username(id),
        "discriminator": "0",
        "global_name": null,
        "avatar": null,
        "bot": bot,
        "public_flags": 0,
    })
}

/// The bot's user object as the bot itself receives it.
pub(super) fn current_user() -> Value {
    let mut bot = user(BOT, true);
    extend(
        &mut bot,
        json!({"verified": true, "mfa_enabled": false, "email": null, "flags": 0, "locale": "en-US"}),
    );
    bot
}

pub(super) fn username(id: u64) -> String {
    if id == BOT {
        return "simulated bot".to_owned();
    }
    format!("user{}", id % 1_000_000)
}

/// The application, with the flags for the privileged intents in `allowed`.
///
/// Source: [Discord, Application
/// flags](https://docs.discord.com/developers/resources/application#application-object-application-flags).
pub(super) fn application(guilds: usize, allowed: Intents) -> Value {
    let flags = [
        (Intents::GUILD_PRESENCES, 1 << 13),
        (Intents::GUILD_MEMBERS, 1 << 15),
        (Intents::MESSAGE_CONTENT, 1 << 19),
    ];
    let flags = flags
        .iter()
        .filter(|(intent, _)| allowed.contains(*intent))
        .map(|(_, flag)| flag)
        .sum::<u64>();
    json!({
        "id": BOT.to_string(),
        "name": "simulated application",
        "icon": null,
        "description": "",
        "summary": "",
        "bot_public": true,
        "bot_require_code_grant": false,
        "verify_key": "0000000000000000000000000000000000000000000000000000000000000000",
        "flags": flags,
        "team": null,
        "owner": user(FRIEND, false),
        "bot": user(BOT, true),
        "approximate_guild_count": guilds,
        "approximate_user_install_count": 0,
        "redirect_uris": [],
        "interactions_endpoint_url": null,
    })
}

pub(super) fn hello(interval_ms: u128) -> Value {
    json!({"op": 10, "s": null, "t": null, "d": {"heartbeat_interval": interval_ms, "_trace": ["sim"]}})
}

pub(super) fn ready(
    version: u32,
    shard: ShardId,
    session: &str,
    resume_url: &str,
    guilds: &[Guild],
) -> Value {
    let guilds: Vec<Value> = guilds
        .iter()
        .map(|guild| json!({"id": guild.id.to_string(), "unavailable": true}))
        .collect();
    json!({
        "v": version,
        "user_settings": {},
        "user": current_user(),
        "session_type": "normal",
        "session_id": session,
        "resume_gateway_url": resume_url,
        "relationships": [],
        "private_channels": [],
        "presences": [],
        "guilds": guilds,
        "guild_join_requests": [],
        "geo_ordered_rtc_regions": [],
        "auth": {},
        "shard": [shard.number(), shard.total()],
        "application": {"id": BOT.to_string(), "flags": 0},
        "_trace": ["sim"],
    })
}

/// The data of a `GUILD_CREATE`, which lists these members.
pub(super) fn guild_create(
    guild: Guild,
    members: &[Value],
    presences: &[Value],
    count: usize,
    is_large: bool,
) -> Value {
    let mut data = guild_object(guild);
    let rest = json!({
        "joined_at": JOINED,
        "large": is_large,
        "unavailable": false,
        "member_count": count,
        "voice_states": [],
        "members": members,
        "threads": [],
        "presences": presences,
        "stage_instances": [],
        "guild_scheduled_events": [],
        "soundboard_sounds": [],
        "channels": [text_channel(guild), voice_channel(guild)],
    });
    extend(&mut data, rest);
    data
}

/// A guild without the fields that only `GUILD_CREATE` has.
pub(super) fn guild_object(guild: Guild) -> Value {
    json!({
        "id": guild.id.to_string(),
        "name": format!("Guild {}", (guild.id >> 22) % 100_000),
        "icon": null,
        "splash": null,
        "discovery_splash": null,
        "banner": null,
        "description": null,
        "owner_id": guild.member(0).to_string(),
        "region": "deprecated",
        "afk_channel_id": null,
        "afk_timeout": 300,
        "application_id": null,
        "verification_level": 1,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "emojis": [emoji(guild)],
        "stickers": [],
        "features": [],
        "mfa_level": 0,
        "system_channel_id": guild.channel().to_string(),
        "system_channel_flags": 0,
        "rules_channel_id": null,
        "public_updates_channel_id": null,
        "max_presences": null,
        "max_members": 500_000,
        "max_video_channel_users": 25,
        "max_stage_video_channel_users": 50,
        "vanity_url_code": null,
        "premium_tier": 0,
        "premium_subscription_count": 0,
        "premium_progress_bar_enabled": false,
        "preferred_locale": "en-US",
        "nsfw_level": 0,
        "safety_alerts_channel_id": null,
        "roles": [everyone(guild), role(guild)],
    })
}

pub(super) fn member(user_id: u64) -> Value {
    let mut data = json!({"user": user(user_id, user_id == BOT)});
    extend(&mut data, member_without_user());
    data
}

pub(super) fn member_without_user() -> Value {
    json!({
        "nick": null,
        "avatar": null,
        "banner": null,
        "roles": [],
        "joined_at": JOINED,
        "premium_since": null,
        "deaf": false,
        "mute": false,
        "flags": 0,
        "pending": false,
        "communication_disabled_until": null,
    })
}

fn everyone(guild: Guild) -> Value {
    let mut data = role(guild);
    extend(
        &mut data,
        json!({"id": guild.id.to_string(), "name": "@everyone", "position": 0}),
    );
    data
}

pub(super) fn role(guild: Guild) -> Value {
    json!({
        "id": guild.role().to_string(),
        "name": "friends of „quotes“ and \\",
        "color": 3_447_003,
        "colors": {"primary_color": 3_447_003, "secondary_color": null, "tertiary_color": null},
        "hoist": false,
        "icon": null,
        "unicode_emoji": null,
        "position": 1,
        "permissions": ALL.to_string(),
        "managed": false,
        "mentionable": false,
        "flags": 0,
    })
}

pub(super) fn emoji(guild: Guild) -> Value {
    json!({
        "id": (guild.id + 4).to_string(),
        "name": "crab",
        "roles": [],
        "user": user(guild.member(0), false),
        "require_colons": true,
        "managed": false,
        "animated": false,
        "available": true,
    })
}

pub(super) fn text_channel(guild: Guild) -> Value {
    json!({
        "id": guild.channel().to_string(),
        "type": 0,
        "guild_id": guild.id.to_string(),
        "name": "general",
        "topic": "everything — ünïcode \"quoted\"",
        "position": 0,
        "permission_overwrites": [],
        "nsfw": false,
        "last_message_id": null,
        "rate_limit_per_user": 0,
        "parent_id": null,
        "flags": 0,
    })
}

pub(super) fn voice_channel(guild: Guild) -> Value {
    json!({
        "id": guild.voice_channel().to_string(),
        "type": 2,
        "guild_id": guild.id.to_string(),
        "name": "talk",
        "position": 1,
        "permission_overwrites": [],
        "nsfw": false,
        "bitrate": 64_000,
        "user_limit": 0,
        "rtc_region": null,
        "video_quality_mode": 1,
        "last_message_id": null,
        "rate_limit_per_user": 0,
        "parent_id": null,
        "flags": 0,
    })
}

pub(super) fn direct_channel(id: u64, with: u64) -> Value {
    json!({
        "id": id.to_string(),
        "type": 1,
        "last_message_id": null,
        "recipients": [user(with, false)],
        "flags": 0,
    })
}

/// A message as the HTTP API returns it.
pub(super) fn message(id: u64, unix: Duration, channel: u64, author: u64, text: &str) -> Value {
    json!({
        "id": id.to_string(),
        "channel_id": channel.to_string(),
        "channel_type": i32::from(channel == DIRECT_CHANNEL),
        "author": user(author, author == BOT),
        "content": text,
        "timestamp": timestamp(unix),
        "edited_timestamp": null,
        "tts": false,
        "mention_everyone": false,
        "mentions": [],
        "mention_roles": [],
        "attachments": [],
        "embeds": [],
        "components": [],
        "pinned": false,
        "type": 0,
        "flags": 0,
    })
}

pub(super) fn voice_state(
    guild: Guild,
    channel: Option<u64>,
    user_id: u64,
    session: &str,
) -> Value {
    json!({
        "guild_id": guild.id.to_string(),
        "channel_id": channel.map(|id| id.to_string()),
        "user_id": user_id.to_string(),
        "member": member(user_id),
        "session_id": session,
        "deaf": false,
        "mute": false,
        "self_deaf": false,
        "self_mute": false,
        "self_video": false,
        "suppress": false,
        "request_to_speak_timestamp": null,
    })
}

pub(super) fn presence(guild: Guild, user_id: u64, status: &str) -> Value {
    json!({
        "user": {"id": user_id.to_string()},
        "guild_id": guild.id.to_string(),
        "status": status,
        "activities": [{
            "id": "ec0b28a579ecb4bd",
            "name": "Chess ♞",
            "type": 0,
            "created_at": 1_785_585_600_000_u64,
        }],
        "client_status": {"desktop": status},
    })
}

/// The fields that every interaction in a channel has; `guild` is `None` in a direct channel.
pub(super) fn interaction(id: u64, token: &str, channel: u64, guild: Option<Guild>) -> Value {
    let mut data = json!({
        "id": id.to_string(),
        "application_id": BOT.to_string(),
        "token": token,
        "version": 1,
        "channel_id": channel.to_string(),
        "app_permissions": ALL.to_string(),
        "locale": "en-US",
        "entitlements": [],
        "authorizing_integration_owners": {"0": guild.map_or(0, |guild| guild.id).to_string()},
        "context": u8::from(guild.is_none()),
        "attachment_size_limit": 10_485_760,
    });
    let about = match guild {
        None => json!({"channel": {"id": channel.to_string(), "type": 1, "flags": 0}}),
        Some(guild) => json!({
            "guild_id": guild.id.to_string(),
            "guild": {"id": guild.id.to_string(), "locale": "en-US", "features": []},
            "guild_locale": "en-US",
            "channel": {
                "id": channel.to_string(),
                "type": 0,
                "name": "general",
                "permissions": ALL.to_string(),
                "guild_id": guild.id.to_string(),
                "flags": 0,
            },
        }),
    };

    extend(&mut data, about);
    data
}

pub(super) fn extend(object: &mut Value, more: Value) {
    if let (Value::Object(object), Value::Object(more)) = (object, more) {
        object.extend(more);
    }
}
