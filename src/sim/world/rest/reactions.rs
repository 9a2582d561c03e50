//! Reactions to messages.

use serde_json::{Value, json};

use super::super::super::permissions::{ADD_REACTIONS, MANAGE_MESSAGES};
use super::super::super::request::Response;
use super::super::{World, payloads};
use super::Call;
use super::answers::{MISSING_PERMISSIONS, Outcome, Refusal, UNKNOWN_EMOJI, UNKNOWN_MESSAGE};
use super::channels::Place;

/// An emoji, and the users who reacted with it.
#[derive(Clone)]
pub(in crate::sim::world) struct Reaction {
    pub(in crate::sim::world) emoji: Value,
    pub(in crate::sim::world) users: Vec<u64>,
}

impl Reaction {
    /// The reaction as a message object contains it.
    pub(super) fn shown(&self) -> Value {
        json!({
            "emoji": self.emoji,
            "count": self.users.len(),
            "count_details": {"burst": 0, "normal": self.users.len()},
            "burst_colors": [],
            "me": self.users.contains(&payloads::BOT),
            "me_burst": false,
        })
    }
}

impl World {
    pub(super) fn add_reaction(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, place) = self.place_of(call)?;
        let emoji = self.emoji(&call.request.parameters[2])?;
        let message = self.desk.message(channel, call.id(1))?;
        let is_new = !message
            .reactions
            .iter()
            .any(|reaction| reaction.emoji == emoji);
        let guild = place.guild().map(|guild| guild.id);
        if is_new && guild.is_some_and(|guild| self.lacks(guild, ADD_REACTIONS)) {
            return Err(MISSING_PERMISSIONS);
        }
        self.react((channel, call.id(1)), payloads::BOT, &emoji)?;
        Ok(Response::no_content())
    }

    pub(super) fn remove_reaction(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, place) = self.place_of(call)?;
        let emoji = self.emoji(&call.request.parameters[2])?;
        let user = match call.request.parameters[3].as_str() {
            "@me" => payloads::BOT,
            _ => call.id(3),
        };
        let guild = place.guild().map(|guild| guild.id);
        if user != payloads::BOT && guild.is_none_or(|guild| self.lacks(guild, MANAGE_MESSAGES)) {
            return Err(MISSING_PERMISSIONS);
        }
        self.desk.message(channel, call.id(1))?;
        self.unreact((channel, call.id(1)), user, &emoji);
        Ok(Response::no_content())
    }

    pub(in crate::sim::world) fn has_reacted(
        &mut self,
        (channel, id): (u64, u64),
        user: u64,
        emoji: &Value,
    ) -> bool {
        let message = self.desk.message(channel, id);
        message.is_ok_and(|message| {
            let mut reactions = message.reactions.iter();
            reactions.any(|reaction| reaction.emoji == *emoji && reaction.users.contains(&user))
        })
    }

    /// Adds the reaction of a user to a message.
    pub(in crate::sim::world) fn react(
        &mut self,
        (channel, id): (u64, u64),
        user: u64,
        emoji: &Value,
    ) -> Result<(), Refusal> {
        let message = self.desk.message(channel, id)?;
        let author = message.author();
        let mut reactions = message.reactions.iter_mut();
        match reactions.find(|reaction| reaction.emoji == *emoji) {
            Some(reaction) if reaction.users.contains(&user) => return Ok(()),
            Some(reaction) => reaction.users.push(user),
            None => message.reactions.push(Reaction {
                emoji: emoji.clone(),
                users: vec![user],
            }),
        }

        let place = self.place(channel).ok_or(UNKNOWN_MESSAGE)?;
        let mut data = about(channel, id, place);
        data["user_id"] = user.to_string().into();
        data["emoji"] = emoji.clone();
        data["message_author_id"] = author.to_string().into();
        payloads::extend(&mut data, json!({"burst": false, "type": 0}));
        if let Place::Guild(guild) = place {
            data["member"] = self.member(guild, user).unwrap_or_default();
        }
        self.announce(place, "MESSAGE_REACTION_ADD", &data);
        Ok(())
    }

    /// Removes the reaction of a user, if there is one.
    pub(in crate::sim::world) fn unreact(
        &mut self,
        (channel, id): (u64, u64),
        user: u64,
        emoji: &Value,
    ) {
        let Ok(message) = self.desk.message(channel, id) else {
            return;
        };
        let mut reactions = message.reactions.iter_mut();
        let reaction = reactions.find(|reaction| reaction.emoji == *emoji);
        let Some(reaction) = reaction.filter(|reaction| reaction.users.contains(&user)) else {
            return;
        };
        reaction.users.retain(|other| *other != user);
        message
            .reactions
            .retain(|reaction| !reaction.users.is_empty());

        let Some(place) = self.place(channel) else {
            return;
        };
        let mut data = about(channel, id, place);
        data["user_id"] = user.to_string().into();
        data["emoji"] = emoji.clone();
        payloads::extend(&mut data, json!({"burst": false, "type": 0}));
        self.announce(place, "MESSAGE_REACTION_REMOVE", &data);
    }

    pub(super) fn list_reactions(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, _) = self.place_of(call)?;
        let emoji = self.emoji(&call.request.parameters[2])?;
        let limit = call.limit(25, 100)?;
        let message = self.desk.message(channel, call.id(1))?;
        let reactions = message.reactions.iter();
        let of_emoji = reactions.filter(|reaction| reaction.emoji == emoji);
        let users = of_emoji.flat_map(|reaction| &reaction.users);
        let after = call.request.bound("after").unwrap_or(0);
        let mut users: Vec<u64> = users.copied().filter(|id| *id > after).collect();
        users.sort_unstable();
        let users = users
            .iter()
            .take(limit)
            .map(|id| payloads::user(*id, *id == payloads::BOT));
        Ok(Response::json(200, users.collect()))
    }

    pub(super) fn clear_reactions(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, place) = self.place_of(call)?;
        let message = self.desk.message(channel, call.id(1))?;
        message.reactions.clear();
        let data = about(channel, call.id(1), place);
        self.announce(place, "MESSAGE_REACTION_REMOVE_ALL", &data);
        Ok(Response::no_content())
    }

    pub(super) fn clear_emoji(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, place) = self.place_of(call)?;
        let emoji = self.emoji(&call.request.parameters[2])?;
        let message = self.desk.message(channel, call.id(1))?;
        message.reactions.retain(|reaction| reaction.emoji != emoji);
        let mut data = about(channel, call.id(1), place);
        data["emoji"] = emoji;
        self.announce(place, "MESSAGE_REACTION_REMOVE_EMOJI", &data);
        Ok(Response::no_content())
    }

    /// Parses an emoji in a path: a character, or `name:id` for a guild's emoji.
    pub(in crate::sim::world) fn emoji(&self, text: &str) -> Result<Value, Refusal> {
        let Some((name, id)) = text.split_once(':') else {
            // There is no table of emoji: everything without ASCII letters is accepted.
            let is_emoji = !text.is_empty() && !text.bytes().any(|byte| byte.is_ascii_alphabetic());
            return is_emoji
                .then(|| json!({"id": null, "name": text}))
                .ok_or(UNKNOWN_EMOJI);
        };
        let id: u64 = id.parse().map_err(|_| UNKNOWN_EMOJI)?;
        let guild = id.checked_sub(4).and_then(|guild| self.guild(guild));
        guild.ok_or(UNKNOWN_EMOJI)?;
        Ok(json!({"id": id.to_string(), "name": name}))
    }
}

/// The fields of every event about the reactions to a message.
fn about(channel: u64, message: u64, place: Place) -> Value {
    let mut data = json!({
        "channel_id": channel.to_string(),
        "message_id": message.to_string(),
    });
    if let Place::Guild(guild) = place {
        data["guild_id"] = guild.id.to_string().into();
    }
    data
}
