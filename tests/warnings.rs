//! Warnings for the user, with the numbers.

mod common;

use std::time::Duration;

use common::{config, gateway, lines};
use log::LevelFilter;
use threadcord::sim::{self, Gateway};
use threadcord::{Plan, ShardManager};

/// The log lines of a manager with this plan until it is dropped.
fn warnings(gateway: &Gateway, plan: Plan) -> Vec<String> {
    let before = lines::kept().len();
    drop(ShardManager::start(config(gateway).plan(plan)).unwrap());
    gateway.assert_lawful();
    lines::kept().split_off(before)
}

#[test]
fn a_plan_that_the_limits_may_not_allow_is_told_up_front() {
    lines::keep(LevelFilter::Warn);
    let short = gateway().session_starts(1000, 3, Duration::from_secs(3600));
    let warnings_of = |gateway: sim::Builder, plan| warnings(&gateway.start().unwrap(), plan);
    let told = warnings_of(short, Plan::Total(5));
    let is_told = |line: &String| line.contains("5 shards") && line.contains("3 of 1000 IDENTIFYs");
    assert!(told.iter().any(is_told), "{told:?}");

    // Two processes without a shared limiter.
    let is_told = |line: &String| line.contains("a part of the shards");
    for (max_concurrency, is_unsafe) in [(1, true), (2, false)] {
        let gateway = gateway().shards(2).max_concurrency(max_concurrency);
        let told = warnings_of(gateway, Plan::bucket(0, 2));
        assert_eq!(told.iter().any(is_told), is_unsafe, "{told:?}");
    }
}
