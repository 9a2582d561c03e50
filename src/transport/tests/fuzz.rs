//! Fuzzes the whole path of incoming data: from the bytes of a websocket to the output of the state
//! machine.
//!
//! `tests/corpus` contains what Discord would send, recorded from the simulator. Each file has a
//! byte for the compression, a byte for the size of the pieces in which it is read, and the frames.
//! The test reads changed copies of the files. `THREADCORD_FUZZ_ROUNDS` sets the number of copies
//! of each file, and `THREADCORD_FUZZ_SEED` repeats a run.
#![allow(
    clippy::disallowed_methods,
    reason = "made-up instants count from some real one"
)]

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use tungstenite::WebSocket;
use tungstenite::protocol::Role;

use super::super::inflate::{Compression, Inflater};
use super::super::websocket::{Socket, settings};
use super::super::{Received, TransportError};
use crate::environment;
use crate::intents::Intents;
use crate::protocol::{Disconnect, Identity, Input, Machine, Output, ShardState};
use crate::shard_id::ShardId;
use crate::timing::Timing;
use crate::token::Token;

const MAX_PAYLOAD: usize = 1 << 20;

/// The most outputs of a machine between two waits. An input has few messages, so more means that
/// the machine never waits.
const MAX_OUTPUTS: usize = 10_000;

/// A peer that has sent all its bytes, which are read in pieces of one size.
struct Peer<'a> {
    bytes: &'a [u8],
    piece: usize,
}

impl Read for Peer<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let length = self.piece.min(buffer.len()).min(self.bytes.len());
        let (now, later) = self.bytes.split_at(length);
        buffer[..length].copy_from_slice(now);
        self.bytes = later;
        Ok(length)
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A state machine and its clock.
struct Shard {
    machine: Machine,
    now: Instant,
    permits: usize,
    identifies: usize,
    sends: Vec<Instant>,
    delivered: u64,
}

impl Shard {
    fn new(compression: Compression) -> Self {
        let identity = Identity {
            token: Token::new("a.b.c").unwrap(),
            intents: Intents::all(),
            library: "fuzz".into(),
            large_threshold: 50,
            compress: compression == Compression::Payload,
            presence: None,
        };

        let now = Instant::now();
        let machine = Machine::new(now, ShardId::ONE, identity, Timing::default(), None, 7);
        Self {
            machine,
            now,
            permits: 0,
            identifies: 0,
            sends: Vec::new(),
            delivered: 0,
        }
    }

    fn handle(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        self.drive();
    }

    /// Carries out the machine's outputs until it waits, and grants the permits that it requests.
    fn drive(&mut self) {
        let mut asks = false;
        for _ in 0..MAX_OUTPUTS {
            match self.machine.poll(self.now) {
                Output::Wait(_) | Output::Stop(_) if asks => {
                    asks = false;
                    self.permits += 1;
                    self.machine.handle(self.now, Input::Permit);
                }
                // Skips a pause.
                Output::Wait(Some((until, _))) if self.machine.stage() == ShardState::Waiting => {
                    self.now = until;
                }
                // The peer has sent everything.
                Output::Wait(Some((until, _))) if until <= self.now => {
                    self.machine.handle(self.now, Input::Drained);
                }
                Output::Wait(_) => {
                    assert!(
                        self.identifies <= self.permits,
                        "an IDENTIFY without a permit"
                    );
                    return;
                }
                Output::Stop(_) => return,
                Output::RequestPermit | Output::RequestConfirmation => asks = true,
                Output::Identify(_) => {
                    self.identifies += 1;
                    self.sends.push(self.now);
                }
                Output::Send(_) | Output::Resume(_) | Output::SendCommand(_) => {
                    self.sends.push(self.now);
                }
                Output::Deliver(payload) | Output::DeliverMembers(_, payload) => {
                    let sequence = payload
                        .sequence()
                        .expect("what is delivered has a sequence");
                    let is_resumed = payload.name().is_some_and(|name| name == "RESUMED");
                    let is_new = payload.name().is_some_and(|name| name == "READY");
                    assert!(
                        is_resumed || is_new || sequence > self.delivered,
                        "{sequence} after {}",
                        self.delivered
                    );
                    self.delivered = if is_new {
                        sequence
                    } else {
                        self.delivered.max(sequence)
                    };
                }
                Output::Connect(_) => {
                    self.sends.clear();
                    self.machine.handle(self.now, Input::Connected);
                }
                Output::FailMembers(..)
                | Output::Skip(_)
                | Output::Report(_)
                | Output::Disconnect(_) => {}
            }
        }
        panic!("it never waits");
    }
}

