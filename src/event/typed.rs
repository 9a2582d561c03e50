//! Events as twilight-model types.

use serde::Deserialize;
use serde::de::{DeserializeSeed, Error as _};
use twilight_model::gateway::OpCode;
use twilight_model::gateway::event::{DispatchEventWithTypeDeserializer, Event};
use twilight_model::gateway::payload::incoming::RateLimited;
use twilight_model::gateway::payload::incoming::rate_limited::RateLimitMetadata;
use twilight_model::id::Id;
use twilight_model::id::marker::GuildMarker;

use super::{DecodeError, Dispatch};
use crate::protocol::EventName;

impl Dispatch {
    /// Decodes the event as a [`twilight_model`] event.
    ///
    /// ```
    /// # use threadcord::Dispatch;
    /// use twilight_model::gateway::event::Event;
    ///
    /// let json = r#"{"op":0,"s":2,"t":"MESSAGE_DELETE","d":{"id":"1","channel_id":"2","guild_id":"3"}}"#;
    /// match Dispatch::from_json(json)?.typed()? {
    ///     Event::MessageDelete(message) => assert_eq!(message.channel_id.get(), 2),
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// If twilight-model does not know the event, if it expects data of another shape, or if some
    /// of the data is not UTF-8. `name`, `data` and `decode` still work.
    pub fn typed(&self) -> Result<Event, DecodeError> {
        if *self.name() == EventName::RateLimited {
            return self
                .decode::<Limited>()
                .map(|limited| Event::RateLimited(limited.into()));
        }
        self.read(|data| {
            // One UTF-8 check of the whole takes less time than a check of each string.
            let mut json = serde_json::Deserializer::from_str(
                str::from_utf8(data).map_err(serde_json::Error::custom)?,
            );
            let event = DispatchEventWithTypeDeserializer::new(self.name().as_str())
                .deserialize(&mut json)?;
            json.end().map(|()| Event::from(event))
        })
    }
}

/// `RATE_LIMITED` as Discord documents it; twilight-model 0.18 expects its `meta` in another shape.
///
/// Source: [Discord, Rate
/// Limited](https://docs.discord.com/developers/events/gateway-events#rate-limited).
#[derive(Deserialize)]
struct Limited {
    retry_after: f32,
    meta: Meta,
}

#[derive(Deserialize)]
struct Meta {
    guild_id: Id<GuildMarker>,
    nonce: Option<String>,
}

impl From<Limited> for RateLimited {
    fn from(
        Limited {
            retry_after,
            meta: Meta { guild_id, nonce },
        }: Limited,
    ) -> Self {
        let meta = RateLimitMetadata::RequestGuildMembers { guild_id, nonce };
        Self {
            opcode: OpCode::RequestGuildMembers,
            retry_after,
            meta,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(json: &str) -> Result<Event, DecodeError> {
        Dispatch::from_json(json).unwrap().typed()
    }

    #[test]
    fn a_rate_limit_is_read_as_discord_sends_it() {
        let json = r#"{"op":0,"s":2,"t":"RATE_LIMITED","d":{"opcode":8,"retry_after":1.5,"meta":{"guild_id":"3"}}}"#;
        let Ok(Event::RateLimited(limited)) = typed(json) else {
            panic!("{:?}", typed(json))
        };
        assert_eq!(limited.retry_after.to_string(), "1.5");
    }

    #[test]
    fn what_it_cannot_read_is_named() {
        let wrong = r#"{"op":0,"s":2,"t":"MESSAGE_DELETE","d":{"id":"1","channel_id":true}}"#;
        let error = typed(wrong).unwrap_err();
        assert_eq!(
            (error.event.as_str(), error.path.as_str()),
            ("MESSAGE_DELETE", "channel_id")
        );
        for other in ["CHANNEL_INFO", "SOMETHING_NEW"] {
            let error = typed(&format!(r#"{{"op":0,"s":2,"t":"{other}","d":{{}}}}"#)).unwrap_err();
            assert!(error.to_string().contains(other), "{error}");
        }
    }
}
