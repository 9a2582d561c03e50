//! The error with which Discord refuses a REST request.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// How many characters of a text are shown, and how many of a field error's text are kept.
const SHOWN: usize = 200;

/// How many field errors are read from one answer, and how many are shown.
const MAX_FIELDS: usize = 100;
const SHOWN_FIELDS: usize = 5;

/// Discord answered a REST request with a status other than success.
///
/// Source: [Discord, Error
/// messages](https://docs.discord.com/developers/reference#error-messages).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StatusError {
    /// Method and path, without secrets.
    pub request: String,
    /// The HTTP status, for example 404.
    pub status: u16,
    /// Discord's error code, for example 10008 for an unknown message; `None` if there is none.
    ///
    /// Source: [Discord, JSON error
    /// codes](https://docs.discord.com/developers/topics/opcodes-and-status-codes#json-json-error-codes).
    pub code: Option<u64>,
    /// Discord's message, for example `Unknown Message`; empty if the answer has none.
    pub message: String,
    /// The fields that Discord refuses, and why; up to 100.
    pub fields: Vec<FieldError>,
    /// The body of the answer, unchanged, up to 64 KiB.
    pub body: String,
}

/// What is wrong with a field of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FieldError {
    /// Where the field is, for example `embeds[0].title`; empty if the whole form is wrong.
    pub field: String,
    /// Discord's code, for example `BASE_TYPE_MAX_LENGTH`.
    pub code: String,
    /// Discord's message.
    pub message: String,
}

impl StatusError {
    /// Reads the code, the message and the field errors from a body.
    pub(crate) fn new(request: String, status: u16, body: String) -> Self {
        #[derive(Default, Deserialize)]
        struct Told {
            code: Option<Value>,
            message: Option<Value>,
            errors: Option<Value>,
        }
        let told: Told = serde_json::from_str(&body).unwrap_or_default();
        let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));

        let mut fields = Vec::new();
        if let Some(errors) = &told.errors {
            collect(errors, "", &mut fields);
        }
        Self {
            request,
            status,
            // Some answers have a code of 0, which has no meaning.
            code: told
                .code
                .and_then(|code| code.as_u64())
                .filter(|code| *code != 0),
            message: text(told.message).unwrap_or_default(),
            fields,
            body,
        }
    }
}

/// Collects the errors of a field and of the fields inside it.
fn collect(errors: &Value, field: &str, fields: &mut Vec<FieldError>) {
    let Some(map) = errors.as_object() else {
        return;
    };
    for (name, below) in map {
        if name == "_errors" {
            let text =
                |error: &Value, name: &str| shortened(error[name].as_str().unwrap_or_default());
            for error in below.as_array().into_iter().flatten() {
                if fields.len() < MAX_FIELDS {
                    fields.push(FieldError {
                        field: shortened(field),
                        code: text(error, "code"),
                        message: text(error, "message"),
                    });
                }
            }
            continue;
        }

        let is_index = name.bytes().all(|byte| byte.is_ascii_digit());
        let path = match (field, is_index) {
            (field, true) => format!("{field}[{name}]"),
            ("", false) => name.clone(),
            (field, false) => format!("{field}.{name}"),
        };
        collect(below, &path, fields);
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}

impl fmt::Display for StatusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} was answered with HTTP {}", self.request, self.status)?;
        let message = shortened(&self.message);
        match (message.as_str(), self.code) {
            ("", None) => write!(f, ": {}", shortened(&self.body).trim_end())?,
            (message, None) => write!(f, ": {message}")?,
            (message, Some(code)) => write!(f, ": {message} (code {code})")?,
        }
        for FieldError { field, message, .. } in self.fields.iter().take(SHOWN_FIELDS) {
            write!(f, "; {field}: {message}")?;
        }
        Ok(())
    }
}

impl std::error::Error for StatusError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, body: &str) -> StatusError {
        StatusError::new("POST /channels/1/messages".into(), status, body.into())
    }

    #[test]
    fn a_refused_form_names_its_fields() {
        let error = error(
            400,
            r#"{"message": "Invalid Form Body", "code": 50035, "errors": {"embeds": {"0": {"title":
            {"_errors": [{"code": "BASE_TYPE_MAX_LENGTH", "message": "Must be 256 or fewer in length."}]}}},
            "_errors": [{"code": "X", "message": "Too much."}]}}"#,
        );
        assert_eq!(error.code, Some(50035));
        let mut fields: Vec<&str> = error.fields.iter().map(|f| f.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["", "embeds[0].title"]);
        let text = error.to_string();
        assert!(
            text.contains("Invalid Form Body (code 50035)")
                && text.contains("embeds[0].title: Must be 256"),
            "{text}"
        );
    }

    #[test]
    fn any_body_is_an_error_of_bounded_size() {
        for body in [
            "",
            "<html>",
            "null",
            "[1]",
            r#"{"code": -1, "message": 5, "errors": "x"}"#,
            r#"{"errors": {"_errors": {}, "a": {"_errors": [1, null]}}}"#,
            &"x".repeat(5000),
        ] {
            let error = error(502, body);
            assert_eq!((error.code, error.message.as_str()), (None, ""), "{body}");
            assert!(error.to_string().len() < 400, "{error}");
        }

        let many = format!(
            r#"{{"errors": {{"_errors": [{}{{}}]}}}}"#,
            r#"{"code": "a", "message": "b"},"#.repeat(1000)
        );
        assert_eq!(error(400, &many).fields.len(), MAX_FIELDS);
        let (key, text) = ("k".repeat(30_000), "m".repeat(30_000));
        let long = format!(
            r#"{{"message": "{text}", "errors": {{"{key}": {{"_errors": [{}{{}}]}}}}}}"#,
            "{},".repeat(50)
        );
        let error = error(400, &long);
        assert!(error.to_string().len() < 3000 && error.fields[0].field.len() == SHOWN);
    }
}
