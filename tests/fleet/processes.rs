//! Real processes, each with a part of the shards, and what they have handled.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};
use std::{env, thread};

use parking_lot::Mutex;
use threadcord::redis::Redis;
use threadcord::sim::{self, Gateway};
use threadcord::{Config, Error, Intents, Plan, ShardManager, Token};

use crate::common::process::Process;
use crate::common::redis::RedisServer;
use crate::common::{PATIENCE, eventually, gateway};
use crate::{TTL, identifies, open, resumes, timing};

/// The exit code of a process whose part was taken over by another process.
pub(crate) const OWNERSHIP_LOST: i32 = 42;

/// Time runs 20 times as fast as at Discord: a session without a connection lasts for 9 s.
const SCALE: f64 = 0.05;

/// What a process has handled, in a file.
struct Journal(Mutex<File>);

/// An event in a journal: its sequence and the digest of its data.
type Entry = (u64, u64);

impl Journal {
    fn append(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self(Mutex::new(file.unwrap()))
    }

    /// In one write, so that a process that is killed leaves whole entries.
    fn note(&self, (sequence, digest): Entry) {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&sequence.to_le_bytes());
        entry[8..].copy_from_slice(&digest.to_le_bytes());
        self.0.lock().write_all(&entry).unwrap();
    }

    /// How often each event is in any of the journals of a folder.
    fn read_all(folder: &Path) -> BTreeMap<Entry, u32> {
        let mut all = BTreeMap::new();
        for path in fs::read_dir(folder).unwrap() {
            let mut own = BTreeMap::<Entry, u32>::new();
            let mut bytes = Vec::new();
            let mut file = File::open(path.unwrap().path()).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            for entry in bytes.as_chunks::<16>().0 {
                let (sequence, digest) = entry.split_at(8);
                let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
                *own.entry((number(sequence), number(digest))).or_default() += 1;
            }
            let twice = own.iter().find(|(_, count)| **count > 1);
            assert_eq!(twice, None, "one process handles an event once");
            for entry in own.into_keys() {
                *all.entry(entry).or_default() += 1;
            }
        }
        all
    }
}

/// Processes that run the parts of one bot.
pub(crate) struct Fleet<'a> {
    pub(crate) gateway: &'a Gateway,
    pub(crate) redis_url: String,
    pub(crate) journals: &'a Path,
    pub(crate) parts: u32,
    /// Of the processes, in seconds.
    pub(crate) lease_ttl: Duration,
    pub(crate) scale: f64,
}

impl Fleet<'_> {
    /// Starts a process that wants to own a part, with these variables besides.
    pub(crate) fn start(&self, index: u32, others: &[(&str, &str)]) -> Process {
        let mut variables = vec![
            ("DISCORD_TOKEN", self.gateway.token().to_owned()),
            ("DISCORD_REST_URL", self.gateway.rest_url()),
            ("REDIS_URL", self.redis_url.clone()),
            ("JOURNALS", self.journals.to_str().unwrap().to_owned()),
            ("PART", index.to_string()),
            ("PARTS", self.parts.to_string()),
            ("LEASE_TTL", self.lease_ttl.as_millis().to_string()),
            ("SCALE", self.scale.to_string()),
        ];
        variables.extend(
            others
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned())),
        );
        let variables: Vec<_> = variables
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        Process::start("processes::as_one_of_many", &variables)
    }

    /// Every event that a session was given was handled, at the latest some time from now. Returns
    /// how many there were, and how many were handled more than once.
    pub(crate) fn check(&self) -> (usize, usize) {
        let is_for_handlers = |event: &sim::Dispatched| event.name != "RESUMED";
        let given: Vec<_> = self
            .gateway
            .dispatches()
            .into_iter()
            .filter(is_for_handlers)
            .collect();
        let deadline = Instant::now() + PATIENCE;

        loop {
            let handled = Journal::read_all(self.journals);
            let is_missing =
                |event: &&sim::Dispatched| !handled.contains_key(&(event.sequence, event.digest));
            let missing: Vec<_> = given.iter().filter(is_missing).collect();
            if missing.is_empty() {
                let repeated = handled.values().filter(|count| **count > 1).count();
                return (given.len(), repeated);
            }
            if Instant::now() >= deadline {
                let mut sessions = BTreeMap::<_, Vec<u64>>::new();
                for event in missing {
                    sessions
                        .entry(&event.session)
                        .or_default()
                        .push(event.sequence);
                }
                let lost = sessions.into_iter().map(|(session, lost)| {
                    let (first, last) = (lost[0], lost[lost.len() - 1]);
                    format!("session {session}: {} from {first} to {last}", lost.len())
                });
                panic!("lost: {:#?}", lost.collect::<Vec<_>>());
            }
            thread::sleep(Duration::from_millis(500));
        }
    }
}

