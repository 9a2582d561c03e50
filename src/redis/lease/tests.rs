use std::collections::BTreeMap;

use super::*;
use crate::limit::Moment;

const TTL: u64 = 10_000;
const RENEW: u64 = TTL / 10;
const POLL: u64 = TTL / 40;

fn at(at: u64) -> Now {
    on("one", at)
}

fn on(server: &str, at: u64) -> Now {
    Now {
        clock: server.into(),
        at,
        wall: at,
        moment: Moment::now(),
    }
}

/// The lease of a process that has watched for long enough.
fn taken(owner: &str, now: u64, stored: Option<&Lease>) -> Lease {
    let mut watch = Watch::default();
    for look in (now - TTL..=now).step_by(100) {
        if let Step::Take(lease) = watch.look(&at(look), stored, owner, TTL) {
            assert_eq!(look, now, "the lease was taken too early");
            return lease;
        }
    }
    panic!("it must be free after one TTL");
}

#[test]
fn a_lease_is_free_after_one_ttl_without_a_renewal() {
    let a = taken("a", 100_000, None);
    assert_eq!(a.token, 100_000, "tokens are times");
    let mut watch = Watch::default();
    let renewed = Lease {
        renewed_at: 104_000,
        ..a.clone()
    };
    for look in (100_000..114_000).step_by(250) {
        let stored = if look < 104_000 { &a } else { &renewed };
        let step = watch.look(&at(look), Some(stored), "b", TTL);
        assert!(matches!(step, Step::Wait { .. }), "at {look}: {step:?}");
    }

    let Step::Take(b) = watch.look(&at(114_000), Some(&renewed), "b", TTL) else {
        panic!("its TTL is over")
    };
    assert!(b.token > a.token);
    // The reply may be lost.
    let step = watch.look(&at(114_100), Some(&b), "b", TTL);
    assert_eq!(step, Step::Owned(b.clone()));
    let step = Lease::renew(&at(115_000), &a, Some(b.clone()), TTL);
    assert_eq!(step, Renewal::Lost(b));
}

#[test]
fn what_is_released_is_free_at_once_where_it_was_released() {
    let a = taken("a", 100_000, None);
    let released = Lease::release(&at(101_000), &a, Some(a.clone()), TTL).unwrap();
    let look = |now: &Now| Watch::default().look(now, Some(&released), "b", TTL);
    assert!(matches!(look(&at(101_001)), Step::Take(_)));
    let until = 101_001 + TTL;
    assert_eq!(look(&on("two", 101_001)), Step::Wait { until });

    // A renewal that is still in progress does not undo the release.
    let renewed = Lease::renew(&at(101_002), &a, Some(released.clone()), TTL);
    assert_eq!(renewed, Renewal::Released);
    // On a server that may not know of a later owner, the lease is not released.
    assert_eq!(Lease::release(&on("two", 101_000), &a, None, TTL), None);

    // A process that has lost the lease releases nothing.
    let b = taken("b", 120_000, Some(&a));
    assert_eq!(Lease::release(&at(121_000), &a, Some(b), TTL), None);
}

#[test]
fn a_gap_another_server_and_a_clock_that_is_set_back_count_as_renewals() {
    let a = taken("a", 100_000, None);
    for (before, now) in [
        (at(104_000), at(112_000)),
        (at(109_000), on("two", 112_000)),
        (at(111_000), at(109_500)),
    ] {
        let mut watch = Watch::default();
        for look in [100_000, 104_000] {
            watch.look(&at(look), Some(&a), "b", TTL);
        }
        watch.look(&before, Some(&a), "b", TTL);
        let step = watch.look(&now, Some(&a), "b", TTL);
        let until = now.at + TTL;
        assert_eq!(step, Step::Wait { until }, "{before:?}, {now:?}");
    }
}

