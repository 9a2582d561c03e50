//! A fault that is known and not mended yet. A logger belongs to the process: one test a file.

mod common;

use std::sync::Arc;

use common::{PATIENCE, config, gateway, in_time, ready};
use parking_lot::Mutex;
use threadcord::Plan;

#[test]
#[ignore = "B3: log lines are written while the manager's lock is held"]
fn a_logger_may_call_a_handle() {
    struct Calling(Mutex<Option<threadcord::Handle>>);
    impl log::Log for Calling {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }
        fn log(&self, _: &log::Record<'_>) {
            let handle = self.0.lock().clone();
            if let Some(handle) = handle {
                let _ = handle.shards();
            }
        }
        fn flush(&self) {}
    }
    static LOGGER: Calling = Calling(Mutex::new(None));
    log::set_logger(&LOGGER).unwrap();
    log::set_max_level(log::LevelFilter::Info);
    let gateway = gateway().shards(1).max_concurrency(4).start().unwrap();
    let manager = Arc::new(ready(config(&gateway)));
    *LOGGER.0.lock() = Some(manager.handle());
    let reshard = manager.reshard(&Plan::Total(2)).unwrap();
    let cancelling = Arc::clone(&manager);
    in_time("it is cancelled", move || {
        assert!(cancelling.cancel_reshard());
        let _ = reshard.wait(PATIENCE);
    });
}
