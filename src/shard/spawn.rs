//! Creates a shard and starts its thread.

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

/// What a run of a shard starts with.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    /// The session to resume, unless that comes from `previous`.
    pub(crate) session: Option<Session>,
    pub(crate) presence: Option<Command>,
    /// An earlier run, which has stopped. Its session continues where that run stopped, its events
    /// stay outstanding, and its unsent commands are sent.
    pub(crate) previous: Option<Shard>,
}

/// A shard that does not have a thread yet.
pub(crate) struct Prepared<C: Connector> {
    shard: Shard,
    /// The work that its thread will run.
    thread: Box<Thread<C>>,
    session: Option<Session>,
    /// Whether the session continues from an earlier run, whose events may still be outstanding.
    is_continued: bool,
    previous: Option<Shard>,
}

/// A started thread, which waits until `start` is dropped.
pub(crate) struct Spawned {
    /// `None` if the shard does not run on its own thread.
    pub(crate) thread: Option<JoinHandle<()>>,
    pub(crate) start: Sender<()>,
}

/// The session of a run, and the ledger that counts its events.
struct Books {
    ledger: Arc<Ledger>,
    session: Option<Session>,
    /// Whether the session continues from an earlier run, whose events may still be outstanding.
    is_continued: bool,
}

impl Shard {
    /// Creates a shard without its thread. Fails if the operating system has no file descriptor
    /// left.
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
    /// Gives the shard a thread, which waits until the owner is ready. The shard takes over the
    /// session and the unsent commands of an earlier run.
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
            // The queue accepts every command until the thread has started.
            let _ = shard.0.queue.hand_over(command);
        }
        Ok((shard, spawned))
    }
}

impl<C: Connector + 'static> Thread<C> {
    /// Starts a thread of the operating system. Fails if that cannot create another one.
    pub(crate) fn spawn(self: Box<Self>) -> io::Result<Spawned> {
        let (start, started) = crossbeam_channel::bounded::<()>(0);
        let thread = std::thread::Builder::new()
            .name(format!("shard-{}", self.id().shard))
            .stack_size(self.stack_size())
            .spawn(move || {
                // Nothing is ever sent: this returns when the sender is dropped.
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
    /// The books of the previous run if it has a session and no other session is given; otherwise
    /// new ones.
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
            // The session counts as alive until the run stopped.
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
