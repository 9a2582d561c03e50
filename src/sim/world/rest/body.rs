//! Parses the body of a request: JSON, or a form with files.

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::super::super::request::File;
use super::answers::{NOT_JSON, Refusal, invalid_form};

/// The maximum number of headers of a part of a form.
const PART_HEADERS: usize = 8;

/// Parses a body by its content type. Without a content type it is parsed as JSON.
pub(super) fn read(content_type: Option<&str>, body: &[u8]) -> Result<(Value, Vec<File>), Refusal> {
    if body.is_empty() {
        return Ok((Value::Null, Vec::new()));
    }

    let content_type = content_type.unwrap_or_default();
    if content_type.starts_with("multipart/form-data") {
        let boundary = parameter(content_type, "boundary");
        let form = boundary.and_then(|boundary| form(body, &boundary));
        return form.unwrap_or_else(|| {
            let message = "The form is cut off, or has no boundary.";
            Err(invalid_form("_", "MULTIPART_FORM_INVALID", message))
        });
    }

    let json = if content_type.starts_with("application/x-www-form-urlencoded") {
        let pairs = form_urlencoded::parse(body).into_owned();
        fields(pairs.map(|(name, value)| (name, value.into())).collect())?
    } else {
        serde_json::from_slice(body).map_err(|_| NOT_JSON)?
    };
    Ok((json, Vec::new()))
}

/// The JSON of a form: its `payload_json`, or else its fields.
fn fields(mut fields: Map<String, Value>) -> Result<Value, Refusal> {
    match fields.remove("payload_json") {
        None if fields.is_empty() => Ok(Value::Null),
        None => Ok(fields.into()),
        Some(payload) => {
            let payload = payload.as_str().unwrap_or_default();
            serde_json::from_str(payload).map_err(|_| NOT_JSON)
        }
    }
}

/// Parses a multipart form; `None` if it is incomplete.
///
/// Source: [Discord, Uploading
/// files](https://docs.discord.com/developers/reference#uploading-files).
fn form(body: &[u8], boundary: &str) -> Option<Result<(Value, Vec<File>), Refusal>> {
    let (mut texts, mut files) = (Map::new(), Vec::new());
    let delimiter = format!("\r\n--{boundary}");

    // The first delimiter has no line break before it.
    let first = &delimiter.as_bytes()[2..];
    let mut rest = &body[find(body, first)? + first.len()..];
    while !rest.starts_with(b"--") {
        rest = &rest[find(rest, b"\r\n")? + 2..];
        let end = find(rest, delimiter.as_bytes())?;
        let (part, behind) = rest.split_at(end);
        rest = &behind[delimiter.len()..];

        let mut headers = [httparse::EMPTY_HEADER; PART_HEADERS];
        let parsed = httparse::parse_headers(part, &mut headers).ok()?;
        let httparse::Status::Complete((length, headers)) = parsed else {
            return None;
        };
        let header = |name: &str| {
            let mut headers = headers.iter();
            let header = headers.find(|header| header.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(header.value).ok()
        };
        let disposition = header("content-disposition")?;
        let (field, content) = (parameter(disposition, "name")?, &part[length..]);
        let encoded = parameter(disposition, "filename*").and_then(|value| {
            let name = value.strip_prefix("UTF-8''")?;
            Some(percent_decode_str(name).decode_utf8_lossy().into_owned())
        });
        if let Some(name) = parameter(disposition, "filename").or(encoded) {
            files.push(File {
                field,
                name,
                content_type: header("content-type").map(str::to_owned),
                bytes: content.to_vec(),
            });
        } else {
            texts.insert(field, String::from_utf8_lossy(content).into());
        }
    }
    Some(fields(texts).map(|json| (json, files)))
}

/// The value of a parameter of a header, which may be quoted.
fn parameter(header: &str, name: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        let (key, value) = rest.split_once('=')?;
        let is_wanted = key.trim().eq_ignore_ascii_case(name);
        let value = value.trim_start();
        let (value, behind) = if let Some(quoted) = value.strip_prefix('"') {
            unquoted(quoted)?
        } else {
            let (value, behind) = value.split_once(';').unwrap_or((value, ""));
            (value.trim_end().to_owned(), behind)
        };
        if is_wanted {
            return Some(value);
        }
        rest = behind.trim_start_matches([' ', ';']);
    }
}

/// The unescaped text before the closing quote, and the rest after it.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut characters) = (String::new(), text.char_indices());
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            _ => value.push(character),
        }
    }
    None
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut windows = haystack.windows(needle.len());
    windows.position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_form_has_json_and_files() {
        let body =
            b"--x\r\ncontent-disposition: form-data; name=\"payload_json\"\r\n\r\n{\"a\":1}\r\n\
            --x\r\nContent-Disposition: form-data; name=\"files[0]\"; filename=\"a;\\\"b.txt\"\r\n\
            Content-Type: text/plain\r\n\r\none\r\n--two\r\n--x\r\n\
            Content-Disposition: form-data; filename=empty; name=files[1]\r\n\r\n\r\n--x--\r\n";
        let (json, files) = read(Some("multipart/form-data; boundary=\"x\""), body).unwrap();
        assert_eq!(json, json!({"a": 1}));
        let [first, second] = files.try_into().unwrap();
        assert_eq!(
            (first.name.as_str(), first.field.as_str()),
            ("a;\"b.txt", "files[0]")
        );
        assert_eq!(first.bytes, b"one\r\n--two");
        assert_eq!(first.content_type.as_deref(), Some("text/plain"));
        assert_eq!(
            (second.name.as_str(), second.bytes.as_slice()),
            ("empty", &b""[..])
        );
    }

    #[test]
    fn a_form_that_is_not_whole_is_refused() {
        let whole = b"--x\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--";
        let kind = "multipart/form-data; boundary=x";
        assert_eq!(read(Some(kind), whole).unwrap().0, json!({"a": "b"}));
        for length in 1..whole.len() {
            assert!(read(Some(kind), &whole[..length]).is_err(), "{length}");
        }
        assert!(read(Some("multipart/form-data"), whole).is_err());
        assert!(read(None, b"{").is_err());
        let encoded = Some("application/x-www-form-urlencoded");
        assert_eq!(read(encoded, b"a=1%202").unwrap().0, json!({"a": "1 2"}));
        let payload = read(encoded, b"payload_json=%7B%22a%22%3A1%7D").unwrap();
        assert_eq!(payload.0, json!({"a": 1}));
    }
}
