//! How a shard's thread comes into being.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::thread::JoinHandle;
use std::time::{Instant, SystemTime};

use crossbeam_channel::Sender;
use parking_lot::Mutex;

use super::queue::Queue;
use super::thread::{self, Thread};
use super::{Context, Run, Shard, Shared, Status};
use crate::config::Config;
use crate::delivery::Outlet;
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

/// A shard whose thread waits for `start` to be dropped.
pub(crate) struct Spawned {
    pub(crate) shard: Shard,
    pub(crate) thread: JoinHandle<()>,
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
    /// Starts the thread of a shard, which waits for its owner to be ready. Fails if the operating
    /// system has no thread or descriptor left.
    pub(crate) fn spawn<C: Connector + 'static>(
        run: Run,
        beginning: Beginning,
        config: Arc<Config>,
        context: Arc<Context<C>>,
        outlet: Arc<Outlet>,
    ) -> io::Result<Spawned> {
        let settings = Settings::new(config.compression, config.max_payload);
        let transport = context.connector.transport(run.shard, settings)?;
        let waker = transport.waker();
        let books = beginning.books(&config, &waker);
        let Beginning {
            presence, previous, ..
        } = beginning;

        let machine = Machine::new(
            Instant::now(),
            run.shard,
            config.identity(),
            config.timing.clone(),
            books.session,
            fastrand::u64(..),
        )
        .with_most_short_sessions(config.most_short_sessions)
        .with_session_starts(Instant::now(), context.session_starts)
        .with_presence(presence.clone());
        let session = machine.session().cloned();
        let shared = Shared::new(run, &config, waker, books.ledger);
        shared.queue.set_last_presence(presence);
        let shard = Self(Arc::clone(&shared));

        let builder = std::thread::Builder::new()
            .name(format!("shard-{}", run.shard))
            .stack_size(config.stack_size);
        // Boxed, so that on their way into the thread they do not pass over its stack time and
        // again: what that touches once stays.
        let (machine, transport) = (Box::new(machine), Box::new(transport));
        let (start, started) = crossbeam_channel::bounded::<()>(0);
        let thread = builder.spawn(move || {
            // Nobody sends: it ends when the other side is dropped.
            let _ = started.recv();
            thread::run(Thread::new(
                machine, transport, shared, &config, &context, &outlet,
            ));
        })?;

        shard.take_up(session, books.is_continued, previous.as_ref());
        Ok(Spawned {
            shard,
            thread,
            start,
        })
    }

    /// Goes on from where a session is, and with the commands of an earlier run.
    fn take_up(&self, session: Option<Session>, is_continued: bool, previous: Option<&Self>) {
        match session {
            Some(_) if is_continued => {}
            Some(session) => {
                let mark = session.sequence;
                self.0.ledger.begin(session, mark);
            }
            None => self.0.ledger.end(),
        }
        for command in previous.into_iter().flat_map(Self::take_unsent) {
            // The queue takes everything until the thread has started.
            let _ = self.0.queue.hand_over(command);
        }
    }
}

impl Beginning {
    /// Those of the previous run, if there is one with a session and no other session is given.
    fn books(&self, config: &Config, waker: &Waker) -> Books {
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
            let stopped = previous.status().since.elapsed();
            let heard_at = SystemTime::now().checked_sub(stopped);
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
            ledger: Ledger::new(Credit::new(events, bytes), wake),
            session: self.session.clone(),
            is_continued: false,
        }
    }
}

impl Shared {
    fn new(run: Run, config: &Config, waker: Waker, ledger: Arc<Ledger>) -> Arc<Self> {
        Arc::new(Self {
            run,
            intents: AtomicU64::new(config.intents.bits()),
            waker,
            queue: Queue::new(config.max_waiting_commands),
            nonce: fastrand::u32(..),
            requests: AtomicU32::new(0),
            resolving: AtomicBool::new(false),
            status: Mutex::new(Status::new(Instant::now())),
            read_up_to: Mutex::default(),
            probes: AtomicBool::new(false),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            unsent: Mutex::default(),
            ledger,
        })
    }
}