/// Lets a shard read an input: a byte for the compression, a byte for the size of the pieces, and
/// the bytes that the peer sends.
fn read(input: &[u8]) {
    let [kind, piece, bytes @ ..] = input else {
        return;
    };
    let compression = match kind % 4 {
        0 => Compression::None,
        1 => Compression::Payload,
        2 => Compression::ZlibStream,
        _ => Compression::ZstdStream,
    };

    let peer = Peer {
        bytes,
        piece: usize::from(*piece).max(1),
    };
    let websocket = WebSocket::from_raw_socket(peer, Role::Client, Some(settings(MAX_PAYLOAD)));
    let mut socket = Socket::new(websocket, Inflater::new(compression, MAX_PAYLOAD));
    let mut shard = Shard::new(compression);
    shard.drive();

    loop {
        shard.now += Duration::from_millis(10);
        match socket.read() {
            Ok(Received::Payload(payload)) => {
                assert!(
                    payload.len() <= MAX_PAYLOAD,
                    "a payload of {} bytes",
                    payload.len()
                );
                shard.handle(Input::Payload(payload));
            }
            Ok(Received::Partial | Received::Opened) => {}
            Ok(Received::Closed { code, .. }) => return shard.handle(Input::Closed(code)),
            Ok(Received::Nothing) => return shard.handle(Input::Drained),
            Err(error) => {
                let reason = if TransportError::is_malformed(&error) {
                    Disconnect::Malformed
                } else {
                    Disconnect::ConnectionLost
                };
                return shard.handle(Input::Failed(reason));
            }
        }
        let window = shard
            .now
            .checked_sub(Duration::from_secs(60))
            .unwrap_or(shard.now);
        shard.sends.retain(|at| *at > window);
        assert!(shard.sends.len() <= 120, "over the limit of sends");
    }
}

/// Changes an input in one place. It may be crossed with one of the `others`.
fn change(input: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut fastrand::Rng) {
    let at = rng.usize(..input.len().max(1)).min(input.len());
    let end = (at + rng.usize(..64)).min(input.len());
    match rng.u32(..7) {
        0 => input
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte ^= 1 << rng.u32(..8)),
        1 => input
            .iter_mut()
            .skip(at)
            .take(1)
            .for_each(|byte| *byte = rng.u8(..)),
        2 => drop(input.drain(at..end)),
        3 => {
            let again = input[at..end].to_vec();
            drop(input.splice(at..at, again));
        }
        4 => input.truncate(at),
        5 => {
            let random: Vec<u8> = (0..rng.usize(..16)).map(|_| rng.u8(..)).collect();
            drop(input.splice(at..at, random));
        }
        _ => {
            let other = &others[rng.usize(..others.len())];
            input.truncate(at);
            input.extend(&other[rng.usize(..other.len())..]);
        }
    }
}

#[test]
fn no_change_to_what_discord_sends_does_harm() {
    let rounds = environment::number("THREADCORD_FUZZ_ROUNDS").unwrap_or(3000);
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files: Vec<_> = corpus
        .read_dir()
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();

    // In the same order everywhere, so that a seed always has the same effect.
    files.sort();
    let corpus: Vec<Vec<u8>> = files
        .iter()
        .map(|file| std::fs::read(file).unwrap())
        .collect();
    assert!(corpus.len() >= 9, "the corpus is there");
    let seed = environment::number("THREADCORD_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));

    // The test harness shows it if the test fails.
    println!("THREADCORD_FUZZ_ROUNDS={rounds} THREADCORD_FUZZ_SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for input in &corpus {
        read(input);
        for _ in 0..rounds {
            let mut input = input.clone();
            for _ in 0..=rng.u32(..4) {
                change(&mut input, &corpus, &mut rng);
            }
            read(&input);
        }
    }
}
