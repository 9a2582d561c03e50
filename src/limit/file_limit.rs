//! The limit of several processes on one machine, in a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::blocking::{Blocking, Guard};
use super::reservations::{Reservations, Reserved, Rules};
use super::schedule::Limits;
use super::ticket::Ticket;
use super::{IdentifyLimiter, LimitStatus, Wake};
use crate::clock;
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// Discord's identify limit for all processes of a machine that run one bot, in a file.
///
/// Each IDENTIFY is reserved in the file before it is sent: a process locks it, takes the next free
/// time of its rate limit key, writes that the key is taken for a window, and waits for its time
/// without the lock. A process that is killed at any point costs one window at most. The file also
/// holds what is left of the day.
///
/// Every process takes the same path, on a local disk: locks over a network may not hold. The first
/// use makes the file; beside it, files with `.lock` and `.new` at the end come about. One that is
/// damaged is an error, in the log and for the shard, which asks again: delete it once no process
/// has identified for 5 s.
///
/// ```no_run
/// use std::sync::Arc;
/// use threadcord::limit::FileLimit;
/// use threadcord::store::FileStore;
/// use threadcord::{Config, Intents, Plan, ShardManager, Token};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // The third of eight processes.
/// let config = Config::new(Token::new(std::env::var("DISCORD_TOKEN")?)?, Intents::default())
///     .plan(Plan::bucket(2, 8))
///     .limiter(Arc::new(FileLimit::new("/run/bot/identify.json")))
///     .session_store(FileStore::new("/var/lib/bot/sessions-2.json"));
/// let manager = ShardManager::start(config)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FileLimit {
    file: Arc<LimitFile>,
    blocking: Blocking,
}

#[derive(Debug)]
struct LimitFile {
    path: PathBuf,
    rules: Rules,
}

/// A reservation whose time has come.
struct Reservation {
    file: Arc<LimitFile>,
    key: u32,
    since: Instant,
}

impl FileLimit {
    /// A limit in this file, which need not exist; its folder must.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_timing(path, &Timing::default())
    }

    /// As [`new`](Self::new), with other windows, for a simulator whose time runs faster. All
    /// processes need the same.
    pub fn with_timing(path: impl Into<PathBuf>, timing: &Timing) -> Self {
        let file = Arc::new(LimitFile {
            path: path.into(),
            rules: Rules::new(timing),
        });
        let of_shards = Arc::clone(&file);
        Self {
            file,
            blocking: Blocking::new(move |shard| LimitFile::enter(&of_shards, shard)),
        }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

impl IdentifyLimiter for FileLimit {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        self.blocking.request(shard, wake)
    }

    fn update(&self, limits: Limits, asked_at: Instant) {
        self.blocking.update(limits, asked_at);
        let ago = clock::now().saturating_duration_since(asked_at);
        let updated = self.file.change(|now, reservations| {
            let asked = now.saturating_sub(millis(ago));
            reservations.update(now, asked, limits, self.file.rules);
        });
        if let Err(error) = updated {
            log::error!("failed to write the identify limit: {error}");
        }
    }

    fn status(&self) -> Option<LimitStatus> {
        let reservations = self.file.read().ok()??;
        Some(LimitStatus::new(
            reservations.remaining(),
            reservations.total(),
            reservations.reset_after(since_epoch()),
            reservations.max_concurrency(),
        ))
    }
}

impl LimitFile {
    /// Blocks until a shard may identify.
    fn enter(file: &Arc<Self>, shard: ShardId) -> io::Result<Reservation> {
        loop {
            let (reserved, key, now) = file.change(|now, reservations| {
                let key = shard.rate_limit_key(reservations.max_concurrency());
                (reservations.reserve(now, key, file.rules), key, now)
            })?;
            let at = match reserved {
                Reserved::At(at) => at,
                Reserved::NotBefore(at) => {
                    let wait = at.saturating_sub(now) / 1000;
                    let why = format!("no IDENTIFY is left today; there are more in {wait} s");
                    return Err(io::Error::other(why));
                }
            };

            let wait = Duration::from_millis(at.saturating_sub(now));
            let (start, until) = (clock::now(), since_epoch().saturating_add(millis(wait)));
            thread::sleep(wait);

            // A process or a machine that was stopped meanwhile comes too late, by either clock.
            let late = (clock::now() - start).saturating_sub(wait);
            let late = millis(late).max(since_epoch().saturating_sub(until));
            if late < file.rules.window / 2 {
                return Ok(Reservation {
                    file: Arc::clone(file),
                    key,
                    since: clock::now(),
                });
            }
        }
    }

    /// Changes what the file holds, while no other process does.
    fn change<T>(&self, change: impl FnOnce(u64, &mut Reservations) -> T) -> io::Result<T> {
        let lock = self.beside(".lock");
        let lock = open(&lock).map_err(|error| named(&lock, &error))?;
        lock.lock().map_err(|error| named(&self.path, &error))?;

        let now = since_epoch();
        let mut reservations = self.read()?.unwrap_or_else(|| Reservations::new(now));
        let changed = change(now, &mut reservations);
        self.write(&reservations)
            .map_err(|error| named(&self.path, &error))?;
        drop(lock);
        Ok(changed)
    }

    fn read(&self) -> io::Result<Option<Reservations>> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(&self.path, &error)),
        };
        let read = Reservations::read(&text).map(Some);
        read.map_err(|why| named(&self.path, &io::Error::new(ErrorKind::InvalidData, why)))
    }

    /// Replaces the file in one step, so that whoever dies leaves the old or the new.
    fn write(&self, reservations: &Reservations) -> io::Result<()> {
        let new = self.beside(".new");
        fs::write(&new, serde_json::to_vec(reservations)?)?;
        fs::rename(&new, &self.path)
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(ending);
        path.into()
    }
}

impl Guard for Reservation {
    fn used(&mut self) {
        let Self { file, key, since } = self;
        // The window is longer than Discord's by more than that.
        if since.elapsed() < file.rules.guard / 2 {
            return;
        }
        let used = file.change(|now, reservations| reservations.used(now, *key, file.rules));
        if let Err(error) = used {
            log::error!("failed to write the identify limit: {error}");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("the limit file {}: {error}", path.display()),
    )
}

fn since_epoch() -> u64 {
    let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH);
    millis(since.unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
