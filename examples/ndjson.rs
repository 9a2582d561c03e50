//! Writes one event a line: `cargo run --example ndjson | jq -c 'select(.t == "MESSAGE_CREATE") |
//! .d.content'`. When no event arrives for a while, it returns the memory that a burst has left
//! behind to the operating system.

mod common;
#[path = "common/memory.rs"]
mod memory;

use std::io::{self, ErrorKind, StdoutLock, Write};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use threadcord::{Error, Event, Events, Intents, ShardManager};

/// Longer than the 2 s after which an idle shard frees its own buffers.
const QUIET: Duration = Duration::from_secs(5);

fn main() -> Result<(), Error> {
    let intents = Intents::default() | Intents::MESSAGE_CONTENT;
    let manager = ShardManager::start(common::config(intents)?)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut events = manager.events();
    while let Some(event) = next(&mut events) {
        // Flushes when no event is waiting; under load, the buffer combines many lines in a write.
        let is_last = events.receiver().is_empty();
        let written =
            write(&mut out, &event).and_then(|()| if is_last { out.flush() } else { Ok(()) });
        match written {
            Ok(()) => {}
            // The reader has closed the pipe.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(source) => {
                return Err(Error::Io {
                    what: "a line of output",
                    source,
                });
            }
        }
    }
    // The stream has ended: `run` says why.
    manager.run(1, |_, _| {})
}

fn next(events: &mut Events) -> Option<Event> {
    match events.recv_timeout(QUIET) {
        Err(RecvTimeoutError::Timeout) => {
            memory::give_back();
            events.next()
        }
        next => next.ok(),
    }
}

fn write(out: &mut io::BufWriter<StdoutLock<'_>>, event: &Event) -> io::Result<()> {
    let Some(dispatch) = event.dispatch() else {
        return Ok(());
    };
    let (number, total) = event.shard().into();
    let name = serde_json::to_string(dispatch.name())?;
    write!(
        out,
        r#"{{"shard":[{number},{total}],"s":{},"t":{name},"d":"#,
        dispatch.sequence()
    )?;

    // JSON may have line breaks between its tokens, where spaces mean the same; inside strings it
    // never has any.
    for (at, part) in dispatch
        .data()
        .split(|byte| matches!(byte, b'\n' | b'\r'))
        .enumerate()
    {
        out.write_all(if at == 0 { b"" } else { b" " })?;
        out.write_all(part)?;
    }
    out.write_all(b"}\n")
}
