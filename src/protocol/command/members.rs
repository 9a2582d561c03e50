//! Which members of a guild to request.

use serde_json::{Value, json};

use super::InvalidCommand;
use crate::intents::Intents;

/// The largest number of ids in a request, and the largest `limit` for a prefix.
///
/// Source: [Discord, Request Guild
/// Members](https://docs.discord.com/developers/events/gateway-events#request-guild-members).
const MAX_MEMBERS: usize = 100;

/// The longest nonce, in bytes. Discord ignores a longer one and answers without a nonce, so that
/// the answers to two requests cannot be told apart.
///
/// Source: as above.
const MAX_NONCE: usize = 32;

/// Which members of a guild to request.
///
/// Source: [Discord, Request Guild
/// Members](https://docs.discord.com/developers/events/gateway-events#request-guild-members).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberQuery {
    pub(super) which: Which,
    pub(super) presences: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    Prefix { prefix: String, limit: usize },
    Ids(Vec<u64>),
}

impl MemberQuery {
    /// Requests all members. Needs [`Intents::GUILD_MEMBERS`](crate::Intents::GUILD_MEMBERS).
    /// Discord allows this once per guild in 30 s; the library delays requests to keep this limit.
    pub fn all() -> Self {
        Self::new(Which::All)
    }

    /// Requests up to `limit` members (1 to 100) whose name begins with `prefix`. An empty prefix
    /// matches all members, and needs [`Intents::GUILD_MEMBERS`](crate::Intents::GUILD_MEMBERS).
    pub fn prefix(prefix: impl Into<String>, limit: usize) -> Self {
        Self::new(Which::Prefix {
            prefix: prefix.into(),
            limit,
        })
    }

    /// Requests the members with these user ids, 1 to 100 of them.
    pub fn ids(ids: impl IntoIterator<Item = u64>) -> Self {
        Self::new(Which::Ids(ids.into_iter().collect()))
    }

    /// Whether to request their presences too. Needs
    /// [`Intents::GUILD_PRESENCES`](crate::Intents::GUILD_PRESENCES). Default: `false`.
    pub fn presences(self, presences: bool) -> Self {
        Self { presences, ..self }
    }

    fn new(which: Which) -> Self {
        Self {
            which,
            presences: false,
        }
    }

    /// The intents that the query needs: without them Discord does not answer it, or not in full.
    pub(crate) fn needs(&self) -> Intents {
        let everybody = match &self.which {
            Which::All => true,
            Which::Prefix { prefix, .. } => prefix.is_empty(),
            Which::Ids(_) => false,
        };
        let members = if everybody {
            Intents::GUILD_MEMBERS
        } else {
            Intents::empty()
        };
        if self.presences {
            members | Intents::GUILD_PRESENCES
        } else {
            members
        }
    }

    /// The checked `d` of the request.
    pub(super) fn data(&self, guild_id: u64, nonce: Option<&str>) -> Result<Value, InvalidCommand> {
        let mut data = match &self.which {
            Which::All => json!({"query": "", "limit": 0}),
            Which::Prefix { limit, .. } if !(1..=MAX_MEMBERS).contains(limit) => {
                return Err(InvalidCommand::field("limit", limit, "1 to 100"));
            }
            Which::Prefix { prefix, limit } => json!({"query": prefix, "limit": limit}),
            Which::Ids(ids) if ids.is_empty() => {
                return Err(InvalidCommand::field("user_ids", "empty", "1 to 100 ids"));
            }
            Which::Ids(ids) => {
                json!({"user_ids": ids.iter().map(u64::to_string).collect::<Vec<_>>()})
            }
        };

        let ids = match &self.which {
            Which::Ids(ids) => ids.as_slice(),
            Which::All | Which::Prefix { .. } => &[],
        };
        if guild_id == 0 || ids.contains(&0) {
            let field = if guild_id == 0 {
                "guild_id"
            } else {
                "user_ids"
            };
            return Err(InvalidCommand::field(field, 0, "ids other than 0"));
        }

        data["guild_id"] = guild_id.to_string().into();
        data["presences"] = self.presences.into();
        if let Some(nonce) = nonce {
            data["nonce"] = nonce.into();
        }
        check(&data)?;
        Ok(data)
    }
}

/// Checks that Discord would answer this request, and that the answer would contain the nonce.
pub(super) fn check(data: &Value) -> Result<(), InvalidCommand> {
    if data["query"].is_null() == data["user_ids"].is_null() {
        return Err(InvalidCommand::QueryOrUserIds);
    }

    let is_query = data["query"].is_string() && data["limit"].is_u64();
    if !data["query"].is_null() && !is_query {
        return Err(InvalidCommand::field(
            "query",
            &data["query"],
            "a string, together with a `limit`",
        ));
    }

    if let Some(count) = data["user_ids"]
        .as_array()
        .map(Vec::len)
        .filter(|count| *count > MAX_MEMBERS)
    {
        return Err(InvalidCommand::field(
            "user_ids",
            format!("{count} ids"),
            "up to 100 ids; split the request",
        ));
    }

    match data["nonce"].as_str().map(str::len) {
        Some(length) if length > MAX_NONCE => Err(InvalidCommand::field(
            "nonce",
            format!("{length} bytes long"),
            "up to 32 bytes",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_format() {
        let data = |query: MemberQuery, nonce| query.data(5, nonce).unwrap();
        let all =
            json!({"guild_id": "5", "query": "", "limit": 0, "presences": false, "nonce": "n"});
        assert_eq!(data(MemberQuery::all(), Some("n")), all);
        let prefix = json!({"guild_id": "5", "query": "fr", "limit": 100, "presences": true});
        assert_eq!(
            data(MemberQuery::prefix("fr", 100).presences(true), None),
            prefix
        );
        let ids = json!({"guild_id": "5", "user_ids": ["7", "8"], "presences": false});
        assert_eq!(data(MemberQuery::ids([7, 8]), None), ids);
    }

    #[test]
    fn each_limit_is_checked_and_named() {
        let refused =
            |query: &MemberQuery, nonce| query.data(5, nonce).expect_err("refused").to_string();
        for limit in [0, 101] {
            let error = refused(&MemberQuery::prefix("x", limit), None);
            assert_eq!(error, format!("`limit` is {limit}; allowed: 1 to 100"));
        }
        assert!(refused(&MemberQuery::ids([]), None).contains("`user_ids` is empty"));
        assert!(refused(&MemberQuery::ids(1..102), None).contains("`user_ids` is 101 ids"));
        assert!(refused(&MemberQuery::ids([1, 0]), None).contains("`user_ids` is 0"));
        let nonce = "ü".repeat(17);
        assert!(
            refused(&MemberQuery::all(), Some(&nonce)).contains("`nonce` is 34 bytes long"),
            "bytes, not characters"
        );
    }

    #[test]
    fn some_need_intents() {
        assert_eq!(MemberQuery::all().needs(), Intents::GUILD_MEMBERS);
        assert_eq!(MemberQuery::prefix("", 5).needs(), Intents::GUILD_MEMBERS);
        assert_eq!(MemberQuery::prefix("x", 5).needs(), Intents::empty());
        assert_eq!(
            MemberQuery::ids([1]).presences(true).needs(),
            Intents::GUILD_PRESENCES
        );
    }
}
