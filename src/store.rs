//! Stores for sessions, so that the next process can resume them.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::error::{Error, StoreError};
use crate::limit::{Ticket, Wake};
use crate::protocol::Session;
use crate::shard_id::ShardId;

/// The version of the stored format.
const VERSION: u32 = 1;

/// The default maximum age of a session that is resumed.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// Stores the sessions of one manager for the next process.
///
/// A manager loads the sessions once, before it starts, and immediately saves them to check that
/// the store is writable. Then a separate thread saves them every few seconds, and whenever a shard
/// identifies, is ready or stops. When the manager ends, it saves all sessions after `suspend`, and
/// none after `close`.
///
/// If several managers share a store, it must keep their sessions separate. Sessions of other bots,
/// duplicates, and sessions of shards that are not in the plan are logged and not used.
pub trait SessionStore: Send + Sync {
    /// Returns what was last saved, or `Saved::default()` if there is nothing usable.
    fn load(&self) -> Result<Saved, StoreError>;

    /// Replaces what was saved. Whenever the process dies, the store must contain either the old or
    /// the new state.
    ///
    /// If several processes share the store and another one has taken over these sessions, this
    /// fails with [`OwnershipLost`]. The manager then drops its connections, so that the sessions
    /// continue in the other process, and [`ShardManager::run`](crate::ShardManager::run) returns
    /// [`Error::OwnershipLost`].
    ///
    /// [`Error::OwnershipLost`]: crate::Error::OwnershipLost
    fn save(&self, saved: &Saved) -> Result<(), StoreError>;

    /// Asks whether this process still owns its sessions. A shard calls this after each reconnect,
    /// and resumes when the ticket is granted. The answer must come from a check made after this
    /// call, not from a cache, because the operating system may have paused the process for a long
    /// time. Like [`IdentifyLimiter::request`](crate::limit::IdentifyLimiter::request), it must not
    /// block.
    ///
    /// If the ticket is refused with [`LimitError::Closed`](crate::limit::LimitError::Closed),
    /// another process has taken over the sessions, as with [`OwnershipLost`]. After any other
    /// error the shard asks again.
    ///
    /// If there is no answer within [`Timing::confirm_timeout`](crate::Timing::confirm_timeout)
    /// (30 s), the shard resumes anyway, because the store is probably unavailable to every
    /// process. If that connection is lost within twice the timeout, the next RESUME must wait for
    /// an answer.
    ///
    /// By default there is no ticket, and the shard resumes at once.
    fn confirm(&self, wake: Wake) -> Option<Ticket> {
        let _ = wake;
        None
    }

    /// How often a manager saves the sessions, in addition to when a shard identifies, is ready or
    /// stops. `None` (the default) means
    /// [`Timing::store_interval`](crate::Timing::store_interval) (5 s).
    fn save_interval(&self) -> Option<Duration> {
        None
    }

    /// Returns the total number of shards, including those of other processes. `None` (the default)
    /// means that this process may run any shards.
    ///
    /// A manager calls this with the shards of its plan, when it starts and when the user requests
    /// other shards. If the answer differs from the plan's total, the manager uses the answer,
    /// provided that the plan sets no total; otherwise it fails.
    ///
    /// # Errors
    /// If the store is not for these shards, or if the total cannot be determined. Then no shard is
    /// started.
    fn agree_on_shards(&self, shards: &[ShardId]) -> Result<Option<u32>, Error> {
        let _ = shards;
        Ok(None)
    }

    /// Called when the manager has ended, after its last save if there was one. Another process may
    /// now take over the sessions. The default does nothing.
    fn release(&self) {}
}

/// Another process has taken over the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another process has taken over the sessions")]
pub struct OwnershipLost;

/// Stores the sessions in memory, for a program that stores them elsewhere, or that starts another
/// manager in the same process. Clones share their sessions.
///
/// It is for one manager at a time: drop the old manager before the next one starts. A manager
/// removes the sessions of shards that are not in its plan when it starts, and all sessions when it
/// is closed, or dropped without a suspend.
///
/// ```
/// # use threadcord::{Config, Intents, ShardManager, Token, sim};
/// # let gateway = sim::Gateway::builder().start()?;
/// # let config = Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url());
/// use threadcord::store::MemoryStore;
///
/// let store = MemoryStore::default();
/// let config = config.session_store(store.clone());
/// let manager = ShardManager::start(config.clone())?;
/// # manager.wait_ready(std::time::Duration::from_secs(60))?;
/// manager.suspend();
/// assert_eq!(store.sessions().len(), 1);
/// let manager = ShardManager::start(config)?; // resumes
/// # manager.wait_ready(std::time::Duration::from_secs(60))?;
/// # assert_eq!(manager.handle().shards()[0].counters().identifies, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryStore(Arc<Mutex<Saved>>);