#[test]
fn a_process_that_is_killed_is_replaced_and_nothing_is_lost() {
    let name = "a_process_that_is_killed_is_replaced_and_nothing_is_lost";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let journals = tempfile::tempdir().unwrap();
    let gateway = gateway()
        .time_scale(SCALE)
        .guilds(8)
        .shards(4)
        .max_concurrency(4)
        .activity(500.0)
        .keep_dispatches(true)
        .start()
        .unwrap();
    let fleet = Fleet {
        gateway: &gateway,
        redis_url: server.url(),
        journals: journals.path(),
        parts: 2,
        lease_ttl: TTL,
        scale: SCALE,
    };
    let mut owners: Vec<_> = (0..2).map(|index| fleet.start(index, &[])).collect();
    gateway.expect("all are ready", PATIENCE, |seen| seen.live.len() == 4);
    let mut standby = fleet.start(0, &[]);
    let redis = open(&server, &gateway);
    eventually("sessions are saved", || {
        // The first save of a running process is a second after READY.
        let mut admin = server.admin();
        let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
        let key = format!("threadcord:{{{bot}}}:sessions:0/2");
        let text: Option<String> = redis::cmd("GET").arg(key).query(&mut admin).unwrap();
        text.is_some_and(|text| text.matches("resume_url").count() == 2)
    });
    // The standby must have been watching already, to take over this soon.
    thread::sleep(TTL);

    owners[0].kill();
    let killed = Instant::now();
    gateway.expect("its sessions are resumed", PATIENCE, |seen| {
        resumes(seen) >= 2
    });
    let taken = killed.elapsed();
    assert!(taken < TTL + Duration::from_secs(5), "{taken:?}");
    println!("resumed {taken:?} after the kill, with a TTL of {TTL:?}");
    let pid = format!(":{}:", standby.id());
    let owner = redis.status().unwrap().parts[0].owner.clone().unwrap();
    assert!(owner.contains(&pid), "{owner}");

    // One that is stopped for longer than its lease finds out when it continues.
    owners[1].freeze();
    let mut next = fleet.start(1, &[]);
    gateway.expect("its sessions are taken over", PATIENCE, |seen| {
        resumes(seen) >= 4
    });
    owners[1].thaw();
    assert_eq!(owners[1].wait().code(), Some(OWNERSHIP_LOST));

    standby.say("suspend");
    assert_eq!(standby.wait().code(), Some(0));
    next.say("suspend");
    assert_eq!(next.wait().code(), Some(0));
    gateway.set_activity(0.0);
    let mut last: Vec<_> = (0..2).map(|index| fleet.start(index, &[])).collect();
    gateway.expect("all are resumed", PATIENCE, |seen| {
        seen.live.len() == 4 && resumes(seen) >= 8
    });
    let (given, repeated) = fleet.check();
    assert!(given > 1000, "{given}");
    println!("{given} events, {repeated} of them were handled more than once");
    for process in &mut last {
        process.say("suspend");
        process.wait();
    }
    let seen = gateway.observed();
    assert_eq!(identifies(&seen), 4, "one for each shard");
    assert!(seen.lost.is_empty());
    gateway.assert_lawful();
}

/// Owns a part and runs it until it must suspend or has lost the part. Records what it handles.
#[test]
#[ignore = "other tests start it"]
fn as_one_of_many() {
    let variable = |name: &str| env::var(name).unwrap();
    let number = |name: &str| -> u32 { variable(name).parse().unwrap() };
    let token = Token::new(variable("DISCORD_TOKEN")).unwrap();
    let path = Path::new(&variable("JOURNALS")).join(std::process::id().to_string());
    let journal = Journal::append(&path);
    if env::var_os("FAKETIME").is_some() {
        let created = fs::metadata(&path).unwrap().modified().unwrap();
        let now = SystemTime::now();
        let off = now
            .duration_since(created)
            .unwrap_or_else(|error| error.duration());
        assert!(
            off > Duration::from_secs(3000),
            "its clock is another: {off:?}"
        );
    }
    let (index, of) = (number("PART"), number("PARTS"));

    let mut timing = timing(variable("SCALE").parse().unwrap());
    timing.lease_ttl = Duration::from_millis(u64::from(number("LEASE_TTL")));

    // It may be away just now.
    let redis = loop {
        match Redis::open_with_timing(&variable("REDIS_URL"), &token, &timing) {
            Ok(redis) => break redis,
            Err(error) => eprintln!("{}", error.report()),
        }
        thread::sleep(Duration::from_millis(100));
    };
    let part = redis.part(index, of).acquire(Duration::MAX).unwrap();
    let config = Config::new(token, Intents::all())
        .rest_url(variable("DISCORD_REST_URL"))
        .limiter(redis.identify_limit())
        .timing(timing)
        .retry_start_for(PATIENCE)
        .plan(Plan::bucket(index, of))
        .session_store(part);
    let manager = ShardManager::start(config).unwrap();
    let handle = manager.handle().clone();
    thread::spawn(move || {
        let _ = io::stdin().read_line(&mut String::new());
        handle.request_suspend();
    });
    let ended = manager.run(2, |_, event| {
        if let Some(dispatch) = event.dispatch()
            && dispatch.name() != "RESUMED"
        {
            journal.note((dispatch.sequence(), sim::digest(dispatch.data())));
        }
    });
    let is_lost = matches!(ended, Err(Error::OwnershipLost));
    assert!(is_lost || ended.is_ok(), "{ended:?}");
    manager.close();
    if is_lost {
        std::process::exit(OWNERSHIP_LOST);
    }
}
