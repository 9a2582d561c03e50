//! Reads only those fields of an object that a struct has, and skips the others.

use std::borrow::Cow;
use std::{fmt, mem};

use serde::de::{DeserializeSeed, Error, IgnoredAny, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, forward_to_deserialize_any};

use super::skip;

/// Reads an object as a struct that names its fields. `None` if the JSON is not an object, if `T`
/// is not such a struct, or if they do not match. Use `serde_json` then, which reads it or reports
/// the error.
///
/// Most fields of an event are not needed. Finding the end of such a field is much faster than
/// parsing it.
pub(super) fn read<'de, T: Deserialize<'de>>(json: &'de [u8]) -> Option<T> {
    T::deserialize(Object(json)).ok()
}

/// Finds the JSON of the first field with that name in an object. Reads no further than that field.
pub(crate) fn find<'de>(json: &'de [u8], name: &str) -> Option<&'de [u8]> {
    let mut fields = Fields::new(json, &[]).ok()?;
    loop {
        let is_it = fields.key().ok()?? == name;
        let value = fields.skip().ok()?;
        if is_it {
            return Some(value);
        }
    }
}

/// An object that is deserialised as a struct.
struct Object<'de>(&'de [u8]);

impl<'de> Deserializer<'de> for Object<'de> {
    type Error = Unfit;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Unfit> {
        Err(Unfit)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Unfit> {
        let mut fields = Fields::new(self.0, names)?;
        let value = visitor.visit_map(&mut fields)?;
        // A visitor may stop before the end, and so miss what is wrong there.
        let is_whole = fields.peek() == Some(b'}') && trim(&fields.rest[1..]).is_empty();
        if is_whole { Ok(value) } else { Err(Unfit) }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// Iterates over the fields of an object.
struct Fields<'de> {
    /// The JSON from the next key, the next value, or the end of the object.
    rest: &'de [u8],
    /// The names of the struct's fields.
    names: &'static [&'static str],
    /// Whether the next key is the first one, which has no comma before it.
    is_first: bool,
    /// Whether the next value belongs to a field of the struct.
    is_named: bool,
}

impl<'de> Fields<'de> {
    fn new(json: &'de [u8], names: &'static [&'static str]) -> Result<Self, Unfit> {
        let rest = json.strip_prefix(b"{").ok_or(Unfit)?;
        Ok(Self {
            rest,
            names,
            is_first: true,
            is_named: false,
        })
    }

    /// Reads the next key and its colon. `None` at the end of the object.
    fn key(&mut self) -> Result<Option<Cow<'de, str>>, Unfit> {
        if self.peek() == Some(b'}') {
            return Ok(None);
        }

        if !mem::take(&mut self.is_first) {
            self.expect(b',')?;
        }
        if self.peek() != Some(b'"') {
            return Err(Unfit);
        }

        let length = skip::text(self.rest).ok_or(Unfit)?;
        let quoted = self.take(length);
        self.expect(b':')?;
        self.peek();

        if quoted.contains(&b'\\') {
            return serde_json::from_slice(quoted).map(Some).map_err(|_| Unfit);
        }
        str::from_utf8(&quoted[1..length - 1])
            .map(|key| Some(key.into()))
            .map_err(|_| Unfit)
    }

    /// Skips the next value, and returns its JSON.
    fn skip(&mut self) -> Result<&'de [u8], Unfit> {
        let length = skip::value(self.rest).ok_or(Unfit)?;
        Ok(self.take(length))
    }

    /// Skips whitespace, and returns the next byte without consuming it.
    fn peek(&mut self) -> Option<u8> {
        self.rest = trim(self.rest);
        self.rest.first().copied()
    }

    fn expect(&mut self, byte: u8) -> Result<(), Unfit> {
        if self.peek() != Some(byte) {
            return Err(Unfit);
        }
        self.take(1);
        Ok(())
    }

    fn take(&mut self, length: usize) -> &'de [u8] {
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        taken
    }
}

impl<'de> MapAccess<'de> for &mut Fields<'de> {
    type Error = Unfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Unfit> {
        let Some(key) = self.key()? else {
            return Ok(None);
        };
        self.is_named = self.names.contains(&&*key);
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Unfit> {
        if !self.is_named {
            self.skip()?;
            return seed.deserialize(Skipped);
        }
        let mut json = serde_json::Deserializer::from_slice(self.rest);
        let value = seed.deserialize(&mut json).map_err(|_| Unfit)?;
        self.take(json.into_iter::<IgnoredAny>().byte_offset());
        Ok(value)
    }
}

