//! What the benches measure on: events as the simulator brings them forth, in its usual mix.

use std::collections::BTreeSet;
use std::time::Duration;

use threadcord::{Config, Dispatch, Intents, ShardManager, Timing, Token, sim};

/// Some thousand events of the usual mix, and at least one of each kind, as they come over the wire.
pub(crate) fn events() -> Vec<String> {
    let usual = sim::Gateway::builder().guilds(20).members(250).activity(4000.0).time_scale(0.01);
    let all = sim::Gateway::builder().guilds(2).activity(1000.0).time_scale(0.01);
    let mut events = collect(usual.seed(1), |events, _| events.len() >= 4000);
    let each = all.mix(sim::EVENT_NAMES.map(|name| (name, 1))).seed(1);
    events.extend(collect(each, |_, names| sim::EVENT_NAMES.iter().all(|name| names.contains(*name))));
    events
}

fn collect(gateway: sim::Builder, is_enough: impl Fn(&[String], &BTreeSet<String>) -> bool) -> Vec<String> {
    let gateway = gateway.heartbeat_interval(Duration::from_secs(500)).start().expect("the simulator starts");
    let config = Config::new(Token::new(gateway.token()).expect("a token"), Intents::all())
        .rest_url(gateway.rest_url())
        .timing(Timing::scaled(0.01));
    let manager = ShardManager::start(config).expect("the shard starts");
    let (mut events, mut names) = (Vec::new(), BTreeSet::new());
    for event in manager.events() {
        let Some(dispatch) = event.dispatch() else { continue };
        names.insert(dispatch.name().to_string());
        // In the order in which Discord writes it.
        let data = String::from_utf8_lossy(dispatch.data());
        events.push(format!(r#"{{"t":"{}","s":{},"op":0,"d":{data}}}"#, dispatch.name(), dispatch.sequence()));
        if is_enough(&events, &names) {
            break;
        }
    }
    events
}

/// The same, read as far as the library does.
#[allow(dead_code, reason = "not every bench needs it")]
pub(crate) fn dispatches() -> Vec<Dispatch> {
    events().into_iter().map(|json| Dispatch::from_json(json).expect("an event")).collect()
}

/// The mean size of some data.
#[allow(dead_code, reason = "as above")]
pub(crate) fn mean(sizes: impl ExactSizeIterator<Item = usize>) -> usize {
    let count = sizes.len();
    sizes.sum::<usize>() / count.max(1)
}
