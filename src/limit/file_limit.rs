//! The limit of several processes on one machine, in a file.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::blocking::{Blocking, Guard};
use super::reservations::{Now, Reservations, Rules, Turn, millis};
use super::schedule::Limits;
use super::ticket::{Expiry, Ticket};
use super::{IdentifyLimiter, LimitStatus, Wake};
use crate::clock;
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// How long another process may hold the lock; each needs it for a few milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Discord's identify limit for all processes of a machine that run one bot, in a file.
///
/// A process that wants to identify waits until its rate limit key is free, locks the file, writes
/// that the key is taken, and sends within [`Timing::permit_validity`] (2 s); else it asks again. The
/// window counts from the IDENTIFY. A process that is killed in between costs the others 2 s and one
/// window, and the day one IDENTIFY; at any other point, nothing. The file also holds what is left of
/// the day.
///
/// Every process takes the same path, on a local disk: locks over a network may not hold. The first
/// use creates the file, and beside it files that end in `.lock` and `.new`. A file that
/// is damaged is an error, in the log and for the shard, which asks again, until a process writes
/// it anew with what Discord says. On Linux the times are those of the machine's uptime, so that a
/// clock that is set changes nothing; elsewhere a clock that is set forward may let a shard
/// identify too early.
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
    /// What is known without the file.
    known: Mutex<Known>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// What Discord said last.
    limits: Option<Limits>,
    /// Whether the file was there: if it is not any more, others may have used it.
    has_file: bool,
}

/// A key that is taken.
struct Taken {
    file: Arc<LimitFile>,
    key: u32,
    at: u64,
    expiry: Expiry,
    is_used: bool,
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
            known: Mutex::default(),
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
        if let Err(error) = self.file.update(limits, asked_at) {
            log::error!("failed to write the identify limit: {error}");
        }
    }

    fn status(&self) -> Option<LimitStatus> {
        let mut reservations = self.file.read().ok()??;
        let now = now();
        reservations.advance(&now, self.file.rules);
        let mut status = LimitStatus::new(
            reservations.remaining(),
            reservations.total(),
            reservations.reset_after(&now),
            reservations.max_concurrency(),
        );
        status.waiting = self.blocking.waiting();
        Some(status)
    }
}

impl LimitFile {
    /// Blocks until a shard may identify.
    fn enter(file: &Arc<Self>, shard: ShardId) -> io::Result<Taken> {
        loop {
            let expiry = Expiry::after(Duration::from_millis(file.rules.validity));
            let (turn, key, at) = file.change(|now, reservations| {
                let key = shard.rate_limit_key(reservations.max_concurrency());
                (reservations.take(now, key, file.rules), key, now.at)
            })?;
            match turn {
                Turn::Now => {
                    return Ok(Taken {
                        file: Arc::clone(file),
                        key,
                        at,
                        expiry,
                        is_used: false,
                    });
                }
                Turn::NotBefore(until) => {
                    thread::sleep(Duration::from_millis(until.saturating_sub(now().at)));
                }
                // These rules never want it.
                Turn::Ask(_) => {}
                Turn::Spent(until) => {
                    let wait = until.saturating_sub(at) / 1000;
                    let why = format!("no IDENTIFY is left today; there are more in {wait} s");
                    return Err(io::Error::other(why));
                }
            }
        }
    }

    fn update(&self, limits: Limits, asked_at: Instant) -> io::Result<()> {
        self.known.lock().limits = Some(limits);
        let ago = millis(clock::now().saturating_duration_since(asked_at));
        let update = |now: &Now, reservations: &mut Reservations| {
            let asked = now.at.saturating_sub(ago);
            reservations.update(now, asked, limits, self.rules);
        };
        match self.change(update) {
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                log::warn!("{error}; it is written anew with what Discord says");
                let _lock = self.lock()?;
                let now = now();
                let mut reservations = Reservations::new(&now, limits);
                reservations.occupy(&now, self.rules);
                update(&now, &mut reservations);
                self.write(&reservations)
            }
            changed => changed,
        }
    }

    /// Changes what the file holds, while no other process does.
    fn change<T>(&self, change: impl FnOnce(&Now, &mut Reservations) -> T) -> io::Result<T> {
        let _lock = self.lock()?;
        let read = self.read()?;
        let now = now();
        let known = std::mem::replace(&mut self.known.lock().has_file, true);
        let mut reservations = read.unwrap_or_else(|| {
            let limits = self.known.lock().limits.unwrap_or_default();
            let mut new = Reservations::new(&now, limits);
            if known {
                new.occupy(&now, self.rules);
            }
            new
        });
        let changed = change(&now, &mut reservations);
        self.write(&reservations)?;
        Ok(changed)
    }

    fn lock(&self) -> io::Result<File> {
        let path = self.beside(".lock");
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        let lock = options.open(&path).map_err(|error| named(&path, &error))?;
        let start = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(error)) => return Err(named(&path, &error)),
                Err(TryLockError::WouldBlock) if start.elapsed() > LOCK_TIMEOUT => {
                    let why = format!("another process has held it for {LOCK_TIMEOUT:?}");
                    return Err(named(&path, &io::Error::new(ErrorKind::TimedOut, why)));
                }
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            }
        }
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

    /// Replaces the file in one step, so that a process that dies leaves the old or the new.
    fn write(&self, reservations: &Reservations) -> io::Result<()> {
        let new = self.beside(".new");
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(reservations)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        });
        written.map_err(|error| named(&self.path, &error))
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(ending);
        path.into()
    }
}

impl Guard for Taken {
    fn used(&mut self) {
        let Self { file, key, at, .. } = self;
        self.is_used = true;
        let used = file.change(|now, reservations| reservations.used(now, *key, *at, file.rules));
        if let Err(error) = used {
            log::error!("failed to write the identify limit: {error}");
        }
    }

    fn expiry(&self) -> Option<Expiry> {
        Some(self.expiry)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.is_used {
            return;
        }
        let Self { file, key, at, .. } = self;
        let given_back = file.change(|now, reservations| {
            reservations.give_back(now, *key, *at, file.rules);
        });
        if let Err(error) = given_back {
            log::warn!("failed to give back a turn to identify: {error}");
        }
    }
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(
        error.kind(),
        format!("the limit file {}: {error}", path.display()),
    )
}

/// The time that all processes of this machine share.
#[cfg(target_os = "linux")]
fn now() -> Now {
    use rustix::time::{ClockId, clock_gettime};

    let uptime = clock_gettime(ClockId::Boottime);
    let uptime = Duration::try_from(uptime).unwrap_or_default();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Now {
        clock: boot.trim().to_owned(),
        at: millis(uptime),
        wall: since_epoch(),
    }
}

/// The time that all processes of this machine share.
#[cfg(not(target_os = "linux"))]
fn now() -> Now {
    Now {
        clock: "wall".into(),
        at: since_epoch(),
        wall: since_epoch(),
    }
}

fn since_epoch() -> u64 {
    let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH);
    millis(since.unwrap_or_default())
}
