//! The queue of messages from other threads to a shard's thread.

use std::collections::VecDeque;
use std::mem;
use std::time::Instant;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::members::Request;
use crate::protocol::{Command, Identity, StopReason};

/// A message from a handle to the thread. The first two send something to Discord.
#[derive(Debug)]
pub(super) enum Message {
    Command(Command),
    RequestMembers(Box<Request>),
    /// The caller no longer waits for the answer to the request with this id.
    ForgetMembers(u32),
    Probe,
    Restart(Box<Identity>),
    Stop(StopReason),
}

/// The messages that the thread has not taken. Those with something to send to Discord are bounded.
#[derive(Debug)]
pub(super) struct Queue {
    max_commands: usize,
    state: Mutex<State>,
    /// There is room again, or the queue is closed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    messages: VecDeque<Message>,
    /// How many of the messages send something to Discord.
    commands: usize,
    /// How many more the machine holds until Discord's limits allow them.
    in_machine: usize,
    /// The latest presence, if the thread has not taken it.
    presence: Option<Command>,
    presence_in_machine: bool,
    /// The presence that was requested last.
    last_presence: Option<Command>,
    is_closed: bool,
}

/// Why a message is refused. The number is that of the queued commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Closed,
    Full(usize),
    TimedOut(usize),
}

impl Queue {
    pub(super) fn new(max_commands: usize) -> Self {
        Self {
            max_commands,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Queues a command. If the queue is full, waits for room until `deadline`, if there is one.
    pub(super) fn send(
        &self,
        command: Command,
        deadline: Option<Instant>,
    ) -> Result<(), (Command, Refusal)> {
        if command.is_presence() {
            let mut state = self.state.lock();
            if state.is_closed {
                return Err((command, Refusal::Closed));
            }
            state.last_presence = Some(command.clone());
            state.presence = Some(command);
            return Ok(());
        }
        match self.room(deadline) {
            Ok(mut state) => {
                state.commands += 1;
                state.messages.push_back(Message::Command(command));
                Ok(())
            }
            Err(refusal) => Err((command, refusal)),
        }
    }

    /// Queues a request for members.
    pub(super) fn request(&self, request: Box<Request>) -> Result<(), Refusal> {
        let mut state = self.room(None)?;
        state.commands += 1;
        state.messages.push_back(Message::RequestMembers(request));
        Ok(())
    }

    /// Queues a command that another shard had queued before, even if the queue is full.
    pub(super) fn hand_over(&self, command: Command) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Refusal::Closed);
        }
        state.commands += 1;
        state.messages.push_back(Message::Command(command));
        Ok(())
    }

    /// Queues a message that sends nothing; there is always room for it.
    pub(super) fn push(&self, message: Message) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Refusal::Closed);
        }
        state.messages.push_back(message);
        Ok(())
    }

    /// Waits for room for one more command.
    fn room(&self, deadline: Option<Instant>) -> Result<MutexGuard<'_, State>, Refusal> {
        let mut state = self.state.lock();
        loop {
            let waiting = state.waiting_commands();
            match deadline {
                _ if state.is_closed => return Err(Refusal::Closed),
                _ if waiting < self.max_commands => return Ok(state),
                None => return Err(Refusal::Full(waiting)),
                Some(deadline) if self.changed.wait_until(&mut state, deadline).timed_out() => {
                    return Err(Refusal::TimedOut(waiting));
                }
                Some(_) => {}
            }
        }
    }

    /// Takes all messages; the latest presence comes last.
    pub(super) fn take(&self) -> VecDeque<Message> {
        let mut state = self.state.lock();
        state.in_machine += mem::take(&mut state.commands);
        let mut messages = mem::take(&mut state.messages);
        messages.extend(state.presence.take().map(Message::Command));
        messages
    }

    /// Sets how many queued commands the machine holds, and whether it holds a presence.
    pub(super) fn set_in_machine(&self, count: usize, presence: bool) {
        let mut state = self.state.lock();
        state.presence_in_machine = presence;
        if mem::replace(&mut state.in_machine, count) > count {
            self.changed.notify_all();
        }
    }

    /// The number of queued commands, including a presence.
    pub(super) fn waiting_commands(&self) -> usize {
        let state = self.state.lock();
        state.waiting_commands()
            + usize::from(state.presence.is_some() || state.presence_in_machine)
    }

    /// The presence that was requested last.
    pub(super) fn last_presence(&self) -> Option<Command> {
        self.state.lock().last_presence.clone()
    }

    /// Sets the presence that counts as requested last, such as the one the shard starts with.
    pub(super) fn set_last_presence(&self, presence: Option<Command>) {
        self.state.lock().last_presence = presence;
    }

    /// Whether a stop is queued that the thread has not taken.
    pub(super) fn has_stop(&self) -> bool {
        let state = self.state.lock();
        let mut messages = state.messages.iter();
        messages.any(|message| matches!(message, Message::Stop(_)))
    }

    /// Closes the queue and returns the commands that the thread has not taken. Other messages stay
    /// for the thread.
    pub(super) fn abandon(&self) -> Vec<Command> {
        let mut state = self.state.lock();
        state.is_closed = true;
        let (mut kept, mut commands) = (VecDeque::new(), Vec::new());
        for message in mem::take(&mut state.messages) {
            match message {
                Message::Command(command) => commands.push(command),
                message => kept.push_back(message),
            }
        }
        state.messages = kept;
        state.commands = 0;
        self.changed.notify_all();
        commands
    }

    /// Closes the queue and returns the messages that the thread has not taken.
    pub(super) fn close(&self) -> VecDeque<Message> {
        let mut state = self.state.lock();
        state.is_closed = true;
        state.in_machine = 0;
        state.commands = 0;
        state.presence = None;
        state.presence_in_machine = false;
        self.changed.notify_all();
        mem::take(&mut state.messages)
    }
}

