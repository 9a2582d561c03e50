//! A JSON document under one key in Redis, which several processes change.

use std::fmt;
use std::sync::{Arc, LazyLock};

use redis::Script;

use super::connections::{Connections, ServerConnection};
use crate::error::StoreError;
use crate::limit::{Moment, Now};

/// How many times a change is attempted while other processes change the document first.
const MAX_ATTEMPTS: u32 = 1000;

/// Returns the server's time and a document. It is one call, so a server that does not answer costs
/// one timeout.
static READ: LazyLock<Script> =
    LazyLock::new(|| Script::new("return {redis.call('TIME'), redis.call('GET', KEYS[1])}"));

/// Replaces a document if it is still the one that was read.
static SWAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end\n\
         redis.call('SET', KEYS[1], ARGV[2])\n\
         return 1",
    )
});

/// Sets a document if the lease under another key has the given token. Returns the lease's token.
static SET_WITH: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local lease = redis.call('GET', KEYS[1])\n\
         if not lease then return false end\n\
         local token = cjson.decode(lease).token\n\
         if token == tonumber(ARGV[1]) then redis.call('SET', KEYS[2], ARGV[2]) end\n\
         return token",
    )
});

/// A stored document that cannot be used: retries fail until it is replaced or removed.
#[derive(Debug, thiserror::Error)]
#[error("{key} cannot be used: {why}")]
pub(super) struct Unusable {
    key: String,
    why: String,
}

/// The document under one key.
pub(super) struct Document {
    connections: Arc<Connections>,
    key: String,
}

impl Document {
    pub(super) fn new(connections: Arc<Connections>, key: String) -> Self {
        Self { connections, key }
    }

    /// Reads the server's time and the text of the document, which is empty if there is none.
    pub(super) fn read(&self) -> Result<(Now, String), StoreError> {
        self.connections.with(|server| self.read_from(server))
    }

    /// Replaces the text with the result of `change`, in one step.
    ///
    /// If another process changes the text meanwhile, `change` runs again on the new text. It also
    /// runs again if a reply was lost, so it may get the text that it has written itself.
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
            Err(format!("{self} was changed by other processes in {MAX_ATTEMPTS} attempts").into())
        })
    }

    /// Adds the key to the error of a text that cannot be read.
    pub(super) fn usable<T>(&self, read: Result<T, String>) -> Result<T, Unusable> {
        read.map_err(|why| Unusable {
            key: self.key.clone(),
            why,
        })
    }

    /// The error for a part that has an owner where none is allowed.
    pub(super) fn owned_by(&self, owner: &str) -> StoreError {
        format!("{self} is owned by {owner}: stop it first").into()
    }

    /// Sets the text if `lease` has this token. Returns the token that the lease has, or `None` if
    /// there is no lease.
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