/// Removes whitespace at the beginning. (Discord writes none.)
fn trim(json: &[u8]) -> &[u8] {
    if json.first().is_some_and(|byte| *byte > b' ') {
        return json;
    }
    let spaces = json
        .iter()
        .take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
        .count();
    &json[spaces..]
}

/// A value that was skipped. It can only be deserialised as an ignored one.
struct Skipped;

impl<'de> Deserializer<'de> for Skipped {
    type Error = Unfit;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Unfit> {
        Err(Unfit)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Unfit> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier
    }
}

/// The error if JSON or type do not fit this reader; `serde_json` must read it.
#[derive(Debug)]
struct Unfit;

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an object with the fields of a struct")
    }
}

impl std::error::Error for Unfit {}

impl Error for Unfit {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;
    use crate::json::any_json;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Few<'a> {
        id: Option<&'a str>,
        #[serde(borrow, default, alias = "b")]
        a: Option<Cow<'a, str>>,
        c: Option<Value>,
    }

    #[test]
    fn what_nobody_asks_for_is_skipped() {
        let json =
            r#"{"x":{"id":"1","y":["}"]}, "id" : "2" ,"z":-1.5,"w":"\"","v":null,"b":"\u0041"}"#;
        let read = super::read::<Few<'_>>(json.as_bytes()).unwrap();
        assert_eq!(
            (read.id, read.a.as_deref(), read.c),
            (Some("2"), Some("A"), None)
        );
        assert_eq!(find(json.as_bytes(), "id"), Some(&br#""2""#[..]));
        assert_eq!(
            (
                find(json.as_bytes(), "y"),
                find(b"[]", "id"),
                find(b"{}", "id")
            ),
            (None, None, None)
        );
        // It reads no further than necessary.
        assert_eq!(find(br#"{"id":"2","x"#, "id"), Some(&br#""2""#[..]));
    }

    #[test]
    fn what_is_no_struct_that_names_its_fields_is_left_to_serde_json() {
        #[derive(Debug, Deserialize)]
        struct Flat {
            #[serde(flatten)]
            _all: HashMap<String, Value>,
        }

        #[derive(Debug, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Strict {
            _id: Option<u64>,
        }
        let json = br#"{"id":2}"#;
        assert!(read::<Value>(json).is_none() && read::<Flat>(json).is_none());
        assert!(read::<Strict>(json).is_none() && read::<Option<Flat>>(json).is_none());

        for wrong in [
            "",
            "null",
            "[]",
            "{",
            "{}x",
            r#"{"id":2"#,
            r#"{"id":"2","id":"2"}"#,
            r#"{"x":1"id":"2"}"#,
            r#"{"x":}"#,
            "{,}",
            r#"{"x":1,}"#,
            r#"{"id":2}"#,
            r#"{"id":"2"},"op":{}"#,
        ] {
            assert!(read::<Few<'_>>(wrong.as_bytes()).is_none(), "{wrong}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// It reads the same as `serde_json`, and reads nothing from truncated JSON.
        #[test]
        fn it_reads_what_serde_json_does(json in any_json("id|[abcd]"), is_pretty: bool, at: prop::sample::Index) {
            let json = if is_pretty { serde_json::to_string_pretty(&json) } else { serde_json::to_string(&json) }.unwrap();
            let read = super::read::<Few<'_>>(json.as_bytes());
            if let Some(read) = &read {
                prop_assert_eq!(read, &serde_json::from_str::<Few<'_>>(&json).unwrap());
            }
            let value = serde_json::from_str::<Value>(&json).unwrap();
            prop_assert_eq!(read.is_some(), value.is_object() && serde_json::from_str::<Few<'_>>(&json).is_ok());
            let found = find(json.as_bytes(), "id").map(|id| serde_json::from_slice::<Value>(id).unwrap());
            prop_assert_eq!(found.as_ref(), value.get("id"));
            prop_assert_eq!(super::read::<Few<'_>>(&json.as_bytes()[..at.index(json.len())]), None);
        }
    }
}
