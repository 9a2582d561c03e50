//! What an error of `serde_json` leaves out: where in the JSON it is, as a path.

use std::fmt::Write;
use std::ops::Range;

use super::skip;

/// Steps of a path; what is deeper is left out, since nesting can be a thousand times as deep as a
/// payload is long while it is compressed. No reader of `serde_json` gets deeper by default.
const MAX_STEPS: usize = 128;

/// An object or an array around a byte.
enum Around {
    /// With its last key, quotes included.
    Object(Option<Range<usize>>),
    /// With the index of its last element.
    Array(usize),
}

/// How many bytes of it had been read when an error came, and the path to the value there:
/// `member.roles[2]`, or nothing for all of it.
pub(crate) fn place(json: &[u8], error: &serde_json::Error) -> (usize, String) {
    let lines = json
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1));
    let read = (lines.map(<[u8]>::len).sum::<usize>() + error.column()).min(json.len());
    // Where the syntax is wrong, the last byte was only looked at.
    (
        read,
        path_at(json, read.saturating_sub(usize::from(!error.is_data()))),
    )
}

/// The path to the value that a reader was at when it had read so many bytes.
///
/// It takes the JSON to be well-formed up to there; where it is not, the path says as much as there
/// is to say.
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
            // Writing to a text does not fail.
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

    /// Something that most JSON is not.
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
        // And what follows it is found again.
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
                // What is wrong with a key is found at that key, not at the object that has it.
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