#[test]
fn an_owner_writes_its_lease_anew_and_is_sure_once_others_would_have_done_so() {
    let a = taken("a", 100_000, None);
    let Renewal::Confirmed(a) = Lease::renew(&at(101_000), &a, Some(a.clone()), TTL) else {
        panic!("it is its own")
    };

    // The server was emptied, or it is another one, empty or with an older lease.
    let older = Lease {
        token: 50_000,
        owner: "z".into(),
        ..a.clone()
    };
    for (stored, server) in [(None, "one"), (None, "two"), (Some(older), "two")] {
        let renewed = Lease::renew(&on(server, 102_000), &a, stored, TTL);
        let Renewal::InDoubt(first) = renewed else {
            panic!("{renewed:?}")
        };

        let mut renewed = first.clone();
        for at in (103_000..107_000).step_by(1000) {
            let again = Lease::renew(&on(server, at), &renewed, Some(renewed.clone()), TTL);
            let Renewal::InDoubt(again) = again else {
                panic!("{again:?}")
            };
            renewed = again;
        }
        let later = Lease::renew(&on(server, 107_000), &renewed, Some(renewed.clone()), TTL);
        assert!(matches!(later, Renewal::Confirmed(_)), "{later:?}");
        // After a gap, it is still in doubt: other owners may have been unable to renew, too.
        let later = Lease::renew(&on(server, 107_000), &first, Some(first.clone()), TTL);
        assert!(matches!(later, Renewal::InDoubt(_)), "{later:?}");
    }

    // The lease disappears while another process watches: its watch starts again.
    let mut watch = Watch::default();
    for look in (100_000..=115_000).step_by(250) {
        let stored = (look < 105_000).then_some(&a);
        let step = watch.look(&at(look), stored, "b", TTL);
        assert_eq!(
            matches!(step, Step::Take(_)),
            look == 115_000,
            "at {look}: {step:?}"
        );
    }

    // Two processes took the lease on two servers in the same millisecond.
    let other = Lease {
        owner: "b".into(),
        ..a.clone()
    };
    let renewed = Lease::renew(&at(102_000), &a, Some(other.clone()), TTL);
    assert_eq!(renewed, Renewal::Lost(other));
}

#[test]
fn what_is_written_is_read_and_nothing_else() {
    let a = taken("a", 100_000, None);
    let text = serde_json::to_string(&a).unwrap();
    assert_eq!(Lease::read(&text), Ok(Some(a)));
    assert_eq!(Lease::read(""), Ok(None));
    for text in ["{}", "null", "<html>", "{\"threadcord\":1}"] {
        assert!(Lease::read(text).is_err(), "{text}");
    }
    let other = text.replace("\"threadcord\":1", "\"threadcord\":2");
    assert!(Lease::read(&other).unwrap_err().contains("version 2"));
}

/// A simulation of processes, a server and a network that share one lease.
struct World {
    seed: u64,
    random: fastrand::Rng,
    now: u64,
    server: Server,
    processes: Vec<Process>,
    events: BTreeMap<(u64, u64), Event>,
    count: u64,
    faults: Faults,
    /// When a renewal was last confirmed, and whose.
    confirmed: Option<(u64, usize)>,
}

#[derive(Clone, Copy)]
struct Faults {
    /// The longest time that a message takes, in milliseconds.
    delay: u64,
    /// How many of 100 replies are lost.
    lost_replies: u64,
}

#[derive(Default)]
struct Server {
    name: u32,
    lease: Option<Lease>,
    /// The lease on the replica.
    replica: Option<Lease>,
    away_until: u64,
}

struct Process {
    /// Rises when the process restarts.
    life: u64,
    role: Role,
    paused_until: u64,
    up_since: u64,
    dead: bool,
}

#[derive(Debug)]
enum Role {
    Waiting(Watch),
    Owner(Lease),
}

enum Event {
    /// A process starts a call.
    Call(usize, u64),
    Read(usize, u64),
    /// It replaces the lease that it has read, if the connection is still open.
    Swap(usize, u64, (u32, Option<Lease>), Reply),
    Reply(usize, u64, Reply),
}

#[derive(Clone, Debug)]
enum Reply {
    Failed,
    Waits(Watch),
    Takes(Lease),
    Owns(Lease),
    Renewed { lease: Lease, is_confirmed: bool },
    Lost,
}

impl World {
    fn new(seed: u64, processes: usize, faults: Faults) -> Self {
        let mut world = Self {
            seed,
            random: fastrand::Rng::with_seed(seed),
            now: 1_000_000,
            server: Server::default(),
            processes: Vec::new(),
            events: BTreeMap::new(),
            count: 0,
            faults,
            confirmed: None,
        };

        for number in 0..processes {
            world.processes.push(Process {
                life: 0,
                role: Role::Waiting(Watch::default()),
                paused_until: 0,
                up_since: world.now,
                dead: false,
            });
            world.start(number);
        }
        world
    }

    fn start(&mut self, number: usize) {
        let process = &mut self.processes[number];
        process.life += 1;
        process.dead = false;
        process.role = Role::Waiting(Watch::default());
        process.paused_until = 0;
        process.up_since = self.now;
        let life = process.life;
        self.after(0, Event::Call(number, life));
    }

