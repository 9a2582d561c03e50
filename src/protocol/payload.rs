//! Inbound payloads: `op`, `s` and `t` are parsed on arrival, `d` stays bytes.

use bytes::Bytes;
use serde::Deserialize;

use super::event_name::EventName;
use crate::json::{self, Body, Envelope};

/// A payload from Discord.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    op: u64,
    sequence: Option<u64>,
    name: Option<EventName>,
    body: Body,
}

impl Payload {
    /// Reads the envelope (`op`, `s`, `t`). Its fields may be in any order.
    pub fn read(bytes: Bytes) -> Result<Self, MalformedPayload> {
        // Not for an unknown name: it may contain anything, even escapes.
        if let Some(event) = json::usual_event(&bytes)
            && let Some(name) = EventName::find(event.name)
        {
            let (sequence, data) = (event.sequence, event.data);
            return Ok(Self {
                op: 0,
                sequence: Some(sequence),
                name: Some(name),
                body: Body::new(bytes, data),
            });
        }

        let envelope: Envelope<'_, EventName> = serde_json::from_slice(&bytes)?;
        let data = envelope.data(&bytes);
        let (op, sequence, name) = (envelope.op, envelope.s, envelope.t);
        if op == 0 && (sequence.is_none() || name.is_none()) {
            return Err(MalformedPayload::Dispatch);
        }
        Ok(Self {
            op,
            sequence,
            name,
            body: Body::new(bytes, data),
        })
    }

    /// The opcode.
    pub fn op(&self) -> u64 {
        self.op
    }

    /// The sequence (`s`). Every dispatch has one.
    pub fn sequence(&self) -> Option<u64> {
        self.sequence
    }

    /// The event's name (`t`). Every dispatch has one.
    pub fn name(&self) -> Option<&EventName> {
        self.name.as_ref()
    }

    /// The JSON of `d`; `null` if there is none. The `d` of an event is not checked: if it is
    /// malformed, the caller's parser reports that.
    pub fn data(&self) -> &[u8] {
        self.body.data()
    }

    /// The size of the whole payload in bytes, uncompressed.
    pub fn size(&self) -> usize {
        self.body.size()
    }

    /// Parses `d`. Fields that `T` does not name are skipped.
    pub(crate) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, MalformedPayload> {
        Ok(self.body.parse().map_err(|(_, error)| error)?)
    }

    /// The name, the sequence and the body, if the payload is an event.
    pub(crate) fn into_event(self) -> Option<(EventName, u64, Body)> {
        let (name, sequence) = self.name.zip(self.sequence).filter(|_| self.op == 0)?;
        Some((name, sequence, self.body))
    }
}

