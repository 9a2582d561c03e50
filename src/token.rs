//! The bot's secret.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// A bot token. Neither `Debug` nor `Display` shows it; clones share one allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl Token {
    /// Takes a bot token as the developer portal shows it; a leading `Bot ` and white space around
    /// it are removed.
    ///
    /// Only its shape is checked (three parts with dots between them, of letters, digits and
    /// `-_=+/`): whether it is valid, Discord says.
    pub fn new(token: impl AsRef<str>) -> Result<Self, InvalidToken> {
        let given = token.as_ref().trim();
        let token = given.strip_prefix("Bot ").unwrap_or(given).trim_start();
        if token.is_empty() {
            return Err(InvalidToken::Empty);
        }
        let is_usual = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=+/".contains(&byte);
        if let Some(at) = token.bytes().position(|byte| !is_usual(byte)) {
            return Err(InvalidToken::Character { at });
        }
        let parts = token.split('.').count();
        if parts != 3 {
            return Err(InvalidToken::Parts { parts });
        }
        if let Some(part) = token.split('.').position(str::is_empty) {
            return Err(InvalidToken::EmptyPart { part: part + 1 });
        }
        Ok(Self(token.into()))
    }

    /// Takes any token that an HTTP header can carry, for servers that are not Discord's and have
    /// tokens of another shape.
    ///
    /// ```
    /// use threadcord::Token;
    ///
    /// assert!(Token::new("test").is_err());
    /// assert_eq!(Token::any("test")?.expose(), "test");
    /// # Ok::<(), threadcord::error::InvalidToken>(())
    /// ```
    pub fn any(token: impl AsRef<str>) -> Result<Self, InvalidToken> {
        let token = token.as_ref();
        if token.is_empty() {
            return Err(InvalidToken::Empty);
        }
        match token.bytes().position(|byte| !byte.is_ascii_graphic()) {
            Some(at) => Err(InvalidToken::Character { at }),
            None => Ok(Self(token.into())),
        }
    }

    /// The bot's user id, which the token begins with (in base 64); `None` if it is not there.
    pub fn user_id(&self) -> Option<u64> {
        let first = self.0.split('.').next()?.trim_end_matches('=');
        let id = STANDARD_NO_PAD.decode(first).ok()?;
        str::from_utf8(&id).ok()?.parse().ok()
    }

    /// The token itself, without `Bot `. Keep it out of logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(token: &str) -> Result<Self, InvalidToken> {
        Self::new(token)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token]")
    }
}

/// Why a text is no bot token. It says where, never what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Nothing was given.
    #[error("the token is empty: copy it from the Bot page of the developer portal")]
    Empty,
    /// White space, a quotation mark, a control character, or no ASCII.
    #[error(
        "the token has a character that no token has, at byte {at}: give it alone, without quotes or a prefix such as `Bearer`"
    )]
    Character {
        /// Byte offset of the character.
        at: usize,
    },
    /// Not three parts with dots between them; often an application id, a public key or a client
    /// secret.
    #[error(
        "the token has {parts} parts separated by dots where a bot token has 3: is it a client secret or a public key?"
    )]
    Parts {
        /// How many parts were found.
        parts: usize,
    },
    /// Two dots follow each other, or the token begins or ends with one.
    #[error("part {part} of the token is empty: copy all of it from the developer portal")]
    EmptyPart {
        /// Which of the three parts.
        part: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_it() {
        let token = Token::new("Bot aaa.bbb.ccc").unwrap();
        assert_eq!(token.expose(), "aaa.bbb.ccc");
        assert!(!format!("{token} {token:?}").contains("aaa"));
    }

    #[test]
    fn other_servers_have_tokens_of_any_shape() {
        assert_eq!(Token::any("x").unwrap().user_id(), None);
        assert_eq!(Token::any(""), Err(InvalidToken::Empty));
        assert_eq!(Token::any("a\r\nb"), Err(InvalidToken::Character { at: 1 }));
    }

    #[test]
    fn malformed_ones_are_refused() {
        assert_eq!(Token::new(" "), Err(InvalidToken::Empty));
        assert_eq!(Token::new("Bot "), Err(InvalidToken::Parts { parts: 1 }));
        assert_eq!(
            Token::new("aaa.b b.ccc"),
            Err(InvalidToken::Character { at: 5 })
        );
        assert_eq!(
            Token::new("aaa.bb\n.ccc"),
            Err(InvalidToken::Character { at: 6 })
        );
        assert_eq!(
            Token::new("\"aaa.bbb.ccc\""),
            Err(InvalidToken::Character { at: 0 })
        );
        assert_eq!(Token::new("aaabbb"), Err(InvalidToken::Parts { parts: 1 }));
        assert_eq!(
            Token::new("aaa..ccc"),
            Err(InvalidToken::EmptyPart { part: 2 })
        );
    }
}
