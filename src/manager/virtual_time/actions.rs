//! The actions of the user and of the machine on a process.

use std::time::Duration;

use super::Play;
use super::process::Process;
use super::program::Requested;
use crate::manager::reconciler::{Request, Role};
use crate::protocol::{Command, OnlineStatus, Presence, StopReason};
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// Something that happens to a process.
#[derive(Clone, Copy, Debug)]
enum Action {
    Reshard,
    CancelReshard,
    Restart,
    CloseShard,
    SuspendShard,
    SendCommands,
    Suspend,
    Kill,
    Freeze,
    /// The handlers are stuck.
    Jam,
    /// The operating system does not schedule a thread for a while.
    Starve,
    /// Many events arrive at once.
    Burst,
    /// A connection or a session ends.
    Strike,
    /// Discord changes how many guilds a shard may have.
    Crowd,
    /// A handler starts, or stops.
    Handle,
}

/// The weight of each action.
const USUALLY: [(Action, u32); 15] = [
    (Action::Reshard, 5),
    (Action::CancelReshard, 1),
    (Action::Restart, 2),
    (Action::CloseShard, 1),
    (Action::SuspendShard, 2),
    (Action::SendCommands, 2),
    (Action::Suspend, 2),
    (Action::Kill, 2),
    (Action::Freeze, 1),
    (Action::Jam, 3),
    (Action::Starve, 3),
    (Action::Burst, 3),
    (Action::Strike, 1),
    (Action::Crowd, 1),
    (Action::Handle, 3),
];

/// The weights while a reshard is in progress.
const IN_A_RESHARD: [(Action, u32); 10] = [
    (Action::CancelReshard, 1),
    (Action::Restart, 1),
    (Action::SendCommands, 1),
    (Action::Kill, 1),
    (Action::Freeze, 1),
    (Action::Jam, 4),
    (Action::Starve, 6),
    (Action::Burst, 6),
    (Action::Strike, 12),
    (Action::Handle, 2),
];

/// The weights while one set takes over from another.
const IN_A_HANDOVER: [(Action, u32); 7] = [
    (Action::Suspend, 4),
    (Action::Kill, 4),
    (Action::Starve, 2),
    (Action::Freeze, 1),
    (Action::Burst, 1),
    (Action::Strike, 2),
    (Action::Handle, 2),
];

impl Play {
    /// Performs a random action of the user or of the machine.
    pub(super) fn take_action(&mut self) {
        let is_resharding = self.is_resharding();
        let pause = Duration::from_secs(if is_resharding { 25 } else { 60 });
        self.next_action = self.now + self.up_to(pause);
        let Some(mut process) = self.process.take() else {
            return;
        };
        let action = if std::mem::take(&mut self.is_handing_over) {
            self.choose(&IN_A_HANDOVER)
        } else if is_resharding {
            self.choose(&IN_A_RESHARD)
        } else {
            self.choose(&USUALLY)
        };

        log::info!("{action:?}");
        match action {
            Action::Reshard => self.begin_reshard(&process),
            Action::CancelReshard => drop(process.hub.cancel_reshard()),
            Action::Restart => self.restart(&process),
            Action::CloseShard => self.close_shard(&process),
            Action::SuspendShard => self.suspend_shard(&process),
            Action::SendCommands => self.send_commands(&process),
            Action::Suspend => {
                self.done.suspends += 1;
                process.stop(StopReason::Suspended);
                self.stop_handler(&process);
            }
            Action::Kill => {
                self.process = Some(process);
                return self.kill();
            }
            Action::Freeze => {
                self.done.freezes += 1;
                let longest = [5, 30, 100, 250][self.rng.usize(..4)];
                self.frozen_until = self.now + self.up_to(Duration::from_secs(longest));
            }
            Action::Jam => {
                let longest = [5, 20, 20, 100][self.rng.usize(..4)];
                self.jam(Duration::from_secs(longest));
            }
            Action::Starve => {
                let actors = process.actors();
                let (actor, _) = actors[self.rng.usize(..actors.len())];
                let until = self.now + self.up_to(Duration::from_secs(8));
                process.starve(actor, until);
            }
            Action::Burst => {
                for _ in 0..self.rng.u32(..100) {
                    self.send_event();
                }
            }
            Action::Strike => self.strike(&process),
            Action::Crowd => {
                // A set of one shard has all ten, one of two has five each.
                let most = [6, 2500][self.rng.usize(..2)];
                self.world.set_guilds_per_shard(most);
            }
            Action::Handle => self.start_or_stop_handler(&process),
        }
        self.process = Some(process);
    }

