//! A transport that has every message in memory, to measure the library without sockets.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};
use threadcord::transport::{Connector, Received, Settings, Transport, TransportError, Uri, Waker};
use threadcord::{Config, Intents, Plan, ShardId, ShardManager, Token};

use super::payload;

/// The events that every shard receives, and how many of them each may have received so far.
#[derive(Clone)]
pub(crate) struct Memory {
    /// Names and data.
    events: Arc<Vec<(String, String)>>,
    wanted: Arc<AtomicUsize>,
}

impl Memory {
    pub(crate) fn new() -> Self {
        let events = super::parts().into_iter();
        let events = events
            .filter(|(name, _)| name != "READY" && name != "RESUMED")
            .collect();
        Self {
            events: Arc::new(events),
            wanted: Arc::default(),
        }
    }

    /// A manager whose shards are ready.
    pub(crate) fn start(&self, shards: u32) -> ShardManager {
        let config = Config::new(
            Token::new("aaa.bbb.ccc").expect("a token"),
            Intents::empty(),
        )
        .gateway_url("ws://127.0.0.1:9")
        .limiter(Arc::new(threadcord::limit::Unlimited))
        .plan(Plan::Total(shards));
        let manager = ShardManager::start_with(config, |_| self.clone()).expect("the shards start");
        manager
            .wait_ready(std::time::Duration::from_secs(60))
            .expect("the shards become ready");
        manager
    }

    /// Lets each shard receive this many more events.
    pub(crate) fn say(&self, manager: &ShardManager, count: usize) {
        self.wanted.fetch_add(count, Ordering::Release);
        for shard in manager.handle().shards() {
            // A command wakes the shard.
            let command = threadcord::Command::soundboard_sounds(&[1]).expect("a command");
            shard.send(command).expect("the command is queued");
        }
    }
}

impl Connector for Memory {
    type Transport = Line;

    fn transport(&self, _shard: ShardId, _settings: Settings) -> io::Result<Line> {
        let (wake, woken) = bounded(1);
        Ok(Line {
            memory: self.clone(),
            waker: waker(wake),
            woken,
            step: 0,
            said: 0,
        })
    }
}

fn waker(wake: Sender<()>) -> Waker {
    Waker::new(move || {
        // If the channel is full, a wake-up is pending already.
        let _ = wake.try_send(());
    })
}

/// The connection of one shard.
pub(crate) struct Line {
    memory: Memory,
    waker: Waker,
    woken: Receiver<()>,
    /// 0: not open; 1: HELLO is next; 2: waits for IDENTIFY; 3: READY is next; 4: events.
    step: usize,
    said: usize,
}

impl Transport for Line {
    fn connect(&mut self, _url: &Uri, _deadline: Instant) -> Result<(), TransportError> {
        Ok(())
    }

    fn read(&mut self) -> Result<Received, TransportError> {
        let text = |text: &str| Ok(Received::Payload(text.to_owned().into()));
        match self.step {
            0 => self.step = 1,
            1 => {
                self.step = 2;
                return text(r#"{"op":10,"d":{"heartbeat_interval":3000000}}"#);
            }
            3 => {
                self.step = 4;
                let ready = r#"{"session_id":"s","resume_gateway_url":"","guilds":[]}"#;
                return text(&payload("READY", 1, ready));
            }
            4 if self.said < self.memory.wanted.load(Ordering::Acquire) => {
                let (name, data) = &self.memory.events[self.said % self.memory.events.len()];
                self.said += 1;
                let text = format!(
                    r#"{{"t":"{name}","s":{},"op":0,"d":{data}}}"#,
                    self.said + 1
                );
                return Ok(Received::Payload(text.into()));
            }
            _ => return Ok(Received::Nothing),
        }
        Ok(Received::Opened)
    }

    fn send(&mut self, _text: String) -> Result<(), TransportError> {
        Ok(())
    }

    fn send_secret(&mut self, _text: &str) -> Result<(), TransportError> {
        self.step = 3;
        Ok(())
    }

    fn written(&self) -> u64 {
        u64::MAX
    }

    fn wait(&mut self, until: Option<Instant>, reading: bool) -> Result<(), TransportError> {
        let has_more =
            reading && (self.step == 3 || self.said < self.memory.wanted.load(Ordering::Acquire));
        if !has_more && !self.waker.is_called() {
            // It does not matter whether it was woken or the deadline passed.
            let _ = match until {
                Some(until) => self.woken.recv_deadline(until).is_ok(),
                None => self.woken.recv().is_ok(),
            };
        }
        Ok(())
    }

    fn disconnect(&mut self, _code: Option<u16>, _deadline: Instant) {}

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}
