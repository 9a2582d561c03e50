//! What a program logs, kept for a test to read. A logger belongs to the process: one test a file.

use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;

struct Lines(Mutex<Vec<String>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.0.lock().push(format!(
            "{} {} {}",
            record.level(),
            record.target(),
            record.args()
        ));
    }

    fn flush(&self) {}
}

/// Keeps every line from now on, of this level and above it.
pub fn keep(level: LevelFilter) {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(level);
}

/// The lines so far.
pub fn kept() -> Vec<String> {
    LINES.0.lock().clone()
}