impl MemoryStore {
    /// Creates a store with these sessions, for example those that
    /// [`ShardManager::suspend`](crate::ShardManager::suspend) returned.
    pub fn new(sessions: Vec<Session>) -> Self {
        Self(Arc::new(Mutex::new(Saved {
            sessions,
            identified: Vec::new(),
        })))
    }

    /// Returns the sessions that were last saved.
    pub fn sessions(&self) -> Vec<Session> {
        self.0.lock().sessions.clone()
    }
}

impl SessionStore for MemoryStore {
    fn load(&self) -> Result<Saved, StoreError> {
        Ok(self.0.lock().clone())
    }

    fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        let saved = saved.clone();
        *self.0.lock() = saved;
        Ok(())
    }
}

/// What one process stores for the next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The sessions, each with the sequence up to which all events are handled.
    pub sessions: Vec<Session>,
    /// When each rate limit key last identified, so that a process that restarts within seconds
    /// does not identify too early.
    #[serde(default)]
    pub identified: Vec<Identified>,
}

/// The last IDENTIFY of a rate limit key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Identified {
    /// The key.
    pub key: u32,
    /// How many keys there were (`max_concurrency`).
    pub keys: NonZeroU32,
    /// The time of the IDENTIFY, in milliseconds since the Unix epoch.
    pub at: u64,
}

impl Identified {
    /// Creates an entry for a shard that identifies now.
    pub(crate) fn now(shard: ShardId, keys: NonZeroU32) -> Self {
        Self {
            key: shard.rate_limit_key(keys),
            keys,
            at: u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// How long ago the IDENTIFY was; zero if the clock was set back since then.
    pub(crate) fn ago(&self) -> Duration {
        since_epoch().saturating_sub(Duration::from_millis(self.at))
    }
}

pub(crate) fn since_epoch() -> Duration {
    clock::wall()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

/// Stores the sessions in a file that only its owner can read on Unix, because anyone who has a
/// session and the token can take over the session.
///
/// A file that is damaged, has another version, or is not a store is logged and ignored. So are
/// sessions that are too old. Saving replaces the file atomically.
///
/// ```no_run
/// use threadcord::store::FileStore;
/// use threadcord::{Config, Intents, ShardManager, Token};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = Config::new(Token::new(std::env::var("DISCORD_TOKEN")?)?, Intents::default());
/// let manager = ShardManager::start(config.session_store(FileStore::new("sessions.json")))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct FileStore {
    path: PathBuf,
    max_age: Duration,
}

#[derive(Serialize, Deserialize)]
struct Content {
    threadcord: u32,
    #[serde(flatten)]
    saved: Saved,
}

impl FileStore {
    /// Creates a store for this file, which need not exist; its directory must. Saving temporarily
    /// creates a second file, whose name ends with `.new`, in the same directory.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_age: MAX_AGE,
        }
    }

    /// Sets the maximum age of a session that is resumed. Discord does not document how long it
    /// keeps a session. Trying to resume one that Discord has not kept costs a few seconds before
    /// the IDENTIFY. Default: 10 minutes.
    pub fn max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self) -> Result<Saved, ReadError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Saved::default()),
            Err(error) => return Err(ReadError::Io(self.named("read", &error))),
        };
        decode(&text).map_err(ReadError::Content)
    }

    /// Adds the path of the file to an error.
    fn named(&self, what: &str, error: &io::Error) -> io::Error {
        let path = self.path.display();
        io::Error::new(error.kind(), format!("failed to {what} {path}: {error}"))
    }

    fn write(&self, saved: &Saved) -> io::Result<()> {
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        // A file that a killed process left behind may be readable by other users.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        file.write_all(encode(saved)?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

impl SessionStore for FileStore {
    fn load(&self) -> Result<Saved, StoreError> {
        let mut saved = match self.read() {
            Ok(saved) => saved,
            Err(ReadError::Io(error)) => return Err(Box::new(error)),
            Err(ReadError::Content(why)) => {
                log::warn!("{} contains no usable sessions: {why}", self.path.display());
                return Ok(Saved::default());
            }
        };

        remove_old(
            &mut saved,
            since_epoch().as_secs(),
            self.max_age,
            &self.path.display(),
        );
        Ok(saved)
    }

    fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        self.write(saved)
            .map_err(|error| self.named("write", &error).into())
    }
}

