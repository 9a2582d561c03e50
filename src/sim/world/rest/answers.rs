//! The error responses of Discord's HTTP API.

use serde_json::{Value, json};

use super::super::super::request::Response;

/// The error that a refused request is answered with.
#[derive(Clone, Debug)]
pub(in crate::sim::world) struct Refusal {
    status: u16,
    code: u32,
    message: &'static str,
    errors: Option<Value>,
}

/// The result of a request: a response or a refusal.
pub(in crate::sim::world) type Outcome = Result<Response, Refusal>;

const fn refusal(status: u16, code: u32, message: &'static str) -> Refusal {
    Refusal {
        status,
        code,
        message,
        errors: None,
    }
}

// Source: https://docs.discord.com/developers/topics/opcodes-and-status-codes#json
pub(super) const NOT_FOUND: Refusal = refusal(404, 0, "404: Not Found");
pub(super) const UNAUTHORIZED: Refusal = refusal(401, 0, "401: Unauthorized");
pub(super) const METHOD_NOT_ALLOWED: Refusal = refusal(405, 0, "405: Method Not Allowed");
pub(super) const UNKNOWN_CHANNEL: Refusal = refusal(404, 10003, "Unknown Channel");
pub(super) const UNKNOWN_GUILD: Refusal = refusal(404, 10004, "Unknown Guild");
pub(super) const UNKNOWN_MEMBER: Refusal = refusal(404, 10007, "Unknown Member");
pub(super) const UNKNOWN_MESSAGE: Refusal = refusal(404, 10008, "Unknown Message");
pub(super) const UNKNOWN_ROLE: Refusal = refusal(404, 10011, "Unknown Role");
pub(super) const UNKNOWN_USER: Refusal = refusal(404, 10013, "Unknown User");
pub(super) const UNKNOWN_EMOJI: Refusal = refusal(400, 10014, "Unknown Emoji");
pub(super) const UNKNOWN_WEBHOOK: Refusal = refusal(404, 10015, "Unknown Webhook");
pub(super) const UNKNOWN_BAN: Refusal = refusal(404, 10026, "Unknown Ban");
pub(super) const UNKNOWN_INTERACTION: Refusal = refusal(404, 10062, "Unknown interaction");
pub(super) const UNKNOWN_COMMAND: Refusal = refusal(404, 10063, "Unknown application command");
pub(super) const ALREADY_ANSWERED: Refusal =
    refusal(400, 40060, "Interaction has already been acknowledged.");
pub(super) const NOT_IN_DIRECT_CHANNELS: Refusal =
    refusal(400, 50003, "Cannot execute action on a DM channel");
pub(super) const NOT_THE_AUTHOR: Refusal =
    refusal(403, 50005, "Cannot edit a message authored by another user");
pub(super) const EMPTY_MESSAGE: Refusal = refusal(400, 50006, "Cannot send an empty message");
pub(super) const MISSING_PERMISSIONS: Refusal = refusal(403, 50013, "Missing Permissions");
pub(super) const WEBHOOK_EXPIRED: Refusal = refusal(401, 50027, "Invalid Webhook Token");
pub(super) const WRONG_COUNT: Refusal = refusal(
    400,
    50016,
    "Provided too few or too many messages to delete. Must provide at least 2 and fewer than 100 messages to delete.",
);
pub(super) const UNKNOWN_VERSION: Refusal = refusal(400, 50041, "Invalid API version specified");
pub(super) const NOT_JSON: Refusal = refusal(400, 50109, "The request body contains invalid JSON.");

/// The refusal for a field of the body, or a parameter, that is not as documented.
pub(super) fn invalid_form(field: &str, code: &str, message: &str) -> Refusal {
    let errors = json!({field: {"_errors": [{"code": code, "message": message}]}});
    Refusal {
        errors: Some(errors),
        ..refusal(400, 50035, "Invalid Form Body")
    }
}

/// The refusal for a missing field.
pub(super) fn required(field: &str) -> Refusal {
    invalid_form(field, "BASE_TYPE_REQUIRED", "This field is required")
}

impl From<Refusal> for Response {
    fn from(refusal: Refusal) -> Self {
        let mut response = Self::error(refusal.status, refusal.code, refusal.message);
        if let Some(errors) = refusal.errors {
            response.json["errors"] = errors;
        }
        response
    }
}

/// The error response for a status without a specific error code.
pub(super) fn error_of(status: u16) -> Response {
    let message = match status {
        400 => "400: Bad Request",
        401 => "401: Unauthorized",
        403 => "403: Forbidden",
        404 => "404: Not Found",
        405 => "405: Method Not Allowed",
        500 => "500: Internal Server Error",
        503 => "503: Service Unavailable",
        _ => return Response::error(status, 0, &format!("{status}: Error")),
    };
    Response::error(status, 0, message)
}
