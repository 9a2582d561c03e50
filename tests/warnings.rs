//! What a user is warned of, with the numbers.

mod common;

use common::{config, gateway, lines};
use log::LevelFilter;
use threadcord::{Plan, ShardManager};

#[test]
fn a_day_that_is_too_short_for_the_plan_is_told_up_front() {
    lines::keep(LevelFilter::Warn);
    let gateway = gateway()
        .session_starts(1000, 3, std::time::Duration::from_secs(3600))
        .start()
        .unwrap();
    let manager = ShardManager::start(config(&gateway).plan(Plan::Total(5))).unwrap();
    // It is said before the first shard connects, so it is there now.
    let warnings = lines::kept();
    assert!(
        warnings
            .iter()
            .any(|line| line.contains("5 shards") && line.contains("3 of 1000 IDENTIFYs")),
        "{warnings:?}"
    );
    drop(manager);
    gateway.assert_lawful();
}
