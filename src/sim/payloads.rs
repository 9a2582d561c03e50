//! What Discord's objects look like.

use serde_json::{Value, json};

use crate::shard_id::ShardId;

/// Discord's epoch, in milliseconds since Unix's.
const EPOCH: u64 = 1_420_070_400_000;

/// The bot's own user and application.
pub(super) const BOT: u64 = 100_000_000_000_000_000;

/// An id of its own for the n-th guild, with the shard of a guild changing from one to the next.
pub(super) fn guild_id(n: u32) -> u64 {
    ((1_600_000_000_000 - EPOCH + u64::from(n)) << 22) | 1
}

pub(super) fn user(id: u64, bot: bool) -> Value {
    json!({
        "id": id.to_string(),
        "username": if bot { "simulated bot".into() } else { format!("user{}", id % 1000) },
        "discriminator": "0",
        "global_name": null,
        "avatar": null,
        "bot": bot,
        "public_flags": 0,
    })
}

pub(super) fn hello(interval_ms: u128) -> Value {
    json!({"op": 10, "s": null, "t": null, "d": {"heartbeat_interval": interval_ms, "_trace": ["sim"]}})
}

pub(super) fn ready(shard: ShardId, session: &str, resume_url: &str, guilds: &[u64]) -> Value {
    let guilds: Vec<Value> = guilds.iter().map(|id| json!({"id": id.to_string(), "unavailable": true})).collect();
    json!({
        "v": 10,
        "user": user(BOT, true),
        "guilds": guilds,
        "session_id": session,
        "resume_gateway_url": resume_url,
        "shard": [shard.number(), shard.total()],
        "application": {"id": BOT.to_string(), "flags": 0},
    })
}

pub(super) fn guild(id: u64, channel: u64, members: &[u64]) -> Value {
    let list: Vec<Value> = members.iter().map(|id| member(*id)).collect();
    json!({
        "id": id.to_string(),
        "name": format!("Guild {}", (id >> 22) % 100_000),
        "icon": null,
        "splash": null,
        "discovery_splash": null,
        "banner": null,
        "description": null,
        "owner_id": members.first().copied().unwrap_or(BOT).to_string(),
        "afk_channel_id": null,
        "afk_timeout": 300,
        "application_id": null,
        "verification_level": 1,
        "default_message_notifications": 0,
        "explicit_content_filter": 0,
        "emojis": [],
        "stickers": [],
        "features": [],
        "mfa_level": 0,
        "system_channel_id": channel.to_string(),
        "system_channel_flags": 0,
        "rules_channel_id": null,
        "public_updates_channel_id": null,
        "max_presences": null,
        "max_members": 500_000,
        "vanity_url_code": null,
        "premium_tier": 0,
        "premium_subscription_count": 0,
        "premium_progress_bar_enabled": false,
        "preferred_locale": "en-US",
        "nsfw_level": 0,
        "safety_alerts_channel_id": null,
        "joined_at": "2024-05-01T12:00:00.000000+00:00",
        "large": false,
        "unavailable": false,
        "member_count": members.len(),
        "voice_states": [],
        "members": list,
        "threads": [],
        "presences": [],
        "stage_instances": [],
        "guild_scheduled_events": [],
        "roles": [everyone(id)],
        "channels": [text_channel(channel, id)],
    })
}

fn member(user_id: u64) -> Value {
    json!({
        "user": user(user_id, false),
        "nick": null,
        "avatar": null,
        "roles": [],
        "joined_at": "2024-05-01T12:00:00.000000+00:00",
        "premium_since": null,
        "deaf": false,
        "mute": false,
        "flags": 0,
        "pending": false,
        "communication_disabled_until": null,
    })
}

fn everyone(guild_id: u64) -> Value {
    json!({
        "id": guild_id.to_string(),
        "name": "@everyone",
        "color": 0,
        "hoist": false,
        "icon": null,
        "unicode_emoji": null,
        "position": 0,
        "permissions": "2248473465835073",
        "managed": false,
        "mentionable": false,
        "flags": 0,
    })
}

fn text_channel(id: u64, guild_id: u64) -> Value {
    json!({
        "id": id.to_string(),
        "type": 0,
        "guild_id": guild_id.to_string(),
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

pub(super) fn message(id: u64, guild_id: u64, channel_id: u64, author: &Value, text: &str) -> Value {
    json!({
        "id": id.to_string(),
        "channel_id": channel_id.to_string(),
        "guild_id": guild_id.to_string(),
        "author": author,
        "content": text,
        "timestamp": "2026-08-01T12:00:00.000000+00:00",
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

pub(super) fn typing(guild_id: u64, channel_id: u64, user_id: u64) -> Value {
    json!({
        "channel_id": channel_id.to_string(),
        "guild_id": guild_id.to_string(),
        "user_id": user_id.to_string(),
        "timestamp": 1_785_585_600,
    })
}

pub(super) fn reaction(guild_id: u64, channel_id: u64, message_id: u64, user_id: u64) -> Value {
    json!({
        "user_id": user_id.to_string(),
        "channel_id": channel_id.to_string(),
        "message_id": message_id.to_string(),
        "guild_id": guild_id.to_string(),
        "emoji": {"id": null, "name": "🎉"},
        "burst": false,
        "type": 0,
    })
}
