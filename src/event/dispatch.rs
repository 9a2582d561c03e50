//! An event from Discord, and the methods to read it.

use std::fmt;

use serde::de::Visitor;
use serde::{Deserialize, Deserializer};

use crate::json::{self, Body};
use crate::protocol::{EventName, MalformedPayload, Payload};

/// An event from Discord: its name, its sequence, and its data as Discord sent it.
///
/// Under load, small events share memory blocks of 16 KiB, and a block is freed with its last
/// event. A kept event keeps its whole block in memory, so copy out what you need for long.
#[derive(Debug)]
pub struct Dispatch {
    name: EventName,
    sequence: u64,
    body: Body,
}

impl Dispatch {
    /// Reads an event from a payload as Discord sends it,
    /// `{"op":0,"s":1,"t":"RESUMED","d":null}`; for tests of handlers, and for stored events.
    ///
    /// ```
    /// # use threadcord::Dispatch;
    /// let dispatch = Dispatch::from_json(r#"{"op":0,"s":2,"t":"TYPING_START","d":{"guild_id":"41"}}"#)?;
    /// assert_eq!(dispatch.name(), "TYPING_START");
    /// assert_eq!(dispatch.guild_id(), Some(41));
    /// # Ok::<(), threadcord::protocol::MalformedPayload>(())
    /// ```
    ///
    /// # Errors
    /// If the payload is not JSON, if its `op` is not 0, or if it lacks `s` or `t`.
    pub fn from_json(json: impl Into<Vec<u8>>) -> Result<Self, MalformedPayload> {
        Self::new(Payload::read(json.into().into())?).ok_or(MalformedPayload::Dispatch)
    }

    /// `None` if the payload is not an event.
    pub(crate) fn new(payload: Payload) -> Option<Self> {
        let (name, sequence, body) = payload.into_event()?;
        Some(Self {
            name,
            sequence,
            body,
        })
    }

    /// The event's name, for example `MESSAGE_CREATE`.
    pub fn name(&self) -> &EventName {
        &self.name
    }

    /// The event's sequence within its session. Only `RESUMED` may have the same sequence as the
    /// event before it.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The JSON of the event's data; `null` if Discord sent `null` or nothing.
    ///
    /// The library does not check that it is well-formed. Code that reads it, such as
    /// [`decode`](Self::decode), finds out.
    pub fn data(&self) -> &[u8] {
        self.body.data()
    }

    /// The guild that the event belongs to: its `guild_id`, or its `id` if it is about a guild
    /// itself. `None` for direct messages and other events without a guild, and if the data is not
    /// what Discord documents.
    ///
    /// Reads the data only up to that field.
    pub fn guild_id(&self) -> Option<u64> {
        let key = match self.name {
            EventName::GuildCreate | EventName::GuildUpdate | EventName::GuildDelete => "id",
            _ => "guild_id",
        };
        let value = json::find(self.data(), key)?;
        serde_json::from_slice::<Option<Id>>(value)
            .ok()?
            .map(|id| id.0)
    }

    /// Decodes the event's data as a `T`, which may borrow from it.
    ///
    /// A `&str` field suits ids. It fails for text with escapes, such as quotes or line breaks: use
    /// `String`, or `Cow<'a, str>` with `#[serde(borrow)]`, for text that users write.
    ///
    /// Data of `null` is an error for a struct, and `None` for an `Option`. Fields that the struct
    /// does not have are skipped up to their closing quote or bracket, without a check that their
    /// content is well-formed.
    pub fn decode<'a, T: Deserialize<'a>>(&'a self) -> Result<T, DecodeError> {
        self.body.parse().map_err(|error| self.decode_error(error))
    }

    /// As [`decode`](Self::decode), but does not find the cause of a failure: a failure costs no
    /// more than the reading.
    pub(crate) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        self.body.parse().ok()
    }

    /// See [`Body::read`].
    #[cfg(feature = "model")]
    pub(super) fn read<'a, T>(
        &'a self,
        read: impl Fn(&'a [u8]) -> serde_json::Result<T>,
    ) -> Result<T, DecodeError> {
        self.body
            .read(read)
            .map_err(|error| self.decode_error(error))
    }

    fn decode_error(&self, (data, source): (&[u8], serde_json::Error)) -> DecodeError {
        let (byte, path) = json::place(data, &source);
        DecodeError {
            event: self.name().clone(),
            sequence: self.sequence(),
            path,
            byte,
            source,
        }
    }

    /// The size of the whole payload in bytes, uncompressed.
    pub(crate) fn size(&self) -> usize {
        self.body.size()
    }
}

