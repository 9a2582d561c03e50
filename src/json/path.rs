//! Finds the JSON path of a `serde_json` error, which the error itself does not contain.

use std::fmt::Write;
use std::ops::Range;

use super::skip;

/// The most steps of a path; deeper ones are left out. Otherwise a small compressed payload could
/// take much memory: its nesting can be a thousand times deeper than its compressed length. By
/// default, `serde_json` does not read deeper either.
const MAX_STEPS: usize = 128;

/// An object or an array that contains a byte.
enum Around {
    /// The range of its last key, including the quotes.
    Object(Option<Range<usize>>),
    /// The index of its last element.
    Array(usize),
}

/// Returns the number of bytes that had been read when the error occurred, and the path to the
/// value there: for example `member.roles[2]`, or an empty string for the whole JSON.
pub(crate) fn place(json: &[u8], error: &serde_json::Error) -> (usize, String) {
    let lines = json
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1));
    let read = (lines.map(<[u8]>::len).sum::<usize>() + error.column()).min(json.len());
    // After a syntax error, the last byte was looked at, but not consumed.
    (
        read,
        path_at(json, read.saturating_sub(usize::from(!error.is_data()))),
    )
}

/// Returns the path to the value at which a reader was after this number of bytes.
///
/// It assumes that the JSON is well-formed up to there. Otherwise the path is only approximate.
fn path_at(json: &[u8], read: usize) -> String {
    let read = read.min(json.len());
    let (mut around, mut deeper, mut at) = (Vec::new(), 0_usize, 0);

    while at < read {
        let start = at;
        at += 1;
        let is_full = around.len() == MAX_STEPS;
        match (json[start], around.last_mut()) {
            (b'{' | b'[', _) if is_full => deeper += 1,
            (b'{', _) => around.push(Around::Object(None)),
            (b'[', _) => around.push(Around::Array(0)),
            (b'}' | b']', _) if deeper > 0 => deeper -= 1,
            (b'}' | b']', _) => drop(around.pop()),
            (b'"', _) if deeper > 0 => {
                at = skip::text(&json[start..]).map_or(json.len(), |length| start + length);
            }
            _ if deeper > 0 => {}
            (b',', Some(Around::Object(key))) => *key = None,
            (b',', Some(Around::Array(index))) => *index += 1,
            (b'"', last) => {
                at = skip::text(&json[start..]).map_or(json.len(), |length| start + length);
                if let Some(Around::Object(key @ None)) = last {
                    *key = Some(start..at);
                }
            }
            _ => {}
        }
    }

    let mut path = String::new();
    for step in around {
        match step {
            Around::Object(None) => {}
            Around::Object(Some(key)) => {
                let text = serde_json::from_slice::<String>(&json[key]).unwrap_or_default();
                path.push_str(if path.is_empty() { "" } else { "." });
                path.push_str(&text);
            }
            // Writing to a `String` never fails.
            Around::Array(index) => drop(write!(path, "[{index}]")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::Value;

    use super::*;
    use crate::json::any_json;

    /// A type that most random JSON does not match.
    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "it is read to see how that fails")]
    struct Tree {
        a: Option<u8>,
        t: Option<String>,
        s: Option<Vec<Option<Tree>>>,
        d: Option<Box<Tree>>,
        #[serde(default)]
        x: Choice,
    }

    #[derive(Debug, Default, Deserialize)]
    #[allow(dead_code, reason = "as above")]
    enum Choice {
        #[default]
        A,
        B(Vec<bool>),
    }

    #[test]
    fn nesting_of_any_depth_costs_no_memory() {
        let json = format!(r#"{{"a":{}"#, "[".repeat(1 << 24));
        let path = path_at(json.as_bytes(), json.len());
        assert_eq!(path, format!("a{}", "[0]".repeat(127)));
        // The path of what follows deep nesting is right again.
        let json = format!(r#"[{}{},{{"b":1"#, "[".repeat(500), "]".repeat(500));
        assert_eq!(path_at(json.as_bytes(), json.len()), "[1].b");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) })]

        #[test]
        fn it_is_what_keeping_track_finds(value in any_json("[atsdx]"), is_pretty in any::<bool>()) {
            let json = if is_pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            let mut tracked = serde_json::Deserializer::from_str(&json);
            let tracked = serde_path_to_error::deserialize::<_, Tree>(&mut tracked);
            if let (Err(tracked), Err(error)) = (tracked, serde_json::from_str::<Tree>(&json)) {
                let expected = tracked.path().to_string();
                let expected = if expected == "." { "" } else { &expected };
                let (_, found) = place(json.as_bytes(), &error);
                // An error of a key is found at that key, not at the object that contains it.
                let is_key = error.to_string().starts_with("unknown variant") || error.to_string().starts_with("duplicate field");
                prop_assert!(found == expected || (is_key && found.starts_with(expected)), "{found:?}, {expected:?}, {json} {error}");
            }
        }

        #[test]
        fn no_input_is_too_odd(bytes in prop::collection::vec(prop::sample::select(&b"{}[],:\"\\a1"[..]), 0..40), read in 0..50_usize) {
            path_at(&bytes, read);
            if let Ok(value) = serde_json::from_slice::<Value>(&bytes) {
                prop_assert_eq!(path_at(&bytes, bytes.len()), "", "{}", value);
            }
        }
    }
}
