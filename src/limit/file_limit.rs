//! An identify limit for several processes on one machine, in a file.

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

/// How long to wait for the lock while another process holds it. Each process needs it for a few
/// milliseconds.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);

/// The pause between two attempts to take the lock.
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Discord's identify limit for all processes on one machine that run one bot, kept in a file.
///
/// A process that wants to identify waits until its rate limit key is free, locks the file, and
/// writes that the key is taken. It must send the IDENTIFY within [`Timing::permit_validity`]
/// (2 s); otherwise it requests a permit again. The window starts at the IDENTIFY. The file also
/// stores how many IDENTIFYs are left today.
///
/// If a process is killed after it got a permit and before it recorded its IDENTIFY in the file,
/// the other processes wait 2 s and one window for that key, and one IDENTIFY of the day counts as
/// used. If a process is killed at any other point, nothing is lost.
///
/// All processes must use the same path, on a local disk: locks on a network file system may not
/// work. The first use creates the file, and next to it files that end in `.lock` and `.new`.
///
/// A damaged file is an error, which is logged. The shard then requests a permit again, until a
/// process replaces the file with the limits that Discord returns.
///
/// On Linux, times are measured by the machine's uptime, so a change of the system clock has no
/// effect. On other systems, a clock that is set forward may let a shard identify too early.
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
    /// What this process knows without the file.
    known: Mutex<Known>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The limits that Discord returned last.
    limits: Option<Limits>,
    /// Whether the file has existed. If it is now missing, other processes may have used it.
    has_file: bool,
}

impl FileLimit {
    /// Creates a limit in the file `path`. The file need not exist, but its folder must.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::with_timing(path, &Timing::default())
    }

    /// Like [`new`](Self::new), but with other windows, for a simulator whose time runs faster. All
    /// processes must use the same windows.
    pub fn with_timing(path: impl Into<PathBuf>, timing: &Timing) -> Self {
        let file = LimitFile {
            path: path.into(),
            rules: Rules::new(timing),
            known: Mutex::default(),
        };
        Self(SharedLimit::new(file))
    }

    /// The path of the file.
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
    /// Creates reservations from what this process knows, in case the file is missing or damaged.
    /// If the file exists or has existed, all keys are taken, because other processes may have used
    /// it.
    fn new_if_lost(&self, now: &Now, said: Option<Limits>, has_file: bool) -> Reservations {
        let (had_file, limits) = {
            let mut known = self.known.lock();
            known.limits = said.or(known.limits);
            // From now on the file exists.
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
                    let why = format!("another process has held the lock for {LOCK_TIMEOUT:?}");
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

    /// Replaces the file in one step: a process that dies leaves the old file or the new one.
    fn write(&self, reservations: &Reservations) -> io::Result<()> {
        let new = self.beside(".new");
        let written = File::create(&new).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(reservations)?)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        });
        written.map_err(|error| named(&self.path, &error))
    }

    /// The path of the file with `ending` added.
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

/// The current time, on a clock that all processes of this machine share: the uptime.
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

/// The current time, on a clock that all processes of this machine share: the system clock.
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
