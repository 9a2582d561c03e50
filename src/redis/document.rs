//! JSON under one key, which several processes change.

use std::fmt;
use std::sync::{Arc, LazyLock};

use redis::Script;

use super::connections::{Connections, ServerConnection};
use crate::error::StoreError;
use crate::limit::{Moment, Now};

/// How often others may be quicker before a change is given up.
const MAX_ATTEMPTS: u32 = 1000;

/// The time and a text. In one call, so that a server that does not answer costs one time-out.
static READ: LazyLock<Script> =
    LazyLock::new(|| Script::new("return {redis.call('TIME'), redis.call('GET', KEYS[1])}"));

/// Replaces a text, if it still is what was read.
static SWAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end\n\
         redis.call('SET', KEYS[1], ARGV[2])\n\
         return 1",
    )
});

/// Sets a text, if a lease under another key has this token. Returns the lease's token.
static SET_WITH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local lease = redis.call('GET', KEYS[1])\n\
         if not lease then return false end\n\
         local token = cjson.decode(lease).token\n\
         if token == tonumber(ARGV[1]) then redis.call('SET', KEYS[2], ARGV[2]) end\n\
         return token",
    )
});

/// What is stored cannot be used, for as long as it is there.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be used: {why}")]
pub(super) struct Unusable {
    key: String,
    why: String,
}

/// The text under one key.
pub(super) struct Document {
    connections: Arc<Connections>,
    key: String,
}

impl Document {
    pub(super) fn new(connections: Arc<Connections>, key: String) -> Self {
        Self { connections, key }
    }

    /// The server's time, and the text; empty if there is none.
    pub(super) fn read(&self) -> Result<(Now, String), StoreError> {
        self.connections.with(|server| self.read_from(server))
    }

    /// Replaces the text by what `change` makes of it, in one step: it is asked again if another
    /// process was quicker. The call may be repeated if its reply was lost, so `change` must bear
    /// to see what it has written.
    pub(super) fn change<T>(
        &self,
        mut change: impl FnMut(&Now, &str) -> Result<(String, T), StoreError>,
    ) -> Result<T, StoreError> {
        self.connections.with(|server| {
            for _ in 0..MAX_ATTEMPTS {
                let (now, old) = self.read_from(server)?;
                let (new, outcome) = change(&now, &old)?;
                if old == new || self.swap(server, &old, &new)? {
                    return Ok(outcome);
                }
            }
            Err(format!("{self} is changed by others all the time").into())
        })
    }

    /// What the text says, or the error that it is of no use, with the key.
    pub(super) fn usable<T>(&self, read: Result<T, String>) -> Result<T, Unusable> {
        read.map_err(|why| Unusable {
            key: self.key.clone(),
            why,
        })
    }

    /// The error that a process owns the part, where none may.
    pub(super) fn owned_by(&self, owner: &str) -> StoreError {
        format!("{self} is owned by {owner}: stop it first").into()
    }

    /// Sets the text, if the lease has this token. Returns the token that it has, if there is one.
    pub(super) fn set_with(
        &self,
        lease: &Self,
        token: u64,
        text: &str,
    ) -> Result<Option<u64>, StoreError> {
        let mut set = SET_WITH.key(&lease.key);
        set.key(&self.key).arg(token).arg(text);
        self.connections
            .with(|server| Ok(set.invoke(&mut server.connection)?))
    }

    fn read_from(&self, server: &mut ServerConnection) -> Result<(Now, String), StoreError> {
        let moment = Moment::now();
        let ((seconds, micros), text): ((u64, u64), Option<String>) =
            READ.key(&self.key).invoke(&mut server.connection)?;
        let at = seconds.saturating_mul(1000).saturating_add(micros / 1000);
        let now = Now {
            clock: server.id.clone(),
            at,
            wall: at,
            moment,
        };
        Ok((now, text.unwrap_or_default()))
    }

    fn swap(
        &self,
        server: &mut ServerConnection,
        old: &str,
        new: &str,
    ) -> Result<bool, StoreError> {
        let mut swap = SWAP.key(&self.key);
        Ok(swap.arg(old).arg(new).invoke(&mut server.connection)?)
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key)
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({self})")
    }
}
