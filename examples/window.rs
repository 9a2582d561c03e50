//! A window that shows events as they arrive: each is a falling dot, with one column for each shard
//! and event name. The drawing loop never waits for Discord, not even while the bot starts.
//!
//! ```sh
//! cargo run --example window        # Escape closes it
//! cargo run --example window 600    # so do 600 frames
//! ```

mod common;

use std::collections::HashMap;
use std::error::Error;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::iter;
use std::time::{Duration, Instant};

use minifb::{Key, Window, WindowOptions};
use threadcord::{Event, Intents, ShardManager, Starting};

const WIDTH: usize = 640;
const HEIGHT: usize = 360;

/// The side length of a dot in pixels.
const DOT: usize = 4;

/// The maximum number of events per frame. The others wait for the next frame.
const EVENTS_PER_FRAME: usize = 200;

fn main() -> Result<(), Box<dyn Error>> {
    let frames = match std::env::args().nth(1) {
        Some(frames) => frames.parse()?,
        None => u64::MAX,
    };
    let intents = Intents::all() - Intents::PRIVILEGED;
    let mut bot = Bot::Starting(ShardManager::start_in_background(common::config(intents)?)?);

    let mut window = Window::new("starting", WIDTH, HEIGHT, WindowOptions::default())?;
    window.set_target_fps(60);
    let mut rain = Rain::default();
    let (mut shown, mut longest) = (0, Duration::ZERO);
    while shown < frames && window.is_open() && !window.is_key_down(Key::Escape) {
        let start = Instant::now();
        bot = bot.poll()?;
        rain.fall();
        for event in bot.events().take(EVENTS_PER_FRAME) {
            rain.add(&event);
        }
        // The window waits for the next frame here; that time is not counted.
        longest = longest.max(start.elapsed());
        window.set_title(&format!("{} events: {}", rain.count, rain.last));
        window.update_with_buffer(&rain.pixels, WIDTH, HEIGHT)?;
        shown += 1;
    }

    println!(
        "{} events; the longest frame took {longest:.1?}",
        rain.count
    );
    if let Bot::Running(manager) = bot {
        manager.suspend();
    }
    Ok(())
}

enum Bot {
    Starting(Starting),
    Running(ShardManager),
}

impl Bot {
    /// Never blocks. Fails if the bot cannot start, or has stopped for good.
    fn poll(self) -> Result<Self, threadcord::Error> {
        match self {
            Self::Starting(mut starting) => Ok(match starting.poll() {
                Some(started) => Self::Running(started?),
                None => Self::Starting(starting),
            }),
            Self::Running(manager) => manager.check().map(|()| Self::Running(manager)),
        }
    }

    /// The events that are waiting.
    fn events(&self) -> impl Iterator<Item = Event> {
        let events = match self {
            Self::Starting(_) => None,
            Self::Running(manager) => Some(manager.events()),
        };
        iter::from_fn(move || events.as_ref()?.try_recv().ok())
    }
}

/// The falling dots.
struct Rain {
    pixels: Vec<u32>,
    count: u64,
    last: String,
    /// How many dots each column has received in this frame.
    taken: HashMap<usize, usize>,
}

impl Default for Rain {
    fn default() -> Self {
        Self {
            pixels: vec![0; WIDTH * HEIGHT],
            count: 0,
            last: "none yet".into(),
            taken: HashMap::new(),
        }
    }
}

impl Rain {
    fn fall(&mut self) {
        self.taken.clear();
        let lines = (HEIGHT - 1) * WIDTH;
        self.pixels.copy_within(..lines, WIDTH);
        self.pixels[..WIDTH].fill(0);
    }

    fn add(&mut self, event: &Event) {
        let mut hasher = DefaultHasher::new();
        event.name().hash(&mut hasher);
        let color = hasher.finish();
        event.shard().hash(&mut hasher);
        let columns = WIDTH / DOT;
        let column = usize::try_from(hasher.finish() % columns as u64).unwrap_or_default();

        // Several in one frame lie below each other.
        let row = self.taken.entry(column).or_default();
        let top = (*row * DOT).min(HEIGHT - DOT);
        *row += 1;
        for line in top..top + DOT {
            let start = line * WIDTH + column * DOT;
            // The color is never too dark to see.
            let color = 0x0040_4040 | u32::try_from(color % 0x0100_0000).unwrap_or_default();
            self.pixels[start..start + DOT - 1].fill(color);
        }
        self.count += 1;
        event.name().clone_into(&mut self.last);
    }
}
