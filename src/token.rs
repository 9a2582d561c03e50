//! The token of a bot.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

/// A bot token. Neither `Debug` nor `Display` shows it; clones share one allocation.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<str>);

impl Token {
    /// Creates a token from the text that the developer portal shows. A leading `Bot ` and
    /// surrounding whitespace are removed.
    ///
    /// Only the format is checked: three parts of letters, digits and `-_=+/`, separated by dots.
    /// Only Discord knows whether the token is valid.
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

    /// Creates a token from any printable ASCII text without spaces, for servers that are not
    /// Discord's and use another format.
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

    /// Returns the bot's user id, which is the first part of the token in base64; `None` if that
    /// part is not an id.
    pub fn user_id(&self) -> Option<u64> {
        let first = self.0.split('.').next()?.trim_end_matches('=');
        let id = STANDARD_NO_PAD.decode(first).ok()?;
        str::from_utf8(&id).ok()?.parse().ok()
    }

    /// Returns the token itself, without `Bot `. Do not log it.
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

/// Why a string is not a bot token. It contains positions, but no part of the string.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// The string is empty.
    #[error("the token is empty: copy it from the Bot page of the developer portal")]
    Empty,
    /// A character that no token contains: whitespace, a quotation mark, a control character, or
    /// one that is not ASCII.
    #[error(
        "the token has an invalid character at byte {at}: pass only the token, without quotes or a prefix such as `Bearer`"
    )]
    Character {
        /// Byte offset of the character.
        at: usize,
    },
    /// The string does not have three parts separated by dots. It is often an application id, a
    /// public key or a client secret.
    #[error(
        "the token has {parts} parts separated by dots, but a bot token has 3: is it a client secret or a public key?"
    )]
    Parts {
        /// How many parts were found.
        parts: usize,
    },
    /// Two dots are next to each other, or the token begins or ends with a dot.
    #[error("part {part} of the token is empty: copy all of it from the developer portal")]
    EmptyPart {
        /// Which of the three parts is empty, from 1 to 3.
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
