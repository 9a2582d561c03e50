//! How a shard's thread comes into being.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::thread::JoinHandle;
use std::time::SystemTime;

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::queue::Queue;
use super::status::Report;
use super::thread::Thread;
use super::{Context, Counters, Run, Shard, Shared};
use crate::clock;
use crate::config::ShardConfig;
use crate::delivery::Feed;
use crate::event::{Credit, Ledger};
use crate::protocol::{Command, Machine, Session};
use crate::transport::{Connector, Settings, Transport, Waker};

/// Where a run begins.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// The session to resume, unless it goes on from an earlier run.
    pub(crate) session: Option<Session>,
    pub(crate) presence: Option<Command>,
    /// An earlier run, which has stopped. Its session goes on from where it had got to, its events
    /// stay outstanding, and what it had not sent is sent.
    pub(crate) previous: Option<Shard>,
}

/// A shard that has no thread yet.
pub(crate) struct Prepared<C: Connector> {
    shard: Shard,
    /// What its thread will run.
    thread: Box<Thread<C>>,
    session: Option<Session>,
    /// The session goes on from an earlier run, of which events may be outstanding.
    is_continued: bool,
    previous: Option<Shard>,
}

/// A thread that waits for `start` to be dropped.
pub(crate) struct Spawned {
    /// `None` where something else than a thread of its own runs the shard.
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) start: Sender<()>,
}

/// The session of a run, and what counts its events.
struct Books {
    ledger: Arc<Ledger>,
    session: Option<Session>,
    /// It goes on from an earlier run, of which events may be outstanding.
    is_continued: bool,
}

impl Shard {
    /// All of a shard but its thread. Fails if the operating system has no descriptor left.
    pub(crate) fn prepare<C: Connector>(
        run: Run,
        beginning: Beginning,
        config: ShardConfig,
        context: Arc<Context<C>>,
        feed: Arc<Feed>,
    ) -> io::Result<Prepared<C>> {
        let settings = Settings::new(config.compression, config.max_payload);
        let transport = context.connector.transport(run.shard, settings)?;
        let waker = transport.waker();
        let counters = context.counters.of(run.shard);
        let books = beginning.books(&config, &waker, &counters);
        let Beginning {
            presence, previous, ..
        } = beginning;

        let machine = Machine::new(
            clock::now(),
            run.shard,
            config.identity(&context.token),
            context.timing.clone(),
            books.session,
            fastrand::u64(..),
        )
        .with_max_short_sessions(config.max_short_sessions)
        .with_confirmation(context.store.is_some())
        .with_session_starts(clock::now(), context.session_starts)
        .with_presence(presence.clone());
        let session = machine.session().cloned();
        let shared = Shared::new(run, &config, waker, books.ledger, counters);
        shared.queue.set_last_presence(presence);
        let shard = Self(Arc::clone(&shared));
        Ok(Prepared {
            shard,
            thread: Thread::new(machine, transport, shared, config, context, feed),
            session,
            is_continued: books.is_continued,
            previous,
        })
    }
}

impl<C: Connector> Prepared<C> {
    /// Gives the shard a thread, which waits for its owner to be ready. From now on it has the session
    /// of an earlier run, and that one's commands.
    pub(crate) fn spawn(
        self,
        spawn: impl FnOnce(Box<Thread<C>>) -> io::Result<Spawned>,
    ) -> io::Result<(Shard, Spawned)> {
        let Self { shard, thread, .. } = self;
        let spawned = spawn(thread)?;
        let ledger = &shard.0.ledger;
        match self.session {
            Some(_) if self.is_continued => {}
            Some(session) => {
                let mark = session.sequence;
                ledger.begin(session, mark);
            }
            None => ledger.end(),
        }
        for command in self.previous.iter().flat_map(Shard::take_unsent) {
            // The queue takes everything until the thread has started.
            let _ = shard.0.queue.hand_over(command);
        }
        Ok((shard, spawned))
    }
}

impl<C: Connector + 'static> Thread<C> {
    /// Starts an operating system's thread. Fails if there is none left.
    pub(crate) fn spawn(self: Box<Self>) -> io::Result<Spawned> {
        let (start, started) = crossbeam_channel::bounded::<()>(0);
        let thread = std::thread::Builder::new()
            .name(format!("shard-{}", self.id().shard))
            .stack_size(self.stack_size())
            .spawn(move || {
                // Nobody sends: it ends when the other side is dropped.
                let _ = started.recv();
                self.run();
            })?;
        Ok(Spawned {
            thread: Some(thread),
            start,
        })
    }
}

impl Beginning {
    /// Those of the previous run, if there is one with a session and no other session is given.
    fn books(&self, config: &ShardConfig, waker: &Waker, counters: &Counters) -> Books {
        let waker = waker.clone();
        let wake = move || {
            waker.wake();
        };
        let (events, bytes) = (config.max_outstanding_events, config.max_outstanding_bytes);
        let previous = self.previous.as_ref().filter(|_| self.session.is_none());
        if let Some(previous) = previous
            && let Some(session) = previous.0.ledger.resume(events, bytes, wake.clone())
        {
            // Something was heard of it until the run stopped.
            let heard_at = clock::wall().checked_sub(previous.status().time_in_state);
            let heard_at = heard_at.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
            return Books {
                ledger: Arc::clone(&previous.0.ledger),
                session: Some(Session {
                    saved_at: heard_at.map_or(0, |at| at.as_secs()),
                    ..session
                }),
                is_continued: true,
            };
        }
        Books {
            ledger: Ledger::new(Credit::new(events, bytes), counters.times(), wake),
            session: self.session.clone(),
            is_continued: false,
        }
    }
}

impl Shared {
    fn new(
        run: Run,
        config: &ShardConfig,
        waker: Waker,
        ledger: Arc<Ledger>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        Arc::new(Self {
            run,
            intents: AtomicU64::new(config.intents.bits()),
            waker,
            queue: Queue::new(config.max_waiting_commands),
            requests: AtomicU32::new(0),
            resolving: AtomicBool::new(false),
            report: Mutex::new(Report::new(clock::now())),
            read_up_to: Mutex::default(),
            probes: AtomicBool::new(false),
            counters,
            unsent: Mutex::default(),
            ledger,
        })
    }
}
