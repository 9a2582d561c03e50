//! The limit of several processes on one machine, in a file.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::reservations::{Now, Reservations, Rules, millis};
use super::schedule::Limits;
use super::shared::{SharedLimit, Storage, read_stored};
use super::ticket::{Moment, Ticket};
use super::{IdentifyLimiter, LimitStatus, Wake};
use crate::clock;
use crate::error::StoreError;
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// How long another process may hold the lock; each needs it for a few milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Discord's identify limit for all processes of a machine that run one bot, in a file.
///
/// A process that wants to identify waits until its rate limit key is free, locks the file, writes
/// that the key is taken, and sends within [`Timing::permit_validity`] (2 s); else it asks again.
/// The window counts from the IDENTIFY. A process that is killed in between costs the others 2 s
/// and one window, and the day one IDENTIFY; at any other point, nothing. The file also holds what
/// is left of the day.
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
pub struct FileLimit(SharedLimit<LimitFile>);

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

impl FileLimit {
    /// A limit in this file, which need not exist; its folder must.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_timing(path, &Timing::default())
    }

    /// As [`new`](Self::new), with other windows, for a simulator whose time runs faster. All
    /// processes need the same.
    pub fn with_timing(path: impl Into<PathBuf>, timing: &Timing) -> Self {
        let file = LimitFile {
            path: path.into(),
            rules: Rules::new(timing),
            known: Mutex::default(),
        };
        Self(SharedLimit::new(file))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.storage().path
    }
}

impl IdentifyLimiter for FileLimit {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        self.0.request(shard, wake)
    }

    fn update(&self, limits: Limits, asked_at: Instant) {
        self.0.update(limits, asked_at);
    }

    fn status(&self) -> Option<LimitStatus> {
        self.0.status()
    }
}

impl Storage for LimitFile {
    fn rules(&self) -> Rules {
        self.rules
    }

    fn change<T>(
        &self,
        said: Option<Limits>,
        mut change: impl FnMut(&Now, &mut Reservations) -> T,
    ) -> Result<T, StoreError> {
        let _lock = self.lock()?;
        let text = self.read_file()?;
        let read = text
            .as_deref()
            .map(|text| read_stored(text, self, said.is_some()));
        let read = read.transpose()?.flatten();

        let now = now();
        let new = self.new_if_lost(&now, said, text.is_some());
        let mut reservations = read.clone().unwrap_or(new);
        let changed = change(&now, &mut reservations);
        if read.as_ref() != Some(&reservations) {
            self.write(&reservations)?;
        }
        Ok(changed)
    }

    fn read(&self) -> Result<Option<(Now, Reservations)>, StoreError> {
        let Some(text) = self.read_file()? else {
            return Ok(None);
        };
        let read = read_stored(&text, self, false)?;
        Ok(read.map(|reservations| (now(), reservations)))
    }
}

impl LimitFile {
    /// What this process knows, for a file that is missing or damaged. If the file is there, or
    /// was, others may have used it meanwhile.
    fn new_if_lost(&self, now: &Now, said: Option<Limits>, has_file: bool) -> Reservations {
        let (had_file, limits) = {
            let mut known = self.known.lock();
            known.limits = said.or(known.limits);
            // It will be there from now on.
            let had_file = std::mem::replace(&mut known.has_file, true);
            (had_file || has_file, known.limits.unwrap_or_default())
        };
        let mut new = Reservations::new(now, limits);
        if had_file {
            new.occupy(now, self.rules);
        }
        new
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

    fn read_file(&self) -> io::Result<Option<Vec<u8>>> {
        match fs::read(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(named(&self.path, &error)),
        }
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

impl fmt::Display for LimitFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the limit file {}", self.path.display())
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

    let moment = Moment::now();
    let uptime = clock_gettime(ClockId::Boottime);
    let uptime = Duration::try_from(uptime).unwrap_or_default();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Now {
        clock: boot.trim().to_owned(),
        moment,
        at: millis(uptime),
        wall: since_epoch(),
    }
}

/// The time that all processes of this machine share.
#[cfg(not(target_os = "linux"))]
fn now() -> Now {
    Now {
        clock: "wall".into(),
        moment: Moment::now(),
        at: since_epoch(),
        wall: since_epoch(),
    }
}

fn since_epoch() -> u64 {
    let since = clock::wall().duration_since(SystemTime::UNIX_EPOCH);
    millis(since.unwrap_or_default())
}
