//! A fault that is known and not mended yet. A logger belongs to the process: one test a file.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{config, gateway, in_time, ready};
use threadcord::ShardId;
use threadcord::sim::Fault;

#[test]
#[ignore = "B2: a second panic while a shard's thread ends leaves nobody to say that it has"]
fn a_callback_that_panics_while_a_shard_ends_does_not_hang_the_close() {
    struct Exploding(AtomicBool);
    impl log::Log for Exploding {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, record: &log::Record<'_>) {
            let text = record.args().to_string();
            let is_of_shard = record.target().starts_with("threadcord::shard");
            assert!(
                !(is_of_shard && self.0.load(Ordering::SeqCst)),
                "a logger whose pipe is closed: {text}"
            );
        }
        fn flush(&self) {}
    }
    static LOGGER: Exploding = Exploding(AtomicBool::new(false));
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    LOGGER.0.store(true, Ordering::SeqCst);
    gateway.inject(ShardId::ONE, Fault::Cut);
    in_time("close returns", move || manager.close());
}
