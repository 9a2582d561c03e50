//! What a user is warned of, with the numbers.

mod common;

use common::{config, gateway};
use log::{Level, LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use threadcord::{Plan, ShardManager};

struct Warnings(Mutex<Vec<String>>);

impl Log for Warnings {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.lock().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

static WARNINGS: Warnings = Warnings(Mutex::new(Vec::new()));

#[test]
fn a_day_that_is_too_short_for_the_plan_is_told_up_front() {
    log::set_logger(&WARNINGS).unwrap();
    log::set_max_level(LevelFilter::Warn);
    let gateway = gateway().session_starts(1000, 3, std::time::Duration::from_secs(3600)).start().unwrap();
    let manager = ShardManager::start(config(&gateway).plan(Plan::Total(5))).unwrap();
    // It is said before the first shard connects, so it is there now.
    let warnings = WARNINGS.0.lock().clone();
    assert!(
        warnings.iter().any(|line| line.contains("5 shards") && line.contains("3 of 1000 IDENTIFYs")),
        "{warnings:?}"
    );
    drop(manager);
    gateway.assert_lawful();
}
