//! Discord inside a loop that must not block, such as that of a game or a user interface. Each
//! frame takes only as many events as it has time for.

mod common;

use std::iter;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use threadcord::{Error, Event, EventKind, Intents, ShardManager};

const FRAME: Duration = Duration::from_millis(16);

/// The maximum number of events per frame. The others wait for the next frame. If too many wait,
/// the shard stops reading until they are taken; nothing is lost.
const EVENTS_PER_FRAME: usize = 100;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[derive(Deserialize)]
struct Message {
    content: String,
}

/// The game.
#[derive(Default)]
struct World {
    frames: u64,
    messages: u64,
    last: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Release))?;
    let intents = Intents::GUILD_MESSAGES | Intents::MESSAGE_CONTENT;
    let manager = ShardManager::start(common::config(intents)?)?;

    let (events, mut world) = (manager.events(), World::default());
    while !INTERRUPTED.load(Ordering::Acquire) {
        let next_frame = Instant::now() + FRAME;
        // `try_recv` never blocks.
        for event in iter::from_fn(|| events.try_recv().ok()).take(EVENTS_PER_FRAME) {
            world.handle(&event)?;
        }
        world.draw();
        thread::sleep(next_frame.saturating_duration_since(Instant::now()));
    }

    let sessions = manager.suspend();
    println!(
        "\n{} frames; {} sessions could be resumed",
        world.frames,
        sessions.len()
    );
    Ok(())
}

impl World {
    fn handle(&mut self, event: &Event) -> Result<(), Error> {
        match event.kind() {
            EventKind::Dispatch(dispatch) if dispatch.name() == "MESSAGE_CREATE" => {
                if let Ok(Message { content }) = dispatch.decode() {
                    self.messages += 1;
                    self.last = content;
                }
            }
            // A wrong token, for example: the library cannot fix it.
            EventKind::Stopped(reason) if reason.is_fatal() => {
                return Err(Error::Stopped {
                    shard: event.shard(),
                    reason: *reason,
                });
            }
            _ => {}
        }
        Ok(())
    }

    fn draw(&mut self) {
        self.frames += 1;
        if self.frames.is_multiple_of(30) {
            println!(
                "frame {}: {} messages, the last was {:?}",
                self.frames, self.messages, self.last
            );
        }
    }
}
