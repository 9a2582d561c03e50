//! Keeps log lines for a test to read. A logger belongs to the process, so that a file that uses
//! this can have only one test.

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

/// Keeps every line from now on that has this level or a higher one.
pub fn keep(level: LevelFilter) {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(level);
}

/// The lines so far.
pub fn kept() -> Vec<String> {
    LINES.0.lock().clone()
}
