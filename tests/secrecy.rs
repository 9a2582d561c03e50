//! The token is in no log line, at any level.

mod common;

use common::{config, eventually, gateway, lines, ready};
use log::LevelFilter;
use threadcord::sim::Fault;
use threadcord::{Compression, ShardId};

#[test]
fn no_line_shows_the_token() {
    lines::keep(LevelFilter::Trace);
    let gateway = gateway().guilds(1).tls(true).start().unwrap();
    let manager = ready(config(&gateway).compression(Compression::None));
    gateway.inject(ShardId::ONE, Fault::Cut);
    eventually("it resumes", || {
        manager.shard(ShardId::ONE).unwrap().status().resumes == 1
    });
    manager.handle().rest().current_application().unwrap();
    manager.close();
    let lines = lines::kept();
    let of_ours: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("threadcord"))
        .collect();
    assert!(of_ours.len() > 5, "the logger sees this crate: {of_ours:?}");
    // The gateway's own end of the connection shows what it received; that is another program's in
    // real life.
    let of_this_side = |line: &&String| !line.contains("Received message {\"d\"");
    let telling: Vec<_> = lines
        .iter()
        .filter(of_this_side)
        .filter(|line| line.contains(gateway.token()))
        .collect();
    assert!(telling.is_empty(), "{telling:#?}");
}