    fn choose(&mut self, actions: &[(Action, u32)]) -> Action {
        let sum: u32 = actions.iter().map(|(_, weight)| weight).sum();
        let mut at = self.rng.u32(..sum);
        for (action, weight) in actions {
            match at.checked_sub(*weight) {
                Some(rest) => at = rest,
                None => return *action,
            }
        }
        actions[0].0
    }

    /// Half of the time, schedules an action for the handover, while the old set is about to close,
    /// and blocks the handlers.
    pub(super) fn hand_over(&mut self) {
        if self.rng.bool() {
            self.is_handing_over = true;
            self.next_action = self.now + self.up_to(Duration::from_secs(6));
            self.jam(Duration::from_secs(10));
        }
    }

    fn jam(&mut self, longest: Duration) {
        self.stuck_until = self.now + self.up_to(longest);
    }

    /// Injects a fault into a shard, often one that will replace others.
    fn strike(&mut self, process: &Process) {
        let is_new = self.rng.u32(..4) > 0;
        let (shards, _) = process
            .hub
            .look(|slot, shard| (slot.role == Role::Incoming || !is_new).then(|| shard.id()));
        let Some(shard) = shards.get(self.rng.usize(..shards.len().max(1))) else {
            return;
        };
        let faults = [
            "cut",
            "reset",
            "silence",
            "no-ack",
            "reconnect",
            "invalid-session=true",
            "invalid-session=false",
            "close=4009",
            "resume=invalid-session:false cut",
            "resume=close:4007 reset",
            "resume=nothing cut",
        ];
        for fault in faults[self.rng.usize(..faults.len())].split(' ') {
            let fault = fault.parse().expect("the words above are valid faults");
            self.world.inject(self.now, (*shard).into(), fault);
        }
        self.network.lock().obey(&mut self.world);
    }

    fn begin_reshard(&mut self, process: &Process) {
        let total = self.rng.u32(1..5);
        let to: Vec<ShardId> = (0..total)
            .filter_map(|n| ShardId::new(n, total).ok())
            .collect();
        let active: Vec<ShardId> = process.hub.shards().iter().map(Shard::id).collect();

        if active == to {
            return;
        }

        let max_concurrency = Some(self.gateway().session_start_limit.max_concurrency);
        let request = Request::Reshard {
            to,
            max_concurrency,
        };
        if let Ok(reshard) = process.hub.ask(request) {
            self.done.reshards += 1;
            log::info!("reshard to {total}");
            self.requests.push(Requested::Anything(reshard.clone()));
            (self.reshard, self.reshard_began) = (Some(reshard), self.now);
        }
    }

    fn any_shard(&mut self, process: &Process) -> Option<Shard> {
        let shards = process.hub.shards();
        let at = self.rng.usize(..shards.len().max(1));
        shards.get(at).cloned()
    }

    fn restart(&mut self, process: &Process) {
        let restart = if self.rng.bool() {
            process.hub.restart_all(self.rng.usize(1..3))
        } else {
            let Some(shard) = self.any_shard(process) else {
                return;
            };
            process.hub.restart(shard.id())
        };
        if let Ok(restart) = restart {
            self.done.restarts += 1;
            log::info!("restart");
            self.requests.push(Requested::Anything(restart));
        }
    }

    fn close_shard(&mut self, process: &Process) {
        let Some(shard) = self.any_shard(process) else {
            return;
        };
        if let Ok(close) = process.hub.ask(Request::Close(shard.id())) {
            self.done.closes += 1;
            if let Some(session) = shard.session() {
                self.accounts.end(session.id);
            }
            log::info!("{} is closed", shard.id());
            self.requests.push(Requested::Reopen(close, shard.id()));
        }
    }

    fn suspend_shard(&mut self, process: &Process) {
        let Some(shard) = self.any_shard(process) else {
            return;
        };
        if let Ok(suspend) = process.hub.ask(Request::Suspend(shard.id())) {
            log::info!("{} is suspended", shard.id());
            let deadline = self.now + process.hub.config.timing.handlers_timeout;
            self.requests
                .push(Requested::Suspend(suspend, shard, deadline));
        }
    }

    fn send_commands(&mut self, process: &Process) {
        let Some(shard) = self.any_shard(process) else {
            return;
        };
        for _ in 0..self.rng.u32(..200) {
            let guild = self.world.guild_ids()[0];
            let sounds =
                Command::soundboard_sounds(&[guild]).expect("one guild is a valid request");
            // The queue may be full.
            let _ = shard.send(sounds);
        }
        for _ in 0..self.rng.u32(..10) {
            let _ = process.hub.broadcast(&Presence::new(OnlineStatus::Online));
        }
    }
}
