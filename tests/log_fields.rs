//! Log lines about a shard have fields besides their text.

mod common;

use std::collections::BTreeMap;

use common::{PATIENCE, config, counters_of, eventually, gateway, ready};
use log::kv::{self, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};
use parking_lot::Mutex;
use threadcord::sim::Fault;
use threadcord::{EventFilter, Intents, ShardId};

struct Line {
    text: String,
    fields: BTreeMap<String, String>,
}

struct Lines(Mutex<Vec<Line>>);

static LINES: Lines = Lines(Mutex::new(Vec::new()));

struct Fields(BTreeMap<String, String>);

impl<'kvs> VisitSource<'kvs> for Fields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.0.insert(key.to_string(), value.to_string());
        Ok(())
    }
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("threadcord")
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut fields = Fields(BTreeMap::new());
            record.key_values().visit(&mut fields).unwrap();
            self.0.lock().push(Line {
                text: record.args().to_string(),
                fields: fields.0,
            });
        }
    }

    fn flush(&self) {}
}

/// The field of the last line with this text.
fn field(text: &str, name: &str) -> Option<String> {
    let lines = LINES.0.lock();
    let line = lines.iter().rfind(|line| line.text == text);
    line?.fields.get(name).cloned()
}

#[test]
fn lines_have_the_shard_the_session_and_the_reason_as_fields() {
    log::set_logger(&LINES).unwrap();
    log::set_max_level(LevelFilter::Debug);
    let gateway = gateway().guilds(1).start().unwrap();
    let mut bot = config(&gateway).events(
        EventFilter::only(["TYPING_START", "GUILD_BAN_ADD", "MESSAGE_POLL_VOTE_ADD"]).unwrap(),
    );
    bot.shard.intents = Intents::GUILDS | Intents::GUILD_MESSAGE_TYPING;
    let manager = ready(bot);
    let session = manager.handle().shard(ShardId::ONE).unwrap().session();
    let session = session.unwrap().id;
    gateway.inject(ShardId::ONE, Fault::Cut);
    eventually("it resumes", || {
        counters_of(&manager, ShardId::ONE).resumes == 1
    });
    manager.wait_ready(PATIENCE).unwrap();
    manager.close();

    assert_eq!(field("shard 0/1: ready", "session"), Some(session.clone()));
    assert_eq!(field("shard 0/1: resumed", "session"), Some(session));
    let stopped = "shard 0/1: stopped: closed on request";
    let reason = field(stopped, "reason");
    assert_eq!(reason.as_deref(), Some("closed on request"));

    let lines = LINES.0.lock();
    let cut = lines.iter().filter(|line| {
        let reason = line.fields.get("reason");
        reason.is_some_and(|reason| reason == "the connection was cut")
    });
    assert_eq!(cut.count(), 1);
    let of_shard: Vec<_> = lines
        .iter()
        .filter(|line| line.text.starts_with("shard "))
        .collect();
    assert!(of_shard.len() > 10);
    for line in of_shard {
        assert_eq!(
            line.fields.get("shard").map(String::as_str),
            Some("0/1"),
            "{}",
            line.text
        );
    }

    let missed: Vec<_> = lines
        .iter()
        .filter(|line| line.text.starts_with("the event filter"))
        .map(|line| &*line.text)
        .collect();
    assert_eq!(
        missed,
        [
            "the event filter names GUILD_BAN_ADD, which needs the intent GUILD_MODERATION: \
             Discord will not send it",
            "the event filter names MESSAGE_POLL_VOTE_ADD, which needs the intent \
             GUILD_MESSAGE_POLLS or DIRECT_MESSAGE_POLLS: Discord will not send it",
        ]
    );
}
