//! Guild channels and direct channels.

use serde_json::json;

use super::super::super::request::Response;
use super::super::{Guild, World, payloads};
use super::Call;
use super::answers::{Outcome, Refusal, UNKNOWN_CHANNEL, UNKNOWN_USER, required};

/// A channel that messages can be written in.
#[derive(Clone, Copy, Debug)]
pub(in crate::sim::world) enum Place {
    /// The text channel of a guild.
    Guild(Guild),
    /// The direct channel of this user with the bot.
    Direct(u64),
}

impl Place {
    pub(in crate::sim::world) fn guild(self) -> Option<Guild> {
        match self {
            Self::Guild(guild) => Some(guild),
            Self::Direct(_) => None,
        }
    }
}

impl World {
    /// The kind of a channel; `None` if no messages can be written in it or it does not exist.
    pub(in crate::sim::world) fn place(&self, channel: u64) -> Option<Place> {
        if let Some(guild) = self.guild_of_channel(channel) {
            return Some(Place::Guild(guild));
        }
        if channel == payloads::DIRECT_CHANNEL {
            return Some(Place::Direct(payloads::FRIEND));
        }
        self.desk.direct.get(&channel).copied().map(Place::Direct)
    }

    pub(super) fn place_of(&self, call: &Call<'_>) -> Result<(u64, Place), Refusal> {
        let channel = call.id(0);
        let place = self.place(channel).ok_or(UNKNOWN_CHANNEL)?;
        Ok((channel, place))
    }

    pub(super) fn get_channel(&mut self, call: &Call<'_>) -> Outcome {
        let id = call.id(0);
        let channel = match self.place(id) {
            Some(Place::Guild(guild)) => payloads::text_channel(guild),
            Some(Place::Direct(with)) => payloads::direct_channel(id, with),
            None => {
                let guild = id.checked_sub(2).and_then(|guild| self.guild(guild));
                payloads::voice_channel(guild.ok_or(UNKNOWN_CHANNEL)?)
            }
        };
        Ok(Response::json(200, channel))
    }

    pub(super) fn open_direct_channel(&mut self, call: &Call<'_>) -> Outcome {
        let recipient = call.json()["recipient_id"].as_str();
        let recipient = recipient.ok_or_else(|| required("recipient_id"))?;
        let user: u64 = recipient.parse().map_err(|_| UNKNOWN_USER)?;
        let channel = self.direct_channel(call.now, user)?;
        let channel = payloads::direct_channel(channel, user);
        Ok(Response::json(200, channel))
    }

    /// Returns the direct channel of a user; opens it if there is none.
    fn direct_channel(&mut self, now: std::time::Instant, user: u64) -> Result<u64, Refusal> {
        if user == payloads::FRIEND {
            return Ok(payloads::DIRECT_CHANNEL);
        }
        if !self.guilds.iter().any(|guild| self.is_member(*guild, user)) || user == payloads::BOT {
            return Err(UNKNOWN_USER);
        }
        let mut open = self.desk.direct.iter();
        if let Some((channel, _)) = open.find(|(_, with)| **with == user) {
            return Ok(*channel);
        }
        let channel = self.snowflake(now);
        self.desk.direct.insert(channel, user);
        Ok(channel)
    }

    pub(super) fn type_in_channel(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, place) = self.place_of(call)?;
        let mut data = json!({
            "channel_id": channel.to_string(),
            "user_id": payloads::BOT.to_string(),
            "timestamp": self.unix(call.now).as_secs(),
        });
        if let Place::Guild(guild) = place {
            data["guild_id"] = guild.id.to_string().into();
            data["member"] = self.member(guild, payloads::BOT).unwrap_or_default();
        }
        self.announce(place, "TYPING_START", &data);
        Ok(Response::no_content())
    }
}