/// The data of an event does not decode as the requested type.
#[derive(Debug, thiserror::Error)]
#[error(
    "{event} (sequence {sequence}) does not decode at `{path}`, byte {byte} of its data: {source}"
)]
pub struct DecodeError {
    /// The event's name.
    pub event: EventName,
    /// The event's sequence.
    pub sequence: u64,
    /// The path of the field, for example `member.roles[2]`, up to 128 levels deep. If a type
    /// rejects its value only after reading it (`try_from`, `deserialize_with`), the path may be
    /// that of the last field inside it. Empty if the error is about the data as a whole.
    pub path: String,
    /// How many bytes of the data were read before the error.
    pub byte: usize,
    /// What does not decode.
    pub source: serde_json::Error,
}

/// An id, which Discord writes as a string; a number is accepted as well.
pub(crate) struct Id(pub(crate) u64);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct IdVisitor;
        impl Visitor<'_> for IdVisitor {
            type Value = Id;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an id")
            }

            fn visit_str<E: serde::de::Error>(self, id: &str) -> Result<Id, E> {
                id.parse()
                    .map(Id)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Str(id), &self))
            }

            fn visit_u64<E>(self, id: u64) -> Result<Id, E> {
                Ok(Id(id))
            }
        }
        deserializer.deserialize_any(IdVisitor)
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::{Value, json};

    use super::*;

    fn dispatch(name: &str, data: &Value) -> Dispatch {
        Dispatch::from_json(json!({"op": 0, "s": 7, "t": name, "d": data}).to_string()).unwrap()
    }

    #[test]
    fn the_guild_is_found_at_the_top_alone() {
        let id = |name, data| dispatch(name, &data).guild_id();
        assert_eq!(
            id(
                "MESSAGE_CREATE",
                json!({"a": {"guild_id": "1"}, "guild_id": "2"})
            ),
            Some(2)
        );
        assert_eq!(
            id("MESSAGE_CREATE", json!({"a": {"guild_id": "1"}, "id": "2"})),
            None,
            "a direct message"
        );
        assert_eq!(
            id("GUILD_CREATE", json!({"guild_id": "1", "id": "2"})),
            Some(2)
        );
        assert_eq!(
            id("GUILD_ROLE_CREATE", json!({"id": "1", "guild_id": 2})),
            Some(2)
        );

        for data in [
            Value::Null,
            json!([]),
            json!(3),
            json!({"guild_id": null}),
            json!({"guild_id": "x"}),
        ] {
            assert_eq!(id("TYPING_START", data), None);
        }

        let cut = r#"{"op":0,"s":1,"t":"TYPING_START","d":{"guild\u005fid":"5","x":[]}}"#;
        assert_eq!(
            Dispatch::from_json(cut).unwrap().guild_id(),
            Some(5),
            "an escaped key is the same key"
        );
    }

    #[test]
    fn decoding_may_borrow() {
        #[derive(Deserialize)]
        struct Message<'a> {
            content: &'a str,
            #[serde(borrow)]
            name: Cow<'a, str>,
        }
        let dispatch = dispatch(
            "MESSAGE_CREATE",
            &json!({"content": "hi", "name": "quoted \""}),
        );
        let message: Message<'_> = dispatch.decode().unwrap();
        assert_eq!((message.content, &*message.name), ("hi", "quoted \""));
    }

    #[test]
    fn errors_name_event_path_and_byte() {
        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "only whether it decodes matters")]
        struct Message {
            member: Member,
        }

        #[derive(Debug, Deserialize)]
        #[expect(dead_code, reason = "as above")]
        struct Member {
            roles: Vec<String>,
        }
        let wrong = Dispatch::from_json(
            "{\"op\":0,\"s\":7,\"t\":\"X\",\"d\":{\"member\":{\"roles\":\n[\"1\",2]}}}",
        );
        let error = wrong.unwrap().decode::<Message>().unwrap_err();
        assert_eq!(
            (error.event.as_str(), error.sequence, error.path.as_str()),
            ("X", 7, "member.roles[1]")
        );
        let data = "{\"member\":{\"roles\":\n[\"1\",2";
        assert_eq!(error.byte, data.len());
        assert!(error.to_string().contains("member.roles[1]"), "{error}");
        let null = dispatch("X", &Value::Null);
        assert_eq!(null.data(), b"null");
        assert_eq!(null.decode::<Message>().unwrap_err().path, "");
        assert!(null.decode::<Option<Message>>().unwrap().is_none());
    }

    #[test]
    fn only_events_are_dispatches() {
        for json in [r#"{"op":11}"#, r#"{"op":0,"s":1}"#, "nonsense"] {
            assert!(Dispatch::from_json(json).is_err());
        }
    }
}
