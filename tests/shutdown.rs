//! Closing leaves nothing behind: no thread, no descriptor.
#![cfg(target_os = "linux")]

mod common;

use std::sync::Arc;

use common::{config, eventually, footprint, gateway, ready};
use threadcord::limit::{IdentifyLimiter, Limits, ReleaseAfter, SessionLimit};
use threadcord::{ShardId, Timing};

// The only test of this file, since it counts the threads and descriptors of the process.
#[test]
fn no_thread_and_no_descriptor_is_left() {
    let (mut kept, mut kept_shards) = (Vec::new(), Vec::new());
    let mut round = || {
        let gateway = gateway()
            .shards(16)
            .max_concurrency(8)
            .guilds(32)
            .tls(true)
            .start()
            .unwrap();
        let before = footprint();
        let manager = ready(config(&gateway));
        let (threads, descriptors) = footprint();
        // 16 threads and the limit's, three descriptors a shard and the gateway's end of each
        // socket.
        assert!(
            (16..=18).contains(&(threads - before.0)),
            "{threads} threads, {} before",
            before.0
        );
        assert!(
            (64..=66).contains(&(descriptors - before.1)),
            "{descriptors} descriptors, {} before",
            before.1
        );
        // Events and shard handles that a program keeps must not keep resources of ended shards.
        kept.extend(manager.events().receiver().try_iter().take(50));
        kept_shards.extend(manager.handle().shards());
        manager.close();
        drop(manager);
        gateway.assert_lawful();
    };
    // The first round allocates what the libraries keep forever.
    round();
    let before = footprint();
    for _ in 0..3 {
        round();
    }
    // No more than before. The count before may include a thread of the first round that is already
    // joined, because the system lists it for a moment longer. Three rounds with a leak would leave
    // more than that.
    let is_as_before = || {
        let (threads, descriptors) = footprint();
        threads <= before.0 && descriptors <= before.1
    };
    eventually("all is as before", is_as_before);

    let limit = Arc::new(SessionLimit::with_timing(
        Limits::default(),
        &Timing::scaled(0.01),
        ReleaseAfter::Identify,
    ));
    let mut permit = limit.enter(ShardId::ONE).unwrap();
    permit.used();
    let waiting = limit.request(ShardId::ONE, Box::new(|| {}));
    drop(limit);
    drop((permit, waiting));
    eventually("the limit's thread has ended", is_as_before);
}