impl State {
    fn waiting_commands(&self) -> usize {
        self.commands + self.in_machine
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::protocol::{OnlineStatus, Presence};

    fn command(n: u32) -> Command {
        Command::raw(&json!({"op": 31, "d": n})).unwrap()
    }

    fn presence(status: OnlineStatus) -> Command {
        Command::presence(&Presence::new(status)).unwrap()
    }

    fn refused(queue: &Queue, command: &Command) -> Refusal {
        let (back, refusal) = queue.send(command.clone(), None).unwrap_err();
        assert_eq!(back, *command, "it is given back");
        refusal
    }

    #[test]
    fn it_is_full_until_the_machine_has_sent_some() {
        let queue = Queue::new(2);
        queue.send(command(1), None).unwrap();
        queue.send(command(2), None).unwrap();
        assert_eq!(refused(&queue, &command(3)), Refusal::Full(2));
        assert_eq!(queue.take().len(), 2);
        assert_eq!(
            refused(&queue, &command(3)),
            Refusal::Full(2),
            "the machine has them, and they still wait"
        );
        queue.set_in_machine(1, false);
        queue.send(command(3), None).unwrap();
        queue.push(Message::Probe).unwrap();
        queue.send(presence(OnlineStatus::Idle), None).unwrap();
        assert_eq!(
            queue.waiting_commands(),
            3,
            "with the presence, for which there is always room"
        );
    }

    #[test]
    fn of_presences_the_newest_waits() {
        let queue = Queue::new(1);
        for status in [OnlineStatus::Idle, OnlineStatus::Online] {
            queue.send(presence(status), None).unwrap();
        }
        let messages = queue.take();
        assert_eq!(messages.len(), 1);
        let Some(Message::Command(taken)) = messages.front() else {
            panic!("{messages:?}")
        };
        assert_eq!(taken.data()["status"], "online");
        assert_eq!(queue.last_presence().as_ref(), Some(taken));
    }

    #[test]
    fn whoever_waits_for_room_gets_it_or_learns_that_there_is_none() {
        let queue = Arc::new(Queue::new(1));
        queue.send(command(1), None).unwrap();
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(
            queue.send(command(2), Some(soon)).unwrap_err().1,
            Refusal::TimedOut(1)
        );
        let wait = |n| {
            let queue = Arc::clone(&queue);
            thread::spawn(move || {
                let late = Instant::now() + Duration::from_secs(60);
                queue
                    .send(command(n), Some(late))
                    .map_err(|(_, refusal)| refusal)
            })
        };

        let waiting = wait(3);
        queue.take();
        queue.set_in_machine(0, false);
        assert_eq!(waiting.join().unwrap(), Ok(()));
        let waiting = wait(4);
        assert_eq!(queue.close().len(), 1);
        assert_eq!(waiting.join().unwrap(), Err(Refusal::Closed));
        assert_eq!(
            refused(&queue, &presence(OnlineStatus::Idle)),
            Refusal::Closed
        );
    }
}
