//! Inbound payloads: `op`, `s` and `t` are read once, `d` stays bytes.

use std::ops::Range;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::event_name::EventName;

/// A payload from Discord. It owns its bytes; `d` is a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    bytes: Vec<u8>,
    op: u64,
    sequence: Option<u64>,
    name: Option<EventName>,
    data: Range<usize>,
}

/// The four fields of every payload.
///
/// Source: [Discord, Gateway event payload structure](https://docs.discord.com/developers/events/gateway-events#payload-structure).
#[derive(Deserialize)]
struct Envelope<'a> {
    op: u64,
    s: Option<u64>,
    t: Option<EventName>,
    #[serde(borrow)]
    d: Option<&'a RawValue>,
}

impl Payload {
    /// Reads the envelope, in whatever order its fields come.
    pub fn read(bytes: Vec<u8>) -> Result<Self, MalformedPayload> {
        let envelope: Envelope<'_> = serde_json::from_slice(&bytes)?;
        let data = envelope.d.map_or(0..0, |d| {
            let start = d.get().as_ptr().addr() - bytes.as_ptr().addr();
            start..start + d.get().len()
        });
        let Envelope { op, s: sequence, t: name, .. } = envelope;
        if op == 0 && (sequence.is_none() || name.is_none()) {
            return Err(MalformedPayload::Dispatch);
        }
        Ok(Self { bytes, op, sequence, name, data })
    }

    /// The opcode.
    pub fn op(&self) -> u64 {
        self.op
    }

    /// The sequence (`s`); a dispatch has one.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// The event's name (`t`); a dispatch has one.
    pub fn name(&self) -> Option<&EventName> {
        self.name.as_ref()
    }

    /// The JSON of `d`; `null` if there is none.
    pub fn data(&self) -> &[u8] {
        if self.data.is_empty() { b"null" } else { &self.bytes[self.data.clone()] }
    }

    /// The size of the whole payload in bytes, uncompressed.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Gives memory back that it does not need, if that is much.
    pub(crate) fn fit(&mut self) {
        if self.bytes.capacity() / 2 > self.bytes.len() {
            self.bytes.shrink_to_fit();
        }
    }

    /// The memory that it takes: its buffer may be larger than what is in it.
    pub(crate) fn footprint(&self) -> usize {
        self.bytes.capacity()
    }

    /// The buffer, to be used again.
    pub(crate) fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }

    /// Reads `d`.
    pub(crate) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, MalformedPayload> {
        Ok(serde_json::from_slice(self.data())?)
    }
}

/// A payload that Discord should not have sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedPayload {
    /// Not JSON, or a field is missing or of the wrong type.
    #[error("malformed payload: {0}")]
    Json(#[from] serde_json::Error),
    /// An event without a name or a sequence.
    #[error("malformed payload: an event without `s` or `t`")]
    Dispatch,
    /// A heartbeat interval with which no connection can be kept.
    #[error("malformed HELLO: a heartbeat interval of {0} ms")]
    HeartbeatInterval(u64),
    /// A READY that names no session.
    #[error("malformed READY: an empty session id")]
    SessionId,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Payload, MalformedPayload> {
        Payload::read(json.as_bytes().to_vec())
    }

    #[test]
    fn the_order_of_fields_does_not_matter() {
        for json in [
            r#"{"t":"X","s":7,"op":0,"d":{"a":[1,"}"]}}"#,
            r#"{"d": {"a":[1,"}"]} , "op":0,"new":[{}],"s":7,"t":"\u0058"}"#,
        ] {
            let payload = read(json).unwrap();
            assert_eq!((payload.op(), payload.sequence(), payload.name()), (0, Some(7), Some(&EventName::from("X"))));
            assert_eq!(payload.data(), br#"{"a":[1,"}"]}"#);
        }
    }

    #[test]
    fn what_is_missing_is_null() {
        let payload = read(r#"{"op":11}"#).unwrap();
        assert_eq!((payload.sequence(), payload.name(), payload.data()), (None, None, &b"null"[..]));
        assert_eq!(read(r#"{"op":11,"d":null}"#).unwrap().data(), b"null");
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        for json in ["", "{", "null", "[]", "{}", r#"{"op":"0"}"#, r#"{"op":-1}"#, r#"{"op":0,"s":1}"#, "{\"op\":1}x"] {
            assert!(read(json).is_err(), "{json}");
        }
        assert!(Payload::read(vec![0xff, 0xfe]).is_err());
    }
}
