//! A logger that panics, for example because its pipe is closed. (A logger belongs to the process:
//! this file has one test.)

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{config, eventually, gateway, in_time, ready};
use threadcord::sim::Fault;
use threadcord::{ShardId, ShardState, StopReason};

struct Exploding(AtomicBool);

impl log::Log for Exploding {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let is_ours = record.target().starts_with("threadcord") && !record.target().contains("sim");
        assert!(
            !(is_ours && self.0.load(Ordering::SeqCst)),
            "a logger whose pipe is closed: {}",
            record.args()
        );
    }

    fn flush(&self) {}
}

#[test]
fn a_logger_that_panics_stops_its_shard_and_hangs_nothing() {
    static LOGGER: Exploding = Exploding(AtomicBool::new(false));
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let shard = manager.handle().shard(ShardId::ONE).unwrap();
    LOGGER.0.store(true, Ordering::SeqCst);
    gateway.inject(ShardId::ONE, Fault::Cut);
    let panicked = ShardState::Stopped(StopReason::Panicked);
    eventually("its thread ends", || shard.status().state == panicked);
    // Both the thread that does what is asked and the shards' own log on the way.
    in_time("close returns", move || manager.close());
}