/// Why a payload from Discord cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MalformedPayload {
    /// The payload is not JSON, or a field is missing or has the wrong type.
    #[error("malformed payload: {0}")]
    Json(#[from] serde_json::Error),
    /// An event without a name or a sequence.
    #[error("malformed payload: an event without `s` or `t`")]
    Dispatch,
    /// A heartbeat interval that is too short or too long to keep a connection.
    #[error("malformed HELLO: a heartbeat interval of {0} ms")]
    HeartbeatInterval(u64),
    /// A READY with an empty session id.
    #[error("malformed READY: an empty session id")]
    SessionId,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;
    use crate::json::any_json;

    fn read(json: &str) -> Result<Payload, MalformedPayload> {
        Payload::read(Bytes::copy_from_slice(json.as_bytes()))
    }

    #[test]
    fn the_order_of_fields_does_not_matter() {
        for json in [
            r#"{"t":"X","s":7,"op":0,"d":{"a":[1,"}"]}}"#,
            r#"{"d": {"a":[1,"}"]} , "op":0,"new":[{}],"s":7,"t":"\u0058"}"#,
        ] {
            let payload = read(json).unwrap();
            assert_eq!(
                (payload.op(), payload.sequence(), payload.name()),
                (0, Some(7), Some(&EventName::from("X")))
            );
            assert_eq!(payload.data(), br#"{"a":[1,"}"]}"#);
        }
    }

    #[test]
    fn what_is_taken_on_trust_is_found_out_by_whoever_reads_it() {
        let more = read(r#"{"t":"TYPING_START","s":7,"op":0,"d":{"a":1},"new":{"b":2}}"#).unwrap();
        assert_eq!(
            (more.sequence(), more.name()),
            (Some(7), Some(&EventName::TypingStart))
        );
        assert_eq!(more.parse::<Value>().unwrap(), json!({"a": 1}));
        for json in [
            r#"{"t":"TYPING_START","s":7,"op":0,"d":{"a":{"b":{}}"#,
            r#"{"t":"TYPING_START","s":7,"op":0,"d":{"a":1},"d":{"a":1}}"#,
            r#"{"t":"TYPING_START","s":7,"op":0,"d":{nonsense}}"#,
        ] {
            assert!(read(json).unwrap().parse::<Value>().is_err(), "{json}");
        }
    }

    #[test]
    fn numbers_are_read_as_json_has_them() {
        let sequence = |digits: &str| {
            let payload = read(&format!(
                r#"{{"t":"TYPING_START","s":{digits},"op":0,"d":{{}}}}"#
            ));
            payload.ok().and_then(|payload| payload.sequence())
        };

        assert_eq!(sequence("0"), Some(0));
        assert_eq!(sequence("18446744073709551615"), Some(u64::MAX));
        for wrong in [
            "",
            "00",
            "01",
            "-1",
            "18446744073709551616",
            "1.0",
            "1e3",
            "null",
            "\"1\"",
        ] {
            assert_eq!(sequence(wrong), None, "{wrong}");
        }
    }

    /// A field of an envelope, or an unknown field, with a usual or an unusual value.
    fn any_field() -> impl Strategy<Value = String> {
        let name = prop_oneof![
            Just(r#""TYPING_START""#),
            Just(r#""RESUMED""#),
            Just(r#""NEW""#),
            Just(r#""\u0058""#)
        ];
        prop_oneof![
            4 => name.prop_map(|name| format!(r#""t":{name}"#)),
            4 => any::<u64>().prop_map(|sequence| format!(r#""s":{sequence}"#)),
            4 => prop_oneof![4 => Just(0), 1 => 0..12].prop_map(|op| format!(r#""op":{op}"#)),
            4 => any_json("[tsdop]").prop_map(|data| format!(r#""d":{data}"#)),
            1 => any_json("[tsdop]").prop_map(|data| format!(r#" "\u0064" : {data} "#)),
            1 => ("[tsdopx]{1,2}", any_json("[tsdop]")).prop_map(|(key, value)| format!(r#""{key}":{value}"#)),
        ]
    }

    /// Any payload: fields in any order, or in the usual order with others after them; whole or cut
    /// off.
    fn any_payload() -> impl Strategy<Value = Vec<u8>> {
        let fields = prop::collection::vec(any_field(), 0..6);
        let usual = (
            any::<u64>(),
            any_json("[tsdop]"),
            prop::collection::vec(any_field(), 0..2),
        )
            .prop_map(|(s, d, more)| {
                let head = [
                    r#""t":"TYPING_START""#.into(),
                    format!(r#""s":{s}"#),
                    r#""op":0"#.into(),
                    format!(r#""d":{d}"#),
                ];
                head.into_iter().chain(more).collect()
            });
        let whole = prop_oneof![fields, usual]
            .prop_map(|fields: Vec<String>| format!("{{{}}}", fields.join(",")));
        (whole, any::<prop::sample::Index>(), any::<bool>()).prop_map(|(json, at, is_cut)| {
            let mut bytes = json.into_bytes();
            if is_cut {
                bytes.truncate(at.index(bytes.len()));
            }
            bytes
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        /// The fast path and `serde_json` agree: on the envelope at once, and on `d` when it is
        /// parsed.
        #[test]
        fn reading_is_what_serde_json_does(bytes in any_payload()) {
            let expected = serde_json::from_slice::<Envelope<'_, EventName>>(&bytes).ok();
            let expected = expected.filter(|envelope| envelope.op != 0 || (envelope.s.is_some() && envelope.t.is_some()));
            let read = Payload::read(bytes.clone().into());
            match (expected, read) {
                (Some(expected), Ok(read)) => {
                    prop_assert_eq!((read.op(), read.sequence(), read.name()), (expected.op, expected.s, expected.t.as_ref()));
                    let (data, range) = (expected.d.map_or("null", RawValue::get), expected.data(&bytes));
                    prop_assert_eq!(read.parse::<Value>().unwrap(), serde_json::from_str::<Value>(data).unwrap());
                    prop_assert_eq!(read.body.exact_data(), data.as_bytes());
                    if range.end + 1 == bytes.len() {
                        prop_assert_eq!(read.data(), data.as_bytes());
                    }
                }
                (None, Ok(read)) => prop_assert!(read.parse::<Value>().is_err(), "{:?}", String::from_utf8_lossy(&bytes)),
                (Some(_), Err(error)) => prop_assert!(false, "{error}: {:?}", String::from_utf8_lossy(&bytes)),
                (None, Err(_)) => {}
            }
        }
    }

    #[test]
    fn what_is_missing_is_null() {
        let payload = read(r#"{"op":11}"#).unwrap();
        assert_eq!(
            (payload.sequence(), payload.name(), payload.data()),
            (None, None, &b"null"[..])
        );
        assert_eq!(read(r#"{"op":11,"d":null}"#).unwrap().data(), b"null");
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        for json in [
            "",
            "{",
            "null",
            "[]",
            "{}",
            r#"{"op":"0"}"#,
            r#"{"op":-1}"#,
            r#"{"op":0,"s":1}"#,
            "{\"op\":1}x",
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        assert!(Payload::read(vec![0xff, 0xfe].into()).is_err());
    }
}