/// Encodes what one process stores for the next, as JSON.
pub(crate) fn encode(saved: &Saved) -> serde_json::Result<String> {
    serde_json::to_string(&Content {
        threadcord: VERSION,
        saved: saved.clone(),
    })
}

/// Decodes such JSON. Returns what is wrong with it if it cannot be used.
pub(crate) fn decode(text: &[u8]) -> Result<Saved, String> {
    let content: Content = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if content.threadcord == VERSION {
        Ok(content.saved)
    } else {
        let version = content.threadcord;
        Err(format!("it has version {version}, not {VERSION}"))
    }
}

/// Removes sessions that are older than `max_age` at `now`, in seconds since the Unix epoch. If
/// there are any, logs how many and their `place`.
pub(crate) fn remove_old(saved: &mut Saved, now: u64, max_age: Duration, place: &dyn fmt::Display) {
    let count = saved.sessions.len();
    let is_fresh = |session: &Session| now.saturating_sub(session.saved_at) <= max_age.as_secs();
    saved.sessions.retain(is_fresh);
    let old = count - saved.sessions.len();
    if old > 0 {
        log::warn!("{old} sessions in {place} are older than {max_age:?} and are not used");
    }
}

enum ReadError {
    Io(io::Error),
    Content(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard_id::ShardId;

    fn session(saved_at: u64) -> Session {
        Session {
            saved_at,
            ..Session::new("a".into(), 7, "wss://x".into(), ShardId::ONE, 1)
        }
    }

    fn now() -> u64 {
        since_epoch().as_secs()
    }

    fn saved(sessions: impl Into<Vec<Session>>) -> Saved {
        Saved {
            sessions: sessions.into(),
            ..Saved::default()
        }
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().join("sessions.json"));
        assert_eq!(store.load().unwrap(), Saved::default());
        fs::write(folder.path().join("sessions.json.new"), "left behind").unwrap();
        let keys = NonZeroU32::new(4).unwrap();
        let saved = Saved {
            sessions: vec![session(now()), session(now() - 300)],
            identified: vec![Identified::now(ShardId::new(6, 9).unwrap(), keys)],
        };
        store.save(&saved).unwrap();
        assert_eq!(store.load().unwrap(), saved);
        assert_eq!(saved.identified[0].key, 2);
        assert!(saved.identified[0].ago() < Duration::from_secs(60));
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "nothing else is left"
        );

        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(
                fs::metadata(store.path()).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
    }

    #[test]
    fn what_is_of_no_use_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().join("sessions.json"));
        let future = r#"{"threadcord":2,"sessions":[]}"#;
        for content in [
            "",
            "{",
            "[]",
            "null",
            "<html>",
            "{\"sessions\":[]}",
            future,
            "{\"threadcord\":1,\"sessions\":[{}]}",
        ] {
            fs::write(store.path(), content).unwrap();
            assert_eq!(store.load().unwrap(), Saved::default(), "{content}");
        }

        fs::write(store.path(), [0xff, 0x00]).unwrap();
        assert_eq!(store.load().unwrap(), Saved::default());
        store
            .save(&saved([session(now() - 601), session(now())]))
            .unwrap();
        assert_eq!(store.load().unwrap().sessions.len(), 1, "one is too old");
        assert_eq!(
            store
                .max_age(Duration::from_secs(3600))
                .load()
                .unwrap()
                .sessions
                .len(),
            2
        );
    }

    #[test]
    fn what_cannot_be_written_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().join("missing/sessions.json"));
        let error = store.save(&Saved::default()).unwrap_err().to_string();
        assert!(error.contains("missing/sessions.json"), "{error}");
        let store = FileStore::new(folder.path());
        assert!(store.load().is_err(), "a folder");
    }
}