    fn after(&mut self, wait: u64, event: Event) {
        self.count += 1;
        self.events.insert((self.now + wait, self.count), event);
    }

    fn delay(&mut self) -> u64 {
        self.random.u64(0..=self.faults.delay)
    }

    /// The process that currently considers itself the owner; with several, the latest.
    fn owner(&self) -> Option<usize> {
        let is_owner = |process: &&Process| matches!(process.role, Role::Owner(_));
        let owners = self.processes.iter().enumerate();
        let owners = owners.filter(|(_, process)| is_owner(process));
        let token = |process: &Process| match &process.role {
            Role::Owner(lease) => lease.token,
            Role::Waiting(_) => 0,
        };
        owners
            .max_by_key(|(_, process)| token(process))
            .map(|(number, _)| number)
    }

    fn run(&mut self, until: u64) {
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= until
        {
            let ((now, _), event) = entry.remove_entry();
            self.now = now;
            self.handle(event);
        }
        self.now = until;
    }

    fn handle(&mut self, event: Event) {
        let (Event::Call(number, life)
        | Event::Read(number, life)
        | Event::Swap(number, life, ..)
        | Event::Reply(number, life, _)) = event;
        let process = &self.processes[number];
        if process.dead || process.life != life {
            return;
        }
        let is_own_step = !matches!(event, Event::Read(..));
        if is_own_step && process.paused_until > self.now {
            return self.after(process.paused_until - self.now, event);
        }

        match event {
            Event::Call(..) => {
                let wait = self.delay();
                self.after(wait, Event::Read(number, life));
            }
            Event::Read(..) => self.read(number, life),
            Event::Swap(_, _, old, reply) => self.swap(number, life, &old, reply),
            Event::Reply(_, _, reply) => self.reply(number, life, reply),
        }
    }

    fn read(&mut self, number: usize, life: u64) {
        if self.now < self.server.away_until {
            return self.after(100, Event::Reply(number, life, Reply::Failed));
        }
        let now = on(&self.server.name.to_string(), self.now);
        let stored = self.server.lease.clone();
        let reply = match &self.processes[number].role {
            Role::Waiting(watch) => {
                let mut watch = watch.clone();
                match watch.look(&now, stored.as_ref(), &format!("{number}:{life}"), TTL) {
                    Step::Wait { .. } => Reply::Waits(watch),
                    Step::Owned(lease) => Reply::Owns(lease),
                    Step::Take(lease) => Reply::Takes(lease),
                }
            }
            Role::Owner(own) => match Lease::renew(&now, own, stored.clone(), TTL) {
                Renewal::Lost(_) | Renewal::Released => Reply::Lost,
                Renewal::InDoubt(lease) => Reply::Renewed {
                    lease,
                    is_confirmed: false,
                },
                Renewal::Confirmed(lease) => Reply::Renewed {
                    lease,
                    is_confirmed: true,
                },
            },
        };

        let wait = self.delay();
        let event = match reply {
            Reply::Takes(..) | Reply::Renewed { .. } => {
                Event::Swap(number, life, (self.server.name, stored), reply)
            }
            reply => Event::Reply(number, life, reply),
        };
        self.after(wait, event);
    }

    fn swap(
        &mut self,
        number: usize,
        life: u64,
        (server, old): &(u32, Option<Lease>),
        reply: Reply,
    ) {
        let mut outcome = Reply::Failed;
        let is_connected = self.now >= self.server.away_until && self.server.name == *server;
        if is_connected && self.server.lease != *old {
            // Another process has changed the lease: this one reads again at once.
            return self.read(number, life);
        }
        if is_connected {
            let (Reply::Takes(lease) | Reply::Renewed { lease, .. }) = &reply else {
                unreachable!("nothing else is stored")
            };
            self.server.lease = Some(lease.clone());
            if let Reply::Renewed {
                lease,
                is_confirmed: true,
            } = &reply
            {
                self.check(number, lease.token);
                self.confirmed = Some((self.now, number));
            }
            if self.random.u64(0..100) >= self.faults.lost_replies {
                outcome = reply;
            }
        }

        let wait = self.delay();
        self.after(wait, Event::Reply(number, life, outcome));
    }

    /// Checks that no later owner is up while this one is confirmed.
    fn check(&self, number: usize, token: u64) {
        for (other, process) in self.processes.iter().enumerate() {
            // Since then, the other process has been able to renew.
            let since = process.up_since.max(self.server.away_until);
            let is_up = !process.dead && since + TTL / 2 <= self.now;
            if let Role::Owner(lease) = &process.role
                && is_up
                && process.paused_until < self.now
            {
                let (seed, now) = (self.seed, self.now);
                assert!(
                    lease.token <= token,
                    "seed {seed}: {number} is confirmed with {token} at {now} while {other} has \
                     {lease:?}"
                );
            }
        }
    }

