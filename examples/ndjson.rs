//! Writes one event a line: `cargo run --example ndjson | jq -c 'select(.t == "MESSAGE_CREATE") |
//! .d.content'`. When nothing comes for a while, what a burst has left behind goes back to the
//! operating system.

mod common;
#[path = "common/memory.rs"]
mod memory;

use std::io::{self, ErrorKind, StdoutLock, Write};
use std::time::Duration;

use crossbeam_channel::RecvTimeoutError;
use threadcord::{Error, Event, Events, Intents, ShardManager};

/// Longer than it takes a shard to give its own buffers back, which is 2 s.
const QUIET: Duration = Duration::from_secs(5);

fn main() -> Result<(), Error> {
    let intents = Intents::default() | Intents::MESSAGE_CONTENT;
    let manager = ShardManager::start(common::config(intents)?)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut events = manager.events();
    while let Some(event) = next(&mut events) {
        // What is there goes out at once; the buffer makes one write of many when there is much.
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

    // JSON may have line ends between its tokens, where blanks are as good; within texts it never
    // has.
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
