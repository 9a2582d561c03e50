//! Where sessions are kept for the next process.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::protocol::Session;

/// The version of [`FileStore`]'s files.
const VERSION: u32 = 1;

/// Keeps the sessions of one manager for the next process.
///
/// A manager loads them once, before it starts, and saves them at once to see whether it can; then
/// every few seconds, on a thread of its own; and when it stops: all of them after `suspend`, none
/// after `close`. A store that is shared by several managers must keep their sessions apart.
/// Sessions of other bots, and of shards that are not in the plan, are reported and not used.
pub trait SessionStore: Send + Sync {
    /// What was saved last; nothing if there is nothing that can be used.
    fn load(&self) -> Result<Vec<Session>, StoreError>;

    /// Replaces what was saved. It must leave either the old or the new sessions, whenever the
    /// process dies.
    fn save(&self, sessions: &[Session]) -> Result<(), StoreError>;
}

/// Sessions in a file that only its owner can read, since whoever has a session and the token can
/// take it over.
///
/// A file that is damaged, of another version, or not a store at all is reported in the log and
/// taken for none; so are sessions that are too old. Saving replaces the file in one step.
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
    sessions: Vec<Session>,
}

impl FileStore {
    /// A store in this file, which need not exist; its folder must. Beside it, a file with `.new`
    /// at the end comes and goes.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_age: Duration::from_secs(10 * 60),
        }
    }

    /// How old a session may be to be tried. Discord does not say how long it keeps one; one that
    /// it has not kept costs a few seconds before the IDENTIFY. Default: 10 minutes.
    pub fn max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self) -> Result<Vec<Session>, ReadError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ReadError::Io(error)),
        };
        let content: Content =
            serde_json::from_slice(&text).map_err(|error| ReadError::Content(error.to_string()))?;
        if content.threadcord != VERSION {
            return Err(ReadError::Content(format!(
                "it has version {}, not {VERSION}",
                content.threadcord
            )));
        }
        Ok(content.sessions)
    }

    fn write(&self, sessions: &[Session]) -> io::Result<()> {
        let content = Content {
            threadcord: VERSION,
            sessions: sessions.to_vec(),
        };
        let mut new = self.path.clone().into_os_string();
        new.push(".new");
        // One that a dead process left may be anybody's to read.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&new)?;
        file.write_all(&serde_json::to_vec(&content)?)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)
    }
}

impl SessionStore for FileStore {
    fn load(&self) -> Result<Vec<Session>, StoreError> {
        let sessions = match self.read() {
            Ok(sessions) => sessions,
            Err(ReadError::Io(error)) => return Err(Box::new(error)),
            Err(ReadError::Content(why)) => {
                log::warn!(
                    "{} holds no sessions that can be used: {why}",
                    self.path.display()
                );
                return Ok(Vec::new());
            }
        };
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        let is_fresh =
            |session: &Session| now.saturating_sub(session.saved_at) <= self.max_age.as_secs();
        let (fresh, old): (Vec<_>, Vec<_>) = sessions.into_iter().partition(is_fresh);
        if !old.is_empty() {
            let (count, path) = (old.len(), self.path.display());
            log::warn!(
                "{count} sessions in {path} are older than {:?} and are not used",
                self.max_age
            );
        }
        Ok(fresh)
    }

    fn save(&self, sessions: &[Session]) -> Result<(), StoreError> {
        self.write(sessions).map_err(|source| {
            Box::new(WriteError {
                path: self.path.clone(),
                source,
            }) as StoreError
        })
    }
}

enum ReadError {
    Io(io::Error),
    Content(String),
}

/// A file that cannot be written.
#[derive(Debug)]
struct WriteError {
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.source)
    }
}

impl std::error::Error for WriteError {}

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
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    }

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().join("sessions.json"));
        assert!(store.load().unwrap().is_empty());
        fs::write(folder.path().join("sessions.json.new"), "left behind").unwrap();
        let sessions = [session(now()), session(now() - 300)];
        store.save(&sessions).unwrap();
        assert_eq!(store.load().unwrap(), sessions);
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
            assert_eq!(store.load().unwrap(), [], "{content}");
        }
        fs::write(store.path(), [0xff, 0x00]).unwrap();
        assert_eq!(store.load().unwrap(), []);
        store.save(&[session(now() - 601), session(now())]).unwrap();
        assert_eq!(store.load().unwrap().len(), 1, "one is too old");
        assert_eq!(
            store
                .max_age(Duration::from_secs(3600))
                .load()
                .unwrap()
                .len(),
            2
        );
    }

    #[test]
    fn what_cannot_be_written_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = FileStore::new(folder.path().join("missing/sessions.json"));
        let error = store.save(&[]).unwrap_err().to_string();
        assert!(error.contains("missing/sessions.json"), "{error}");
        let store = FileStore::new(folder.path());
        assert!(store.load().is_err(), "a folder");
    }
}