    fn reply(&mut self, number: usize, life: u64, reply: Reply) {
        let process = &mut self.processes[number];
        match reply {
            Reply::Failed => {}
            Reply::Waits(watch) => process.role = Role::Waiting(watch),
            Reply::Takes(lease) | Reply::Owns(lease) | Reply::Renewed { lease, .. } => {
                process.role = Role::Owner(lease);
            }
            // Its manager stops, and the process restarts.
            Reply::Lost => return self.start(number),
        }

        let pause = match process.role {
            Role::Waiting(_) => POLL,
            Role::Owner(_) => RENEW,
        };
        self.after(pause, Event::Call(number, life));
    }

    fn pause(&mut self, number: usize, wait: u64) {
        let process = &mut self.processes[number];
        let until = process.paused_until.max(self.now + wait);
        process.paused_until = until;
        process.up_since = until;
    }

    /// Injects a random fault into a process or the server.
    fn fault(&mut self) {
        let number = self.random.usize(0..self.processes.len());
        let wait = self.random.u64(100..40_000);
        match self.random.u32(0..7) {
            0 => self.processes[number].dead = true,
            1 => self.pause(number, wait),
            2 => self.server.away_until = self.now + wait / 2,
            3 => {
                // The server restarts, and may be empty.
                self.server.name += 1;
                if self.random.bool() {
                    self.server.lease = None;
                }
            }
            4 => {
                // A failover to a replica that lags.
                self.server.name += 1;
                self.server.lease = self.server.replica.clone();
            }
            _ => self.start(number),
        }
    }
}

fn histories() -> u64 {
    let histories = std::env::var("THREADCORD_HISTORIES");
    histories.map_or(300, |text| text.parse().expect("a number"))
}

#[test]
fn no_two_processes_own_a_part_at_once() {
    let mut owners = 0;
    for seed in 0..histories() {
        let faults = Faults {
            delay: 400,
            lost_replies: 5,
        };
        let mut world = World::new(seed, 4, faults);

        for _ in 0..100 {
            let wait = world.random.u64(10..15_000);
            world.run(world.now + wait);
            if world.random.bool() {
                // What a replica has may be some seconds old.
                world.server.replica = world.server.lease.clone();
            }
            world.fault();
        }
        owners += usize::from(world.confirmed.is_some());
    }
    assert!(owners > 0, "no renewal was ever confirmed");
}

#[test]
fn a_standby_takes_over_within_two_seconds_after_the_ttl() {
    for seed in 0..histories() {
        let faults = Faults {
            delay: 200,
            lost_replies: 0,
        };
        let mut world = World::new(seed, 3, faults);
        let start = world.now + 2 * TTL + world.random.u64(0..RENEW);
        world.run(start);
        let owner = world.owner().expect("one has it");

        let end = world.now;
        if world.random.bool() {
            world.processes[owner].dead = true;
        } else {
            world.pause(owner, 3 * TTL);
        }
        world.run(end + TTL + 2000);

        let next = world.owner();
        let is_next = next.is_some_and(|next| next != owner);
        assert!(
            is_next,
            "seed {seed}: {owner} has ended, and the owner is {next:?}"
        );
    }
}

#[test]
fn an_owner_that_is_up_keeps_its_part_whatever_the_server_does() {
    for seed in 0..histories() {
        let faults = Faults {
            delay: 300,
            lost_replies: 5,
        };
        let mut world = World::new(seed, 3, faults);
        world.run(world.now + 3 * TTL);
        let owner = world.owner().expect("one has it");
        for _ in 0..20 {
            // The server is up for long enough between two outages that the owner reaches it.
            let back = world.now.max(world.server.away_until);
            let wait = world.random.u64(3000..15_000);
            world.run(back + wait);
            let away = world.random.u64(0..20_000);
            world.server.away_until = world.now + away;
            if world.random.bool() {
                world.server.name += 1;
            }
            if world.random.bool() {
                world.server.lease = None;
            }
            // A waiting process restarts.
            let other = (owner + 1) % 3;
            world.start(other);
        }

        world.run(world.now + 40_000);
        assert_eq!(world.owner(), Some(owner), "seed {seed}");
        assert_eq!(world.processes[owner].life, 1, "seed {seed}");
    }
}
